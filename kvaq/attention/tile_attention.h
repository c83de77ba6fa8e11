#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvaq/attention/block_kernels.h"
#include "kvaq/base/attention_call.h"
#include "kvaq/quant/codec_spec.h"

namespace kvaq {

/// Rows of queries that look at the same pages with one KV head: row = token * heads_per_kv + head of the group. Keeps the
/// online-softmax state (m, l, o) of every row; o is kept twice, in the model's basis and in the codec's, because f16
/// tokens are summed in the first and packed ones in the second. One per thread; no allocation after reserve().
/// Source: online softmax, Milakov & Gimelshein, arXiv 1805.02867.
class TileAttention {
  public:
    struct Shape {
        size_t n_tokens = 0;   ///< query tokens
        size_t n_heads = 0;    ///< query heads of the layer
        size_t group = 0;      ///< of them per KV head
        size_t head_dim_k = 0;
        size_t head_dim_v = 0;
        [[nodiscard]] size_t n_rows() const noexcept { return n_tokens * group; }
        [[nodiscard]] size_t padded_v() const noexcept { return (head_dim_v + 15) / 16 * 16; }
    };
    /// Makes room. Not noexcept: call it before the hot path.
    void reserve(const Shape& largest, size_t tile_tokens);

    /// Starts a run: takes q of `call` for tokens first_token.. and KV head kv_head, scaled; once as it is and once in the
    /// key codec's basis.
    void start(const AttentionCall& call, size_t first_token, int32_t first_pos, size_t kv_head, const Shape& shape,
               const CodecSpec& key_codec) noexcept;

    /// Tiles added from here on have keys rotated for positions `turn` past the ones they are used at: scores take R(turn) q instead
    /// of q, since <R(p) q, R(j) k> = <R(p + turn) q, R(j + turn) k>. 0 at the start. Exact but for rounding q in f32.
    void turn(const RopeRule* rope, int32_t turn) noexcept;

    enum class Form { kPlain, kPacked };
    /// Buffers the caller fills before add_tile: keys [channel][tile_tokens], values [token][padded_v].
    [[nodiscard]] float* keys() noexcept { return keys_.data(); }
    [[nodiscard]] float* values() noexcept { return values_.data(); }
    /// Adds one tile for the query tokens [token_begin, token_end). The tile's token j has position first_key_pos + j; only
    /// tokens j in [key_begin, key_end) exist, and causality and windows are applied here.
    void add_tile(Form form, int32_t first_key_pos, size_t key_begin, size_t key_end, size_t ld_keys, size_t token_begin,
                  size_t token_end) noexcept;
    /// First key position that any query token >= token_begin may see under the window rule.
    [[nodiscard]] int32_t first_visible(size_t token_begin) const noexcept;

    /// Ends the run: o of both bases joined, in the model's basis.
    void finish(const CodecSpec& value_codec) noexcept;

    // A finished run's state, for splitting over runs of tiles: merge in fixed order gives the same bits for any thread.
    [[nodiscard]] static size_t state_floats(const Shape& shape) noexcept { return shape.n_rows() * (2 + shape.head_dim_v); }
    void save(float* state) const noexcept;
    /// Writes out[t, h] of a single run.
    void write(const AttentionCall& call) noexcept;
    /// Merges n_states saved states (state_stride floats apart) of one block and KV head and writes out[t, h].
    static void merge_and_write(const AttentionCall& call, const Shape& shape, size_t first_token, size_t kv_head,
                                const float* states, size_t n_states, size_t state_stride) noexcept;

  private:
    void load_queries() noexcept;

    Shape shape_;
    const AttentionCall* call_ = nullptr;     ///< of the run in progress
    const CodecSpec* key_codec_ = nullptr;
    int32_t turn_ = 0;
    RopeTurn rope_turn_;
    ScoreRule rule_;
    size_t first_token_ = 0, kv_head_ = 0;
    int32_t first_pos_ = 0;
    bool packed_used_ = false;
    const BlockKernels* kernels_ = nullptr;
    std::vector<float> keys_, values_, q_plain_, q_packed_, scores_, o_plain_, o_packed_, m_, l_, matrix_, rows_;
};

/// ALiBi slope of a query head, as ggml computes it (soft_max / flash_attn_ext). 0 when max_bias is 0.
[[nodiscard]] float alibi_slope(float max_bias, size_t head, size_t n_heads) noexcept;

}  // namespace kvaq
