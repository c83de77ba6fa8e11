// libllama's functions that make and free models and contexts, interposed: KVAQ_PLAN or kvaq::attach() decides per context
// whether we serve it.
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "kvaq/attention/tile_attention.h"
#include "kvaq/base/error.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/attachment.h"
#include "kvaq/llama/attention_place.h"
#include "kvaq/llama/gpu_attention.h"
#include "kvaq/llama/metrics_server.h"
#include "kvaq/llama/real.h"
#include "kvaq/llama/served_context.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/budget_text.h"

namespace kvaq {
namespace {

std::string metadata(const llama_model* model, const std::string& key) {
    char value[256] = "";
    return llama_model_meta_val_str(model, key.c_str(), value, sizeof value) < 0 ? "" : value;
}

/// Refuses, by name, what would be served wrongly. The model itself is checked by model_shape_of.
void check_params(const llama_model* model, const llama_context_params& params, const ModelShape& shape) {
    const auto refuse = [](const std::string& fact, const std::string& wanted, const std::string& found,
                           const std::string& hint) {
        throw Error(ErrorCode::kUnsupported, fact, wanted, found, hint);
    };
    if (params.type_k != GGML_TYPE_F16 || params.type_v != GGML_TYPE_F16) {
        refuse("both a K/V plan and llama.cpp's own cache types were asked for", "-ctk f16 -ctv f16 (the default)",
               std::string("-ctk ") + ggml_type_name(params.type_k) + " -ctv " + ggml_type_name(params.type_v),
               "Leave out -ctk and -ctv");
    }
    if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
        refuse("the plan's cache needs flash attention", "-fa on or auto", "-fa off", "Leave out -fa off");
    }
    if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        refuse("multi-token prediction (MTP) contexts are not served yet: they share another one's cache",
               "an ordinary context", "an MTP context", "Start without --spec-type draft-mtp");
    }
    // Every draft model's context is given the target's (params.ctx_other); only these architectures use it (src/llama-context.cpp).
    if (const std::string& name = shape.architecture;
        params.ctx_other != nullptr && (name == "gemma4-assistant" || name == "eagle3" || name == "dflash")) {
        refuse("a draft model that reads the target model's context is not served yet",
               "a draft model with a cache of its own", name, "Start without this draft model");
    }
    if (params.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL) {
        refuse("non-causal attention is not served", "causal attention", "non-causal", "");
    }
    if (params.embeddings && params.pooling_type != LLAMA_POOLING_TYPE_NONE &&
        params.pooling_type != LLAMA_POOLING_TYPE_UNSPECIFIED) {
        refuse("embedding contexts are not served: they keep no cache", "", "", "Start without a plan");
    }
    // Two sets of factors, of which llama.cpp takes one by the size of its own cache, which is a batch here. Files of Phi 3 and 4 do not name the type.
    const auto tokens = [&](const char* key) {
        return std::strtoull(metadata(model, shape.architecture + key).c_str(), nullptr, 10);
    };
    const auto original = tokens(".rope.scaling.original_context_length");
    const bool phi = (shape.architecture == "phi3" || shape.architecture == "phimoe") && original > 0 &&
                     original < tokens(".context_length");
    if (phi || metadata(model, shape.architecture + ".rope.scaling.type") == "longrope") {
        refuse("LongRoPE models are not served: their factors depend on llama.cpp's own cache size", "",
               shape.architecture, "Start without a plan");
    }
}

std::string mebibytes(size_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1024 * 1024));
    return text;
}

/// K and V of one token in f16.
size_t f16_token_bytes(const ModelShape& shape) {
    size_t bytes = 0;
    for (const LayerShape& layer : shape.layers)
        bytes += layer.n_kv_heads * (layer.head_dim_k + layer.head_dim_v) * sizeof(float16);
    return bytes;
}

/// f16 rows that one sequence of n_ctx tokens keeps for --kv-rewind beyond its window.
size_t rewind_bytes(const Plan& plan, const ModelShape& shape, size_t rewind, size_t n_ctx) {
    const size_t n = std::min(rewind, n_ctx - std::min<size_t>(n_ctx, static_cast<size_t>(plan.window)));
    return (n + plan.tile_tokens - 1) / plan.tile_tokens * plan.tile_tokens * f16_token_bytes(shape);
}

