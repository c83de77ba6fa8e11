#include "kvaq/plan/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "kvaq/base/error.h"
#include "kvaq/plan/import.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

const CodecSpec& spec_of(const HeadPlan& head, Side side) { return side == Side::kKey ? head.key : head.value; }

bool heads_differ(const LayerPlan& layer) {
    return std::any_of(layer.heads.begin(), layer.heads.end(),
                       [&](const HeadPlan& head) { return head != layer.heads[0]; });
}

template <typename F>
void for_each_spec(const Plan& plan, const F& f) {
    for (const LayerPlan& layer : plan.layers) {
        for (const HeadPlan& head : layer.heads) {
            f(layer, head.key, Side::kKey);
            f(layer, head.value, Side::kValue);
        }
    }
}

/// Mean bits per element of a side: packed bytes (scales counted) or code bits alone.
double mean_bits(const Plan& plan, Side wanted, bool packed, const std::set<int32_t>& skip = {}) {
    double bits = 0;
    double elements = 0;
    for_each_spec(plan, [&](const LayerPlan& layer, const CodecSpec& spec, Side side) {
        if (side != wanted || skip.count(layer.shape.layer) != 0) return;
        const size_t dim = side == Side::kKey ? layer.shape.head_dim_k : layer.shape.head_dim_v;
        const auto n = static_cast<double>(dim * plan.tile_tokens);
        bits += packed ? 8.0 * static_cast<double>(packed_bytes(spec, side, dim, plan.tile_tokens))
                       : nominal_bits(spec) * n;
        elements += n;
    });
    return elements > 0 ? bits / elements : 16;
}

/// What no program but this one has, as far as the plan uses it.
void common_losses(const Plan& plan, const std::string& program, bool layers_kept, bool heads_kept,
                   std::vector<std::string>& lost) {
    const auto differ = [&](const LayerPlan& layer) { return layer.heads != plan.layers[0].heads; };
    if (!layers_kept && std::any_of(plan.layers.begin(), plan.layers.end(), differ))
        lost.push_back("the choice per layer: " + program + " has one type for all layers here");
    if (!heads_kept && std::any_of(plan.layers.begin(), plan.layers.end(), heads_differ))
        lost.push_back("the choice per KV head");
    if (plan.window > 0)
        lost.push_back(fmt::format("the window: the newest {} tokens are not kept in f16", plan.window));
    if (plan.sinks > 0) lost.push_back(fmt::format("the sink tokens: the first {} are not kept in f16", plan.sinks));
    bool channels = false;
    bool rotated = false;
    bool fitted = false;
    for_each_spec(plan, [&](const LayerPlan&, const CodecSpec& spec, Side) {
        if (spec.transform != nullptr) {
            fitted = true;
            return;
        }
        channels = channels || spec.axis == GroupAxis::kPerChannel;
        rotated = rotated || spec.basis == Basis::kHadamard;
    });
    if (channels) lost.emplace_back("groups along tokens (the axis is not part of this form)");
    if (rotated) lost.emplace_back("the rotation (it is not part of this form; some programs rotate on their own)");
    if (fitted)
        lost.emplace_back(
            "the transforms: bases, unequal bits per channel, codebooks and gains; only their mean bits are written");
    if (plan.predicted_kl >= 0) lost.emplace_back("the predicted KL: it holds for this plan under kvaq only");
}

ExportedPlan to_llama(const Plan& plan) {
    struct Type {
        const char* name;
        double bits;
    };
    constexpr std::array<Type, 6> types = {
        {{"f16", 16}, {"q8_0", 8.5}, {"q5_1", 6}, {"q5_0", 5.5}, {"q4_1", 5}, {"q4_0", 4.5}}};
    ExportedPlan out;
    const auto nearest = [&](Side side) {
        const double bits = mean_bits(plan, side, true);
        const Type& type = *std::min_element(types.begin(), types.end(), [&](const Type& a, const Type& b) {
            return std::fabs(a.bits - bits) < std::fabs(b.bits - bits);
        });
        if (std::fabs(type.bits - bits) > 0.005) {
            out.lost.push_back(fmt::format("{} of {:.2f} bits per element become {} with {:.2f}{}",
                                           side == Side::kKey ? "keys" : "values", bits, type.name, type.bits,
                                           bits < 4.5 ? ": llama.cpp has nothing smaller, so the cache grows" : ""));
        }
        return type.name;
    };
    const std::string key = nearest(Side::kKey);
    const std::string value = nearest(Side::kValue);
    out.text = fmt::format("--cache-type-k {} --cache-type-v {} --flash-attn on\n", key, value);
    common_losses(plan, "llama.cpp", false, false, out.lost);
    for (const LayerPlan& layer : plan.layers) {
        const size_t row_k = layer.shape.n_kv_heads * layer.shape.head_dim_k;
        const size_t row_v = layer.shape.n_kv_heads * layer.shape.head_dim_v;
        if ((key != "f16" && row_k % 32 != 0) || (value != "f16" && row_v % 32 != 0)) {
            out.lost.push_back(fmt::format(
                "layer {}: llama.cpp refuses these types there (rows of {} and {} elements are no multiple of 32)",
                layer.shape.layer, row_k, row_v));
            break;
        }
    }
    return out;
}

