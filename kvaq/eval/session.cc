#include "kvaq/eval/session.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/llama/gguf_model.h"

namespace kvaq {

void quiet_llama(bool verbose) {
    if (verbose) {
        llama_log_set(nullptr, nullptr);
        return;
    }
    // GGML_LOG_LEVEL_CONT continues the line before, whose level decides.
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
            thread_local ggml_log_level last = GGML_LOG_LEVEL_NONE;
            if (level != GGML_LOG_LEVEL_CONT) last = level;
            if (last != GGML_LOG_LEVEL_ERROR || std::strncmp(text, "gguf_init_", 10) == 0)
                return;  // GgufReader says it with the file's name
            std::fputs(text, stderr);
        },
        nullptr);
}

ModelPtr load_model(const std::string& path) {
    (void)read_model_shape(path);  // says in words what is wrong with a bad file
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    ModelPtr model(llama_model_load_from_file(path.c_str(), params));
    if (model == nullptr)
        throw Error(ErrorCode::kCorrupt, "llama.cpp cannot load the model", "a GGUF model it supports", path);
    return model;
}

std::vector<llama_token> tokenize_text(const llama_model* model, std::string_view text, const std::string& name) {
    const llama_vocab* vocab = llama_model_get_vocab(model);
    if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()) - 8) {
        throw Error(ErrorCode::kInvalidArgument, "the text is too long", "less than 2 GiB",
                    std::to_string(text.size()) + " bytes in '" + name + "'");
    }
    const bool add_bos = llama_vocab_get_add_bos(vocab);
    std::vector<llama_token> tokens(text.size() + 8);
    const int32_t n = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                     static_cast<int32_t>(tokens.size()), add_bos, false);
    if (n < 0) throw Error(ErrorCode::kCorrupt, "cannot tokenize the text", "a text file", name);
    tokens.resize(static_cast<size_t>(n));
    if (add_bos && llama_vocab_get_add_eos(vocab) && !tokens.empty())
        tokens.pop_back();  // the text does not end its own chunks
    return tokens;
}

std::vector<llama_token> tokenize_file(const llama_model* model, const std::string& path) {
    const std::vector<std::byte> bytes = read_file(path);
    return tokenize_text(model, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

ggml_type llama_cache_type(const std::string& name) {
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                 GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1}) {
        if (name == ggml_type_name(type)) return type;
    }
    throw Error(ErrorCode::kInvalidArgument, "unknown llama.cpp cache type",
                "f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1", "'" + name + "'");
}

ContextPtr make_context(llama_model* model, const ContextOptions& options, HandlerFactory factory) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = options.n_ctx;
    params.n_batch = options.n_batch;
    params.n_ubatch = options.n_batch;
    params.n_seq_max = options.n_seq_max;
    params.n_threads = options.n_threads;
    params.n_threads_batch = options.n_threads;
    params.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.kv_unified = true;
    params.swa_full = options.swa_full;
    params.type_k = options.cache_type;
    params.type_v = options.cache_type;
    attach(std::move(factory));
    ContextPtr ctx(llama_init_from_model(model, params));
    if (ctx == nullptr) {
        throw Error(ErrorCode::kInvalidArgument, "llama.cpp could not make a context",
                    "context " + std::to_string(options.n_ctx) + ", cache type " + ggml_type_name(options.cache_type),
                    "a failure (see above)");
    }
    return ctx;
}

std::vector<llama_token> chunk_of(const llama_model* model, std::span<const llama_token> tokens, size_t index,
                                  size_t n_ctx) {
    const auto part = tokens.subspan(index * n_ctx, n_ctx);
    std::vector<llama_token> chunk(part.begin(), part.end());
    const llama_vocab* vocab = llama_model_get_vocab(model);
    if (llama_vocab_get_add_bos(vocab)) chunk[0] = llama_vocab_bos(vocab);
    return chunk;
}

namespace {

/// Calls work(i) for i < n on n_threads threads, the caller one of them.
template <typename Work>
void share(size_t n, size_t n_threads, const Work& work) {
    std::atomic<size_t> next{0};
    const auto take = [&] {
        for (size_t i = next++; i < n; i = next++) work(i);
    };
    std::vector<std::jthread> others;
    for (size_t i = 1; i < std::min(n_threads, n); ++i) others.emplace_back(take);
    take();
}

}  // namespace

double decode_part(llama_context* ctx, std::span<const llama_token> chunk, size_t begin, size_t end, size_t n_batch,
                   size_t first_scored, const Visit& visit, size_t n_visitors) {
    KVAQ_CHECK(n_batch > 0 && begin <= end && end <= chunk.size());
    const auto n_vocab = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
    llama_batch batch = llama_batch_init(static_cast<int32_t>(n_batch), 0, 1);
    const std::unique_ptr<llama_batch, void (*)(llama_batch*)> guard(&batch,
                                                                     [](llama_batch* b) { llama_batch_free(*b); });
    double seconds = 0;
    for (size_t first = begin; first < end; first += n_batch) {
        const size_t n = std::min(n_batch, end - first);
        batch.n_tokens = static_cast<int32_t>(n);
        for (size_t i = 0; i < n; ++i) {
            batch.token[i] = chunk[first + i];
            batch.pos[i] = static_cast<llama_pos>(first + i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = first + i >= first_scored ? 1 : 0;
        }
        const auto start = std::chrono::steady_clock::now();
        const int32_t code = llama_decode(ctx, batch);
        llama_synchronize(ctx);
        seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (code != 0) {
            throw Error(ErrorCode::kInvalidArgument, "llama.cpp failed to decode", "0", "code " + std::to_string(code));
        }
        std::vector<std::pair<size_t, const float*>> scored;  // llama.cpp is asked by one thread alone
        for (size_t i = 0; i < n; ++i) {
            if (batch.logits[i] != 0)
                scored.emplace_back(first + i, llama_get_logits_ith(ctx, static_cast<int32_t>(i)));
        }
        share(scored.size(), n_visitors, [&](size_t i) { visit(scored[i].first, {scored[i].second, n_vocab}); });
    }
    return seconds;
}

double decode_chunk(llama_context* ctx, std::span<const llama_token> chunk, size_t n_batch, size_t first_scored,
                    const Visit& visit, size_t n_visitors) {
    llama_memory_clear(llama_get_memory(ctx), true);
    return decode_part(ctx, chunk, 0, chunk.size(), n_batch, first_scored, visit, n_visitors);
}

}  // namespace kvaq
