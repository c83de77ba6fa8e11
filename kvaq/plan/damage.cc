#include "kvaq/plan/damage.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <thread>

#include "kvaq/base/error.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/solve.h"
#include "kvaq/stats/distortion.h"
#include "kvaq/stats/transform_fit.h"

namespace kvaq {
namespace {

constexpr size_t kTile = kDefaultTileTokens;

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", value);
    return text;
}

/// One head's candidates: codecs and what each costs in bytes and damage.
struct Slot {
    std::vector<CodecSpec> codecs;
    std::vector<Choice> choices;
    double probe_noise = 0;
};

Slot make_slot(const HeadStats& head, Side side, CodecFamily family, double probe_bits, size_t n_sample_tiles) {
    Slot slot;
    const FittedTransform fitted = fit_transform(head, side, n_sample_tiles);
    const TransformChoice probe = rung_at(fitted, probe_bits);
    slot.probe_noise = probe.cost;
    const size_t dim = side == Side::kKey ? head.key_mean.size() : head.value_mean.size();
    if (family == CodecFamily::kAffine) {
        CodecSpec codec_of_probe;
        codec_of_probe.transform = make_transform_codec(fitted.fit, probe.unit_bits);
        slot.probe_noise = codec_noise(head, side, codec_of_probe, n_sample_tiles);
        for (const CodecSpec& codec : candidate_codecs()) {
            slot.codecs.push_back(codec);
            slot.choices.push_back({.bytes = packed_bytes(codec, side, dim, kTile), .damage = codec_noise(head, side, codec, n_sample_tiles)});
        }
        return slot;
    }
    for (TransformChoice& rung : transform_ladder(fitted)) {
        CodecSpec codec;
        codec.transform = make_transform_codec(fitted.fit, std::move(rung.unit_bits));
        slot.choices.push_back({.bytes = packed_bytes(codec, side, dim, kTile), .damage = rung.cost});
        slot.codecs.push_back(std::move(codec));
    }
    return slot;
}

/// Slots of all heads, [layer][side][head] flattened, made by all processors.
std::vector<Slot> make_slots(const ModelStats& stats, CodecFamily family) {
    struct Job {
        const HeadStats* head;
        Side side;
    };
    std::vector<Job> jobs;
    for (const LayerStats& layer : stats.layers) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            for (const HeadStats& head : layer.heads) jobs.push_back({&head, side});
        }
    }
    std::vector<Slot> slots(jobs.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1)) {
            slots[i] = make_slot(*jobs[i].head, jobs[i].side, family, stats.probe_bits, stats.n_sample_tiles);
        }
    };
    std::vector<std::jthread> helpers;
    for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) helpers.emplace_back(work);
    work();
    helpers.clear();
    return slots;
}

}  // namespace

double codec_noise(const HeadStats& head, Side side, const CodecSpec& spec, size_t n_sample_tiles) {
    const size_t dim = side == Side::kKey ? head.key_mean.size() : head.value_mean.size();
    const std::vector<float> errors = quantization_errors(spec, side, side == Side::kKey ? head.key_tiles : head.value_tiles, dim, kTile);
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
    for (const CodeBits bits : {CodeBits::k1, CodeBits::k2, CodeBits::k3, CodeBits::k4, CodeBits::k5, CodeBits::k6, CodeBits::k8}) {
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

ModelShape shape_of(const ModelStats& stats) {
    ModelShape shape;
    shape.architecture = stats.architecture;
    shape.name = stats.model_name;
    shape.fingerprint = stats.fingerprint;
    for (const LayerStats& layer : stats.layers) shape.layers.push_back(layer.shape);
    return shape;
}

Plan uniform_transform_plan(const ModelStats& stats, double key_bits, double value_bits, int32_t window, int32_t sinks) {
    if (stats.n_sample_tiles == 0) throw Error(ErrorCode::kInvalidArgument, "the statistics hold no sample tiles", "a longer calibration text", "none");
    Plan plan = make_uniform_plan(parse_preset("f16"), shape_of(stats));
    char name[64];
    std::snprintf(name, sizeof name, "transform k%.4gv%.4g", key_bits, value_bits);
    plan.name = name;
    plan.fingerprint = stats.fingerprint;
    plan.window = window;
    plan.sinks = sinks;
    std::vector<Slot> slots = make_slots(stats, CodecFamily::kTransform);
    size_t slot = 0;
    for (LayerPlan& layer : plan.layers) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const double bits = side == Side::kKey ? key_bits : value_bits;
            for (HeadPlan& head : layer.heads) {
                const std::vector<CodecSpec>& rungs = slots[slot++].codecs;
                if (bits >= 16) continue;
                const auto above = std::find_if(rungs.begin(), rungs.end(), [&](const CodecSpec& c) { return nominal_bits(c) > bits + 1e-9; });
                (side == Side::kKey ? head.key : head.value) = above == rungs.begin() ? rungs.front() : *(above - 1);
            }
        }
    }
    return plan;
}

