// Trains the tables of kvaq/quant/trellis.h and prints kvaq/quant/trellis_tables.cc. On a standard normal source of its own, in float:
// starts from Ungerboeck's trellis codes over a union alphabet of 2^(bits + 1) levels, then Lloyd's rule: encode, and put every window's level at the mean of the
// values that it stands for. Deterministic; about two minutes.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kvaq/quant/trellis.h"

namespace {

constexpr double kSigma = 32;
constexpr size_t kCells = 8000;
constexpr int kRounds = 40;

/// Parity-check polynomials (h1, h0) of Ungerboeck's one-dimensional codes with 128, 64, 32, 16, 8, 4 states (1982, table I), by bits.
constexpr std::array<std::array<unsigned, 2>, 7> kParity = {
    {{0, 0}, {0126, 0235}, {024, 0103}, {010, 045}, {04, 023}, {04, 013}, {02, 05}}};

double normal_quantile(double p) {
    double low = -8;
    double high = 8;
    for (int i = 0; i < 60; ++i) {
        const double middle = (low + high) / 2;
        (std::erfc(-middle / std::sqrt(2.0)) / 2 < p ? low : high) = middle;
    }
    return low;
}

std::array<float, 256> start(unsigned bits) {
    std::array<float, 256> levels;
    const double n = std::exp2(bits + 1);
    for (unsigned window = 0; window < 256; ++window) {
        const unsigned code = window & ((1U << bits) - 1U);
        const unsigned coded = (code & 1U) | (window >> bits << 1U);  // last bits, newest lowest
        const unsigned z0 = static_cast<unsigned>(std::popcount(coded & kParity[bits][0])) & 1U;
        const unsigned z1 = static_cast<unsigned>(std::popcount(coded & kParity[bits][1])) & 1U;
        const unsigned at = 4 * (code / 2) + z0 + 2 * z1;
        levels[window] = static_cast<float>(kSigma * 1.1 * normal_quantile((at + 0.5) / n));
    }
    return levels;
}

std::vector<float> source(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<float> x(kCells * kvaq::kTrellisCell);
    // Box and Muller: std::normal_distribution differs between libraries.
    for (size_t i = 0; i < x.size(); i += 2) {
        const double a = (static_cast<double>(random() >> 11) + 0.5) / 9007199254740992.0;
        const double b = static_cast<double>(random() >> 11) / 9007199254740992.0;
        const double r = kSigma * std::sqrt(-2 * std::log(a));
        x[i] = static_cast<float>(r * std::cos(6.283185307179586 * b));
        x[i + 1] = static_cast<float>(r * std::sin(6.283185307179586 * b));
    }
    return x;
}

/// Mean squared error in sigma^2; sums and counts of the values of every window.
double encode_all(unsigned bits, const std::array<float, 256>& levels, const std::vector<float>& x,
                  std::array<double, 256>& sum, std::array<double, 256>& count) {
    sum.fill(0);
    count.fill(0);
    double error = 0;
    std::array<uint8_t, kvaq::kTrellisCell> codes;
    for (size_t cell = 0; cell < x.size(); cell += codes.size()) {
        kvaq::internal::trellis_encode_with(bits, levels, &x[cell], codes.data());
        for (size_t i = 0; i < codes.size(); ++i) {
            const uint8_t window = kvaq::trellis_window(bits, codes.data(), i);
            const double e = static_cast<double>(x[cell + i]) - static_cast<double>(levels[window]);
            error += e * e;
            sum[window] += static_cast<double>(x[cell + i]);
            count[window] += 1;
        }
    }
    return error / static_cast<double>(x.size()) / (kSigma * kSigma);
}

/// Mean squared error in steps^2 by |x| in bins of 8 steps, the last one also for what lies beyond.
std::array<double, kvaq::kTrellisErrorBins> errors_by_size(unsigned bits, const std::array<float, 256>& levels,
                                                           const std::vector<float>& x) {
    std::array<double, kvaq::kTrellisErrorBins> sum = {};
    std::array<double, kvaq::kTrellisErrorBins> count = {};
    std::array<uint8_t, kvaq::kTrellisCell> codes;
    for (size_t cell = 0; cell < x.size(); cell += codes.size()) {
        kvaq::internal::trellis_encode_with(bits, levels, &x[cell], codes.data());
        for (size_t i = 0; i < codes.size(); ++i) {
            const float level = levels[kvaq::trellis_window(bits, codes.data(), i)];
            const double e = static_cast<double>(x[cell + i]) - static_cast<double>(level);
            const auto bin =
                std::min(static_cast<size_t>(std::fabs(x[cell + i]) / kvaq::kTrellisErrorStep), sum.size() - 1);
            if (std::fabs(x[cell + i]) >= 128.0F) continue;
            sum[bin] += e * e;
            count[bin] += 1;
        }
    }
    for (size_t i = 0; i < sum.size(); ++i) sum[i] /= std::max(count[i], 1.0);
    return sum;
}

}  // namespace

