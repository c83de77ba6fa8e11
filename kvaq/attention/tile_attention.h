#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvaq/attention/block_kernels.h"
#include "kvaq/base/aligned_vector.h"
#include "kvaq/base/attention_call.h"
#include "kvaq/base/rope.h"
#include "kvaq/cache/tile_levels.h"
#include "kvaq/quant/codec_spec.h"
#include "kvaq/quant/transform.h"

namespace kvaq {

/// How packed tiles are multiplied.
///   kIntegers      bytes times q and p as integers, sums exact: q as bytes where keys have at most 4 bits, or 5 in channels of transform codecs (an error of at
///                  most max|q| / 254 in each channel of q: a hundredth of the power of the codec's own error unless single channels of q are far out), else
///                  as kWideIntegers; p always in 15 bits
///   kWideIntegers  q in 15 bits too: errors of at most max|q| / 2^15 and, in each p of the tiles read together, max|p| / 2^15
///   kExact         tiles decoded to f32 and multiplied in f32
enum class AttentionMode { kIntegers, kWideIntegers, kExact };
/// kIntegers, or what the environment says: KVAQ_ATTENTION=wide or =exact, or the one forced.
[[nodiscard]] AttentionMode attention_mode() noexcept;
/// Throws Error kInvalidArgument when KVAQ_ATTENTION says something else.
void check_attention_mode();
/// For tests and benchmarks (not thread-safe).
void force_attention_mode(AttentionMode mode) noexcept;

/// Rows of queries that look at the same pages with one KV head: row = token * heads_per_kv + head of the group. Keeps the
/// online-softmax state (m, l, o) of every row; o is kept twice, in the model's basis and in the codec's (of transforms: before
/// the channels' scales and offsets), because f16 tokens are summed in the first and packed ones in the second. One per thread; no allocation after reserve().
/// Source: online softmax, Milakov & Gimelshein, arXiv 1805.02867.
class TileAttention {
  public:
    struct Shape {
        size_t n_tokens = 0;  ///< query tokens
        size_t n_heads = 0;   ///< query heads of the layer
        size_t group = 0;     ///< of them per KV head
        size_t head_dim_k = 0;
        size_t head_dim_v = 0;
        [[nodiscard]] size_t n_rows() const noexcept { return n_tokens * group; }
        [[nodiscard]] size_t padded_v() const noexcept { return (head_dim_v + 15) / 16 * 16; }
    };
    TileAttention() = default;
    TileAttention(const TileAttention&) = delete;  // plain_ and packed_ point inside
    TileAttention& operator=(const TileAttention&) = delete;
    /// Makes room. Not noexcept: call it before the hot path.
    void reserve(const Shape& largest, size_t tile_tokens);

    /// A new call begins: q of earlier runs means nothing any more.
    void begin_call() noexcept {
        forget_queries();
        matrix_of_ = nullptr;
    }
    /// Starts a run over q of `call` for tokens first_token.. and KV head kv_head. call and key_layout must outlive the run.
    /// key_turns: how packed keys are turned back, or null.
    void start(const AttentionCall& call, size_t first_token, int32_t first_pos, size_t kv_head, const Shape& shape,
               const TileLayout& key_layout, const TurnTable* key_turns = nullptr) noexcept;
    /// Before f16 tiles are added: their keys are rotated for positions `delta` past the ones they are used at, so scores take R(delta) q
    /// instead of q: <R(p) q, R(j) k> = <R(p + delta) q, R(j + delta) k>. Exact but for rounding q in f32. Scales the queries too. The last
    /// kTurns deltas stay made, also for a thread's next run of the same tokens and KV head. delta != 0 needs AttentionCall::rope.
    void turn(int32_t delta) noexcept;
    /// Before packed tiles are added: the same, and their keys are turned back by so many steps of key_turns besides. Makes the queries in the key
    /// codec's basis, and rounds them to integers; the last kTurns pairs stay made.
    void turn(int32_t delta, int32_t steps_back) noexcept;

