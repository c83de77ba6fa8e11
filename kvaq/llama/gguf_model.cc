#include "kvaq/llama/gguf_model.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/llama/gguf_file.h"

namespace kvaq {

namespace {

constexpr int64_t kMaxLayers = 512;  // LLAMA_MAX_LAYERS
constexpr int64_t kMaxHeads = 65536;
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

/// Sliding-window rule of an architecture, as load_arch_hparams of the pinned llama.cpp (src/models/*.cpp) has it. An
/// architecture that is not listed ignores the sliding_window key there, and so here.
struct SlidingRule {
    std::string_view architecture;
    int64_t period = 0;          ///< every period-th layer is full; 0: the pattern must be an array in the file
    bool dense_first = false;    ///< the full layer is the first of its period, not the last
    int64_t default_window = 0;  ///< where the key is missing
    int64_t fixed_window = 0;    ///< > 0: taken whatever the key says (0 in the key still means none)
    int64_t only_layers = 0;     ///< > 0: sliding only in a model of that many layers
};
constexpr std::array kSlidingRules = {
    SlidingRule{"afmoe", 4},
    SlidingRule{"cohere2", 4},
    SlidingRule{"cohere2moe", 4, true},
    SlidingRule{"exaone-moe", 4, false, 128},
    SlidingRule{"exaone4", 4, false, 4096, 0, 64},
    SlidingRule{"gemma2", 2, false, 4096},
    SlidingRule{"gemma3", 6},
    SlidingRule{"gemma3n", 5},
    SlidingRule{"gemma4", 0},
    SlidingRule{"gpt-oss", 2},
    SlidingRule{"granite_swa", 0},
    SlidingRule{"laguna", 4, true},
    SlidingRule{"llama4", 4, false, 8192, 8192},  // chunked
    SlidingRule{"maple", 0},
    SlidingRule{"mellum", 4},
    SlidingRule{"mimo2", 0},
    SlidingRule{"muse-glimmer", 4},
    SlidingRule{"olmo2", 4},
    SlidingRule{"plamo3", 8},
    SlidingRule{"smallthinker", 4, true, 0, 4096},
    SlidingRule{"spark2_5", 0},
    SlidingRule{"step35", 0},
};

/// Architectures whose memory is not (only) a K/V cache that this program can serve. By name, with the reason.
struct Refusal {
    std::string_view reason;
    std::vector<std::string_view> architectures;
};
const std::vector<Refusal>& refusals() {
    static const std::vector<Refusal> list = {
        {"recurrent state instead of a K/V cache", {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}},
        {"hybrid: recurrent state beside the K/V cache",
         {"jamba", "falcon-h1", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe",
          "qwen3next", "kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next", "qwen35", "qwen35moe", "qwen4exp",
          "minimax-01"}},
        {"encoder or embedding model without a K/V cache",
         {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
          "gemma-embedding", "llama-embed", "t5encoder", "clip", "wavtokenizer-dec"}},
        {"encoder-decoder model", {"t5"}},
        {"diffusion model without a K/V cache", {"dream", "llada", "llada-moe", "rnd1"}},
        {"multi-head latent attention (MLA): the cache holds one latent vector, not K and V",
         {"deepseek32", "deepseek4", "glm-dsa", "dots3note", "mistral4"}},
        {"sparse attention with an indexer cache", {"minimax-m3"}},
        {"draft model that shares another model's cache", {"eagle3", "dflash", "gemma4-assistant"}},
        {"a router layer inside the K/V cache", {"graniteswitch"}},
        {"speech model", {"qwen3tts", "pockettts"}},
    };
    return list;
}

/// Architectures of the pinned llama.cpp (src/llama-arch.cpp) that keep an ordinary K/V cache. A newer one is refused: its
/// cache may hold something else.
constexpr auto kServed = std::to_array<std::string_view>({
    "afmoe",        "apertus",   "arcee",        "arctic",        "baichuan",       "bailingmoe",  "bailingmoe2",
    "bitnet",       "bloom",     "chameleon",    "chatglm",       "codeshell",      "cogvlm",      "cohere2",
    "cohere2moe",   "command-r", "dbrx",         "deci",          "deepseek",       "deepseek2",   "deepseek2-ocr",
    "dots1",        "ernie4_5",  "ernie4_5-moe", "exaone",        "exaone-moe",     "exaone4",     "falcon",
    "gemma",        "gemma2",    "gemma3",       "gemma3n",       "gemma4",         "glm4",        "glm4moe",
    "gpt-oss",      "gpt2",      "gptj",         "gptneox",       "granite",        "granite_swa", "granitemoe",
    "grok",         "grovemoe",  "hrm_text",     "hunyuan-dense", "hunyuan-moe",    "hunyuan_vl",  "hy_v3",
    "hy_v4",        "internlm2", "jais",         "jais2",         "laguna",         "llama",       "llama4",
    "maincoder",    "maple",     "mellum",       "mimo2",         "minicpm",        "minicpm3",    "minimax-m2",
    "mistral3",     "mpt",       "muse-glimmer", "nanbeige",      "nemotron",       "olmo",        "olmo2",
    "olmoe",        "openelm",   "orion",        "paddleocr",     "pangu-embedded", "phi2",        "phi3",
    "phimoe",       "plamo",     "plamo3",       "plm",           "qwen",           "qwen2",       "qwen2moe",
    "qwen2vl",      "qwen3",     "qwen3moe",     "qwen3vl",       "qwen3vlmoe",     "refact",      "seed_oss",
    "smallthinker", "smollm3",   "spark2_5",     "stablelm",      "starcoder",      "starcoder2",  "step35",
    "talkie",       "xverse",
});

[[noreturn]] void refuse(const GgufReader& file, const std::string& architecture, std::string_view reason) {
    throw Error(
        ErrorCode::kUnsupported,
        "model '" + file.path() + "': architecture " + architecture + " is not supported: " + std::string(reason),
        "a decoder whose layers keep K and V per head", "", "Run it with plain llama.cpp");
}

class Shape {
  public:
    explicit Shape(const GgufReader& file) : file_(file) {}