void print_start(const ServedContext& context, size_t own_cache) {
    if (context.cache == nullptr || !plans_announced()) return;
    const Plan& plan = context.cache->plan();
    const CacheBytes bytes = cache_bytes(plan, context.n_ctx, !context.frees_windows);
    std::fprintf(stderr, "kvaq: plan %s, window %d, sinks %d\n", plan.name.c_str(), plan.window, plan.sinks);
    for (const std::string& line : context.cache->describe()) std::fprintf(stderr, "kvaq: %s\n", line.c_str());
    std::fprintf(stderr,
                 "kvaq: %s for a full context of %u tokens, %.2f bits per element (f16: %s); llama.cpp's own cache "
                 "keeps one batch: %s\n",
                 mebibytes(bytes.total).c_str(), context.n_ctx, bytes.effective_bits,
                 mebibytes(f16_token_bytes(context.shape) * context.n_ctx).c_str(), mebibytes(own_cache).c_str());
}

/// Whether layers on CUDA devices are to be kept there. Throws Error kUnsupported if that was asked for and cannot be.
bool gpu_can_serve(const llama_context_params& params) {
    const KvDevice wanted = wanted_kv_device();
    if (wanted == KvDevice::kCpu || (wanted == KvDevice::kAuto && !params.offload_kqv)) return false;
    const std::string why_not =
        params.offload_kqv ? why_no_gpu() : "the program keeps K/V on the host (--no-kv-offload)";
    if (!why_not.empty() && wanted == KvDevice::kGpu)
        throw Error(ErrorCode::kUnsupported, "the cache cannot be kept on a GPU (--kv-device gpu)", "a CUDA device",
                    why_not, "Leave --kv-device out");
    return why_not.empty();
}

/// Gives the layers that llama.cpp has put on CUDA devices their memory there.
void place_on_gpus(ServedContext& context, const AttentionPlace& place) {
    std::vector<LayerPlace> places;
    for (const auto& [layer, on] : place.gpu_layers()) {
        if (shape_of(context, layer) == nullptr) continue;  // prepare_node says so
        places.push_back({.layer = layer, .device = on.device});
        context.gpus[on.device].backend = on.backend;
    }
    if (places.empty() && wanted_kv_device() == KvDevice::kGpu)
        throw Error(ErrorCode::kUnsupported, "the cache cannot be kept on a GPU (--kv-device gpu)",
                    "layers on a CUDA device", "none", "Offload layers (-ngl 99), or leave --kv-device out");
    if (!places.empty()) context.cache->place_layers(places);
}

/// Where devices are in use, what is there.
void print_devices(const ServedContext& context, const AttentionPlace& place) {
    if (place.n_devices() == 0 || !plans_announced()) return;
    if (place.gpu_layers().empty()) {
        std::fprintf(stderr, "kvaq: weights on %zu device(s); attention and its cache stay on the host\n",
                     place.n_devices());
        return;
    }
    std::fprintf(stderr, "kvaq: attention of %zu of %zu layers on the GPU, which keeps a copy of their cache: %s\n",
                 place.gpu_layers().size(), context.shape.layers.size(),
                 mebibytes(context.cache->use().device).c_str());
}

