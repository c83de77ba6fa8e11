#include "kvaq/plan/plan.h"

#include <set>
#include <string>

#include "kvaq/base/error.h"
#include "kvaq/quant/gaussian_codebook.h"
#include "kvaq/quant/transform.h"

namespace kvaq {

namespace {

bool needs_long_tiles(const CodecSpec& spec) {
    return spec.bits != CodeBits::k16 && spec.axis == GroupAxis::kPerChannel && spec.group > kDefaultTileTokens;
}

std::string describe(const LayerShape& s) {
    std::string text = "layer " + std::to_string(s.layer) + ": " + std::to_string(s.n_heads) + " heads, " +
                       std::to_string(s.n_kv_heads) + " KV heads, head size K " + std::to_string(s.head_dim_k) + " V " +
                       std::to_string(s.head_dim_v);
    if (s.sliding_window > 0) text += ", window " + std::to_string(s.sliding_window);
    return text;
}

std::string describe(const std::string& name, const std::string& fingerprint) {
    return (name.empty() ? std::string("a model") : name) + " (" + fingerprint.substr(0, 12) + ")";
}

}  // namespace

size_t table_bytes(const LayerPlan& layer) {
    std::set<const TransformFit*> fits;
    size_t bytes = 0;
    for (const HeadPlan& head : layer.heads) {
        for (const CodecSpec* spec : {&head.key, &head.value}) {
            if (spec->transform != nullptr && fits.insert(spec->transform->fit.get()).second)
                bytes += spec->transform->fit->bytes();
        }
    }
    return bytes;
}

double mean_bits(const LayerPlan& layer, Side side) {
    double sum = 0;
    for (const HeadPlan& head : layer.heads) sum += nominal_bits(side == Side::kKey ? head.key : head.value);
    return sum / static_cast<double>(layer.heads.size());
}

double mean_bits(const Plan& plan, Side side) {
    double sum = 0;
    for (const LayerPlan& layer : plan.layers) sum += mean_bits(layer, side);
    return sum / static_cast<double>(plan.layers.size());
}

Plan make_uniform_plan(const Preset& preset, const ModelShape& shape) {
    Plan plan;
    plan.name = preset.name;
    plan.architecture = shape.architecture;
    plan.model_name = shape.name;
    plan.tile_tokens = needs_long_tiles(preset.key) || needs_long_tiles(preset.value) ? 128 : kDefaultTileTokens;
    plan.window = preset.window;
    plan.sinks = preset.sinks;
    if (static_cast<size_t>(preset.sinks) > plan.tile_tokens) {
        throw Error(ErrorCode::kInvalidArgument, "preset '" + preset.name + "': sink tokens",
                    "0 to " + std::to_string(plan.tile_tokens), std::to_string(preset.sinks));
    }
    plan.layers.reserve(shape.layers.size());
    const TransformCodes codes = preset.trellis ? TransformCodes::kTrellis : TransformCodes::kCodebook;
    for (const LayerShape& layer : shape.layers) {
        if (preset.lloyd_max) {
            const HeadPlan head{.key = gaussian_codec(Side::kKey, layer.head_dim_k, preset.key.bits, codes),
                                .value = gaussian_codec(Side::kValue, layer.head_dim_v, preset.value.bits, codes)};
            plan.layers.push_back({.shape = layer, .heads = std::vector<HeadPlan>(layer.n_kv_heads, head)});
            continue;
        }
        // Throws here, in plain words, when the codec cannot hold this head size.
        (void)packed_bytes(preset.key, Side::kKey, layer.head_dim_k, plan.tile_tokens);
        (void)packed_bytes(preset.value, Side::kValue, layer.head_dim_v, plan.tile_tokens);
        plan.layers.push_back(
            {.shape = layer,
             .heads = std::vector<HeadPlan>(layer.n_kv_heads, HeadPlan{.key = preset.key, .value = preset.value})});
    }
    return plan;
}

void check_plan_fits(const Plan& plan, const ModelShape& shape) {
    const std::string fact = "plan '" + plan.name + "' was made for another model";
    const std::string hint = "Make a plan for this model with kvaq plan, or use a preset such as k4v4";
    const auto mismatch = [&](const std::string& wanted, const std::string& found) {
        throw Error(ErrorCode::kMismatch, fact, wanted, found, hint);
    };
    if (!plan.fingerprint.empty() && !shape.fingerprint.empty() && plan.fingerprint != shape.fingerprint) {
        mismatch(describe(plan.model_name, plan.fingerprint), describe(shape.name, shape.fingerprint));
    }
    if (!plan.architecture.empty() && !shape.architecture.empty() && plan.architecture != shape.architecture) {
        mismatch("architecture " + plan.architecture, "architecture " + shape.architecture);
    }
    if (plan.layers.size() != shape.layers.size()) {
        mismatch(std::to_string(plan.layers.size()) + " layers with a K/V cache", std::to_string(shape.layers.size()));
    }
    for (size_t i = 0; i < plan.layers.size(); ++i) {
        const LayerPlan& layer = plan.layers[i];
        if (layer.shape != shape.layers[i]) mismatch(describe(layer.shape), describe(shape.layers[i]));
        if (layer.heads.size() != layer.shape.n_kv_heads) {
            throw Error(ErrorCode::kCorrupt, "plan '" + plan.name + "', layer " + std::to_string(layer.shape.layer),
                        "codecs of " + std::to_string(layer.shape.n_kv_heads) + " KV heads",
                        std::to_string(layer.heads.size()));
        }
    }
}

}  // namespace kvaq
