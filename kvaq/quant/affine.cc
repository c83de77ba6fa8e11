#include "kvaq/quant/affine.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

double max_code(CodeBits bits) noexcept { return static_cast<double>(n_levels(bits) - 1); }

// Round half to even for |x| < 2^51 without a library call (this is the inner loop of sealing a tile).
double round_even(double x) noexcept {
    constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
    return (x + kMagic) - kMagic;
}

}  // namespace

float16 round_down_f16(double x) noexcept {
    const float16 y = to_float16(static_cast<float>(x));
    if (static_cast<double>(y) <= x) return y;
    const uint16_t bits = float16_bits(y);  // y > x >= -65504: step one towards -inf in sign-magnitude order
    if ((bits & 0x7FFFU) == 0) return float16_from_bits(0x8001U);
    return float16_from_bits(static_cast<uint16_t>((bits & 0x8000U) != 0 ? bits + 1 : bits - 1));
}
float16 round_up_f16(double x) noexcept { return -round_down_f16(-x); }

AffineParams minmax_params(std::span<const double> group, CodeBits bits) noexcept {
    const auto [low, high] = std::minmax_element(group.begin(), group.end());
    return {.scale = (*high - *low) / max_code(bits), .offset = *low};
}

AffineParams symmetric_params(std::span<const double> group, CodeBits bits) noexcept {
    double largest = 0;
    double sum = 0;
    for (const double x : group) {
        largest = std::max(largest, std::fabs(x));
        sum += std::fabs(x);
    }
    if (bits == CodeBits::k1) {
        const double a = sum / static_cast<double>(group.size());
        return {.scale = 2 * a, .offset = -a};
    }
    if (bits == CodeBits::kTernary) return {.scale = largest, .offset = -largest};
    const double half = static_cast<double>(n_levels(bits) / 2);
    const double alpha = largest / (half - 1);
    return {.scale = alpha, .offset = -half * alpha};
}

double symmetric_offset(CodeBits bits) noexcept {
    if (bits == CodeBits::k1) return -0.5;
    return -static_cast<double>(n_levels(bits) / 2);  // ternary: 3 / 2 = 1
}

AffineParams quanto_params(std::span<const double> group, CodeBits bits) noexcept { return minmax_params(group, bits); }

uint32_t affine_code(double x, const AffineParams& params, CodeBits bits) noexcept {
    if (!(params.scale > 0)) return 0;
    return static_cast<uint32_t>(round_even(std::clamp((x - params.offset) / params.scale, 0.0, max_code(bits))));
}

void hqq_quantize(std::span<const double> x, size_t group_size, CodeBits bits, std::span<AffineParams> params,
                  std::span<uint32_t> codes) {
    constexpr double kP = 0.7;
    constexpr double kBeta = 10;
    constexpr int kRounds = 20;
    const size_t n_groups = x.size() / group_size;
    KVAQ_CHECK(params.size() == n_groups && codes.size() == x.size());
    const double max_v = max_code(bits);
    std::vector<double> s(n_groups), z(n_groups);
    for (size_t g = 0; g < n_groups; ++g) {
        const auto [low, high] = std::minmax_element(x.begin() + static_cast<ptrdiff_t>(g * group_size),
                                                     x.begin() + static_cast<ptrdiff_t>((g + 1) * group_size));
        const double range = *high - *low;
        s[g] = range <= 1e-4 ? 1.0 : std::min(max_v / range, 2e4);
        z[g] = -*low * s[g];
    }
    const auto quantize = [&](size_t i, size_t g) { return round_even(std::clamp(x[i] * s[g] + z[g], 0.0, max_v)); };
    double best = std::numeric_limits<double>::infinity();
    for (int round = 0; round < kRounds; ++round) {
        double error = 0;
        std::vector<double> next(n_groups);
        for (size_t g = 0; g < n_groups; ++g) {
            double sum = 0;
            for (size_t i = g * group_size; i < (g + 1) * group_size; ++i) {
                const double q = quantize(i, g);
                const double r = x[i] - (q - z[g]) / s[g];
                const double magnitude = std::fabs(r);
                const double shrunk =
                    magnitude > 0 ? std::max(magnitude - std::pow(magnitude, kP - 1) / kBeta, 0.0) : 0.0;
                sum += q - (x[i] - std::copysign(shrunk, r)) * s[g];
                error += magnitude;
            }
            next[g] = sum / static_cast<double>(group_size);
        }
        error /= static_cast<double>(x.size());
        z = next;  // as in the authors' loop, z moves before the error it came from is compared: the last step is kept
        if (!(error < best)) break;
        best = error;
    }
    for (size_t g = 0; g < n_groups; ++g) {
        for (size_t i = g * group_size; i < (g + 1) * group_size; ++i) codes[i] = static_cast<uint32_t>(quantize(i, g));
        params[g] = {.scale = 1 / s[g], .offset = -z[g] / s[g]};
    }
}

}  // namespace kvaq
