#include "kvaq/plan/damage.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <map>
#include <thread>

#include "kvaq/base/error.h"
#include "kvaq/quant/gaussian_codebook.h"
#include "kvaq/stats/distortion.h"

namespace kvaq {
namespace {

constexpr size_t kTile = kDefaultTileTokens;
constexpr double kMostNoise = 1.0 + 1e-9;  ///< of a codec to choose, in the probe's: beyond it damage is a guess
constexpr size_t kNoiseTiles = 6;
constexpr std::array<uint8_t, 5> kUnfittedBits = {2, 3, 4, 5, 6};
constexpr double kLeastLength = 0.5;  ///< a length factor beyond these is noise
constexpr double kMostLength = 4.0;
constexpr double kPrior = 0.3;  ///< of the mean over a side, added to every probe: see set_shares()

size_t dim_of(const HeadStats& head, Side side) {
    return side == Side::kKey ? head.key_mean.size() : head.value_mean.size();
}

/// Mean weight of an error at the layer's output against its weight in codec_noise.
double output_weight(const HeadStats& head, Side side) {
    const size_t dim = dim_of(head, side);
    double output = 0;
    double plain = 0;
    for (size_t i = 0; i < dim; ++i) {
        output += (side == Side::kKey ? head.key_metric : head.value_metric)[i * dim + i];
        plain += side == Side::kKey ? head.query_second[i * dim + i] : 1.0;
    }
    return plain > 0 ? output / plain : 0.0;
}

/// The -lm codecs: more noise, but no matrix. Noise on a few tiles, in the unit of the ladder's costs, which know of no search for the best
/// gain (the same rung measured and by its cost gives the ratio).
void add_unfitted(DamageSlot& slot, const HeadStats& head, const FittedTransform& fitted,
                  const std::shared_ptr<const TransformFit>& unfitted, TransformCodes codes) {
    const size_t dim = dim_of(head, slot.side);
    HeadStats few = head;
    const size_t n_tiles =
        std::min(kNoiseTiles, (slot.side == Side::kKey ? head.key_tiles : head.value_tiles).size() / (kTile * dim));
    few.key_tiles.resize(std::min(few.key_tiles.size(), n_tiles * kTile * head.key_mean.size()));
    few.value_tiles.resize(std::min(few.value_tiles.size(), n_tiles * kTile * head.value_mean.size()));
    TransformChoice rung = rung_at(fitted, 3, codes);
    CodecSpec own;
    own.transform = fitted_codec(fitted, rung.unit_bits, codes);
    const double found = codec_noise(few, slot.side, own, n_tiles);
    const double unit = found > 0 ? rung.cost / found : 1.0;
    for (const uint8_t bits : kUnfittedBits) {
        CodecSpec codec;
        codec.transform = make_transform_codec(unfitted, std::vector<uint8_t>(rung.unit_bits.size(), bits), codes);
        slot.noise.push_back(unit * codec_noise(few, slot.side, codec, n_tiles));
        slot.codecs.push_back(std::move(codec));
    }
}

/// Codecs, bytes (sorted: of keys, else null), and noise relative to the probe's; the noise of the probe itself goes into `share`.
void fill_slot(DamageSlot& slot, const ModelStats& stats, CodecFamily family, HeadWeights weights,
               const FittedTransform& fitted, const FittedTransform* sorted,
               const std::shared_ptr<const TransformFit>& unfitted) {
    const HeadStats& head = stats.layers[slot.layer].heads[slot.head];
    const size_t dim = dim_of(head, slot.side);
    const TransformChoice probe = rung_at(fitted, stats.probe_bits, kProbeCodes);
    slot.share = probe.cost;
    if (family == CodecFamily::kAffine) {
        CodecSpec codec_of_probe;
        codec_of_probe.transform = fitted_codec(fitted, probe.unit_bits, kProbeCodes);
        slot.share = codec_noise(head, slot.side, codec_of_probe, stats.n_sample_tiles);
        slot.codecs = candidate_codecs();
        for (const CodecSpec& codec : slot.codecs)
            slot.noise.push_back(codec_noise(head, slot.side, codec, stats.n_sample_tiles));
    } else {
        const TransformCodes codes =
            family == CodecFamily::kTrellis ? TransformCodes::kTrellis : TransformCodes::kCodebook;
        for (const FittedTransform* one : {&fitted, sorted}) {
            if (one == nullptr) continue;
            FittedCodecs fitted_codecs(*one);
            for (TransformChoice& rung : transform_ladder(*one, codes)) {
                if (rung.cost > kMostNoise * probe.cost) continue;  // further than anything was measured
                CodecSpec codec;
                codec.transform = fitted_codecs.codec(std::move(rung.unit_bits), codes);
                slot.codecs.push_back(std::move(codec));
                slot.noise.push_back(rung.cost);
            }
        }
        add_unfitted(slot, head, fitted, unfitted, codes);
    }
    for (const CodecSpec& codec : slot.codecs) {
        slot.bytes.push_back(packed_bytes(codec, slot.side, dim, kTile));
        slot.table_bytes.push_back(codec.transform != nullptr ? codec.transform->fit->bytes() : 0);
    }
    for (double& noise : slot.noise) noise = slot.share > 0 ? noise / slot.share : 0.0;
    if (weights == HeadWeights::kOutput) slot.share *= output_weight(head, slot.side);
}

}  // namespace

double codec_noise(const HeadStats& head, Side side, const CodecSpec& spec, size_t n_sample_tiles) {
    const size_t dim = side == Side::kKey ? head.key_mean.size() : head.value_mean.size();
    const std::vector<float> errors =
        quantization_errors(spec, side, side == Side::kKey ? head.key_tiles : head.value_tiles, dim, kTile);
    const size_t n = n_sample_tiles * kTile;
    KVAQ_CHECK(errors.size() == n * dim);
    double sum = 0;
    if (side == Side::kValue) {
        for (const float e : errors) sum += static_cast<double>(e) * static_cast<double>(e);
        return sum / static_cast<double>(n);
    }
    // sum_t e_t^T S e_t = <S, sum_t e_t e_t^T>
    std::vector<double> moment(dim * dim, 0.0);
    for (size_t t = 0; t < n; ++t) {
        const float* e = &errors[t * dim];
        for (size_t i = 0; i < dim; ++i) {
            for (size_t j = 0; j < dim; ++j) moment[i * dim + j] += static_cast<double>(e[i] * e[j]);
        }
    }
    for (size_t i = 0; i < dim * dim; ++i) sum += moment[i] * head.query_second[i];
    return std::max(0.0, sum / static_cast<double>(n));
}

std::vector<CodecSpec> candidate_codecs() {
    std::vector<CodecSpec> codecs;
    for (const CodeBits bits :
         {CodeBits::k1, CodeBits::k2, CodeBits::k3, CodeBits::k4, CodeBits::k5, CodeBits::k6, CodeBits::k8}) {
        for (const uint16_t group : {uint16_t{32}, uint16_t{64}}) {
            for (const GroupAxis axis : {GroupAxis::kPerToken, GroupAxis::kPerChannel}) {
                for (const Basis basis : {Basis::kIdentity, Basis::kHadamard}) {
                    if (axis == GroupAxis::kPerChannel && basis == Basis::kHadamard) continue;
                    codecs.push_back({.bits = bits, .axis = axis, .group = group, .basis = basis});
                }
            }
        }
    }
    return codecs;
}

DamageModel::DamageModel(const ModelStats& stats, CodecFamily family, HeadWeights weights)
    : stats_(stats), family_(family) {
    if (stats.probe_bits <= 0 || stats.n_sample_tiles == 0) {
        throw Error(ErrorCode::kInvalidArgument, "the statistics hold no measured damage", "probes of every layer",
                    "none", "Calibrate with a longer text and without --no-probes, or use --policy uniform:k4v4-rot");
    }
    bool complete = stats.base_kl >= 0 && stats.joint_floor >= 0;
    for (const LayerStats& layer : stats.layers) complete = complete && layer.probe.complete();
    if (!complete) {
        throw Error(ErrorCode::kInvalidArgument, "the statistics are not complete", "a probe of every layer and side",
                    "fewer", "Run the same kvaq calibrate command again: it goes on where it stopped");
    }
    const std::vector<FittedTransform> fits = fit_all(stats);
    const std::vector<FittedTransform> sorted =
        family == CodecFamily::kAffine ? std::vector<FittedTransform>() : fit_sorted_keys(stats);
    std::vector<const FittedTransform*> sorted_of;  // [slot]
    size_t n_sorted = 0;
    for (size_t l = 0; l < stats.layers.size(); ++l) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            for (size_t h = 0; h < stats.layers[l].heads.size(); ++h) {
                slots_.emplace_back();
                slots_.back().layer = l;
                slots_.back().side = side;
                slots_.back().head = h;
                sorted_of.push_back(side == Side::kKey && !sorted.empty() ? &sorted[n_sorted++] : nullptr);
            }
        }
    }
    KVAQ_CHECK(fits.size() == slots_.size());
    std::map<std::pair<Side, size_t>, std::shared_ptr<const TransformFit>> unfitted;  // one for all heads of a size
    for (const DamageSlot& slot : slots_) {
        const size_t dim = dim_of(stats.layers[slot.layer].heads[slot.head], slot.side);
        if (auto& fit = unfitted[{slot.side, dim}]; fit == nullptr) fit = gaussian_fit(slot.side, dim);
    }
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i = next.fetch_add(1); i < slots_.size(); i = next.fetch_add(1))
            fill_slot(slots_[i], stats, family, weights, fits[i], sorted_of[i],
                      unfitted.at({slots_[i].side,
                                   dim_of(stats.layers[slots_[i].layer].heads[slots_[i].head], slots_[i].side)}));
    };
    {
        std::vector<std::jthread> helpers;
        for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) helpers.emplace_back(work);
        work();
    }
    set_shares();
    set_curves(fits);
}

