#pragma once

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvaq/eval/session.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// One cache that is compared: plain llama.cpp with one of its types, or a plan.
struct CacheRow {
    std::string name;
    std::string kind;        ///< "reference", "llama.cpp", "plan"
    HandlerFactory factory;  ///< empty: plain llama.cpp
    ggml_type type = GGML_TYPE_F16;
    std::optional<Plan> plan;  ///< what the factory serves

    /// Bytes of this cache holding n_tokens tokens of one sequence, everything counted.
    [[nodiscard]] size_t bytes(const ModelShape& shape, size_t n_tokens) const;
    /// 8 * bytes / elements.
    [[nodiscard]] double effective_bits(const ModelShape& shape, size_t n_tokens) const;
};

/// The f16 reference, then llama.cpp's types, then plans (presets or *.plan.gguf). Names are unique: a second plan of one name gets its file behind it.
/// Throws Error: unknown type, bad plan, a plan of another model, the same row twice.
[[nodiscard]] std::vector<CacheRow> cache_rows(const ModelShape& shape, const std::vector<std::string>& types,
                                               const std::vector<std::string>& plans);

/// Tokens of a part of a text: no BOS, special tokens (of a chat template) only where asked for.
[[nodiscard]] std::vector<llama_token> tokenize_part(const llama_model* model, const std::string& text,
                                                     bool special = false);
/// BOS where the model adds one, else nothing.
[[nodiscard]] std::vector<llama_token> start_of_text(const llama_model* model);
/// Text of tokens, special ones left out.
[[nodiscard]] std::string text_of(const llama_model* model, std::span<const llama_token> tokens);

/// Greedy generation: what was generated and why it ended.
struct Generated {
    std::vector<llama_token> tokens;  ///< without the end-of-generation token
    bool ended = false;               ///< by an end-of-generation token or by stop(), not by the limit
};

/// One cache while it answers: a context whose sequences are continued, forked and dropped. Not thread-safe.
class CacheSession {
  public:
    static constexpr size_t kNoScores = std::numeric_limits<size_t>::max();
    /// Tokens that continue one sequence; logits are wanted of tokens first_scored, first_scored + 1, ...
    struct Piece {
        int32_t seq = 0;
        std::span<const llama_token> tokens;
        size_t first_scored = kNoScores;
    };
    /// visit(piece, index of the token in its piece, logits after it)
    using Visit = std::function<void(size_t, size_t, std::span<const float>)>;

    /// n_ctx: tokens over all sequences, shared ones once. Throws Error if llama.cpp cannot make the context.
    CacheSession(llama_model* model, const CacheRow& row, size_t n_ctx, size_t n_seq, size_t n_batch,
                 int32_t n_threads);

    /// Continues sequences by the pieces, all in shared batches of at most n_batch tokens. Throws Error if llama.cpp fails.
    void decode(std::span<const Piece> pieces, const Visit& visit);
    void decode(int32_t seq, std::span<const llama_token> tokens, size_t first_scored,
                const std::function<void(size_t, std::span<const float>)>& visit);
    /// Sequence 0 becomes exactly these tokens, all others empty; decoded only when it is not already so.
    void hold_prefix(std::span<const llama_token> tokens);
    /// Sequence `to`, dropped before, becomes a copy of `from` (shared, not copied in memory).
    void fork(int32_t from, int32_t to);
    void drop(int32_t seq);
    void clear();
    [[nodiscard]] size_t n_past(int32_t seq) const { return past_.at(static_cast<size_t>(seq)); }

    /// Continues a sequence by `prompt` (at least one token), then by its own most likely tokens, one at a time, up to max_tokens, an end-of-generation
    /// token or
    /// stop(generated so far). The last token is not decoded.
    [[nodiscard]] Generated generate(int32_t seq, std::span<const llama_token> prompt, size_t max_tokens,
                                     const std::function<bool(std::span<const llama_token>)>& stop);

  private:
    llama_model* model_;
    ContextPtr ctx_;
    size_t n_batch_;
    size_t n_vocab_;
    std::vector<size_t> past_;  ///< tokens of each sequence
    std::vector<llama_token> prefix_;
    bool prefix_held_ = false;
};

}  // namespace kvaq
