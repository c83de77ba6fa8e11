#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvaq/base/side.h"
#include "kvaq/stats/model_stats.h"

namespace kvaq {

/// A number per side of one layer.
struct LayerNumbers {
    int32_t layer = 0;
    double key = 0;
    double value = 0;
    [[nodiscard]] double side(Side s) const noexcept { return s == Side::kKey ? key : value; }
};

/// How the singular values of a head fall, sigma_i / sigma_1, over all heads of one side: [channel] quantiles.
struct SpectrumFall {
    std::vector<double> median;
    std::vector<double> low;   ///< tenth part of the heads is below
    std::vector<double> high;  ///< tenth part is above
};

/// Norms and spectra of a cache, from statistics or from an analysis: means over the KV heads of a layer.
struct CacheMeasures {
    std::vector<LayerNumbers> norm;        ///< sqrt(mean over tokens of |k|^2), as `kvaq inspect` prints
    std::vector<LayerNumbers> rank;        ///< effective rank (kvaq/stats/spectrum.h)
    std::vector<LayerNumbers> first_four;  ///< share of the energy in the four largest directions
    SpectrumFall key_fall;
    SpectrumFall value_fall;
    size_t n_heads = 0;
    uint64_t n_tokens = 0;
};

/// One head's singular values, for measures_of_spectra.
struct HeadSpectra {
    std::vector<double> key;  ///< descending
    std::vector<double> value;
};
struct LayerSpectra {
    int32_t layer = 0;
    std::vector<HeadSpectra> heads;
};

/// Singular values are those of X [n_tokens, dim].
[[nodiscard]] CacheMeasures measures_of_spectra(const std::vector<LayerSpectra>& layers, uint64_t n_tokens);
[[nodiscard]] CacheMeasures measures_of(const ModelStats& stats);

}  // namespace kvaq
