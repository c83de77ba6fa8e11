#pragma once

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/plan/import.h"
#include "kvaq/quant/gaussian_codebook.h"

// The inner parts of the import, shared by import.cc and kvq_config.cc.
namespace kvaq::importing {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& what, const std::string& fact, const std::string& wanted,
                         const std::string& found, const std::string& hint = "");
/// A JSON value in at most 40 letters, for messages.
[[nodiscard]] std::string brief(const Json& json);
[[nodiscard]] std::vector<double> numbers(const std::string& what, const std::string& key, const Json& json);

extern const char* const kQkNormWarning;

/// The authors' configuration or allocation as JSON (kvq_config.cc).
[[nodiscard]] ImportedPlan import_config(const Json& json, const ImportContext& context);

/// Bases of -lm and -tcq have no 1.58 bits: those are left out of an allocator's widths, and a warning says so.
void drop_ternary(const ImportContext& context, std::vector<double>& widths, std::vector<std::string>& warnings);

/// Fills a plan of the model, layer by layer, and remembers what it had to change.
class PlanBuilder {
  public:
    PlanBuilder(const ImportContext& context, std::vector<std::string>& warnings)
        : what_(context.what), warnings_(warnings) {
        Preset base = context.base;
        base.name = "imported";
        lloyd_max_ = base.lloyd_max;
        codes_ = base.trellis ? TransformCodes::kTrellis : TransformCodes::kCodebook;
        plan_ = make_uniform_plan(base, context.shape);
        plan_.fingerprint = context.shape.fingerprint;
    }

    [[nodiscard]] size_t n_layers() const { return plan_.layers.size(); }

    template <typename Change>
    void each(size_t layer, int32_t head, Side side, const Change& change) {
        std::vector<HeadPlan>& heads = plan_.layers[layer].heads;
        for (size_t h = 0; h < heads.size(); ++h) {
            if (head < 0 || static_cast<size_t>(head) == h) change(side == Side::kKey ? heads[h].key : heads[h].value);
        }
    }

    template <typename Change>
    void all(Side side, const Change& change) {
        for (size_t layer = 0; layer < n_layers(); ++layer) each(layer, -1, side, change);
    }

    void set_bits(size_t layer, int32_t head, Side side, double bits) {
        const CodeBits code = code_bits(layer, side, bits);
        if (!lloyd_max_) {
            each(layer, head, side, [&](CodecSpec& spec) { spec.bits = code; });
            return;
        }
        if (code == CodeBits::kTernary)
            refuse(what_, "bits of " + where(layer, side), "1, 2, 3, 4, 5, 6, 8 or 16 with a base of -lm or -tcq",
                   "1.58");
        const LayerShape& shape = plan_.layers[layer].shape;
        const CodecSpec codec =
            gaussian_codec(side, side == Side::kKey ? shape.head_dim_k : shape.head_dim_v, code, codes_);
        each(layer, head, side, [&](CodecSpec& spec) { spec = codec; });
    }

    void set_group(size_t layer, Side side, double group) {
        if (lloyd_max_)
            refuse(what_, where(layer, side) + ": group size", "a base with groups, such as k4v4-rot",
                   "one of -lm or -tcq");
        const uint16_t served = group < 48 ? 32 : (group < 96 ? 64 : 128);
        if (group <= 0 || group != std::floor(group))
            refuse(what_, where(layer, side) + ": group size", "a whole number above 0", fmt::format("{}", group));
        if (group != served) changed_groups_.insert(static_cast<size_t>(group));
        each(layer, -1, side, [&](CodecSpec& spec) { spec.group = served; });
    }

    /// One value for all layers, or one per layer; apply(layer, value).
    template <typename Apply>
    void per_layer(const std::string& key, const Json& json, const Apply& apply) {
        if (json.is_number()) {
            for (size_t layer = 0; layer < n_layers(); ++layer) apply(layer, json.get<double>());
            return;
        }
        per_layer(key, numbers(what_, key, json), apply);
    }
    template <typename Apply>
    void per_layer(const std::string& key, const std::vector<double>& values, const Apply& apply) {
        if (values.size() != n_layers()) {
            throw Error(ErrorCode::kMismatch, what_ + ": '" + key + "' was made for another model",
                        fmt::format("{} layers with a K/V cache ({})", n_layers(), plan_.model_name),
                        fmt::format("{}", values.size()), "Import it for the model it was made for");
        }
        for (size_t layer = 0; layer < values.size(); ++layer) apply(layer, values[layer]);
    }

    void set_window(double tokens) {
        if (tokens < 0 || tokens != std::floor(tokens) || tokens > 1 << 20)
            refuse(what_, "residual_length", "0 to 1048576 tokens", fmt::format("{}", tokens));
        plan_.window = static_cast<int32_t>(tokens);
    }

    Plan finish(const std::string& name) {
        plan_.name = name;
        for (LayerPlan& layer : plan_.layers) {
            for (HeadPlan& head : layer.heads) {
                for (CodecSpec* spec : {&head.key, &head.value}) {
                    if (spec->transform != nullptr) continue;
                    if (spec->bits == CodeBits::k16) *spec = CodecSpec{};  // no codes: the other fields mean nothing
                    if (spec->bits != CodeBits::k16 && spec->axis == GroupAxis::kPerChannel &&
                        spec->group > plan_.tile_tokens)
                        plan_.tile_tokens = 128;
                }
            }
        }
        for (const LayerPlan& layer : plan_.layers) {
            for (const HeadPlan& head : layer.heads) {  // throws, in plain words, where a codec does not fit the head
                (void)packed_bytes(head.key, Side::kKey, layer.shape.head_dim_k, plan_.tile_tokens);
                (void)packed_bytes(head.value, Side::kValue, layer.shape.head_dim_v, plan_.tile_tokens);
            }
        }
        if (!changed_groups_.empty()) {
            warnings_.push_back(fmt::format(
                "group sizes {} are not served: the nearest of 32, 64 and 128 is used, which changes the bytes",
                fmt::join(changed_groups_, ", ")));
        }
        if (n_half_ > 0) {
            warnings_.push_back(
                fmt::format("{} entries of 3.5 bits: no quantizer has them (the authors' HQQ refuses them too); 4 bits "
                            "are used, more than was budgeted",
                            n_half_));
        }
        return std::move(plan_);
    }

    [[nodiscard]] std::string where(size_t layer, Side side) const {
        return fmt::format("{} of layer {}", to_string(side), plan_.layers[layer].shape.layer);
    }
    [[nodiscard]] const Plan& plan() const noexcept { return plan_; }

  private:
    CodeBits code_bits(size_t layer, Side side, double bits) {
        if (bits == 3.5) {
            ++n_half_;
            return CodeBits::k4;
        }
        if (bits == 1.58) return CodeBits::kTernary;
        for (const CodeBits code : {CodeBits::k1, CodeBits::k2, CodeBits::k3, CodeBits::k4, CodeBits::k5, CodeBits::k6,
                                    CodeBits::k8, CodeBits::k16}) {
            if (bits == nominal_bits(code)) return code;
        }
        refuse(what_, "bits of " + where(layer, side), "1, 1.58, 2, 3, 4, 5, 6, 8 or 16", fmt::format("{}", bits));
    }

    std::string what_;
    std::vector<std::string>& warnings_;
    Plan plan_;
    bool lloyd_max_ = false;  ///< codecs of the base are Gaussian codebooks, of these codes
    TransformCodes codes_ = TransformCodes::kCodebook;
    std::set<size_t> changed_groups_;
    size_t n_half_ = 0;
};

}  // namespace kvaq::importing