    ModelShape read() {
        const std::optional<std::string> type = file_.find_string("general.type");
        if (type && *type != "model") file_.corrupt("not a model", "general.type = model", *type);
        if (const auto part = file_.find_int("split.no", 0, 65535); part && *part != 0) {
            throw Error(ErrorCode::kInvalidArgument, "model '" + file_.path() + "' is a later part of a split model",
                        "the first part (-00001-of-...)", "part " + std::to_string(*part + 1));
        }
        arch_ = file_.get_string("general.architecture");
        refuse_by_name();
        refuse_by_keys();
        ModelShape shape;
        shape.architecture = arch_;
        shape.name = file_.find_string("general.name").value_or("");
        shape.n_ctx_train =
            static_cast<int32_t>(std::min(file_.find_int(key("context_length"), 0, UINT32_MAX).value_or(0), kMaxInt));
        read_layers(shape);
        return shape;
    }

  private:
    [[nodiscard]] std::string key(const std::string& name) const { return arch_ + "." + name; }

    void refuse_by_name() const {
        for (const Refusal& refusal : refusals()) {
            for (const std::string_view name : refusal.architectures) {
                if (name == arch_) refuse(file_, arch_, refusal.reason);
            }
        }
        if (std::find(kServed.begin(), kServed.end(), arch_) == kServed.end()) {
            refuse(file_, arch_, "the llama.cpp this version is built for does not know it");
        }
    }

    void refuse_by_keys() const {
        const auto positive = [&](const std::string& name) {
            return file_.find_int(key(name), 0, UINT32_MAX).value_or(0) > 0;
        };
        if (positive("attention.kv_lora_rank") || positive("attention.key_length_mla")) {
            refuse(file_, arch_, "multi-head latent attention (MLA): the cache holds one latent vector, not K and V");
        }
        if (file_.has_prefix(key("ssm.")) || file_.has_prefix(key("wkv.")) || file_.has_prefix(key("kda.")) ||
            positive("shortconv.l_cache") || file_.has(key("attention.recurrent_layers"))) {
            refuse(file_, arch_, "recurrent state beside or instead of the K/V cache");
        }
        if (file_.has_prefix(key("attention.indexer."))) refuse(file_, arch_, "sparse attention with an indexer cache");
        if (!file_.find_bool(key("attention.causal")).value_or(true)) refuse(file_, arch_, "attention is not causal");
    }

    /// A scalar for all layers or one value per layer.
    [[nodiscard]] std::optional<std::vector<int64_t>> per_layer(const std::string& name, size_t n_layers) const {
        const std::string k = key(name);
        if (!file_.has(k)) return std::nullopt;
        if (!file_.is_array(k)) return std::vector<int64_t>(n_layers, *file_.find_int(k, 0, kMaxHeads));
        std::vector<int64_t> values = *file_.find_ints(k, 0, kMaxHeads);
        if (values.size() != n_layers) {
            file_.corrupt("key " + k, std::to_string(n_layers) + " entries, one a layer",
                          std::to_string(values.size()));
        }
        return values;
    }

    /// Sliding window of every layer, 0 = full.
    [[nodiscard]] std::vector<int32_t> windows(size_t n_layers) const {
        std::vector<int32_t> out(n_layers, 0);
        const auto rule = std::find_if(kSlidingRules.begin(), kSlidingRules.end(),
                                       [&](const SlidingRule& r) { return r.architecture == arch_; });
        if (rule == kSlidingRules.end()) return out;
        if (rule->only_layers > 0 && n_layers != static_cast<size_t>(rule->only_layers)) return out;
        int64_t window = file_.find_int(key("attention.sliding_window"), 0, kMaxInt).value_or(rule->default_window);
        if (window == 0) return out;
        if (rule->fixed_window > 0) window = rule->fixed_window;
        const std::string pattern = key("attention.sliding_window_pattern");
        if (file_.is_array(pattern)) {
            const std::vector<int64_t> flags = file_.get_ints(pattern, 0, 1);
            if (flags.size() < n_layers) {
                file_.corrupt("key " + pattern, std::to_string(n_layers) + " entries", std::to_string(flags.size()));
            }
            for (size_t i = 0; i < n_layers; ++i) out[i] = flags[i] != 0 ? static_cast<int32_t>(window) : 0;
            return out;
        }
        if (rule->period == 0) file_.corrupt("key " + pattern, "an array with one flag a layer", "nothing");
        const auto period = static_cast<size_t>(file_.find_int(pattern, 0, kMaxLayers).value_or(rule->period));
        for (size_t i = 0; i < n_layers; ++i) {
            const bool sliding = period == 0 || (rule->dense_first ? i % period != 0 : i % period != period - 1);
            out[i] = sliding ? static_cast<int32_t>(window) : 0;
        }
        return out;
    }

