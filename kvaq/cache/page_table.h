#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvaq/base/attention_call.h"

namespace kvaq {

inline constexpr int32_t kNone = -1;

/// Where the K/V of `tile_tokens` consecutive tokens of one or more sequences lie. The ids index the arenas of every layer.
struct Page {
    int32_t refs = 0;         ///< sequences that own it
    int32_t index = 0;        ///< its number within the sequence: first position / tile_tokens
    int32_t n_own = 0;        ///< slots that count against n_ctx (not those copied from a shared page)
    int32_t packed = kNone;   ///< sealed tile
    int32_t open = kNone;     ///< f16 page that outlives the micro-batch
    int32_t scratch = kNone;  ///< f16 page of this micro-batch only
    int32_t sink = kNone;     ///< f16 copy of the sink tokens (sealed page 0 only)
    [[nodiscard]] bool has_f16() const noexcept { return open != kNone || scratch != kNone; }
};

struct PageTableOptions {
    size_t tile_tokens = 64;
    int32_t window = 0;
    int32_t sinks = 0;
    size_t n_seq_max = 1;
    size_t n_ctx = 0;
    size_t max_batch_tokens = 512;
};

/// Bookkeeping of sequences, pages and positions; no K/V. Every layer of a cache follows the same table.
/// Sealing rule (docs/architecture.md): a page is sealed in the micro-batch whose newest query is the first to be at least
/// `window` positions past the page's last token; its f16 page is dropped at the end of the micro-batch after which no
/// owning sequence can need it. Not thread-safe.
class PageTable {
  public:
    explicit PageTable(const PageTableOptions& options);

    struct Write {
        int32_t token = 0;  ///< index in the micro-batch
        int32_t page = 0;
        int32_t slot = 0;
    };
    struct Copy {
        int32_t from = 0;  ///< pages
        int32_t to = 0;
        int32_t n_tokens = 0;
    };
    /// Consecutive tokens of one sequence: they share the pages they look at.
    struct QueryBlock {
        size_t first_token = 0;  ///< index in the micro-batch
        size_t n_tokens = 0;
        int32_t first_pos = 0;
        int32_t f16_from = 0;        ///< pages before this one are read packed
        std::vector<int32_t> pages;  ///< of the sequence, up to the last query's position
    };
    /// What every layer must do with its data in this micro-batch, in this order: writes, copies, seals.
    struct Work {
        std::vector<Write> writes;
        std::vector<Copy> copies;    ///< copy on write of open pages; in order
        std::vector<int32_t> seals;  ///< pages
        std::vector<QueryBlock> blocks;
    };

    /// Places tokens; false if there is no room (then nothing changed). Throws Error kInvalidArgument on a position that does not
    /// continue its sequence or on sequences that share a token but not their history.
    [[nodiscard]] bool begin(std::span<const BatchToken> tokens, size_t block_tokens);
    void end() noexcept;
    void rollback() noexcept;
    [[nodiscard]] const Work& work() const noexcept { return work_; }

    /// A page whose first n_tokens must be turned back into f16 because a sequence was cut inside it.
    struct Unseal {
        int32_t from = 0;  ///< sealed page (still valid when the caller copies)
        int32_t to = 0;    ///< page with a fresh open f16 page
        int32_t n_tokens = 0;
    };
    void clear() noexcept;
    /// llama_memory_seq_rm for one sequence. On success the caller must carry out `unseals` at once, then call release().
    [[nodiscard]] bool seq_rm(int32_t seq, int32_t p0, int32_t p1, std::vector<Unseal>& unseals);
    [[nodiscard]] bool seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1, std::vector<Unseal>& unseals);
    void seq_keep(int32_t seq) noexcept;
    /// Frees what seq_rm / seq_cp kept alive for the caller's copies.
    void release() noexcept;