llama_context* serve(llama_model* model, llama_context_params params, const HandlerFactory& factory) {
    const std::string version = KVAQ_REAL(llama_version)();
    if (version.rfind(KVAQ_LLAMA_VERSION, 0) != 0) {
        throw Error(
            ErrorCode::kMismatch, "this llama.cpp does not fit", KVAQ_LLAMA_VERSION, version,
            "Use the llama.cpp that scripts/bootstrap.sh builds, or rebuild kvaq against yours (-DKVAQ_LLAMA_DIR=)");
    }
    const bool measure_only = is_measure_only(model);
    auto context = std::make_unique<ServedContext>();
    context->shape = model_shape_of(model);
    check_params(model, params, context->shape);
    context->poisoned.reserve(256);  // so that setting it in need cannot fail
    context->chunked_window = context->shape.architecture == "llama4";
    context->program_callback = params.cb_eval;
    context->program_callback_data = params.cb_eval_user_data;

    // What the program would have got (src/llama-context.cpp of the pinned version).
    const auto pad = [](uint32_t n) { return (n + 255U) / 256U * 256U; };
    const uint32_t asked = params.n_ctx == 0 ? static_cast<uint32_t>(llama_model_n_ctx_train(model)) : params.n_ctx;
    const uint32_t n_seq_max = std::max<uint32_t>(1, params.n_seq_max);
    context->n_ctx = pad(asked);
    context->n_ctx_seq = context->n_ctx;
    if (!params.kv_unified) {
        context->n_ctx_seq = pad(context->n_ctx / n_seq_max);
        context->n_ctx = context->n_ctx_seq * n_seq_max;
    }
    context->n_seq_max = n_seq_max;

    llama_context_params own = params;
    own.n_ctx = std::min(asked, params.n_batch);
    own.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    own.kv_unified = true;
    own.swa_full = true;
    context->on_gpu = gpu_can_serve(params);
    own.offload_kqv = context->on_gpu;  // else our cache is host memory only
    if (measure_only) {
        const AttentionPlace place(nullptr, context->on_gpu);
        return KVAQ_REAL(llama_init_from_model)(model, own);
    }
    own.cb_eval = serve_callback;
    own.cb_eval_user_data = context.get();

    const uint32_t n_batch = std::min(asked, params.n_batch);
    const uint32_t n_ubatch = std::min(n_batch, params.n_ubatch == 0 ? params.n_batch : params.n_ubatch);
    context->n_ubatch = n_ubatch;
    context->frees_windows =
        !params.swa_full &&
        std::any_of(context->shape.layers.begin(), context->shape.layers.end(), [&](const LayerShape& layer) {
            return layer.sliding_window > 0 && static_cast<uint32_t>(layer.sliding_window) < context->n_ctx;
        });
    check_attention_mode();
    KvCacheOptions options{.n_seq_max = n_seq_max,
                           .n_ctx = context->n_ctx,
                           .max_batch_tokens = n_ubatch,
                           .keep_sliding = !context->frees_windows,
                           .n_threads = static_cast<size_t>(std::max({1, params.n_threads, params.n_threads_batch})),
                           .on_gpu = context->on_gpu};
    if (const char* text = std::getenv("KVAQ_KV_REWIND"); text != nullptr && *text != '\0')
        options.rewind = std::min<size_t>(parse_rewind(text), context->n_ctx);
    context->handler = factory(context->shape, options);
    context->cache = dynamic_cast<KvCache*>(context->handler.get());
    if (context->cache == nullptr) {  // it reads host memory
        context->on_gpu = false;
        own.offload_kqv = false;
    }
    std::string limit;
    size_t budget = 0;
    if (const char* text = std::getenv("KVAQ_KV_BUDGET");
        text != nullptr && *text != '\0' && context->cache != nullptr) {
        budget = parse_bytes(text);
        if (context->cache->use().allocated > budget) {  // reserved, not touched yet
            options.n_ctx = tokens_within(context->cache->plan(), options, budget);
            context->cache = nullptr;
            context->handler = factory(context->shape, options);
            context->cache = dynamic_cast<KvCache*>(context->handler.get());
        }
        limit = "kvaq: limit " + mebibytes(budget) + ": room for " + std::to_string(options.n_ctx) + " of " +
                std::to_string(context->n_ctx) + " tokens over all sequences, " +
                mebibytes(context->cache->use().allocated) + " reserved\n";
    }
    if (options.rewind > 0 && context->cache != nullptr) {
        const Plan& plan = context->cache->plan();
        KvCacheOptions without = options;
        without.rewind = 0;
        limit += "kvaq: rewind " + std::to_string(options.rewind) + ": f16 rows of as many more tokens are kept, " +
                 mebibytes(rewind_bytes(plan, context->shape, options.rewind, options.n_ctx)) +
                 " for each full sequence; " +
                 mebibytes(reserved_bytes(plan, options) - reserved_bytes(plan, without)) + " more are reserved\n";
    }
    if (context->cache != nullptr) {
        const Plan& plan = context->cache->plan();
        context->metrics = std::make_shared<ContextMetrics>(ContextMetrics::Facts{
            .model = context->shape.name.empty() ? context->shape.architecture : context->shape.name,
            .plan = plan.name,
            .n_ctx = context->n_ctx,
            .n_seq_max = n_seq_max,
            .budget = budget,
            .planned = cache_bytes(plan, options.n_ctx, !context->frees_windows).total +
                       rewind_bytes(plan, context->shape, options.rewind, options.n_ctx)});
        context->publish();
    }
    const std::string metrics_url = context->cache != nullptr ? start_metrics_server() : "";
    AttentionPlace place(nullptr, context->on_gpu);
    // Not where later layers read an earlier one's rows (gemma3n, gemma4), nor on GPUs.
    if (!context->on_gpu && !context->shape.shares_layers) place.share_rows();
    llama_context* ctx = KVAQ_REAL(llama_init_from_model)(model, own);
    if (ctx == nullptr) return nullptr;
    try {
        place_on_gpus(*context, place);
    } catch (...) {
        KVAQ_REAL(llama_free)(ctx);
        throw;
    }
    print_start(*context, place.own_cache());
    if (plans_announced()) std::fputs(limit.c_str(), stderr);
    if (!metrics_url.empty()) std::fprintf(stderr, "kvaq: metrics at %s\n", metrics_url.c_str());
    print_devices(*context, place);
    context->ctx = ctx;
    if (context->metrics != nullptr) list_metrics(context->metrics);
    const llama_memory_t memory = KVAQ_REAL(llama_get_memory)(ctx);
    Registry::instance().add(std::move(context), memory);
    return ctx;
}

