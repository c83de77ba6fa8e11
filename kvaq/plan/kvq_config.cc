#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/plan/plan_builder.h"

namespace kvaq::importing {
namespace {

/// A value for both sides, or {"k": .., "v": ..}.
const Json& side_of(const std::string& what, const std::string& key, const Json& json, Side side) {
    if (!json.is_object()) return json;
    for (const auto& [name, value] : json.items()) {
        if (name != "k" && name != "v") refuse(what, "'" + key + "'", "\"k\" and \"v\"", "'" + name + "'");
    }
    const char* name = side == Side::kKey ? "k" : "v";
    if (!json.contains(name)) refuse(what, "'" + key + "'", "\"k\" and \"v\"", fmt::format("no \"{}\"", name));
    return json.at(name);
}

/// The authors' configuration or allocation as JSON.
class ConfigImport {
  public:
    ConfigImport(const Json& json, const ImportContext& context)
        : json_(json), context_(context), builder_(context, result_.warnings) {}

    ImportedPlan run() {
        check_keys();
        result_.format = is_config() ? "KVQConfig (--kvq)" : "allocation JSON";
        rule_and_axis();
        if (is_config() && !legacy()) builder_.set_window(64);  // their default
        bits();
        groups();
        residual();
        std::string name = context_.what;
        result_.plan = builder_.finish(name);
        return std::move(result_);
    }

  private:
    [[nodiscard]] bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
    [[nodiscard]] bool legacy() const {
        return has("axis_key") || has("axis_value") || has("q_group_size") || has("backend");
    }
    [[nodiscard]] bool is_config() const {
        return legacy() || has("nbits") || has("budget") || has("axis") || has("residual_length") ||
               has("group_size") || has("group_budget");
    }
    [[noreturn]] void fail(const std::string& fact, const std::string& wanted, const std::string& found) const {
        refuse(context_.what, fact, wanted, found);
    }

    void check_keys() const {
        static const std::vector<std::string> known = {
            "nbits_k",         "nbits_v",  "g_k",        "g_v",          "nbits",       "budget",
            "bit_range",       "score",    "group_size", "group_budget", "group_range", "axis",
            "residual_length", "axis_key", "axis_value", "q_group_size", "backend",     "model",
            "compute_dtype",   "device"};
        for (const auto& [key, value] : json_.items()) {
            if (std::find(known.begin(), known.end(), key) == known.end())
                fail("unknown key", fmt::format("{}, or w_k and w_v", fmt::join(known, ", ")), "'" + key + "'");
        }
        const int ways = (has("nbits") ? 1 : 0) + (has("budget") ? 1 : 0) + (has("nbits_k") || has("nbits_v") ? 1 : 0);
        if (ways > 1) fail("bits", "one of nbits, budget, or nbits_k and nbits_v", "several");
        if (has("nbits_k") != has("nbits_v"))
            fail("bits", "nbits_k and nbits_v", has("nbits_k") ? "nbits_k alone" : "nbits_v alone");
        const int group_ways = (has("group_size") ? 1 : 0) + (has("group_budget") ? 1 : 0) +
                               (has("g_k") || has("g_v") ? 1 : 0) + (has("q_group_size") ? 1 : 0);
        if (group_ways > 1)
            fail("group sizes", "one of group_size, group_budget, q_group_size, or g_k and g_v", "several");
        if (has("g_k") != has("g_v")) fail("group sizes", "g_k and g_v", has("g_k") ? "g_k alone" : "g_v alone");
        if (ways == 0 && (is_config() || group_ways == 0))
            fail("no bits", "nbits, budget, or nbits_k and nbits_v", "neither");
    }

    [[nodiscard]] double number(const char* key) const {
        if (!json_.at(key).is_number()) fail(fmt::format("'{}'", key), "a number", brief(json_.at(key)));
        return json_.at(key).get<double>();
    }

    [[nodiscard]] LayerNorms norms() {
        const double score = has("score") ? number("score") : 0;
        if (score != 0 && score != 1) fail("'score'", "0 (Frobenius) or 1 (spectral)", fmt::format("{}", score));
        if (!context_.weight_norms)
            refuse(context_.what, "a budget is allocated by the norms of W_K and W_V", "a model with its weights",
                   "none", "Give the model with -m");
        if (context_.qk_norm && !norms_used_) result_.warnings.emplace_back(kQkNormWarning);
        norms_used_ = true;
        return context_.weight_norms(score == 0 ? NormScore::kFrobenius : NormScore::kSpectral);
    }

    void note(const std::string& warning) {
        if (!warning.empty()) result_.warnings.push_back(warning);
    }

