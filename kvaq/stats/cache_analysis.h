#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kvaq/base/side.h"
#include "kvaq/stats/model_stats.h"
#include "kvaq/stats/theory.h"

namespace kvaq {

/// Widths of the error study (7 bits are rounded by the same rule but in f64: no codec packs them) and group sizes of the group study.
inline constexpr std::array kStudyBits = {2, 3, 4, 5, 6, 7, 8};
inline constexpr std::array<uint16_t, 3> kStudyGroups = {32, 64, 128};
/// The group study's widths: the paper's K4V2.
inline constexpr int kGroupStudyKeyBits = 4;
inline constexpr int kGroupStudyValueBits = 2;

/// Keys or values of one KV head, X [n_tokens, dim]. Errors are means of squares per element.
struct SideAnalysis {
    double frobenius = 0;             ///< |X|_F over all calibration tokens
    double spectral = 0;              ///< |X|_2
    std::vector<double> spectrum;     ///< singular values, descending
    double rank = 0;                  ///< effective rank (kvaq/stats/spectrum.h)
    double first_four = 0;            ///< share of |X|_F^2 in the four largest; the rest is "from the 5th on"
    double mean_square = 0;           ///< of the sample tiles, as are all errors
    std::vector<double> mse;          ///< per kStudyBits: round to nearest, groups of 64 channels
    std::vector<double> mse_rotated;  ///< the same in the Hadamard basis
    std::vector<double> mse_grouped;  ///< per kStudyGroups: keys 4 bits, values 2
    std::vector<BoundCheck> bounds;   ///< per kStudyBits, one scale for the whole sample
};

struct HeadAnalysis {
    SideAnalysis key;
    SideAnalysis value;
    [[nodiscard]] const SideAnalysis& side(Side s) const noexcept { return s == Side::kKey ? key : value; }
};

struct LayerAnalysis {
    LayerShape shape;
    std::vector<HeadAnalysis> heads;

    /// |X|_F of all heads together; the mean over heads of |X|_2.
    [[nodiscard]] double frobenius(Side side) const noexcept;
    [[nodiscard]] double spectral(Side side) const noexcept;
    /// Mean over heads of member[index].
    [[nodiscard]] double mean(Side side, const std::vector<double> SideAnalysis::*member, size_t index) const;
    [[nodiscard]] double mean(Side side, double SideAnalysis::*member) const;
};

struct CacheAnalysis {
    uint64_t n_tokens = 0;       ///< behind norms and spectra
    size_t n_sample_tokens = 0;  ///< behind errors and bounds, per head
    bool as_cached = true;  ///< keys as the model caches them; false: as plans keep them, all that the statistics hold
    std::vector<LayerAnalysis> layers;
};

/// Everything the paper measures of a cache, from statistics. At most max_tiles sample tiles per head are quantized.
/// n_threads layers at a time; the result does not depend on it. progress(layers done) may come from any of them, one
/// at a time. Throws Error kInvalidArgument when the statistics hold no sample tiles.
[[nodiscard]] CacheAnalysis analyze_cache(const ModelStats& stats, size_t max_tiles, size_t n_threads,
                                          const std::function<void(size_t)>& progress = {});

}  // namespace kvaq
