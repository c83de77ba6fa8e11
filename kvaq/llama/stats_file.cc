// *.stats.gguf: keys kvaq.stats.*, tensors l<layer>.h<head>.<what> in f64 (moments) and f16 (sample tiles). docs/formats.md.
#include "kvaq/llama/stats_file.h"

#include <cmath>
#include <span>

#include "kvaq/base/error.h"
#include "kvaq/llama/gguf_file.h"
#include "kvaq/llama/rope_bytes.h"

namespace kvaq {
namespace {

constexpr const char* kType = "kvaq-stats";
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxDim = 512;
constexpr int64_t kMaxTiles = 4096;
constexpr int64_t kMaxJoint = 1024;
constexpr double kMaxWindow = 1 << 20;
constexpr size_t kTile = 64;

std::string key(const char* name) { return std::string("kvaq.stats.") + name; }

std::string tensor(const LayerShape& layer, size_t head, const char* what) {
    return "l" + std::to_string(layer.layer) + ".h" + std::to_string(head) + "." + what;
}

std::string rope_tensor(const LayerShape& layer) { return "l" + std::to_string(layer.layer) + ".rope"; }

std::span<const uint16_t> bits_of(const std::vector<float16>& values) {
    return {reinterpret_cast<const uint16_t*>(values.data()), values.size()};
}

}  // namespace

void write_stats(const ModelStats& stats, const std::string& path, const std::string& command) {
    GgufWriter file(key("sha256"));
    file.set("general.type", std::string(kType));
    file.set(key("schema_version"), ModelStats::kSchemaVersion);
    file.set(key("architecture"), stats.architecture);
    file.set(key("model_name"), stats.model_name);
    file.set(key("fingerprint"), stats.fingerprint);
    file.set(key("text_sha256"), stats.text_sha256);
    file.set(key("settings"), stats.settings);
    if (!command.empty()) file.set(key("command"), printable(command));
    file.set(key("n_tokens"), stats.n_tokens);
    file.set(key("n_sample_tiles"), static_cast<uint32_t>(stats.n_sample_tiles));
    file.set(key("key_period"), stats.key_period);
    if (!stats.tile_turns.empty()) file.set(key("tile_turns"), stats.tile_turns);
    file.set(key("probe_bits"), stats.probe_bits);
    file.set(key("base_bits"), stats.base_bits);
    file.set(key("base_kl"), stats.base_kl);
    file.set(key("joint_floor"), stats.joint_floor);
    file.set(key("n_joint_probes"), static_cast<uint32_t>(stats.joint.size()));
    std::vector<int32_t> shape;
    std::vector<double> probes;
    for (const LayerStats& layer : stats.layers) {
        for (const size_t n :
             {static_cast<size_t>(layer.shape.layer), layer.shape.n_heads, layer.shape.n_kv_heads,
              layer.shape.head_dim_k, layer.shape.head_dim_v, static_cast<size_t>(layer.shape.sliding_window)}) {
            shape.push_back(static_cast<int32_t>(n));
        }
        probes.push_back(layer.probe.key_kl);
        probes.push_back(layer.probe.value_kl);
    }
    file.set(key("layers"), shape);
    file.add_tensor("probes", std::span<const double>(probes));
    std::vector<double> joint;
    for (const JointProbe& probe : stats.joint)
        joint.insert(joint.end(), {probe.key_bits, probe.value_bits, static_cast<double>(probe.window), probe.kl});
    if (!joint.empty()) file.add_tensor("joint_probes", std::span<const double>(joint));
    file.set(key("n_length_probes"), static_cast<uint32_t>(stats.lengths.size()));
    std::vector<double> lengths;
    for (const LengthProbe& probe : stats.lengths) {
        lengths.insert(lengths.end(), {static_cast<double>(probe.n_ctx), static_cast<double>(probe.short_ctx), probe.kl,
                                       probe.short_kl});
    }
    if (!lengths.empty()) file.add_tensor("length_probes", std::span<const double>(lengths));
    std::vector<std::vector<std::byte>> ropes;
    for (const LayerStats& layer : stats.layers) ropes.push_back(rope_rule_bytes(layer.rope));
    for (size_t i = 0; i < ropes.size(); ++i) file.add_tensor_bytes(rope_tensor(stats.layers[i].shape), ropes[i]);
    for (const LayerStats& layer : stats.layers) {
        for (size_t h = 0; h < layer.heads.size(); ++h) {
            const HeadStats& head = layer.heads[h];
            file.add_tensor(tensor(layer.shape, h, "k2"), std::span<const double>(head.key_second));
            if (!head.cached_key_second.empty())
                file.add_tensor(tensor(layer.shape, h, "k2_cached"), std::span<const double>(head.cached_key_second));
            file.add_tensor(tensor(layer.shape, h, "v2"), std::span<const double>(head.value_second));
            file.add_tensor(tensor(layer.shape, h, "q2"), std::span<const double>(head.query_second));
            file.add_tensor(tensor(layer.shape, h, "k_metric"), std::span<const double>(head.key_metric));
            file.add_tensor(tensor(layer.shape, h, "v_metric"), std::span<const double>(head.value_metric));
            file.add_tensor(tensor(layer.shape, h, "k1"), std::span<const double>(head.key_mean));
            file.add_tensor(tensor(layer.shape, h, "v1"), std::span<const double>(head.value_mean));
            if (stats.n_sample_tiles == 0) continue;
            file.add_tensor_f16(tensor(layer.shape, h, "k_tiles"), bits_of(head.key_tiles));
            file.add_tensor_f16(tensor(layer.shape, h, "v_tiles"), bits_of(head.value_tiles));
        }
    }
    file.write(path);
}

ModelStats read_stats(const std::string& path) {
    const GgufReader file(path, "statistics file");
    const std::string type = file.find_string("general.type").value_or("");
    if (type != kType) {
        throw Error(ErrorCode::kMismatch, "'" + path + "' is no statistics file", std::string("general.type ") + kType,
                    "'" + type + "'", "Make one with: kvaq calibrate -m MODEL -f TEXT -o " + path);
    }
    const int64_t version = file.get_int(key("schema_version"), 0, UINT32_MAX);
    if (version != ModelStats::kSchemaVersion) {
        throw Error(ErrorCode::kMismatch, "'" + path + "' has another schema version",
                    std::to_string(ModelStats::kSchemaVersion), std::to_string(version), "Calibrate again");
    }
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // fuzzers look behind the checksum
    file.check_sha256(key("sha256"));
#endif
    ModelStats stats;
    stats.architecture = file.get_string(key("architecture"));
    stats.model_name = file.get_string(key("model_name"));
    stats.fingerprint = file.get_string(key("fingerprint"));
    stats.text_sha256 = file.get_string(key("text_sha256"));
    stats.settings = file.get_string(key("settings"));
    stats.n_tokens = static_cast<uint64_t>(file.get_int(key("n_tokens"), 0, INT64_MAX));
    stats.n_sample_tiles = static_cast<size_t>(file.get_int(key("n_sample_tiles"), 0, kMaxTiles));
    stats.key_period = static_cast<int32_t>(file.get_int(key("key_period"), 0, kMaxKeyPeriod));
    stats.probe_bits = file.get_float(key("probe_bits"));
    stats.base_bits = file.get_float(key("base_bits"));
    stats.base_kl = file.get_float(key("base_kl"));
    stats.joint_floor = file.get_float(key("joint_floor"));
    // Files of before say neither how tiles were turned nor what the keys were before.
    const auto turns = file.find_ints(key("tile_turns"), -(int64_t{1} << 30), int64_t{1} << 30);
    if (turns) {
        if (turns->size() != stats.n_sample_tiles)
            file.corrupt("the turns of the sample tiles", std::to_string(stats.n_sample_tiles) + " numbers",
                         std::to_string(turns->size()));
        stats.tile_turns.assign(turns->begin(), turns->end());
    }
    const auto n_joint = static_cast<size_t>(file.get_int(key("n_joint_probes"), 0, kMaxJoint));
    if (n_joint > 0) {
        const std::vector<double> joint = file.read_f64("joint_probes", 4 * n_joint);
        for (size_t i = 0; i < n_joint; ++i) {
            const double* field = &joint[4 * i];
            const auto within = [](double x, double most) { return x >= 0 && x <= most; };
            if (!within(field[0], 16) || !within(field[1], 16) || !within(field[2], kMaxWindow) ||
                !std::isfinite(field[3])) {
                file.corrupt("joint probe " + std::to_string(i), "0 to 16 bits, a window of 0 to 2^20 and a finite KL",
                             "others");
            }
            stats.joint.push_back({.key_bits = field[0],
                                   .value_bits = field[1],
                                   .window = static_cast<int32_t>(field[2]),
                                   .kl = field[3]});
        }
    }
    const auto n_lengths = static_cast<size_t>(file.get_int(key("n_length_probes"), 0, kMaxJoint));
    if (n_lengths > 0) {
        const std::vector<double> lengths = file.read_f64("length_probes", 4 * n_lengths);
        for (size_t i = 0; i < n_lengths; ++i) {
            const double* field = &lengths[4 * i];
            if (!(field[1] >= 1) || !(field[0] > field[1]) || !(field[0] <= 1 << 30) || !std::isfinite(field[2]) ||
                !std::isfinite(field[3])) {
                file.corrupt("length probe " + std::to_string(i), "a long and a short context and two finite KLs",
                             "others");
            }
            stats.lengths.push_back({.n_ctx = static_cast<int32_t>(field[0]),
                                     .short_ctx = static_cast<int32_t>(field[1]),
                                     .kl = field[2],
                                     .short_kl = field[3]});
        }
    }
    const std::vector<int64_t> shape = file.get_ints(key("layers"), 0, INT32_MAX);
    constexpr size_t kFields = 6;
    const size_t n_layers = shape.size() / kFields;
    if (shape.size() % kFields != 0 || n_layers == 0 || n_layers > static_cast<size_t>(kMaxLayers))
        file.corrupt("the list of layers", "6 numbers per layer", std::to_string(shape.size()));
    const std::vector<double> probes = file.read_f64("probes", 2 * n_layers);
    for (size_t i = 0; i < n_layers; ++i) {
        const int64_t* field = &shape[i * kFields];
        if (field[0] >= kMaxLayers || field[1] < 1 || field[1] > kMaxHeads * 64 || field[2] < 1 ||
            field[2] > kMaxHeads || field[1] % field[2] != 0 || field[3] < 8 || field[3] > kMaxDim || field[4] < 8 ||
            field[4] > kMaxDim) {
            file.corrupt("the shape of layer entry " + std::to_string(i), "sane head counts and sizes", "others");
        }
        LayerStats layer;
        layer.shape = {.layer = static_cast<int32_t>(field[0]),
                       .n_heads = static_cast<size_t>(field[1]),
                       .n_kv_heads = static_cast<size_t>(field[2]),
                       .head_dim_k = static_cast<size_t>(field[3]),
                       .head_dim_v = static_cast<size_t>(field[4]),
                       .sliding_window = static_cast<int32_t>(field[5])};
        layer.probe = {.key_kl = probes[2 * i], .value_kl = probes[2 * i + 1]};
        layer.rope =
            parse_rope_rule(file.read_bytes(rope_tensor(layer.shape), kMaxRopeRuleBytes), layer.shape.head_dim_k);
        const size_t dk = layer.shape.head_dim_k;
        const size_t dv = layer.shape.head_dim_v;
        for (size_t h = 0; h < layer.shape.n_kv_heads; ++h) {
            HeadStats head;
            head.key_second = file.read_f64(tensor(layer.shape, h, "k2"), dk * dk);
            if (file.find_tensor(tensor(layer.shape, h, "k2_cached")) != nullptr)
                head.cached_key_second = file.read_f64(tensor(layer.shape, h, "k2_cached"), dk * dk);
            head.value_second = file.read_f64(tensor(layer.shape, h, "v2"), dv * dv);
            head.query_second = file.read_f64(tensor(layer.shape, h, "q2"), dk * dk);
            head.key_metric = file.read_f64(tensor(layer.shape, h, "k_metric"), dk * dk);
            head.value_metric = file.read_f64(tensor(layer.shape, h, "v_metric"), dv * dv);
            head.key_mean = file.read_f64(tensor(layer.shape, h, "k1"), dk);
            head.value_mean = file.read_f64(tensor(layer.shape, h, "v1"), dv);
            const auto tiles = [&](const char* what, size_t dim) {
                std::vector<float16> values;
                if (stats.n_sample_tiles == 0) return values;
                for (const uint16_t bits :
                     file.read_f16_bits(tensor(layer.shape, h, what), stats.n_sample_tiles * kTile * dim))
                    values.push_back(float16_from_bits(bits));
                return values;
            };
            head.key_tiles = tiles("k_tiles", dk);
            head.value_tiles = tiles("v_tiles", dv);
            layer.heads.push_back(std::move(head));
        }
        stats.layers.push_back(std::move(layer));
    }
    return stats;
}

ModelStats read_stats_of(const std::string& path, const std::string& model, const std::string& fingerprint,
                         const std::string& hint) {
    ModelStats stats = read_stats(path);
    if (stats.fingerprint != fingerprint) {
        throw Error(ErrorCode::kMismatch, "the statistics were made for another model",
                    fingerprint.substr(0, 16) + " (" + model + ")",
                    stats.fingerprint.substr(0, 16) + " (" + stats.model_name + ")", hint);
    }
    return stats;
}

}  // namespace kvaq