/// Layers whose K and V are all f16.
std::set<int32_t> f16_layers(const Plan& plan) {
    std::set<int32_t> out;
    for (const LayerPlan& layer : plan.layers) out.insert(layer.shape.layer);
    for_each_spec(plan, [&](const LayerPlan& layer, const CodecSpec& spec, Side) {
        if (!spec.is_float16()) out.erase(layer.shape.layer);
    });
    return out;
}

struct ServerType {
    const char* name;
    double key;
    double value;
};

const ServerType& nearest_type(std::span<const ServerType> types, double key, double value) {
    return *std::min_element(types.begin(), types.end(), [&](const ServerType& a, const ServerType& b) {
        return std::hypot(a.key - key, a.value - value) < std::hypot(b.key - key, b.value - value);
    });
}

std::string changed_bits(double key, double value, const ServerType& type) {
    return fmt::format(
        "code bits: K {:.2f} and V {:.2f} in the mean become {} (K {:g}, V {:g}), another quantizer than this plan's",
        key, value, type.name, type.key, type.value);
}

ExportedPlan to_vllm(const Plan& plan) {
    static constexpr std::array<ServerType, 5> types = {{{"fp8", 8, 8},
                                                         {"turboquant_k8v4", 8, 4},
                                                         {"turboquant_4bit_nc", 4, 4},
                                                         {"turboquant_k3v4_nc", 3, 4},
                                                         {"turboquant_3bit_nc", 3, 3}}};
    ExportedPlan out;
    const std::set<int32_t> skip = f16_layers(plan);
    if (skip.size() == plan.layers.size()) {
        out.text = "--kv-cache-dtype auto\n";
        common_losses(plan, "vLLM", true, true, out.lost);
        return out;
    }
    const double key = mean_bits(plan, Side::kKey, false, skip);
    const double value = mean_bits(plan, Side::kValue, false, skip);
    const ServerType& type = nearest_type(types, key, value);
    out.text = fmt::format("--kv-cache-dtype {}", type.name);
    if (!skip.empty()) out.text += fmt::format(" --kv-cache-dtype-skip-layers {}", fmt::join(skip, " "));
    out.text += "\n";
    out.lost.push_back(changed_bits(key, value, type));
    if (std::string(type.name).rfind("turboquant", 0) == 0)
        out.lost.emplace_back(
            "vLLM keeps the first two and the last two layers in f16 with turboquant types, whatever the plan says");
    common_losses(plan, "vLLM (but for layers left in f16)", false, false, out.lost);
    return out;
}

ExportedPlan to_sglang(const Plan& plan) {
    static constexpr std::array<ServerType, 3> types = {{{"auto", 16, 16}, {"fp8_e4m3", 8, 8}, {"fp4_e2m1", 4, 4}}};
    ExportedPlan out;
    const double key = mean_bits(plan, Side::kKey, false);
    const double value = mean_bits(plan, Side::kValue, false);
    const double both = (key + value) / 2;
    const ServerType& type = nearest_type(types, both, both);
    out.text = fmt::format("--kv-cache-dtype {}\n", type.name);
    if (type.key != key || type.value != value) out.lost.push_back(changed_bits(key, value, type));
    if (key != value) out.lost.emplace_back("different bits for K and V: SGLang has one type for both");
    const std::set<int32_t> kept = f16_layers(plan);
    if (!kept.empty() && kept.size() < plan.layers.size())
        out.lost.push_back(fmt::format("layers {} in f16: SGLang has one type for all layers", fmt::join(kept, ", ")));
    common_losses(plan, "SGLang", false, false, out.lost);
    return out;
}

/// The smallest of `widths` (ascending) that is not below the bits, or the largest.
int rounded_up(const CodecSpec& spec, std::span<const int> widths, std::set<std::string>& changed) {
    const double nominal = nominal_bits(spec);
    int width = widths.back();
    for (size_t i = widths.size(); i-- > 0;) {
        if (widths[i] >= nominal) width = widths[i];
    }
    if (width != nominal)
        changed.insert(fmt::format(
            "{} -> {}", spec.transform != nullptr ? fmt::format("{:.4g}", nominal) : to_string(spec.bits), width));
    return width;
}

