#include "kvaq/plan/import.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "kvaq/plan/kvtuner_yaml.h"
#include "kvaq/plan/plan_builder.h"

namespace kvaq {

using namespace importing;  // NOLINT: this is their other half

namespace {

ImportedPlan import_kvtuner(const std::string& text, const ImportContext& context) {
    ImportedPlan result;
    result.format = "KVTuner YAML";
    PlanBuilder builder(context, result.warnings);
    std::set<int32_t> seen;
    for (const KvtunerEntry& entry : parse_kvtuner_yaml(text, context.what)) {
        const auto& layers = builder.plan().layers;
        const auto found = std::find_if(layers.begin(), layers.end(),
                                        [&](const LayerPlan& layer) { return layer.shape.layer == entry.layer; });
        const auto mismatch = [&](const std::string& wanted, const std::string& found_text) {
            throw Error(ErrorCode::kMismatch, context.what + " was made for another model", wanted, found_text,
                        "Import it for the model it was made for");
        };
        if (found == layers.end())
            mismatch(fmt::format("the {} layers of {}", layers.size(), context.shape.name),
                     fmt::format("layer {}", entry.layer));
        if (entry.head >= static_cast<int32_t>(found->heads.size()))
            mismatch(fmt::format("{} KV heads in layer {}", found->heads.size(), entry.layer),
                     fmt::format("head {}", entry.head));
        const auto index = static_cast<size_t>(found - layers.begin());
        builder.set_bits(index, entry.head, Side::kKey, entry.key_bits);
        builder.set_bits(index, entry.head, Side::kValue, entry.value_bits);
        for (size_t head = 0; head < found->heads.size(); ++head) {
            if (entry.head < 0 || static_cast<size_t>(entry.head) == head)
                seen.insert(entry.layer * 65536 + static_cast<int32_t>(head));
        }
    }
    for (const LayerShape& layer : context.shape.layers) {
        for (size_t head = 0; head < layer.n_kv_heads; ++head) {
            if (seen.count(layer.layer * 65536 + static_cast<int32_t>(head)) != 0) continue;
            throw Error(ErrorCode::kMismatch, context.what + " leaves out a part of the model",
                        fmt::format("bits for all {} layers and their heads", context.shape.layers.size()),
                        fmt::format("none for layer {}, head {}", layer.layer, head),
                        "Import it for the model it was made for");
        }
    }
    result.plan = builder.finish(context.what);
    result.warnings.push_back(fmt::format(
        "KVTuner's file says neither group size nor axis: they come from the base ({})", context.base.name));
    return result;
}

/// key=value,key=value with JSON values; a text that is no JSON is a string.
Json json_of_pairs(const std::string& text, const std::string& what) {
    Json out = Json::object();
    std::vector<std::string> parts(1);
    int depth = 0;
    for (const char c : text) {
        if (c == '[' || c == '{') ++depth;
        if (c == ']' || c == '}') --depth;
        if (c == ',' && depth == 0) {
            parts.emplace_back();
        } else if (c != '\n' && c != '\r' && c != ' ') {
            parts.back() += c;
        }
    }
    for (const std::string& part : parts) {
        const size_t equals = part.find('=');
        if (equals == std::string::npos || equals == 0)
            refuse(what, "unreadable", "JSON, KVTuner YAML, or key=value,key=value", "'" + part.substr(0, 40) + "'");
        const std::string key = part.substr(0, equals);
        const std::string value = part.substr(equals + 1);
        if (out.contains(key)) refuse(what, "key '" + key + "'", "each key once", "twice");
        Json parsed = Json::parse(value, nullptr, false);
        out[key] = parsed.is_discarded() ? Json(value) : std::move(parsed);
    }
    return out;
}

}  // namespace

LayerNorms parse_norms(const std::string& text, const std::string& what) {
    const Json json = Json::parse(text, nullptr, false);
    if (!json.is_object() || !json.contains("w_k") || !json.contains("w_v"))
        refuse(what, "no norms", "{\"w_k\": [...], \"w_v\": [...]}", brief(json));
    return {.key = numbers(what, "w_k", json.at("w_k")), .value = numbers(what, "w_v", json.at("w_v"))};
}

std::string norms_to_json(const LayerNorms& norms) {
    return Json{{"w_k", norms.key}, {"w_v", norms.value}}.dump(2) + "\n";
}

Plan greedy_plan(const LayerNorms& norms, const ImportContext& context, std::vector<std::string>& warnings) {
    PlanBuilder builder(context, warnings);
    std::vector<double> widths(std::begin(kEvaluationBits), std::end(kEvaluationBits));
    drop_ternary(context, widths, warnings);
    const BitAllocation bits = allocate_bits_greedy(norms, context.budget, widths);
    for (const Side side : {Side::kKey, Side::kValue}) {
        builder.per_layer(side == Side::kKey ? "w_k" : "w_v", side == Side::kKey ? bits.key : bits.value,
                          [&](size_t layer, double b) { builder.set_bits(layer, -1, side, b); });
    }
    if (const std::string warning = leftover_warning(bits); !warning.empty()) warnings.push_back(warning);
    if (context.group_budget > 0) {
        const std::vector<size_t> served = {32, 64, 128};
        const GroupAllocation groups = allocate_groups_greedy(norms, context.group_budget, served);
        for (size_t layer = 0; layer < groups.key.size(); ++layer) {
            builder.set_group(layer, Side::kKey, static_cast<double>(groups.key[layer]));
            builder.set_group(layer, Side::kValue, static_cast<double>(groups.value[layer]));
        }
        if (const std::string warning = leftover_warning(groups); !warning.empty()) warnings.push_back(warning);
    }
    return builder.finish(context.what);
}

ImportedPlan import_plan(const std::string& text, const ImportContext& context) {
    const size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string::npos)
        refuse(context.what, "nothing to import", "JSON, KVTuner YAML, or key=value,key=value", "an empty text");
    const auto refuse_budget = [&] {  // a budget that is not kept would be worse than none
        if (context.budget > 0 || context.group_budget > 0)
            refuse(context.what, "--budget and --group-budget are for files of norms", "neither of them",
                   "a configuration, which says its bits itself");
    };
    ImportedPlan result;
    if (looks_like_kvtuner_yaml(text)) {
        refuse_budget();
        result = import_kvtuner(text, context);
    } else {
        Json json;
        if (text[first] == '{') {
            try {
                json = Json::parse(text);
            } catch (const nlohmann::json::parse_error& error) {
                refuse(context.what, "damaged JSON", "one JSON object", error.what());
            }
        } else {
            json = json_of_pairs(text.substr(first), context.what);
        }
        if (json.contains("w_k") || json.contains("w_v")) {
            const LayerNorms norms = parse_norms(json.dump(), context.what);
            if (context.budget <= 0)
                refuse(context.what, "norms are no plan yet", "a budget of bits per matrix", "none",
                       "Give one, such as --budget 3");
            result.format = "norms of W_K and W_V";
            if (context.qk_norm) result.warnings.emplace_back(kQkNormWarning);
            result.plan = greedy_plan(norms, context, result.warnings);
        } else {
            if (json.contains("schema_version"))
                refuse(context.what, "JSON of kvaq itself cannot be read back", "the *.plan.gguf it was made of",
                       "kvaq's own JSON");
            refuse_budget();
            result = import_config(json, context);
        }
    }
    for (std::string& warning : plan_warnings(result.plan)) result.warnings.push_back(std::move(warning));
    return result;
}

