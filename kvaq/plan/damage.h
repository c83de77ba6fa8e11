#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kvaq/plan/damage_curve.h"
#include "kvaq/plan/plan.h"
#include "kvaq/stats/model_stats.h"
#include "kvaq/stats/transform_fit.h"

namespace kvaq {

/// Noise that a codec puts on one head, from the sample tiles of the statistics (e = x - decode(encode(x))):
///   keys    mean over tokens of e^T S_q e, S_q = sum over the group's query heads of E[q q^T]: the mean square error of the
///           unscaled logits q^T k, summed over the query heads
///   values  mean over tokens of |e|^2
[[nodiscard]] double codec_noise(const HeadStats& head, Side side, const CodecSpec& spec, size_t n_sample_tiles);

/// What the planner chooses from.
enum class CodecFamily {
    kTransform,  ///< fitted bases, of keys matrices and sorted ones, unequal bits per channel, gains (kvaq/quant/transform.h), and -lm codecs, which need no tables
    kTrellis,    ///< the same with trellis codes instead of codebooks (kvaq/quant/trellis.h)
    kAffine,     ///< candidate_codecs(): nothing fitted
};
[[nodiscard]] std::vector<CodecSpec> candidate_codecs();

/// How a layer's measured damage is split over its KV heads.
enum class HeadWeights {
    kLogits,  ///< by codec_noise
    kOutput,  ///< by codec_noise times the head's mean weight at the layer's output, W_O and attention mass counted
              ///< (kvaq/stats/output_metric.h); measured, and worse: docs/architecture.md
};

/// One (layer, side, KV head) and all the ways to store it.
struct DamageSlot {
    size_t layer = 0;  ///< index in ModelStats::layers
    Side side = Side::kKey;
    size_t head = 0;
    double share = 0;  ///< of its side's damage; they sum to 1 over a side
    std::vector<CodecSpec> codecs;
    std::vector<size_t> bytes;        ///< packed_bytes of a tile, by codec
    std::vector<size_t> table_bytes;  ///< of the codec's bases and codebooks, once for all tiles
    std::vector<double> noise;        ///< of the codec / of the probe's codec, by codec
};

/// Predicts the KL of a plan from what calibration measured.
///   damage(slot, codec) = share(slot) * G_side(noise(codec) / noise(probe codec))
///   share(slot)         = KL that the probe of its layer and side added, split over heads by noise; normalized over the side
///   G_side              = DamageCurve through the joint probes: all layers' keys (values) at 1, 2, 3, 4 bits together
///   KL                  = floor + L(n_ctx) W(window) X(sum of damages),  X through the joint probes of both sides together, W through those with a window
/// The probes say where it hurts, the joint probes how much: layers' damages do not add up, and do not shrink with noise as theory says.
/// Without joint probes G and X are straight lines, and predictions too low by several times.
class DamageModel {
  public:
    /// Throws Error kInvalidArgument when the statistics hold no probes or no sample tiles.
    DamageModel(const ModelStats& stats, CodecFamily family, HeadWeights weights = HeadWeights::kLogits);

    [[nodiscard]] const std::vector<DamageSlot>& slots() const noexcept {
        return slots_;
    }  ///< [layer][side][head] flattened
    [[nodiscard]] const ModelStats& stats() const noexcept { return stats_; }
    [[nodiscard]] CodecFamily family() const noexcept { return family_; }
    [[nodiscard]] double damage(const DamageSlot& slot, size_t codec) const noexcept;
    /// KL that eval would measure on the second halves of chunks of n_ctx tokens, of a plan with that window whose slots'
    /// damages sum to `sum`.
    [[nodiscard]] double predict(double sum, int32_t window, size_t n_ctx) const noexcept {
        return stats_.joint_floor + length_factor(n_ctx) * window_factor(window) * cross_(sum);
    }
    /// How much larger damage is at n_ctx tokens than in the joint probes, from the length probes: a straight line in
    /// log n_ctx between those measured, level outside them.
    [[nodiscard]] double length_factor(size_t n_ctx) const noexcept;
    /// What is left of the damage when the newest `window` tokens stay in f16, from the joint probes (a straight line in the window between those
    /// measured; beyond the last one, nothing more is gained).
    [[nodiscard]] double window_factor(int32_t window) const noexcept;
    /// The windows that were measured, 0 first.
    [[nodiscard]] std::vector<int32_t> windows() const;
    /// Multiplies the share of every slot of a layer and side: how a measurement of a plan corrects the model. Shares are not normalized again.
    void scale_share(size_t layer, Side side, double factor) noexcept;

  private:
    void set_shares();
    void set_curves(const std::vector<FittedTransform>& fits);

    const ModelStats& stats_;
    CodecFamily family_;
    std::vector<DamageSlot> slots_;
    DamageCurve key_curve_, value_curve_, cross_;
    std::vector<std::pair<double, double>> length_factors_;                ///< (log n_ctx, factor), rising n_ctx
    std::vector<std::pair<int32_t, double>> window_factors_ = {{0, 1.0}};  ///< rising windows, falling factors
};

}  // namespace kvaq