ExportedPlan to_kvtuner(const Plan& plan) {
    constexpr std::array widths = {2, 4, 8};
    ExportedPlan out;
    std::set<std::string> changed;
    const bool per_head = std::any_of(plan.layers.begin(), plan.layers.end(), heads_differ);
    for (const LayerPlan& layer : plan.layers) {
        out.text += fmt::format("{}:\n", layer.shape.layer);
        for (size_t head = 0; head < (per_head ? layer.heads.size() : 1); ++head) {
            if (per_head) out.text += fmt::format("  {}:\n", head);
            const char* indent = per_head ? "    " : "  ";
            out.text += fmt::format("{}nbits_key: {}\n{}nbits_value: {}\n", indent,
                                    rounded_up(layer.heads[head].key, widths, changed), indent,
                                    rounded_up(layer.heads[head].value, widths, changed));
        }
    }
    if (!changed.empty())
        out.lost.push_back(fmt::format("widths that KVTuner lacks: {} bits", fmt::join(changed, ", ")));
    out.lost.emplace_back("group sizes: KVTuner takes one for all from its command line");
    common_losses(plan, "KVTuner", true, true, out.lost);
    return out;
}

ExportedPlan to_kvq(const Plan& plan) {
    ExportedPlan out;
    nlohmann::ordered_json json;
    static constexpr std::array kKvqWidths = {1, 2, 3, 4, 5, 6, 8};
    std::set<std::string> changed;
    bool f16 = false;
    bool no_groups = false;
    for (const LayerPlan& layer : plan.layers) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const bool key = side == Side::kKey;
            const HeadPlan& widest =
                *std::max_element(layer.heads.begin(), layer.heads.end(), [&](const HeadPlan& a, const HeadPlan& b) {
                    return nominal_bits(spec_of(a, side)) < nominal_bits(spec_of(b, side));
                });
            const CodecSpec& spec = spec_of(widest, side);
            f16 = f16 || spec.is_float16();
            no_groups = no_groups || spec.transform != nullptr;
            nlohmann::ordered_json& bits = json[key ? "nbits_k" : "nbits_v"];
            if (spec.transform != nullptr) {
                bits.push_back(rounded_up(spec, kKvqWidths, changed));
            } else if (spec.bits == CodeBits::kTernary) {
                bits.push_back(1.58);
            } else {
                bits.push_back(std::min(8, static_cast<int>(spec.bits)));
            }
            json[key ? "g_k" : "g_v"].push_back(spec.group);
        }
    }
    out.text = json.dump() + "\n";
    if (!changed.empty()) out.lost.push_back(fmt::format("fractions of bits: {}", fmt::join(changed, ", ")));
    if (f16) out.lost.emplace_back("f16: the authors' form ends at 8 bits");
    if (no_groups)
        out.lost.push_back(
            fmt::format("gains per token: codecs with codebooks have no groups, {} is written", CodecSpec{}.group));
    if (std::any_of(plan.layers.begin(), plan.layers.end(), heads_differ))
        out.lost.emplace_back("the choice per KV head: the widest of a layer is written");
    out.lost.emplace_back(
        "the authors' KVQConfig takes no lists: this is what their bit_pattern and group_pattern return, not a --kvq "
        "text");
    common_losses(plan, "kvq", true, true, out.lost);
    return out;
}

}  // namespace

const std::vector<std::string>& export_formats() {
    static const std::vector<std::string> formats = {"llama.cpp", "vllm", "sglang", "kvtuner", "kvq", "json"};
    return formats;
}

ExportedPlan export_plan(const Plan& plan, const std::string& format) {
    KVAQ_CHECK(!plan.layers.empty());
    if (format == "llama.cpp") return to_llama(plan);
    if (format == "vllm") return to_vllm(plan);
    if (format == "sglang") return to_sglang(plan);
    if (format == "kvtuner") return to_kvtuner(plan);
    if (format == "kvq") return to_kvq(plan);
    if (format == "json")
        return {.text = plan_to_json(plan).dump(2, ' ', true, nlohmann::json::error_handler_t::replace) + "\n",
                .lost = {}};
    throw Error(ErrorCode::kInvalidArgument, "unknown export format",
                fmt::format("{}", fmt::join(export_formats(), ", ")), "'" + format + "'");
}

}  // namespace kvaq
