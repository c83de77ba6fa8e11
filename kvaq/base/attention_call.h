#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvaq/base/float16.h"
#include "kvaq/base/rope.h"

namespace kvaq {

/// Rows of head vectors with free strides: element (token, head, channel) at
///   data + token * token_stride + head * head_stride + channel          (strides in elements)
template <typename T>
struct HeadRows {
    T* data = nullptr;
    size_t token_stride = 0;
    size_t head_stride = 0;
    [[nodiscard]] T* row(size_t token, size_t head) const noexcept {
        return data + token * token_stride + head * head_stride;
    }
};

/// How scores are masked and bent, the same for every token of a call.
struct ScoreRule {
    float scale = 1.0F;                  ///< multiplies <q, k>
    float softcap = 0.0F;                ///< s <- softcap * tanh(s / softcap) when > 0 (scale is applied before)
    float alibi_max_bias = 0.0F;         ///< ALiBi: s += slope(head) * (pos_k - pos_q) when > 0, slopes as in ggml
    int32_t sliding_window = 0;          ///< key visible if pos_q - pos_k < sliding_window; 0 = no limit
    bool chunked_window = false;         ///< Llama-4: key visible if pos_k >= pos_q / sliding_window * sliding_window
    const float* sink_logits = nullptr;  ///< [n_heads] learned extra logits in the softmax's sum, or null
};

/// The one message that leaves the llama.cpp adapter: one attention of one layer over one micro-batch whose tokens the
/// cache was told of beforehand (KvCache::begin).
///   out[t, h] = sum_j softmax_j(bend(scale * <q[t, h], k_j>)) * v_j  over every visible token j of t's sequence
/// q, k after RoPE; q unscaled. out: f32, overwritten.
/// device >= 0: q, k, v and out are pointers into that CUDA device's memory, out apart from q (rule.sink_logits and rope stay on the host), the team is one thread, and
/// the handler is a cache whose layer was placed there (KvCache::place_layers).
struct AttentionCall {
    int32_t layer = 0;
    int32_t device = -1;
    size_t n_tokens = 0;
    HeadRows<const float> q;    ///< [n_tokens, n_heads, head_dim_k]
    HeadRows<const float16> k;  ///< [n_tokens, n_kv_heads, head_dim_k] of the micro-batch's own tokens
    HeadRows<const float16> v;  ///< [n_tokens, n_kv_heads, head_dim_v]
    bool append = true;         ///< false: the layer reads K/V another call of this micro-batch already appended
    ScoreRule rule;
    const RopeRule* rope = nullptr;  ///< how q and k were rotated; may be null while no sequence was shifted (seq_add)
    HeadRows<float> out;             ///< [n_tokens, n_heads, head_dim_v]
};

/// A team of threads that all call the same function; index in 0..size-1.
class Team {
  public:
    virtual ~Team() = default;
    [[nodiscard]] virtual size_t index() const noexcept = 0;
    [[nodiscard]] virtual size_t size() const noexcept = 0;
    /// Returns when every member has called it.
    virtual void barrier() noexcept = 0;
};

/// One token of a micro-batch.
struct BatchToken {
    int32_t pos = 0;
    std::span<const int32_t> seq_ids;  ///< at least one; several = the token belongs to all of them (shared history)
};

/// What the adapter drives: the serving cache and the statistics collector both implement it.
/// Protocol per micro-batch: begin -> attend once per layer node (all threads of a team call it together) -> end or rollback.
class AttentionHandler {
  public:
    virtual ~AttentionHandler() = default;
    /// Places the tokens. Returns false if there is no room (nothing changed). Throws Error on impossible input.
    [[nodiscard]] virtual bool begin(std::span<const BatchToken> tokens) = 0;
    /// Called by every thread of the team with the same call. A thread may return before the others have finished: `out` is whole,
    /// and the next call may begin, once all have returned (ggml waits for its threads after every node). noexcept.
    virtual void attend(const AttentionCall& call, Team& team) noexcept = 0;
    /// Every layer has run: the tokens are now part of their sequences.
    virtual void end() noexcept = 0;
    /// The micro-batch failed or was aborted: as if begin had not been called.
    virtual void rollback() noexcept = 0;

    // Sequences, with llama.cpp's meaning of the arguments: p0 < 0 = 0, p1 < 0 = infinity.
    virtual void clear() noexcept = 0;
    /// Removes a range of positions; seq < 0 = all sequences. False if that cannot be: the handler keeps no holes, or sliding-window
    /// layers have given up tokens that what would remain still sees.
    [[nodiscard]] virtual bool seq_rm(int32_t seq, int32_t p0, int32_t p1) = 0;
    /// dst becomes a copy of src's tokens in [p0, p1). False if dst is not empty, or as seq_rm.
    [[nodiscard]] virtual bool seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1) = 0;
    virtual void seq_keep(int32_t seq) noexcept = 0;
    /// Adds delta to the positions in [p0, p1) (K-shift). False if that is not served or positions would become negative or meet others;
    /// nothing has changed then. Calls must bring AttentionCall::rope afterwards.
    [[nodiscard]] virtual bool seq_add(int32_t seq, int32_t p0, int32_t p1, int32_t delta) {
        (void)seq, (void)p0, (void)p1;
        return delta == 0;
    }
    [[nodiscard]] virtual int32_t seq_pos_min(int32_t seq) const noexcept = 0;  ///< -1 when empty
    [[nodiscard]] virtual int32_t seq_pos_max(int32_t seq) const noexcept = 0;  ///< -1 when empty
};

}  // namespace kvaq
