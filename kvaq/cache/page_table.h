#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvaq/base/attention_call.h"
#include "kvaq/base/cut_pages.h"
#include "kvaq/base/error.h"
#include "kvaq/cache/token_runs.h"

namespace kvaq {

inline constexpr int32_t kNone = -1;

/// Layers that see equally far back share slots: reach 0 keeps every token, reaches 1.. are the distinct sliding windows, whose layers
/// give a page up once no later token can see it.
inline constexpr size_t kMaxReaches = 8;

/// Up to `tile_tokens` tokens of one or more sequences. Where their K/V lie is said per reach by PageSlots.
struct Page {
    int32_t refs = 0;         ///< segments that name it
    int32_t frame = 0;        ///< position at which the key in slot 0 was (or would have been) rotated
    int32_t n_filled = 0;     ///< slots written
    int32_t scratch = kNone;  ///< f16 page of this micro-batch only
    bool sealed = false;      ///< has packed tiles
    bool f16 = false;         ///< has f16 pages that outlive the micro-batch
    bool requantized =
        false;  ///< holds tokens that were decoded from another page: sealed, they are quantized a second time
    [[nodiscard]] bool has_f16() const noexcept { return f16 || scratch != kNone; }
};

/// Ids in the arenas of the layers of one reach; all kNone once nobody keeps the page there.
struct PageSlots {
    int32_t live = 0;  ///< segments that keep the page in this reach
    int32_t packed = kNone;
    int32_t open = kNone;
    int32_t sink = kNone;  ///< f16 copy of the sink tokens (sealed pages with frame 0)
};

/// A run of tokens of a sequence: slots [begin, end) of a page, slot j at position base + j. Their keys are rotated for position
/// page.frame + j; where base differs (K-shift), attention turns the query by the difference.
struct Segment {
    int32_t page = kNone;
    int32_t base = 0;
    int32_t begin = 0;
    int32_t end = 0;
    uint8_t kept = 0xFF;  ///< bit r: the sequence keeps the page in reach r
    bool dropped =
        false;  ///< the sequence has given up the page's f16 rows, even if another one keeps them: what a sequence reads
                ///< never depends on its neighbours
    [[nodiscard]] int32_t first() const noexcept { return base + begin; }
    [[nodiscard]] int32_t last() const noexcept { return base + end - 1; }
    [[nodiscard]] bool keeps(size_t reach) const noexcept { return ((kept >> reach) & 1) != 0; }
    bool operator==(const Segment&) const = default;
};

/// Ids not in use. Allocates in its constructor only, also when copied to one of its size: giving an id back cannot fail.
class FreeIds {
  public:
    FreeIds() = default;
    /// 0..n-1, low ones are handed out first.
    explicit FreeIds(size_t n) : ids_(n) { fill(); }
    void fill() noexcept {
        n_ = ids_.size();
        for (size_t i = 0; i < n_; ++i) ids_[i] = static_cast<int32_t>(n_ - 1 - i);
    }
    /// kNone if there is none.
    [[nodiscard]] int32_t take() noexcept { return n_ == 0 ? kNone : ids_[--n_]; }
    void give(int32_t& id) noexcept {
        if (id != kNone) ids_[n_++] = id;
        id = kNone;
    }
    [[nodiscard]] size_t size() const noexcept { return n_; }

  private:
    std::vector<int32_t> ids_;
    size_t n_ = 0;
};

struct PageTableOptions {
    size_t tile_tokens = 64;
    int32_t window = 0;
    int32_t sinks = 0;
    size_t n_seq_max = 1;
    size_t n_ctx = 0;
    size_t max_batch_tokens = 512;
    std::vector<int32_t> sliding_windows;  ///< of reaches 1..; at most kMaxReaches - 1
    int32_t rewind = 0;  ///< positions by which a sequence can be shortened without missing sliding-window tokens
    int32_t f16_rewind =
        0;  ///< positions below the highest it has had to which it can be shortened, and f16 rows are there as if what was cut off had never been added. They are given up early where a micro-batch finds no room
};

/// Bookkeeping of sequences, pages and positions; no K/V. Every layer of a cache follows the same table.
/// Sealing rule (docs/architecture.md): a full page is sealed in the micro-batch whose newest query is the first to be at least
/// `window` positions past the page's last slot. A sequence gives up a sealed page's f16 rows when its newest token reads it packed:
/// at the end of the micro-batch if that brought it a whole tile or more, else before the next one, so that what is cut off in
/// between (rejected drafts) leaves everything as if it had never been added; with f16_rewind, so many tokens later. A sequence that is cut further back, inside a sealed page, keeps the page
/// and goes on in a fresh one, so that nothing is quantized again however often a prefix is reused (keeps_cut_page() has the exceptions).
/// Not thread-safe.
class PageTable {
  public:
    explicit PageTable(const PageTableOptions& options);

