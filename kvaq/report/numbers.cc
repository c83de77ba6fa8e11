#include "kvaq/report/numbers.h"

#include <fmt/format.h>

#include <cmath>

namespace kvaq {
namespace {

constexpr const char* kNone = "no number";

Cell cell(std::string text, double value) {
    return std::isfinite(value) ? Cell(std::move(text), value) : Cell(std::move(text));
}

}  // namespace

std::string bits_text(double bits) { return std::isnan(bits) ? kNone : fmt::format("{:.2f}", bits); }

std::string kl_text(double nats) {
    if (std::isnan(nats)) return kNone;
    const double size = std::abs(nats);
    if (size == 0) return "0";
    return size >= 1       ? fmt::format("{:.2f}", nats)
           : size >= 0.001 ? fmt::format("{:.4f}", nats)
                           : fmt::format("{:.2g}", nats);
}

std::string kl_text(double nats, double error) {
    const double size = std::abs(nats);
    std::string text = size >= 1 ? fmt::format("{:.2f}", error) : fmt::format("{:.4f}", error);
    if (std::isnan(error) || size < 0.001 || text.find_first_not_of("0.") == std::string::npos) text = kl_text(error);
    return kl_text(nats) + " ± " + text;
}

std::string bytes_text(double bytes) {
    if (std::isnan(bytes)) return kNone;
    constexpr double kKiB = 1024;
    if (bytes >= 1000 * kKiB * kKiB) return fmt::format("{:.2f} GiB", bytes / (kKiB * kKiB * kKiB));
    if (bytes >= 100 * kKiB) return fmt::format("{:.1f} MiB", bytes / (kKiB * kKiB));
    return bytes >= kKiB ? fmt::format("{:.1f} KiB", bytes / kKiB) : fmt::format("{:.0f} bytes", bytes);
}

std::string percent_text(double share, int digits) {
    return std::isnan(share) ? kNone : fmt::format("{:.{}f} %", 100 * share, digits);
}

std::string context_text(size_t n_tokens) {
    return n_tokens >= 1024 && n_tokens % 1024 == 0 ? fmt::format("{}k", n_tokens / 1024) : std::to_string(n_tokens);
}

std::string short_text(double value) {
    if (std::isnan(value)) return kNone;
    return std::abs(value) >= 100 || value == 0 ? fmt::format("{:.0f}", value) : fmt::format("{:#.3g}", value);
}

Cell bits_cell(double bits) { return cell(bits_text(bits), bits); }
Cell kl_cell(double nats) { return cell(kl_text(nats), nats); }
Cell kl_cell(double nats, double error) { return cell(kl_text(nats, error), nats); }
Cell bytes_cell(double bytes) { return cell(bytes_text(bytes), bytes); }
Cell percent_cell(double share, double error) {
    return cell(std::isnan(share) ? kNone : fmt::format("{:.1f} ± {:.1f} %", 100 * share, 100 * error), share);
}
Cell short_cell(double value) { return cell(short_text(value), value); }
Cell integer_cell(double value) { return cell(std::isnan(value) ? kNone : fmt::format("{:.0f}", value), value); }

std::string list_text(const std::vector<std::string>& items, size_t most) {
    std::string out;
    const size_t n = items.size() > most ? most : items.size();
    for (size_t i = 0; i < n; ++i) out += (i == 0 ? "" : i + 1 == items.size() ? " and " : ", ") + items[i];
    return items.size() > n ? out + fmt::format(" and {} more", items.size() - n) : out;
}

}  // namespace kvaq
