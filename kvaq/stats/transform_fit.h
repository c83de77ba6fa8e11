#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "kvaq/quant/transform.h"
#include "kvaq/stats/model_stats.h"

namespace kvaq {

/// A transform for one (layer, side, KV head) and what every channel costs at every number of bits.
struct FittedTransform {
    std::shared_ptr<const TransformFit> fit;
    /// [dim] by bits 0..6 and 8: mean over the sample tokens of w_i (z_i - z^_i)^2, w_i = (U M U^T)_ii; the sum over the channels is the
    /// noise that codec_noise() measures (kvaq/plan/damage.h) but for products of different channels' errors.
    std::vector<std::array<double, 9>> cost;
    std::vector<std::array<double, 9>> trellis_cost;  ///< the same with trellis codes (0 and 8 bits alike)
};

/// What keys are turned by.
enum class KeyBasis {
    kEigen,   ///< dim^2 bytes a head
    kSorted,  ///< 2 dim bytes: the model's own channels, by what an error in them costs. No correlations, but most of the gain, where a matrix costs too much
};

/// Fits the transform codec.
///   Metric M of an error e in the model's basis, e^T M e: keys, the second moment of the group's queries; values, the identity.
///     (HeadStats::key_metric as M predicts better on the calibration text and is worse on others: docs/architecture.md.)
///   Basis of keys: orthonormal U that minimizes sum_i log((U M U^T)_ii (U C U^T)_ii), C the centred covariance: the product of the
///     channels' costs is what reverse water-filling pays for. Found by Jacobi rotations of pairs of channels from the
///     eigenvectors of C. It is kept orthonormal so that one int8 matrix serves both ways. The channels of a unit are then mixed by a
///     Hadamard matrix: where channels are coded one by one, tokens that resemble each other get the same error, and attention does
///     not average it out; mixed, every channel's error is dithered by the others (docs/architecture.md has the numbers).
///     KeyBasis::kSorted: TransformBasis::kSorted by falling M_ii C_ii instead.
///   Basis of values: the Hadamard matrix itself. Mixing within units of an eigenbasis was worse; over the whole head nothing of the
///     eigenbasis is left.
///   Offset: keys, their mean. Values, none: tokens that attention rests on (delimiters, sinks) have values near zero, and must keep
///     errors in proportion (KL .038 with the mean taken out, .020 without).
///   Scale: of z, with every token divided by its gain (the root mean square of its z_i / sigma_i).
///   Codebooks: Lloyd-Max on the samples of all channels together, every token by its gain (Max 1960, Lloyd 1982).
/// Deterministic. Needs sample tiles (n_sample_tiles > 0).
[[nodiscard]] FittedTransform fit_transform(const HeadStats& head, Side side, size_t n_sample_tiles,
                                            KeyBasis basis = KeyBasis::kEigen);

/// Other bases to fit, for measuring what they are worth (bench/basis_trials.cc).
struct FitTrial {
    enum class Basis {
        kChosen,    ///< what the codec is: see fit_transform
        kHadamard,  ///< of keys: the Hadamard matrix, nothing fitted but the mean and the channels' scales
        kOutput,  ///< an eigenbasis for M = HeadStats::key_metric, value_metric: what errors do to the layer's output, by W_O and the attention on the token
    };
    Basis keys = Basis::kChosen;
    Basis values = Basis::kChosen;
};
/// From the next fit on, in the whole process. Not thread-safe.
void set_fit_trial(const FitTrial& trial) noexcept;

/// fit_transform of every head, [layer][side: K, V][KV head] flattened, by all processors. Throws Error kInvalidArgument when the statistics hold no
/// sample tiles.
[[nodiscard]] std::vector<FittedTransform> fit_all(const ModelStats& stats, KeyBasis keys = KeyBasis::kEigen);
/// The same of keys alone, with sorted bases: [layer][KV head] flattened.
[[nodiscard]] std::vector<FittedTransform> fit_sorted_keys(const ModelStats& stats);

/// Steps of channels of 8 bits are wider by this: they reach 6 standard deviations instead of 4. Such channels are few, decide most of a score, and have steps to
/// spare, but no gain that suits a token's other channels helps where they are cut off (tokens unlike all of the calibration text: docs/architecture.md).
inline constexpr float kWideStep = 1.5F;

/// The codec of a rung: the fit's, but for the steps of channels of 8 bits.
[[nodiscard]] std::shared_ptr<const TransformCodec> fitted_codec(const FittedTransform& fitted,
                                                                 std::vector<uint8_t> unit_bits, TransformCodes codes);

/// The same of many rungs of one fit: those with equally many channels of 8 bits share one copy of it.
class FittedCodecs {
  public:
    explicit FittedCodecs(const FittedTransform& fitted) : fits_({fitted.fit}) {}
    [[nodiscard]] std::shared_ptr<const TransformCodec> codec(std::vector<uint8_t> unit_bits, TransformCodes codes);

  private:
    std::vector<std::shared_ptr<const TransformFit>> fits_;  ///< by units of 8 bits; null: not made yet
};

/// What probes are measured with (kvaq/eval/calibrate.h); part of the statistics' schema.
inline constexpr TransformCodes kProbeCodes = TransformCodes::kTrellis;

/// One rung of a head's ladder: bits per unit, never rising, and their cost.
struct TransformChoice {
    std::vector<uint8_t> unit_bits;
    double cost = 0;
};

/// The highest rung of at most that many mean bits (the lowest one if there is none).
[[nodiscard]] TransformChoice rung_at(const FittedTransform& fitted, double bits,
                                      TransformCodes codes = TransformCodes::kCodebook);

/// From no bits at all to 8 everywhere, each rung the cheapest step in cost per bit from the one before (the convex hull of every
/// unit's cost over bits, in the order of its slopes: reverse water-filling on measured costs); rungs are at least 1/16 bit apart.
[[nodiscard]] std::vector<TransformChoice> transform_ladder(const FittedTransform& fitted,
                                                            TransformCodes codes = TransformCodes::kCodebook);

}  // namespace kvaq