Plan solve_plan(const ModelStats& stats, const PlanRequest& request) {
    const auto& [budget, context, window, sinks, family] = request;
    size_t n_ctx = context;
    if (stats.probe_bits <= 0 || stats.n_sample_tiles == 0) {
        throw Error(ErrorCode::kInvalidArgument, "the statistics hold no measured damage", "probes of every layer", "none",
                    "Calibrate with a longer text and without --no-probes, or use --policy uniform:k4v4-rot");
    }
    if (budget.n_tokens > 0) n_ctx = budget.n_tokens;
    Plan plan = make_uniform_plan(parse_preset("k2v2"), shape_of(stats));
    plan.tile_tokens = kTile;
    plan.window = window;
    plan.sinks = sinks;
    const CacheBytes probe_bytes = cache_bytes(plan, n_ctx);
    size_t fixed = 0;
    size_t packed = 0;
    for (const LayerBytes& layer : probe_bytes.layers) {
        fixed += layer.open + layer.sinks;
        packed += layer.packed_key + layer.packed_value;
    }
    size_t page = 0;
    for (const LayerPlan& layer : plan.layers) {
        for (const HeadPlan& head : layer.heads) {
            page += packed_bytes(head.key, Side::kKey, layer.shape.head_dim_k, kTile) + packed_bytes(head.value, Side::kValue, layer.shape.head_dim_v, kTile);
        }
    }
    const size_t n_pages = packed / page;
    double bytes = budget.amount;
    std::string unit = "bytes at " + std::to_string(n_ctx) + " tokens";
    if (budget.unit == Budget::Unit::kEffectiveBits) bytes = budget.amount * static_cast<double>(probe_bytes.elements) / 8;
    if (budget.unit == Budget::Unit::kBytesPerToken) bytes = budget.amount * static_cast<double>(n_ctx);
    std::vector<Slot> heads = make_slots(stats, family);
    std::vector<std::vector<Choice>> slots;
    size_t tables = 0;
    for (const LayerStats& layer : stats.layers) {
        const double least = 0.02 * stats.probe_floor;  // a probe below the floor still costs something
        for (const Side side : {Side::kKey, Side::kValue}) {
            const double kl = std::max(least, (side == Side::kKey ? layer.probe.key_kl : layer.probe.value_kl) - stats.probe_floor);
            double probe_noise = 0;
            for (size_t h = 0; h < layer.heads.size(); ++h) probe_noise += heads[slots.size() + h].probe_noise;
            for (size_t h = 0; h < layer.heads.size(); ++h) {
                Slot& slot = heads[slots.size()];
                for (Choice& choice : slot.choices) choice.damage *= probe_noise > 0 ? kl / probe_noise : 0.0;
                if (slot.codecs[0].transform != nullptr) tables += slot.codecs[0].transform->fit->bytes();
                slots.push_back(slot.choices);
            }
        }
    }
    fixed += tables;
    const double left = bytes - static_cast<double>(fixed);
    const size_t per_page = left > 0 && n_pages > 0 ? static_cast<size_t>(left / static_cast<double>(n_pages)) : 0;
    const std::vector<size_t> picked = solve_budget(slots, per_page);
    if (picked.empty()) {
        const double floor_bytes = static_cast<double>(fixed + n_pages * smallest_bytes(slots));
        throw Error(ErrorCode::kBudgetTooSmall, "the budget is below this model's floor at " + std::to_string(n_ctx) + " tokens",
                    "at least " + number(8 * floor_bytes / static_cast<double>(probe_bytes.elements)) + "bits (" + number(floor_bytes / (1024 * 1024)) + " MiB)",
                    number(8 * bytes / static_cast<double>(probe_bytes.elements)) + "bits (" + number(bytes / (1024 * 1024)) + " MiB)",
                    "The smallest plan keeps a window of " + std::to_string(window) + " tokens in f16; a longer context or --window 0 lowers the floor");
    }
    size_t slot = 0;
    double damage = 0;
    for (size_t l = 0; l < plan.layers.size(); ++l) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            for (HeadPlan& head : plan.layers[l].heads) {
                (side == Side::kKey ? head.key : head.value) = heads[slot].codecs[picked[slot]];
                damage += slots[slot][picked[slot]].damage;
                ++slot;
            }
        }
    }
    plan.name = "measured " + number(cache_bytes(plan, n_ctx).effective_bits) + "bits@" + std::to_string(n_ctx);
    plan.predicted_kl = damage;
    plan.measured_how = "KL probes of every layer and side (" + number(stats.probe_bits) + " bits), scaled by query-weighted noise; " + std::to_string(stats.n_tokens) + " calibration tokens, text sha256 " +
                        stats.text_sha256.substr(0, 16);
    return plan;
}

}  // namespace kvaq