    /// Buffers the caller fills before add_f16: keys [channel][tile_tokens], values [token][padded_v].
    [[nodiscard]] float* keys() noexcept { return keys_.data(); }
    [[nodiscard]] float* values() noexcept { return values_.data(); }
    /// The tokens of a tile that a sequence holds: token j of [begin, end) at position first_pos + j.
    struct Keys {
        int32_t first_pos = 0;
        size_t begin = 0;
        size_t end = 0;
    };
    /// Adds the buffers' tile for the query tokens [token_begin, token_end). Causality and windows are applied here.
    void add_f16(const Keys& keys, size_t tile_tokens, size_t token_begin, size_t token_end) noexcept;
    /// A KV head's sealed tiles of the same tokens. Null: none.
    struct PackedTile {
        const std::byte* keys = nullptr;
        const std::byte* values = nullptr;
    };
    /// Tiles that one add_packed takes: their scores are weighed together.
    [[nodiscard]] size_t most_tiles(const TileLayout& key_layout, const TileLayout& value_layout) const noexcept {
        return !exact_ && joins_tiles(key_layout) && joins_tiles(value_layout) ? kSeveralTiles : 1;
    }
    static constexpr size_t kSeveralTiles = 4;
    /// Adds sealed tiles likewise, 1 or most_tiles(), as one of so many more tokens: their positions follow each other, and all are used as turn()
    /// says. soon: as many that are read next, asked from memory piece by piece meanwhile.
    void add_packed(const TileLayout& key_layout, const TileLayout& value_layout, std::span<const PackedTile> tiles,
                    const Keys& keys, size_t token_begin, size_t token_end, std::span<const PackedTile> soon) noexcept;
    /// First key position that any query token >= token_begin may see under the window rule.
    [[nodiscard]] int32_t first_visible(size_t token_begin) const noexcept;

    /// Ends a block: o of both bases joined, in the model's basis, written to out[t, h].
    void write(const AttentionCall& call, const TileLayout& value_layout) noexcept;

    // A run's state, for splitting a block over runs of tiles: merging in fixed order gives the same bits for any thread.
    [[nodiscard]] static size_t state_floats(const Shape& shape) noexcept {
        return shape.n_rows() * (3 + 2 * shape.padded_v());
    }
    void save(float* state) const noexcept;
    /// Takes n_states saved states (state_stride floats apart) of one block and KV head, for write().
    void merge(const AttentionCall& call, const Shape& shape, size_t first_token, size_t kv_head, const float* states,
               size_t n_states, size_t state_stride) noexcept;

  private:
    /// What is read next, asked from memory in equal parts between the steps of what is read now: a core has a few dozen lines under way at a time, and waits when
    /// more are asked for.
    class Ahead {
      public:
        /// keys_but, values_but: bytes of a tile that are asked for elsewhere, from its start on.
        void begin(const TileLayout& key_layout, size_t keys_but, const TileLayout& value_layout, size_t values_but,
                   std::span<const PackedTile> soon, size_t n_steps) noexcept;
        void step() noexcept;
        /// What is left.
        void finish() noexcept {
            lines_a_step_ = SIZE_MAX;
            step();
        }

      private:
        static constexpr size_t kLine = 64;
        struct Part {
            const std::byte* from = nullptr;
            size_t n_lines = 0;
        };
        std::array<Part, 2 * kSeveralTiles> parts_;
        size_t n_parts_ = 0, part_ = 0, line_ = 0, lines_a_step_ = 0;
    };
    struct Range {
        size_t begin = 0, end = 0;
        bool operator==(const Range&) const = default;
    };
    /// Queries of a run, turned by `delta` positions: in the model's basis, scaled.
    struct PlainQueries {
        bool made = false;
        int32_t delta = 0;
        uint64_t used = 0;        ///< when last: the oldest ones are made anew
        std::vector<float> rows;  ///< [row][channel]
        RopeTurn rope;
    };
    /// The same turned back by steps_back, as packed tiles meet them: in the key codec's basis.
    struct PackedQueries {
        bool made = false;
        int32_t delta = 0;
        int32_t steps_back = 0;
        uint64_t used = 0;
        std::vector<float> rows;     ///< [row][channel]
        std::vector<int16_t> coefs;  ///< [row][channel] rounded
        std::vector<float> steps;    ///< [block][row] of the coefficients
        std::vector<int32_t> sums;   ///< [block][row] of the coefficients
        std::vector<float> totals;   ///< [block][row] of the channels, not rounded
        std::vector<float> offsets;  ///< [row] share of a codec's offsets
    };
    static constexpr size_t kTurns = 4;

