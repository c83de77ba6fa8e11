#include "kvaq/quant/gaussian_codebook.h"

#include <cmath>
#include <numbers>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double below(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

}  // namespace

std::vector<int8_t> gaussian_codebook(unsigned bits) {
    KVAQ_CHECK(bits >= 1 && bits <= 6);
    const size_t n = size_t{1} << bits;
    std::vector<double> level(n);
    for (size_t k = 0; k < n; ++k)
        level[k] = 3 * (2 * static_cast<double>(k) + 1 - static_cast<double>(n)) / static_cast<double>(n);
    for (int round = 0; round < 5000; ++round) {
        double moved = 0;
        for (size_t k = 0; k < n; ++k) {
            const double low = k == 0 ? -20.0 : (level[k - 1] + level[k]) / 2;
            const double high = k + 1 == n ? 20.0 : (level[k] + level[k + 1]) / 2;
            const double mean = (density(low) - density(high)) / (below(high) - below(low));  // of the part between
            moved = std::max(moved, std::abs(mean - level[k]));
            level[k] = mean;
        }
        if (moved < 1e-7) break;
    }
    std::vector<int8_t> out;
    for (const double x : level)
        out.push_back(static_cast<int8_t>(std::lround(x * static_cast<double>(kLevelsPerSigma))));
    return out;
}

std::shared_ptr<const TransformFit> gaussian_fit(Side side, size_t dim) {
    auto fit = std::make_shared<TransformFit>();
    fit->side = side;
    fit->dim = dim;
    fit->basis = TransformBasis::kHadamard;
    fit->scale.assign(dim, 1.0F / kLevelsPerSigma);
    fit->offset.assign(dim, 0.0F);
    static const auto codebooks = [] {
        decltype(TransformFit::levels) all;
        for (unsigned b = 1; b < all.size(); ++b) all[b] = gaussian_codebook(b);
        return all;
    }();
    fit->levels = codebooks;
    return fit;
}

CodecSpec gaussian_codec(Side side, size_t dim, CodeBits bits, TransformCodes codes) {
    KVAQ_CHECK(bits != CodeBits::kTernary);
    CodecSpec spec;
    if (bits == CodeBits::k16) return spec;
    const size_t unit = transform_unit(side);
    spec.transform = make_transform_codec(
        gaussian_fit(side, dim), std::vector<uint8_t>((dim + unit - 1) / unit, static_cast<uint8_t>(bits)), codes);
    return spec;
}

}  // namespace kvaq