    struct Write {
        int32_t token = 0;  ///< index in the micro-batch
        int32_t page = 0;
        int32_t slot = 0;
        int32_t turn = 0;  ///< positions by which the key must be turned back to fit the page's frame
    };
    struct Copy {
        int32_t from = 0;  ///< pages
        int32_t to = 0;
        int32_t n_tokens = 0;
        size_t before_write =
            0;  ///< after the writes before this one, which may be copied; the others may overwrite what is copied
    };
    /// Consecutive tokens of one sequence: they share the pages they look at.
    struct QueryBlock {
        int32_t seq = 0;
        size_t first_token = 0;  ///< index in the micro-batch
        size_t n_tokens = 0;
        int32_t first_pos = 0;
        std::vector<Segment> segments;  ///< of the sequence, up to the last query's position
    };
    /// What every layer must do with its data in this micro-batch: writes, with copies between them (Copy::before_write), then seals.
    struct Work {
        std::vector<Write> writes;
        std::vector<Copy> copies;    ///< copy on write of open pages; in order
        std::vector<int32_t> seals;  ///< pages
        std::vector<QueryBlock> blocks;
    };

    // Whatever throws has changed nothing, std::bad_alloc included; what is noexcept allocates nothing.

    /// Places tokens; false if there is no room (then nothing changed). Throws Error kInvalidArgument on a position that does not
    /// continue its sequence or on sequences that share a token but not their history.
    [[nodiscard]] bool begin(std::span<const BatchToken> tokens, size_t block_tokens);
    void end() noexcept;
    void rollback() noexcept;
    [[nodiscard]] const Work& work() const noexcept { return work_; }
    /// Whether these tokens would all find room, in micro-batches of at most max_batch_tokens. Changes nothing. Throws like begin().
    [[nodiscard]] bool fits(std::span<const BatchToken> tokens);

    /// A page whose first n_tokens must be turned back into f16 because a sequence was cut inside it.
    struct Unseal {
        int32_t from = 0;  ///< sealed page (still valid when the caller copies)
        int32_t to = 0;    ///< page with a fresh open f16 page
        int32_t n_tokens = 0;
    };
    void clear() noexcept;
    /// llama_memory_seq_rm, any range; seq < 0: of all sequences. False if sliding-window layers have given up tokens that what would remain
    /// of a sequence still needs (it has not changed then). In either case the caller must carry out `unseals` at once, then call release().
    [[nodiscard]] bool seq_rm(int32_t seq, int32_t p0, int32_t p1, std::vector<Unseal>& unseals);
    /// False if dst is not empty, or as seq_rm.
    [[nodiscard]] bool seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1, std::vector<Unseal>& unseals);
    void seq_keep(int32_t seq) noexcept;
    /// llama_memory_seq_add; seq < 0: of all sequences. False if a sequence's positions would become negative or meet others, or as seq_rm (it
    /// has not changed then).
    [[nodiscard]] bool seq_add(int32_t seq, int32_t p0, int32_t p1, int32_t delta);
    /// Frees what seq_rm / seq_cp kept alive for the caller's copies.
    void release() noexcept;

    /// A sequence as a snapshot holds it.
    struct SavedPage {
        int32_t frame = 0;
        int32_t n_filled = 0;
        bool sealed = false;
        bool f16 = false;
        bool requantized = false;
    };
    struct Saved {
        std::vector<SavedPage> pages;
        std::vector<Segment> segments;  ///< Segment::page is an index in pages
    };
    /// Gives a sequence fresh pages instead of what it holds. False if there is no room (then nothing changed).
    [[nodiscard]] bool replace(int32_t seq, const Saved& saved);
    struct SavedSequence {
        int32_t seq = 0;
        Saved saved;
    };
    /// The same instead of everything that there is.
    [[nodiscard]] bool replace_all(std::span<const SavedSequence> saved);