    void forget_queries() noexcept;
    void load_matrix(const TransformFit& fit) noexcept;
    template <typename Queries, typename Fits>
    Queries& find_or_oldest(std::array<Queries, kTurns>& made, const Fits& fits) noexcept;
    void make_plain(int32_t delta, PlainQueries& plain) noexcept;
    void make_packed(int32_t delta, int32_t steps_back, PackedQueries& packed) noexcept;
    void make_coefs(PackedQueries& packed) noexcept;
    /// Rows first to first + n - 1 of the block.
    struct Rows {
        size_t first = 0, n = 0;
    };
    [[nodiscard]] Rows rows_of(size_t token_begin, size_t token_end) const noexcept {
        return {.first = token_begin * shape_.group, .n = (token_end - token_begin) * shape_.group};
    }
    /// Rows that go through scores, weights and sums of packed tiles together: what is between stays in a core's first cache.
    static constexpr size_t kStageRows = 16;
    /// Unpacks the side's tiles: to key_levels_ or value_levels_ where there is a reader, else to keys_ or values_.
    void read_tiles(Side side, const TileLayout& layout, std::span<const PackedTile> tiles) noexcept;
    void score_levels(size_t n_keys, const Rows& rows) noexcept;
    void add_scores(const LevelShape& shape, size_t block, size_t n_keys, const Rows& rows) noexcept;
    /// Weighs what score_... left, and adds the values.
    void sum_levels(const TileLayout& layout, size_t n_keys, const Keys& keys, const Rows& rows) noexcept;
    void weigh_block(const LevelShape& shape, size_t block, size_t n_keys, const Rows& rows) noexcept;
    void add_sums(const TileLayout& layout, const LevelShape& shape, size_t block, const Rows& rows) noexcept;

    /// Few rows multiply packed codes as they are (dot_codes): their bytes are written nowhere. The sums are the same integers.
    static constexpr size_t kMostCodeRows = 4;
    [[nodiscard]] bool multiplies_codes(const std::optional<LevelReader>& reader, size_t n_rows) const noexcept;
    void score_codes(size_t tile_tokens, std::span<const PackedTile> tiles, std::span<const PackedTile> soon,
                     const Rows& rows) noexcept;
    void sum_codes(const TileLayout& layout, std::span<const PackedTile> tiles, std::span<const PackedTile> soon,
                   const Keys& keys, const Rows& rows) noexcept;
    /// Softcap and ALiBi on the scores of a row.
    void bend(float* scores, const Range& range, int32_t first_key, size_t row) const noexcept;
    /// Scores to weights, earlier sums rescaled; the keys that any row sees. scales: the weights go on as coefs_ of values with these scales, and constants_
    /// are their sums with the offsets.
    Range weigh(const Keys& keys, size_t n_keys, size_t ld, const Rows& rows, const TileLevels* scales = nullptr,
                bool has_offset = false) noexcept;
    void finish(const TileLayout& value_layout) noexcept;

    Shape shape_;
    ScoreRule rule_;
    size_t first_token_ = 0, kv_head_ = 0;
    int32_t first_pos_ = 0;
    const AttentionCall* call_ = nullptr;     ///< of the run in progress
    const TileLayout* key_layout_ = nullptr;  ///< likewise
    const TurnTable* key_turns_ = nullptr;    ///< likewise
    bool packed_used_ = false, exact_ = false;
    CoefSize coefs_of_q_ = CoefSize::kWide;
    SimdTarget target_ = SimdTarget::kScalar;
    const BlockKernels* kernels_ = nullptr;
    std::array<PlainQueries, kTurns> plain_queries_;
    std::array<PackedQueries, kTurns> packed_queries_;
    PlainQueries* plain_ = &plain_queries_[0];     ///< those of the f16 tiles being added
    PackedQueries* packed_ = &packed_queries_[0];  ///< of the packed ones
    uint64_t clock_ = 0;
    std::vector<float> keys_, values_, o_plain_, o_packed_, m_, l_, matrix_, rows_, turned_;
    AlignedVector<float> scores_;                           ///< [row of the stage][key]
    const TransformFit* matrix_of_ = nullptr;               ///< whose basis matrix_ holds
    std::optional<LevelReader> key_reader_, value_reader_;  ///< of the run in progress, once a packed tile has been met
    TileLevels key_levels_, value_levels_;
    Ahead ahead_;
    // Of the rows of a stage.
    AlignedVector<int16_t> coefs_;
    AlignedVector<int32_t> acc_;
    std::vector<float> steps_, constants_;
    std::vector<int32_t> sums_, init_;
    std::vector<float> factors_;    ///< [row]
    std::vector<float> p_packed_;   ///< [row] sum of weights of packed tokens, scaled as o
    std::vector<float> tile_sums_;  ///< [row] sum of weights of the tile that was weighed last
};

}  // namespace kvaq