// A probe errs by about half of a mean layer's damage. Bits taken from a layer that only looked harmless cost far more than bits given to
// one that only looked bad, so all are drawn towards the mean.
void DamageModel::set_shares() {
    double total[2] = {0, 0};
    double mean[2] = {0, 0};
    for (const LayerStats& layer : stats_.layers) {
        mean[0] += std::max(0.0, layer.probe.key_kl) / static_cast<double>(stats_.layers.size());
        mean[1] += std::max(0.0, layer.probe.value_kl) / static_cast<double>(stats_.layers.size());
    }
    size_t next = 0;
    for (const LayerStats& layer : stats_.layers) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const double measured = side == Side::kKey ? layer.probe.key_kl : layer.probe.value_kl;
            const double kl = std::max(kPrior * mean[side == Side::kKey ? 0 : 1] + std::max(0.0, measured), 1e-12);
            double noise = 0;
            for (size_t h = 0; h < layer.heads.size(); ++h) noise += slots_[next + h].share;
            for (size_t h = 0; h < layer.heads.size(); ++h) {
                double& share = slots_[next++].share;
                share = noise > 0 ? kl * share / noise : 0.0;
            }
            total[side == Side::kKey ? 0 : 1] += kl;
        }
    }
    for (DamageSlot& slot : slots_) slot.share /= total[slot.side == Side::kKey ? 0 : 1];
    key_curve_ = DamageCurve({{1.0, total[0]}});
    value_curve_ = DamageCurve({{1.0, total[1]}});
}