    [[nodiscard]] int32_t next_pos(int32_t seq) const noexcept {
        return next_of(state_.sequences[static_cast<size_t>(seq)]);
    }
    /// First position that every layer still has as far back as it looks; -1 when empty.
    [[nodiscard]] int32_t pos_min(int32_t seq) const noexcept;
    [[nodiscard]] std::span<const Segment> segments(int32_t seq) const noexcept {
        return state_.sequences[static_cast<size_t>(seq)];
    }
    [[nodiscard]] const Page& page(int32_t id) const noexcept { return state_.pages[static_cast<size_t>(id)]; }
    [[nodiscard]] const PageSlots& slots(int32_t id, size_t reach) const noexcept {
        return state_.slots[static_cast<size_t>(id) * n_reaches() + reach];
    }
    [[nodiscard]] const PageTableOptions& options() const noexcept { return options_; }

    // Sizes of the arenas.
    [[nodiscard]] size_t n_reaches() const noexcept { return options_.sliding_windows.size() + 1; }
    [[nodiscard]] size_t n_packed(size_t reach) const noexcept { return n_packed_[reach]; }
    [[nodiscard]] size_t n_open() const noexcept { return n_open_; }
    [[nodiscard]] size_t n_scratch() const noexcept { return n_scratch_; }
    [[nodiscard]] size_t n_sink() const noexcept { return 2 * options_.n_seq_max; }
    // In use now.
    [[nodiscard]] size_t used_packed(size_t reach) const noexcept {
        return n_packed_[reach] - state_.free[reach].packed.size();
    }
    /// Without those that are given up before the next token is written.
    [[nodiscard]] size_t used_open(size_t reach) const noexcept;
    [[nodiscard]] size_t used_sink(size_t reach) const noexcept { return n_sink() - state_.free[reach].sink.size(); }
    /// Tokens over all sequences, shared ones once, wherever copies of them lie: what llama.cpp's unified cache counts as cells. At most n_ctx.
    [[nodiscard]] size_t used_tokens() const noexcept { return state_.n_tokens; }
    [[nodiscard]] size_t count_tokens() const noexcept {
        return kvaq::count_tokens(state_.tokens);
    }                                                   ///< the same, anew
    [[nodiscard]] size_t n_sequences() const noexcept;  ///< that hold tokens
    /// Ids that more would be in use if no sequence shared pages with another.
    struct SlotCount {
        size_t packed = 0, open = 0, sink = 0;
    };
    [[nodiscard]] SlotCount shared(size_t reach) const noexcept;
    // Since the table was made (clear() does not begin anew).
    [[nodiscard]] uint64_t n_pages_sealed(size_t reach) const noexcept { return state_.n_sealed[reach]; }
    [[nodiscard]] uint64_t n_pages_evicted(size_t reach) const noexcept { return state_.n_evicted[reach]; }

    /// True if a query at `pos` must read the segment in f16 (when it still has that).
    [[nodiscard]] bool wants_f16(const Segment& segment, int32_t pos) const noexcept {
        return segment.base + static_cast<int32_t>(options_.tile_tokens) - 1 + options_.window > pos;
    }
    /// True if a sequence whose newest token is at `newest` must keep the segment's f16 rows, for its queries or for a rewind.
    [[nodiscard]] bool keeps_f16(const Segment& segment, int32_t newest) const noexcept {
        return wants_f16(segment, newest - options_.f16_rewind);
    }
    /// First position that layers of a reach still need for queries from `next` on, and after rewinds by so many tokens.
    [[nodiscard]] int32_t needed_from(size_t reach, int32_t next, int32_t rewind) const noexcept;

  private:
    using Sequence = std::vector<Segment>;
    struct FreeSlots {
        FreeIds packed, open, sink;
    };
    struct State {
        std::vector<Page> pages;
        std::vector<PageSlots> slots;  ///< [page][reach]
        FreeIds free_pages, free_scratch;
        std::array<FreeSlots, kMaxReaches> free;
        std::vector<Sequence> sequences;
        std::vector<TokenRuns> tokens;  ///< of each sequence
        uint64_t n_lines = 0;           ///< lines of token numbers begun (next_number)
        std::vector<int32_t> both;      ///< sealed pages that still hold f16
        std::vector<uint8_t>
            unsettled;        ///< [sequence] has not given up f16 rows for the tokens of its latest micro-batch
        size_t n_tokens = 0;  ///< over all sequences, shared ones once
        std::array<uint64_t, kMaxReaches> n_sealed = {}, n_evicted = {};
    };