    void bits() {
        const auto set = [&](Side side) {
            return [this, side](size_t layer, double value) { builder_.set_bits(layer, -1, side, value); };
        };
        if (has("budget")) {
            std::vector<double> range = {1, 1.58, 2, 3, 3.5, 4, 5, 6, 8};  // the authors' default
            if (has("bit_range")) range = numbers(context_.what, "bit_range", json_.at("bit_range"));
            drop_ternary(context_, range, result_.warnings);
            const BitAllocation allocation = allocate_bits_greedy(norms(), number("budget"), range);
            builder_.per_layer("budget", allocation.key, set(Side::kKey));
            builder_.per_layer("budget", allocation.value, set(Side::kValue));
            note(leftover_warning(allocation));
        } else if (has("nbits")) {
            for (const Side side : {Side::kKey, Side::kValue})
                builder_.per_layer("nbits", side_of(context_.what, "nbits", json_.at("nbits"), side), set(side));
        } else if (has("nbits_k")) {
            builder_.per_layer("nbits_k", json_.at("nbits_k"), set(Side::kKey));
            builder_.per_layer("nbits_v", json_.at("nbits_v"), set(Side::kValue));
        }
    }

    void groups() {
        const auto set = [&](Side side) {
            return [this, side](size_t layer, double value) { builder_.set_group(layer, side, value); };
        };
        if (has("group_budget")) {
            std::vector<size_t> range(std::begin(kAuthorsGroups), std::end(kAuthorsGroups));
            if (has("group_range")) {
                range.clear();
                for (const double x : numbers(context_.what, "group_range", json_.at("group_range"))) {
                    if (x < 1 || x != std::floor(x) || x > 65536)
                        fail("'group_range'", "whole numbers above 0", fmt::format("{}", x));
                    range.push_back(static_cast<size_t>(x));
                }
            }
            const GroupAllocation allocation = allocate_groups_greedy(norms(), number("group_budget"), range);
            builder_.per_layer("group_budget", std::vector<double>(allocation.key.begin(), allocation.key.end()),
                               set(Side::kKey));
            builder_.per_layer("group_budget", std::vector<double>(allocation.value.begin(), allocation.value.end()),
                               set(Side::kValue));
            note(leftover_warning(allocation));
            return;
        }
        for (const char* key : {"group_size", "q_group_size"}) {
            if (!has(key)) continue;
            for (const Side side : {Side::kKey, Side::kValue})
                builder_.per_layer(key, side_of(context_.what, key, json_.at(key), side), set(side));
        }
        if (has("g_k")) {
            builder_.per_layer("g_k", json_.at("g_k"), set(Side::kKey));
            builder_.per_layer("g_v", json_.at("g_v"), set(Side::kValue));
        }
    }

    void rule_and_axis() {
        if (!is_config()) return;
        bool hqq = !legacy();
        if (has("backend")) {
            const Json& backend = json_.at("backend");
            if (backend != "quanto" && backend != "hqq") fail("'backend'", "quanto or hqq", brief(backend));
            hqq = backend == "hqq";
        }
        if (context_.base.lloyd_max && (has("backend") || has("axis") || has("axis_key") || has("axis_value")))
            result_.warnings.emplace_back(
                "backend and axis are left out: a base of -lm or -tcq has codebooks and one gain a token");
        for (const Side side : {Side::kKey, Side::kValue}) {
            const char* old_key = side == Side::kKey ? "axis_key" : "axis_value";
            double axis = hqq ? 1 : 0;  // their defaults
            if (has("axis")) {
                const Json& value = side_of(context_.what, "axis", json_.at("axis"), side);
                if (!value.is_number()) fail("'axis'", "a number", brief(value));
                axis = value.get<double>();
            } else if (has(old_key)) {
                axis = number(old_key);
            }
            const bool per_token = axis == (hqq ? 1 : 0);
            if (!per_token && axis != (hqq ? 0 : -1))
                fail("'axis' of " + std::string(to_string(side)), hqq ? "0 or 1" : "0 or -1", fmt::format("{}", axis));
            if (!per_token && hqq) {
                result_.warnings.push_back(
                    fmt::format("axis 0 of {}: HQQ's groups there run through tokens and heads alike and change with "
                                "the length of the text; here they become groups "
                                "of consecutive tokens of one channel",
                                to_string(side)));
            }
            builder_.all(side, [&](CodecSpec& spec) {
                spec.rule = hqq ? AffineRule::kHqq : AffineRule::kQuanto;
                spec.symmetric = false;
                spec.axis = per_token ? GroupAxis::kPerToken : GroupAxis::kPerChannel;
            });
        }
    }

    void residual() {
        if (!has("residual_length")) return;
        double window[2];
        for (const Side side : {Side::kKey, Side::kValue}) {
            const Json& value = side_of(context_.what, "residual_length", json_.at("residual_length"), side);
            if (!value.is_number()) fail("'residual_length'", "a number of tokens", brief(value));
            window[side == Side::kKey ? 0 : 1] = value.get<double>();
        }
        if (window[0] != window[1]) {
            result_.warnings.push_back(
                fmt::format("residual lengths {} and {}: keys and values share one window here, the larger is used",
                            window[0], window[1]));
        }
        builder_.set_window(std::max(window[0], window[1]));
    }

    const Json& json_;
    const ImportContext& context_;
    ImportedPlan result_;
    PlanBuilder builder_;
    bool norms_used_ = false;
};

}  // namespace

ImportedPlan import_config(const Json& json, const ImportContext& context) { return ConfigImport(json, context).run(); }

}  // namespace kvaq::importing