void print_end(const ServedContext& context) {
    if (context.cache == nullptr || !plans_announced()) return;
    const CacheUse use = context.cache->use();
    const ContextMetrics& metrics = *context.metrics;
    std::fprintf(
        stderr,
        "kvaq: at exit: %zu tokens cached (at most %zu), %s packed in %zu tiles, %s f16, %s tables, %.2f bits per "
        "element, %s shared, %s reserved; %zu tiles sealed, %zu of them passed by a window; %zu batches, %zu without "
        "space, attention %.1f s\n",
        use.n_tokens, metrics.most_tokens(), mebibytes(use.packed).c_str(), use.n_tiles,
        mebibytes(use.open + use.sinks).c_str(), mebibytes(use.tables).c_str(), use.effective_bits(),
        mebibytes(use.shared).c_str(), mebibytes(use.allocated).c_str(), static_cast<size_t>(use.n_tiles_sealed),
        static_cast<size_t>(use.n_tiles_evicted), static_cast<size_t>(metrics.batches.get()),
        static_cast<size_t>(metrics.no_space.get()), static_cast<double>(metrics.attention_ns.get()) * 1e-9);
}

}  // namespace
}  // namespace kvaq

using namespace kvaq;

extern "C" {

llama_model* llama_model_load_from_file(const char* path, llama_model_params params) {
    llama_model* model = KVAQ_REAL(llama_model_load_from_file)(path, params);
    if (model != nullptr) note_model(model, path, params.no_alloc);
    return model;
}

llama_model* llama_load_model_from_file(const char* path, llama_model_params params) {
    return llama_model_load_from_file(path, params);
}

llama_model* llama_model_load_from_splits(const char** paths, size_t n_paths, llama_model_params params) {
    llama_model* model = KVAQ_REAL(llama_model_load_from_splits)(paths, n_paths, params);
    if (model != nullptr && n_paths > 0) note_model(model, paths[0], params.no_alloc);
    return model;
}

void llama_model_free(llama_model* model) {
    forget_model(model);
    KVAQ_REAL(llama_model_free)(model);
}

void llama_free_model(llama_model* model) { llama_model_free(model); }

llama_context* llama_init_from_model(llama_model* model, llama_context_params params) {
    if (model == nullptr) return KVAQ_REAL(llama_init_from_model)(model, params);
    try {
        const HandlerFactory factory = current_factory();
        if (!factory) return KVAQ_REAL(llama_init_from_model)(model, params);
        return serve(model, params, factory);
    } catch (const std::exception& error) {
        // llama.cpp's fitting pass makes the context a first time, without weights: the same refusal is said once.
        thread_local std::string said_while_measuring;
        if (error.what() != said_while_measuring) print_error(error.what());
        said_while_measuring = is_measure_only(model) ? error.what() : "";
        return nullptr;
    }
}

llama_context* llama_new_context_with_model(llama_model* model, llama_context_params params) {
    return llama_init_from_model(model, params);
}

void llama_free(llama_context* ctx) {
    const std::unique_ptr<ServedContext> context = Registry::instance().remove(ctx);
    if (context != nullptr) {
        print_end(*context);
        if (context->metrics != nullptr) unlist_metrics(context->metrics.get());
    }
    KVAQ_REAL(llama_free)(ctx);
}

uint32_t llama_n_ctx(const llama_context* ctx) {
    const ServedContext* context = Registry::instance().find(ctx);
    return context != nullptr ? context->n_ctx : KVAQ_REAL(llama_n_ctx)(ctx);
}

uint32_t llama_n_ctx_seq(const llama_context* ctx) {
    const ServedContext* context = Registry::instance().find(ctx);
    return context != nullptr ? context->n_ctx_seq : KVAQ_REAL(llama_n_ctx_seq)(ctx);
}

void llama_set_causal_attn(llama_context* ctx, bool causal) {
    ServedContext* context = Registry::instance().find(ctx);
    if (context == nullptr) return KVAQ_REAL(llama_set_causal_attn)(ctx, causal);
    context->non_causal = !causal;  // until the program switches back: its batches are refused
}

}  // extern "C"
