#pragma once

// For tests: transform codecs that need no calibration data.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "kvaq/quant/codec_spec.h"
#include "kvaq/quant/transform.h"

namespace kvaq {

/// A random orthonormal basis (Gram-Schmidt), scales that fall from channel to channel, offsets, Gaussian-like codebooks.
inline std::shared_ptr<const TransformFit> sample_fit(Side side, size_t dim, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::vector<std::vector<double>> rows(dim, std::vector<double>(dim));
    for (size_t i = 0; i < dim; ++i) {
        for (double& x : rows[i]) x = normal(random);
        for (size_t k = 0; k <= i; ++k) {  // the last round normalizes
            double dot = 0;
            for (size_t j = 0; j < dim; ++j) dot += rows[i][j] * rows[k][j];
            for (size_t j = 0; j < dim; ++j)
                rows[i][j] = k < i ? rows[i][j] - dot * rows[k][j] : rows[i][j] / std::sqrt(dot);
        }
    }
    auto fit = std::make_shared<TransformFit>();
    fit->side = side;
    fit->dim = dim;
    fit->matrix.resize(dim * dim);
    for (size_t i = 0; i < dim; ++i) {
        double largest = 0;
        for (const double x : rows[i]) largest = std::max(largest, std::fabs(x));
        fit->row_scale.push_back(static_cast<float>(largest / 127));
        for (size_t j = 0; j < dim; ++j) {
            fit->matrix[side == Side::kKey ? j * dim + i : i * dim + j] =
                static_cast<int8_t>(std::lround(rows[i][j] / largest * 127));
        }
        fit->scale.push_back(static_cast<float>(1.5 / (1.0 + 0.05 * static_cast<double>(i))) / kLevelsPerSigma);
        fit->offset.push_back(static_cast<float>(0.3 * normal(random)));
    }
    for (size_t b = 1; b < fit->levels.size(); ++b) {
        const int n = 1 << b;
        for (int k = 0; k < n; ++k) {
            const double u = (2.0 * k + 1 - n) / n;
            fit->levels[b].push_back(static_cast<int8_t>(std::lround(110 * u * (0.55 + 0.45 * std::fabs(u)))));
        }
    }
    return fit;
}

/// The fit with a basis that needs no matrix, or as it is.
inline std::shared_ptr<const TransformFit> with_basis(TransformFit fit, TransformBasis basis) {
    fit.basis = basis;
    if (basis != TransformBasis::kMatrix) {
        fit.matrix.clear();
        fit.row_scale.clear();
    }
    if (basis == TransformBasis::kSorted) {
        fit.order.resize(fit.dim);
        std::iota(fit.order.begin(), fit.order.end(), uint16_t{0});
        std::shuffle(fit.order.begin(), fit.order.end(), std::mt19937(static_cast<unsigned>(fit.dim)));
    }
    return std::make_shared<const TransformFit>(std::move(fit));
}

/// Bits that fall from 8 (or `first`) to 0 over the channels, every width among them where there are enough units.
/// The basis of TransformBasis{seed % 3}; two seeds of four have trellis codes.
inline CodecSpec sample_transform(Side side, size_t dim, unsigned seed, size_t first = 0) {
    constexpr std::array<uint8_t, 8> kFalling = {8, 6, 5, 4, 3, 2, 1, 0};
    const size_t unit = transform_unit(side);
    std::vector<uint8_t> bits;
    for (size_t i = 0; i < (dim + unit - 1) / unit; ++i) bits.push_back(kFalling[std::min<size_t>(i + first, 7)]);
    std::shared_ptr<const TransformFit> fit = sample_fit(side, dim, seed);
    fit = with_basis(*fit, static_cast<TransformBasis>(seed % 3));
    CodecSpec spec;
    spec.transform = make_transform_codec(std::move(fit), std::move(bits),
                                          seed % 4 >= 2 ? TransformCodes::kTrellis : TransformCodes::kCodebook);
    return spec;
}

}  // namespace kvaq