std::vector<std::string> plan_warnings(const Plan& plan) {
    std::vector<int32_t> one_bit;
    std::vector<int32_t> inverted;
    for (const LayerPlan& layer : plan.layers) {
        bool one = false;
        bool below = false;
        for (const HeadPlan& head : layer.heads) {
            one = one || nominal_bits(head.value) <= 1;
            below = below || nominal_bits(head.key) < nominal_bits(head.value);
        }
        if (one) one_bit.push_back(layer.shape.layer);
        if (below) inverted.push_back(layer.shape.layer);
    }
    std::vector<std::string> out;
    if (!one_bit.empty()) {
        out.push_back(
            fmt::format("values of 1 bit in layers {}: in the paper's tables K4V1 loses most of what K4V2 keeps (GSM8K "
                        "strict, Llama-3.2-3B: .293 against .628)",
                        layer_list(one_bit)));
    }
    if (!inverted.empty()) {
        out.push_back(
            fmt::format("fewer bits for keys than for values in layers {}: the paper's tables have K2V4 far below K4V2 "
                        "at the same bytes (GSM8K, Llama-3.1-8B: .547 against .752)",
                        layer_list(inverted)));
    }
    return out;
}

std::string layer_list(const std::vector<int32_t>& layers) {
    std::string out;
    for (size_t i = 0; i < layers.size();) {
        size_t last = i;
        while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) ++last;
        if (!out.empty()) out += ", ";
        out += std::to_string(layers[i]);
        if (last > i) out += (last == i + 1 ? ", " : "-") + std::to_string(layers[last]);
        i = last + 1;
    }
    return out;
}

}  // namespace kvaq