int main() {
    const std::vector<float> x = source(1);
    const std::vector<float> test = source(2);
    std::printf("// Printed by bench/trellis_tables. dB on another sample of the source:");
    std::array<std::array<int8_t, 256>, 7> tables = {};
    std::array<std::array<double, kvaq::kTrellisErrorBins>, 7> errors = {};
    std::array<double, 256> sum;
    std::array<double, 256> count;
    for (unsigned bits = 1; bits <= kvaq::kTrellisMostBits; ++bits) {
        std::array<float, 256> levels = start(bits);
        for (int round = 0; round < kRounds; ++round) {
            encode_all(bits, levels, x, sum, count);
            for (size_t w = 0; w < 256; ++w) {
                if (count[w] >= 8) levels[w] = static_cast<float>(sum[w] / count[w]);
            }
        }
        std::array<float, 256> rounded;
        for (size_t w = 0; w < 256; ++w) {
            tables[bits][w] = static_cast<int8_t>(std::clamp(std::lround(levels[w]), -127L, 127L));
            rounded[w] = static_cast<float>(tables[bits][w]);
        }
        std::printf(" %.2f", -10 * std::log10(encode_all(bits, rounded, test, sum, count)));
        errors[bits] = errors_by_size(bits, rounded, test);
    }
    std::printf(
        "\n#include \"kvaq/quant/trellis.h\"\n\nnamespace kvaq {\n\n"
        "const std::array<int8_t, 256>& trellis_levels(unsigned bits) noexcept {\n"
        "    // clang-format off\n    static constexpr std::array<std::array<int8_t, 256>, kTrellisMostBits> kTables = "
        "{{\n");
    for (unsigned bits = 1; bits <= kvaq::kTrellisMostBits; ++bits) {
        std::printf("        {");
        for (size_t w = 0; w < 256; ++w)
            std::printf("%s%d", w == 0 ? "" : w % 32 == 0 ? ",\n         " : ", ", tables[bits][w]);
        std::printf("},\n");
    }
    std::printf(
        "    }};\n    // clang-format on\n    return kTables[bits - 1];\n}\n\n"
        "const std::array<float, kTrellisErrorBins>& trellis_errors(unsigned bits) noexcept {\n"
        "    // clang-format off\n"
        "    static constexpr std::array<std::array<float, kTrellisErrorBins>, kTrellisMostBits> kErrors = {{\n");
    for (unsigned bits = 1; bits <= kvaq::kTrellisMostBits; ++bits) {
        std::printf("        {");
        for (size_t i = 0; i < kvaq::kTrellisErrorBins; ++i)
            std::printf("%s%.2fF", i == 0 ? "" : ", ", errors[bits][i]);
        std::printf("},\n");
    }
    std::printf("    }};\n    // clang-format on\n    return kErrors[bits - 1];\n}\n\n}  // namespace kvaq\n");
    return 0;
}