    [[nodiscard]] static int32_t next_of(const Sequence& sequence) noexcept {
        return sequence.empty() ? 0 : sequence.back().last() + 1;
    }
    [[nodiscard]] Page& at(int32_t id) noexcept { return state_.pages[static_cast<size_t>(id)]; }
    [[nodiscard]] PageSlots& slots_at(int32_t id, size_t reach) noexcept {
        return state_.slots[static_cast<size_t>(id) * n_reaches() + reach];
    }
    [[nodiscard]] Sequence& seq(int32_t id) noexcept { return state_.sequences[static_cast<size_t>(id)]; }
    [[nodiscard]] int32_t new_page(int32_t frame);
    void add_ref(const Segment& segment) noexcept;
    void drop_ref(const Segment& segment) noexcept;
    void give_up(Segment& segment, size_t reach) noexcept;
    void free_packed(int32_t id) noexcept;
    void free_f16(int32_t id) noexcept;
    [[nodiscard]] bool take_open(int32_t id) noexcept;
    [[nodiscard]] bool take_packed(int32_t id) noexcept;
    /// Gives up the f16 rows that the sequence read packed `rewind` tokens ago already. By the newest query, as sealing: also where a page that others
    /// share has been sealed earlier, so that a rewind finds what it would find alone.
    void drop_f16(int32_t seq_id, int32_t rewind) noexcept;
    /// The same with f16_rewind.
    void settle(int32_t seq_id) noexcept;
    /// drop_f16 of all rows that no query reads and no draft of the latest micro-batch may want back.
    void give_up_rewinds() noexcept;
    /// Frees what every sequence has given up.
    void free_unwanted_f16() noexcept;
    /// Whether this micro-batch brought the sequence so few tokens that it may be cut back before the next one.
    [[nodiscard]] bool may_be_cut(int32_t seq_id) const noexcept {
        return n_written_[static_cast<size_t>(seq_id)] < options_.tile_tokens;
    }
    [[nodiscard]] bool try_begin(std::span<const BatchToken> tokens, size_t block_tokens);
    void place(std::span<const BatchToken> tokens);
    [[nodiscard]] int32_t writable_page(const BatchToken& token);
    /// A number that no sequence has for a token, where possible the one after the sequence's last.
    [[nodiscard]] uint64_t next_number(int32_t seq_id) noexcept;
    [[nodiscard]] bool seal_and_house();
    /// Whether every sequence can be cut inside a sealed page, which needs a fresh f16 page and may not fail.
    [[nodiscard]] bool has_open_reserve() const noexcept;
    void make_blocks(std::span<const BatchToken> tokens, size_t block_tokens);
    [[nodiscard]] bool can_end_at(const Sequence& sequence, int32_t n) const noexcept;
    [[nodiscard]] bool keeps_cut_page(const Sequence& sequence) const noexcept;
    /// Runs edit(), which changes the state; if it throws, the state is as before.
    template <typename Edit>
    [[nodiscard]] bool transact(Edit edit) {
        KVAQ_CHECK(!open_batch_);
        saved_ = state_;
        try {
            return edit();
        } catch (...) {
            std::swap(state_, saved_);
            deferred_.clear();
            throw;
        }
    }
    [[nodiscard]] bool remove_range(int32_t seq_id, int32_t p0, int32_t p1, std::vector<Unseal>& unseals);
    [[nodiscard]] bool add_to_range(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta);
    [[nodiscard]] bool put_instead(int32_t seq_id, const Saved& saved);
    void truncate(int32_t seq_id, int32_t n, std::vector<Unseal>& unseals);
    void remove(int32_t seq_id, int32_t from, int32_t to);
    void split(Sequence& sequence, int32_t pos);
    void join(Sequence& sequence);
    void recount() noexcept { state_.n_tokens = count_tokens(); }

    PageTableOptions options_;
    std::array<size_t, kMaxReaches> n_packed_ = {};
    size_t n_open_ = 0, n_scratch_ = 0;
    State state_, saved_;
    Work work_;
    std::vector<int32_t> touched_;        ///< sequences of this micro-batch
    std::vector<size_t> n_written_;       ///< [sequence] tokens of this micro-batch
    std::vector<int32_t> fresh_;          ///< pages created in this micro-batch
    std::vector<Segment> deferred_;       ///< references to drop in release()
    mutable std::vector<int32_t> marks_;  ///< [page] scratch
    bool open_batch_ = false;
    bool gave_up_rewinds_ = false;  ///< begin() made room so
};

}  // namespace kvaq