void DamageModel::set_curves(const std::vector<FittedTransform>& fits) {
    const double least = 0.1 * stats_.joint_floor + 1e-9;  // below: lost in the floor, no point
    const auto noise_at = [&](Side side, double bits) {
        double noise = 0;
        for (size_t i = 0; i < slots_.size(); ++i) {
            if (slots_[i].side != side) continue;
            const double probe = rung_at(fits[i], stats_.probe_bits, kProbeCodes).cost;
            if (probe > 0) noise += slots_[i].share * rung_at(fits[i], bits, kProbeCodes).cost / probe;
        }
        return noise;
    };
    std::vector<std::pair<double, double>> points[2];
    for (const JointProbe& probe : stats_.joint) {
        const double kl = probe.kl - stats_.joint_floor;
        if (kl < least || probe.window > 0 || (probe.key_bits < 16) == (probe.value_bits < 16)) continue;
        const bool key = probe.key_bits < 16;
        points[key ? 0 : 1].emplace_back(
            noise_at(key ? Side::kKey : Side::kValue, key ? probe.key_bits : probe.value_bits), kl);
    }
    if (!points[0].empty()) key_curve_ = DamageCurve(points[0]);
    if (!points[1].empty()) value_curve_ = DamageCurve(points[1]);
    std::vector<std::pair<double, double>> both;
    for (const JointProbe& probe : stats_.joint) {
        const double kl = probe.kl - stats_.joint_floor;
        if (kl < least || probe.window > 0 || probe.key_bits >= 16 || probe.value_bits >= 16) continue;
        both.emplace_back(
            key_curve_(noise_at(Side::kKey, probe.key_bits)) + value_curve_(noise_at(Side::kValue, probe.value_bits)),
            kl);
    }
    if (!both.empty()) cross_ = DamageCurve(both);
    for (const JointProbe& probe : stats_.joint) {
        if (probe.window <= window_factors_.back().first) continue;
        const auto bare = std::find_if(stats_.joint.begin(), stats_.joint.end(), [&](const JointProbe& p) {
            return p.window == 0 && p.key_bits == probe.key_bits && p.value_bits == probe.value_bits;
        });
        if (bare == stats_.joint.end() || bare->kl - stats_.joint_floor < least) continue;
        const double factor = std::max(0.0, probe.kl - stats_.joint_floor) / (bare->kl - stats_.joint_floor);
        window_factors_.emplace_back(probe.window, std::clamp(factor, 0.1, window_factors_.back().second));
    }
    for (const LengthProbe& probe : stats_.lengths) {
        if (probe.kl < least || probe.short_kl < least) continue;
        if (length_factors_.empty()) length_factors_.emplace_back(std::log(static_cast<double>(probe.short_ctx)), 1.0);
        length_factors_.emplace_back(std::log(static_cast<double>(probe.n_ctx)),
                                     std::clamp(probe.kl / probe.short_kl, kLeastLength, kMostLength));
    }
}

