#include "kvaq/plan/budget_text.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

/// Reads a positive number; `rest` becomes what follows it. NaN if there is none.
double leading_number(const std::string& text, std::string& rest) {
    if (text.empty() || (std::isdigit(static_cast<unsigned char>(text[0])) == 0 && text[0] != '.')) return std::nan("");
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    rest = end;
    return std::isfinite(value) && value > 0 ? value : std::nan("");
}

[[noreturn]] void bad_budget(const std::string& text) {
    throw Error(ErrorCode::kInvalidArgument, "unreadable budget", "3.25bits, 4500B/token or 512MiB@32768",
                "'" + text + "'");
}

}  // namespace

namespace {

double bytes_of(const std::string& text) {
    std::string unit;
    const double value = leading_number(text, unit);
    double factor = 0;
    constexpr double kTooFew = 1 << 20;  // "--memory 64" hardly means 64 bytes
    if (!std::isnan(value) && unit.empty() && value < kTooFew) {
        throw Error(ErrorCode::kInvalidArgument, "a size without its unit", "a number with B, KiB, MiB, GiB or TiB",
                    "'" + text + "'");
    }
    if (unit.empty() || unit == "B") factor = 1;
    if (unit == "k" || unit == "K" || unit == "KB" || unit == "KiB") factor = 1024.0;
    if (unit == "M" || unit == "MB" || unit == "MiB") factor = 1024.0 * 1024;
    if (unit == "G" || unit == "GB" || unit == "GiB") factor = 1024.0 * 1024 * 1024;
    if (unit == "T" || unit == "TB" || unit == "TiB") factor = 1024.0 * 1024 * 1024 * 1024;
    if (std::isnan(value) || factor == 0 || value * factor > 1e18) {
        throw Error(ErrorCode::kInvalidArgument, "unreadable size", "a number with B, KiB, MiB, GiB or TiB",
                    "'" + text + "'");
    }
    return value * factor;
}

}  // namespace

size_t parse_bytes(const std::string& text) { return static_cast<size_t>(bytes_of(text)); }

size_t parse_rewind(const std::string& text) {
    size_t n = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    if (text.empty() || error != std::errc() || end != text.data() + text.size() || n > kMostRewind) {
        throw Error(ErrorCode::kInvalidArgument, "not a number of tokens (--kv-rewind, KVAQ_KV_REWIND)",
                    "0 to " + std::to_string(kMostRewind) + ", e.g. 512", "'" + text + "'");
    }
    return n;
}

Budget parse_budget(const std::string& text) {
    std::string rest;
    const double value = leading_number(text, rest);
    if (std::isnan(value)) bad_budget(text);
    if (const size_t at = rest.find("bit"); at == 0 && rest.find('@') != std::string::npos) {
        throw Error(ErrorCode::kInvalidArgument, "bits are counted at the context that -c says",
                    "a budget such as 3.25bits, and -c for the context", "'" + text + "'");
    }
    if (rest == "bits" || rest == "bit") return {.unit = Budget::Unit::kEffectiveBits, .amount = value};
    if (rest.rfind("bit", 0) == 0) bad_budget(text);
    if (const size_t slash = text.find("/token"); slash != std::string::npos && slash + 6 == text.size()) {
        return {.unit = Budget::Unit::kBytesPerToken, .amount = bytes_of(text.substr(0, slash))};
    }
    const size_t at = text.find('@');
    if (at == std::string::npos) bad_budget(text);
    std::string tail;
    const double n_tokens = leading_number(text.substr(at + 1), tail);
    if (std::isnan(n_tokens) || !tail.empty() || n_tokens != std::floor(n_tokens) || n_tokens > 1e9) bad_budget(text);
    return {.unit = Budget::Unit::kBytes,
            .amount = static_cast<double>(parse_bytes(text.substr(0, at))),
            .n_tokens = static_cast<size_t>(n_tokens)};
}

}  // namespace kvaq
