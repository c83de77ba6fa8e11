#pragma once

#include <llama.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvaq/llama/attach.h"

namespace kvaq {

struct FreeModel {
    void operator()(llama_model* model) const noexcept { llama_model_free(model); }
};
struct FreeContext {
    void operator()(llama_context* ctx) const noexcept { llama_free(ctx); }
};
using ModelPtr = std::unique_ptr<llama_model, FreeModel>;
using ContextPtr = std::unique_ptr<llama_context, FreeContext>;

/// llama.cpp's log: errors only (verbose: everything). Affects the whole process.
void quiet_llama(bool verbose);

/// Loads a GGUF model on the CPU. Throws Error kNotFound or kCorrupt with what is wrong with the file.
[[nodiscard]] ModelPtr load_model(const std::string& path);

/// Tokens of a whole text, as llama-perplexity makes them: BOS first where the model adds one. `name` is what an error calls the text.
[[nodiscard]] std::vector<llama_token> tokenize_text(const llama_model* model, std::string_view text,
                                                     const std::string& name);
/// The same of a file. Throws Error kNotFound when it is missing.
[[nodiscard]] std::vector<llama_token> tokenize_file(const llama_model* model, const std::string& path);

struct ContextOptions {
    uint32_t n_ctx = 0;
    uint32_t n_batch = 512;  ///< micro-batch as well
    uint32_t n_seq_max = 1;
    int32_t n_threads = 2;
    bool flash_attention = true;           ///< plain llama.cpp only; a plan needs it
    bool swa_full = false;                 ///< sliding-window layers keep all their tokens
    ggml_type cache_type = GGML_TYPE_F16;  ///< llama.cpp's own cache, when no factory serves the context
};

/// llama.cpp's cache type of that name. Throws Error kInvalidArgument that lists all.
[[nodiscard]] ggml_type llama_cache_type(const std::string& name);

/// A context served by the factory, or plain llama.cpp when it is empty. Throws Error if it cannot be made.
[[nodiscard]] ContextPtr make_context(llama_model* model, const ContextOptions& options, HandlerFactory factory);

/// Chunk `index` of n_ctx tokens as llama-perplexity cuts them: the first token is BOS where the model adds one.
[[nodiscard]] std::vector<llama_token> chunk_of(const llama_model* model, std::span<const llama_token> tokens,
                                                size_t index, size_t n_ctx);

/// visit(position, logits) of a decoded token.
using Visit = std::function<void(size_t, std::span<const float>)>;

/// Decodes positions [begin, end) of a chunk in batches and visits those >= first_scored; the memory must hold the positions before
/// `begin` and nothing else. Visits of a batch are made by n_visitors threads at once, each position by one of them (then no visit may throw);
/// one visitor is the caller, in order. Returns the seconds that llama.cpp took, visits not counted. Throws Error if llama.cpp fails.
double decode_part(llama_context* ctx, std::span<const llama_token> chunk, size_t begin, size_t end, size_t n_batch,
                   size_t first_scored, const Visit& visit, size_t n_visitors = 1);

/// decode_part over a whole chunk, from an empty memory.
double decode_chunk(llama_context* ctx, std::span<const llama_token> chunk, size_t n_batch, size_t first_scored,
                    const Visit& visit, size_t n_visitors = 1);

}  // namespace kvaq