double DamageModel::length_factor(size_t n_ctx) const noexcept {
    if (length_factors_.empty()) return 1;
    const double at = std::log(static_cast<double>(std::max<size_t>(n_ctx, 1)));
    if (at <= length_factors_.front().first) return length_factors_.front().second;
    for (size_t i = 1; i < length_factors_.size(); ++i) {
        const auto& [x0, f0] = length_factors_[i - 1];
        const auto& [x1, f1] = length_factors_[i];
        if (at <= x1) return f0 + (f1 - f0) * (at - x0) / (x1 - x0);
    }
    return length_factors_.back().second;
}

double DamageModel::window_factor(int32_t window) const noexcept {
    for (size_t i = 1; i < window_factors_.size(); ++i) {
        const auto& [w0, f0] = window_factors_[i - 1];
        const auto& [w1, f1] = window_factors_[i];
        if (window <= w1) return f0 + (f1 - f0) * static_cast<double>(window - w0) / static_cast<double>(w1 - w0);
    }
    return window_factors_.back().second;
}

std::vector<int32_t> DamageModel::windows() const {
    std::vector<int32_t> windows;
    for (const auto& [window, factor] : window_factors_) windows.push_back(window);
    return windows;
}

double DamageModel::damage(const DamageSlot& slot, size_t codec) const noexcept {
    return slot.share * (slot.side == Side::kKey ? key_curve_ : value_curve_)(slot.noise[codec]);
}

void DamageModel::scale_share(size_t layer, Side side, double factor) noexcept {
    for (DamageSlot& slot : slots_) {
        if (slot.layer == layer && slot.side == side) slot.share *= factor;
    }
}

}  // namespace kvaq
