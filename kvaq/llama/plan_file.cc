#include "kvaq/llama/plan_file.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"
#include "kvaq/llama/gguf_file.h"
#include "kvaq/llama/rope_bytes.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan_json.h"
#include "kvaq/quant/transform.h"

namespace kvaq {

namespace {

constexpr const char* kType = "kvaq-plan";
constexpr int64_t kMaxLayers = 512;
constexpr int64_t kMaxHeads = 65536;
constexpr int64_t kMaxDim = 512;
constexpr int64_t kMaxWindow = 1 << 20;

std::string key(const char* name) { return std::string("kvaq.plan.") + name; }

/// GGUF strings end at the first NUL for most readers.
std::string without_nul(const std::string& text) { return text.substr(0, text.find('\0')); }

Plan with_plain_strings(Plan plan) {
    for (std::string* text :
         {&plan.name, &plan.architecture, &plan.model_name, &plan.fingerprint, &plan.measured_how}) {
        *text = without_nul(*text);
    }
    return plan;
}

constexpr uint64_t kMaxFitBytes = 1 << 20;

std::string turn_tensor(int32_t layer) { return "key_turn" + std::to_string(layer); }

std::string fit_tensor(size_t index) { return "fit" + std::to_string(index); }

/// Affine codecs by their text; transform codecs as "klt:<fit>:<bits of every unit>", e.g. "klt:12:65443322"; "tcq:..." with trellis codes.
std::string text_of(const CodecSpec& spec, std::vector<const TransformFit*>& fits) {
    if (spec.transform == nullptr) return to_string(spec);
    const TransformFit* fit = spec.transform->fit.get();
    const auto at = std::find(fits.begin(), fits.end(), fit);
    const auto index = static_cast<size_t>(at - fits.begin());
    if (at == fits.end()) fits.push_back(fit);
    std::string text =
        (spec.transform->codes == TransformCodes::kTrellis ? "tcq:" : "klt:") + std::to_string(index) + ":";
    for (const uint8_t bits : spec.transform->unit_bits) text += static_cast<char>('0' + bits);
    return text;
}

CodecSpec transform_from_text(const GgufReader& file, const std::string& text,
                              std::vector<std::shared_ptr<const TransformFit>>& fits) {
    const size_t colon = text.find(':', 4);
    const std::string number = text.substr(4, colon == std::string::npos ? 0 : colon - 4);
    if (number.empty() || number.size() > 6 || number.find_first_not_of("0123456789") != std::string::npos)
        file.corrupt("codec", "klt:<fit>:<bits> or tcq:<fit>:<bits>", "'" + text + "'");
    const auto index = static_cast<size_t>(std::stoul(number));
    if (index > fits.size()) file.corrupt("codec", "fits in the order of their first use", "'" + text + "'");
    if (index == fits.size())
        fits.push_back(std::make_shared<const TransformFit>(
            parse_transform_fit(file.read_bytes(fit_tensor(index), kMaxFitBytes))));
    std::vector<uint8_t> bits;
    for (const char c : text.substr(colon + 1)) bits.push_back(static_cast<uint8_t>(c - '0'));
    CodecSpec spec;
    spec.transform =
        make_transform_codec(fits[index], std::move(bits),
                             text.rfind("tcq:", 0) == 0 ? TransformCodes::kTrellis : TransformCodes::kCodebook);
    return spec;
}

int32_t index_of(const CodecSpec& spec, std::vector<std::string>& codecs, std::vector<const TransformFit*>& fits) {
    const std::string text = text_of(spec, fits);
    const auto at = std::find(codecs.begin(), codecs.end(), text);
    const auto index = static_cast<int32_t>(at - codecs.begin());
    if (at == codecs.end()) codecs.push_back(text);
    return index;
}

std::vector<CodecSpec> read_codecs(const GgufReader& file) {
    std::vector<CodecSpec> codecs;
    std::vector<std::shared_ptr<const TransformFit>> fits;
    for (const std::string& text : file.get_strings(key("codecs"))) {
        try {
            codecs.push_back(text.rfind("klt:", 0) == 0 || text.rfind("tcq:", 0) == 0
                                 ? transform_from_text(file, text, fits)
                                 : codec_spec_from_string(text));
        } catch (const Error& error) {
            file.corrupt("codec " + std::to_string(codecs.size()), "a codec this version knows",
                         "'" + text + "' (" + error.what() + ")");
        }
    }
    return codecs;
}

std::vector<LayerPlan> read_layers(const GgufReader& file) {
    const std::vector<CodecSpec> codecs = read_codecs(file);
    const std::vector<int64_t> layer = file.get_ints(key("layer"), 0, kMaxLayers - 1);
    if (layer.size() > static_cast<size_t>(kMaxLayers)) {
        file.corrupt("key " + key("layer"), "at most 512 entries", std::to_string(layer.size()));
    }
    const auto n = static_cast<int64_t>(layer.size());
    const std::vector<int64_t> heads = file.get_ints(key("n_heads"), 1, kMaxHeads, n);
    const std::vector<int64_t> kv_heads = file.get_ints(key("n_kv_heads"), 1, kMaxHeads, n);
    const std::vector<int64_t> dim_k = file.get_ints(key("head_dim_k"), 1, kMaxDim, n);
    const std::vector<int64_t> dim_v = file.get_ints(key("head_dim_v"), 1, kMaxDim, n);
    const std::vector<int64_t> sliding =
        file.get_ints(key("sliding_window"), 0, std::numeric_limits<int32_t>::max(), n);
    int64_t n_all = 0;
    for (const int64_t count : kv_heads) n_all += count;
    const auto last = static_cast<int64_t>(codecs.size()) - 1;
    const std::vector<int64_t> key_codec = file.get_ints(key("key_codec"), 0, last, n_all);
    const std::vector<int64_t> value_codec = file.get_ints(key("value_codec"), 0, last, n_all);

    std::vector<LayerPlan> layers;
    size_t head = 0;
    for (size_t i = 0; i < layer.size(); ++i) {
        if (i > 0 && layer[i] <= layer[i - 1])
            file.corrupt("key " + key("layer"), "ascending numbers", std::to_string(layer[i]));
        if (heads[i] % kv_heads[i] != 0) {
            file.corrupt("layer " + std::to_string(layer[i]), "heads that the KV heads divide",
                         std::to_string(heads[i]));
        }
        LayerPlan plan;
        plan.shape = {.layer = static_cast<int32_t>(layer[i]),
                      .n_heads = static_cast<size_t>(heads[i]),
                      .n_kv_heads = static_cast<size_t>(kv_heads[i]),
                      .head_dim_k = static_cast<size_t>(dim_k[i]),
                      .head_dim_v = static_cast<size_t>(dim_v[i]),
                      .sliding_window = static_cast<int32_t>(sliding[i])};
        for (int64_t k = 0; k < kv_heads[i]; ++k, ++head) {
            plan.heads.push_back({.key = codecs[static_cast<size_t>(key_codec[head])],
                                  .value = codecs[static_cast<size_t>(value_codec[head])]});
        }
        layers.push_back(std::move(plan));
    }
    return layers;
}

}  // namespace

void write_plan(const Plan& original, const std::string& path, const std::string& command) {
    const Plan plan = with_plain_strings(original);
    std::vector<std::string> codecs;
    std::vector<const TransformFit*> fits;
    std::vector<int32_t> layer, heads, kv_heads, dim_k, dim_v, sliding, key_codec, value_codec;
    for (const LayerPlan& one : plan.layers) {
        layer.push_back(one.shape.layer);
        heads.push_back(static_cast<int32_t>(one.shape.n_heads));
        kv_heads.push_back(static_cast<int32_t>(one.shape.n_kv_heads));
        dim_k.push_back(static_cast<int32_t>(one.shape.head_dim_k));
        dim_v.push_back(static_cast<int32_t>(one.shape.head_dim_v));
        sliding.push_back(one.shape.sliding_window);
        for (const HeadPlan& head : one.heads) {
            key_codec.push_back(index_of(head.key, codecs, fits));
            value_codec.push_back(index_of(head.value, codecs, fits));
        }
    }
    GgufWriter file;
    file.set("general.type", std::string(kType));
    file.set("general.name", plan.name);
    file.set(key("schema_version"), schema_version(plan));
    file.set(key("name"), plan.name);
    file.set(key("architecture"), plan.architecture);
    file.set(key("model_name"), plan.model_name);
    file.set(key("fingerprint"), plan.fingerprint);
    file.set(key("tile_tokens"), static_cast<uint32_t>(plan.tile_tokens));
    file.set(key("window"), plan.window);
    file.set(key("sinks"), plan.sinks);
    if (plan.key_period > 0) file.set(key("key_period"), plan.key_period);
    file.set(key("predicted_kl"), plan.predicted_kl);
    file.set(key("measured_how"), plan.measured_how);
    if (!command.empty()) file.set(key("command"), printable(command));
    file.set(key("bytes_per_token"), bytes_per_token(plan));
    file.set(key("layer"), layer);
    file.set(key("n_heads"), heads);
    file.set(key("n_kv_heads"), kv_heads);
    file.set(key("head_dim_k"), dim_k);
    file.set(key("head_dim_v"), dim_v);
    file.set(key("sliding_window"), sliding);
    file.set(key("codecs"), codecs);
    file.set(key("key_codec"), key_codec);
    file.set(key("value_codec"), value_codec);
    file.set(key("sha256"), sha256_hex(canonical_text(plan)));
    std::vector<std::vector<std::byte>> turn_data;
    if (plan.key_period > 0) {
        for (const LayerPlan& one : plan.layers) turn_data.push_back(rope_rule_bytes(one.key_turn));
    }
    for (size_t i = 0; i < turn_data.size(); ++i)
        file.add_tensor_bytes(turn_tensor(plan.layers[i].shape.layer), turn_data[i]);
    std::vector<std::vector<std::byte>> fit_data;
    for (const TransformFit* fit : fits) fit_data.push_back(transform_fit_bytes(*fit));
    for (size_t i = 0; i < fit_data.size(); ++i) file.add_tensor_bytes(fit_tensor(i), fit_data[i]);
    file.write(path);
}

void require_plan_file(const std::string& preset_or_file) {
    if (std::filesystem::exists(preset_or_file)) return;
    if (preset_or_file.find('/') == std::string::npos && !preset_or_file.ends_with(".gguf")) {
        (void)parse_preset(preset_or_file);  // says which part of the name is unknown and what is allowed
    }
    throw Error(ErrorCode::kNotFound, "no such plan", "a *.plan.gguf file or a preset such as k4v2 or k4v4-rot",
                "'" + preset_or_file + "'", "Make one with: kvaq plan -m MODEL --budget 3.25bits -o MODEL.plan.gguf");
}

Plan read_plan(const std::string& path) {
    const GgufReader file(path, "plan");
    const std::string type = file.find_string("general.type").value_or("");
    if (type != kType) {
        throw Error(ErrorCode::kCorrupt, "'" + path + "' is not a plan", std::string("general.type ") + kType,
                    type.empty() ? "a GGUF file of another kind" : "'" + type + "'",
                    "A model goes to -m, statistics to --stats; make a plan with: kvaq plan -m MODEL --stats STATS "
                    "--budget 3.25bits -o MODEL.plan.gguf");
    }
    const int64_t version = file.get_int(key("schema_version"), 0, UINT32_MAX);
    if (version < 1 || version > Plan::kSchemaVersion) {
        throw Error(ErrorCode::kMismatch, "plan '" + path + "': schema version",
                    "1 to " + std::to_string(Plan::kSchemaVersion), std::to_string(version),
                    "Make the plan again with this version's kvaq plan");
    }
    const auto text = [&](const char* name) {
        std::string value = file.get_string(key(name));
        const auto control = [](char c) { return (c >= 0 && c < ' ') || c == 0x7F; };
        if (std::any_of(value.begin(), value.end(), control))  // it is shown on terminals and in logs
            file.corrupt("key " + key(name), "text without control characters", "some");
        return value;
    };
    Plan plan;
    plan.name = text("name");
    plan.architecture = text("architecture");
    plan.model_name = text("model_name");
    plan.fingerprint = text("fingerprint");
    plan.tile_tokens = static_cast<size_t>(file.get_int(key("tile_tokens"), 64, 128));
    if (plan.tile_tokens != 64 && plan.tile_tokens != 128) {
        file.corrupt("key " + key("tile_tokens"), "64 or 128", std::to_string(plan.tile_tokens));
    }
    plan.window = static_cast<int32_t>(file.get_int(key("window"), 0, kMaxWindow));
    plan.sinks = static_cast<int32_t>(file.get_int(key("sinks"), 0, static_cast<int64_t>(plan.tile_tokens)));
    plan.predicted_kl = file.get_float(key("predicted_kl"));
    plan.measured_how = text("measured_how");
    plan.layers = read_layers(file);
    if (version > 1) {
        plan.key_period = static_cast<int32_t>(file.get_int(key("key_period"), 1, kMaxKeyPeriod));
        for (LayerPlan& layer : plan.layers) {
            layer.key_turn = parse_rope_rule(file.read_bytes(turn_tensor(layer.shape.layer), kMaxRopeRuleBytes),
                                             layer.shape.head_dim_k);
        }
    }
    const std::string digest = file.get_string(key("sha256"));
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // fuzzers look behind the checksum
    if (sha256_hex(canonical_text(plan)) != digest)
        file.corrupt("the checksum does not fit the contents", "an unchanged file", "a changed one");
#endif
    double bytes = 0;
    try {
        bytes = bytes_per_token(plan);  // asks for the layout of every codec: one that does not fit its head throws
    } catch (const Error& error) {
        file.corrupt("a codec does not fit its head", "", error.what());
    }
    const double planned = file.get_float(key("bytes_per_token"));
    if (std::abs(planned - bytes) > 1e-6 * (1 + bytes)) {
        throw Error(ErrorCode::kMismatch, "plan '" + path + "' was made for another tile format",
                    std::to_string(planned) + " bytes per token", std::to_string(bytes) + " bytes per token",
                    "Make the plan again with this version's kvaq plan");
    }
    return plan;
}

}  // namespace kvaq