    /// Gives a sequence n_tokens tokens on fresh pages instead of what it holds, as restored from a snapshot: sealed[i] says
    /// whether page i is sealed, f16[i] whether it has an f16 page. False if there is no room (then nothing changed).
    [[nodiscard]] bool replace(int32_t seq, int32_t n_tokens, std::span<const uint8_t> sealed,
                               std::span<const uint8_t> f16);

    [[nodiscard]] int32_t n_tokens(int32_t seq) const noexcept;  ///< next position
    [[nodiscard]] std::span<const int32_t> pages(int32_t seq) const noexcept;
    [[nodiscard]] int32_t f16_from(int32_t seq) const noexcept;
    [[nodiscard]] const Page& page(int32_t id) const noexcept { return state_.pages[static_cast<size_t>(id)]; }
    [[nodiscard]] const PageTableOptions& options() const noexcept { return options_; }

    // Sizes of the arenas.
    [[nodiscard]] size_t n_packed() const noexcept { return n_packed_; }
    [[nodiscard]] size_t n_open() const noexcept { return n_open_; }
    [[nodiscard]] size_t n_scratch() const noexcept { return n_scratch_; }
    [[nodiscard]] size_t n_sink() const noexcept { return options_.n_seq_max; }
    // In use now.
    [[nodiscard]] size_t used_packed() const noexcept { return n_packed_ - state_.free_packed.size(); }
    [[nodiscard]] size_t used_open() const noexcept { return n_open_ - state_.free_open.size(); }
    [[nodiscard]] size_t used_sink() const noexcept { return n_sink() - state_.free_sink.size(); }
    [[nodiscard]] size_t used_tokens() const noexcept { return state_.n_stored; }

    /// True if a query at `pos` must read page number `index` in f16 (when it still has that).
    [[nodiscard]] bool wants_f16(int32_t index, int32_t pos) const noexcept {
        return last_pos(index) + options_.window > pos;
    }

  private:
    struct Sequence {
        int32_t n_tokens = 0;
        int32_t f16_from =
            0;  ///< leading pages whose f16 rows this sequence has given up, even if another one keeps them:
                ///< what a sequence reads never depends on its neighbours
        std::vector<int32_t> pages;
    };
    struct State {
        std::vector<Page> pages;
        std::vector<int32_t> free_pages, free_packed, free_open, free_scratch, free_sink;
        std::vector<Sequence> sequences;
        std::vector<int32_t> both;  ///< sealed pages that still hold f16
        size_t n_stored = 0;        ///< tokens, shared ones once
    };

    [[nodiscard]] int32_t last_pos(int32_t index) const noexcept {
        return (index + 1) * static_cast<int32_t>(options_.tile_tokens) - 1;
    }
    [[nodiscard]] Page& at(int32_t id) noexcept { return state_.pages[static_cast<size_t>(id)]; }
    [[nodiscard]] Sequence& seq(int32_t id) noexcept { return state_.sequences[static_cast<size_t>(id)]; }
    [[nodiscard]] int32_t new_page(int32_t index);
    void drop_ref(int32_t id) noexcept;
    void free_f16(Page& page) noexcept;
    void give_up_f16(Sequence& sequence) noexcept;
    [[nodiscard]] bool someone_wants_f16(int32_t id) const noexcept;
    void place(std::span<const BatchToken> tokens);
    [[nodiscard]] bool seal_and_house();
    void make_blocks(std::span<const BatchToken> tokens, size_t block_tokens);
    void truncate(int32_t seq_id, int32_t n, std::vector<Unseal>& unseals);

    PageTableOptions options_;
    size_t n_packed_ = 0, n_open_ = 0, n_scratch_ = 0;
    State state_, saved_;
    Work work_;
    std::vector<int32_t> touched_;   ///< sequences of this micro-batch
    std::vector<int32_t> fresh_;     ///< pages created in this micro-batch
    std::vector<int32_t> deferred_;  ///< pages to drop in release()
    bool open_batch_ = false;
};

}  // namespace kvaq