    void read_layers(ModelShape& shape) const {
        const int64_t n_all = file_.get_int(key("block_count"), 1, kMaxLayers);
        // Multi-token-prediction blocks stand last and have no place in the main context's cache.
        const int64_t n_next = file_.find_int(key("nextn_predict_layers"), 0, n_all).value_or(0);
        size_t n_layers = static_cast<size_t>(n_next < n_all ? n_all - n_next : n_all);
        const auto heads = per_layer("attention.head_count", static_cast<size_t>(n_all));
        if (!heads) refuse(file_, arch_, "the file names no attention heads (" + key("attention.head_count") + ")");
        const std::vector<int64_t> kv_heads =
            per_layer("attention.head_count_kv", static_cast<size_t>(n_all)).value_or(*heads);
        const std::vector<int32_t> window = windows(n_layers);

        const int64_t n_embd = file_.get_int(key("embedding_length"), 1, kMaxInt);
        const int64_t default_dim = (*heads)[0] > 0 ? n_embd / (*heads)[0] : 0;
        const auto dim = [&](const char* name, int64_t fallback) {
            return file_.find_int(key(name), 0, kMaxInt).value_or(fallback);
        };
        const int64_t dim_k = dim("attention.key_length", default_dim);
        const int64_t dim_v = dim("attention.value_length", default_dim);
        const int64_t dim_k_sliding = dim("attention.key_length_swa", dim_k);
        const int64_t dim_v_sliding = dim("attention.value_length_swa", dim_v);

        size_t n_owners = n_layers;  // layers from there on read an earlier layer's K/V
        if (arch_ == "gemma3n") n_owners = std::min<size_t>(n_layers, 20);
        if (arch_ == "gemma4") {
            const int64_t n_shared = file_.find_int(key("attention.shared_kv_layers"), 0, n_all).value_or(0);
            n_owners = std::min(n_layers, static_cast<size_t>(n_all - n_shared));
        }
        shape.shares_layers = n_owners < n_layers;
        // Looped models run the same blocks several times, each time with a cache of their own.
        const auto n_loops =
            static_cast<size_t>(arch_ == "nanbeige" ? file_.find_int(key("num_loops"), 1, kMaxLayers).value_or(1) : 1);
        if (n_loops * n_layers > static_cast<size_t>(kMaxLayers)) {
            file_.corrupt("key " + key("num_loops"), "at most 512 layers in all", std::to_string(n_loops * n_layers));
        }

        for (size_t i = 0; i < n_loops * n_layers; ++i) {
            const size_t block = i % n_layers;
            if (i >= n_owners && n_loops == 1) break;
            if ((*heads)[block] == 0 || kv_heads[block] == 0) continue;  // a block without attention
            LayerShape layer;
            layer.layer = static_cast<int32_t>(i);
            layer.n_heads = static_cast<size_t>((*heads)[block]);
            layer.n_kv_heads = static_cast<size_t>(kv_heads[block]);
            layer.sliding_window = window[block];
            layer.head_dim_k = static_cast<size_t>(window[block] > 0 ? dim_k_sliding : dim_k);
            layer.head_dim_v = static_cast<size_t>(window[block] > 0 ? dim_v_sliding : dim_v);
            check(layer);
            shape.layers.push_back(layer);
        }
        if (shape.layers.empty()) refuse(file_, arch_, "no layer has a K/V cache");
    }

    void check(const LayerShape& layer) const {
        const std::string at = "layer " + std::to_string(layer.layer);
        if (layer.n_heads % layer.n_kv_heads != 0) {
            file_.corrupt(at, "a number of heads that its KV heads divide",
                          std::to_string(layer.n_heads) + " heads, " + std::to_string(layer.n_kv_heads) + " KV heads");
        }
        for (const size_t dim : {layer.head_dim_k, layer.head_dim_v}) {
            if (dim == 0 || dim % 8 != 0 || dim > 512) {
                throw Error(ErrorCode::kUnsupported, "model '" + file_.path() + "', " + at + ": head size",
                            "a multiple of 8 from 8 to 512", std::to_string(dim));
            }
        }
    }

    const GgufReader& file_;
    std::string arch_;
};

}  // namespace

ModelShape read_model_shape(const std::string& path) {
    const GgufReader file(path, "model");
    ModelShape shape = Shape(file).read();
    shape.fingerprint = model_fingerprint(path);
    return shape;
}

}  // namespace kvaq
