// Micro-batches: where tokens go, which pages are sealed, what is given up afterwards. Operations on whole sequences are in
// page_table_edit.cc.
#include "kvaq/cache/page_table.h"

#include <algorithm>
#include <string>

#include "kvaq/base/error.h"

namespace kvaq {
PageTable::PageTable(const PageTableOptions& options) : options_(options) {
    KVAQ_CHECK(n_reaches() <= kMaxReaches);
    const size_t tile = options_.tile_tokens;
    const size_t n_seq = options_.n_seq_max;
    // And partly used ones of each sequence: three of forks and shifts, and those of cuts.
    n_packed_[0] = (options_.n_ctx + tile - 1) / tile + (3 + kCutPages) * n_seq;
    for (size_t r = 1; r < n_reaches(); ++r) {
        const auto window = static_cast<size_t>(options_.sliding_windows[r - 1] + options_.rewind);
        n_packed_[r] =
            std::min(n_packed_[0], n_seq * (window / tile + 4 + kCutPages) + options_.max_batch_tokens / tile + 1);
    }
    // The last n_seq are for cuts inside sealed pages (truncate), which may not fail.
    const auto open_of = [&](int32_t positions) {
        const size_t pages = (static_cast<size_t>(positions) + tile - 1) / tile + 2;
        return (2 * pages + 2) * n_seq + n_seq;
    };
    // Rows that are kept for rewinds: never more than there are pages, and those of a micro-batch.
    n_open_ = std::max(open_of(options_.window), std::min(open_of(options_.window + options_.f16_rewind),
                                                          n_packed_[0] + options_.max_batch_tokens / tile + 1 + n_seq));
    n_scratch_ = options_.max_batch_tokens / tile + 1 + n_seq;
    state_.pages.resize(n_packed_[0] + n_open_ + n_scratch_);
    state_.slots.resize(state_.pages.size() * n_reaches());
    marks_.resize(state_.pages.size());
    state_.free_pages = FreeIds(state_.pages.size());
    state_.free_scratch = FreeIds(n_scratch_);
    for (size_t r = 0; r < n_reaches(); ++r) {
        state_.free[r] = {.packed = FreeIds(n_packed_[r]), .open = FreeIds(n_open_), .sink = FreeIds(n_sink())};
    }
    state_.sequences.resize(n_seq);
    state_.tokens.resize(n_seq);
    state_.unsettled.resize(n_seq);
    n_written_.resize(n_seq);
}

void PageTable::clear() noexcept {
    std::fill(state_.pages.begin(), state_.pages.end(), Page{});
    std::fill(state_.slots.begin(), state_.slots.end(), PageSlots{});
    state_.free_pages.fill();
    state_.free_scratch.fill();
    for (FreeSlots& free : state_.free) {
        for (FreeIds* ids : {&free.packed, &free.open, &free.sink}) ids->fill();
    }
    for (Sequence& sequence : state_.sequences) sequence.clear();
    for (TokenRuns& tokens : state_.tokens) tokens.clear();
    std::fill(state_.unsettled.begin(), state_.unsettled.end(), 0);
    state_.both.clear();
    state_.n_tokens = 0;
    deferred_.clear();
    work_ = Work{};
    open_batch_ = false;
}

int32_t PageTable::needed_from(size_t reach, int32_t next, int32_t rewind) const noexcept {
    if (reach == 0) return 0;
    return std::max(0, next + 1 - std::max(options_.sliding_windows[reach - 1], 2) - rewind);
}

int32_t PageTable::pos_min(int32_t seq_id) const noexcept {
    const auto all = segments(seq_id);
    if (all.empty()) return -1;
    int32_t first = all.front().first();
    for (size_t r = 1; r < n_reaches(); ++r) {
        const auto kept = std::find_if(all.begin(), all.end(), [r](const Segment& s) { return s.keeps(r); });
        first = std::max(first, kept != all.end() ? kept->first() : all.back().last() + 1);
    }
    return first;
}

size_t PageTable::used_open(size_t reach) const noexcept {
    std::fill(marks_.begin(), marks_.end(), kNone);
    for (const Sequence& sequence : state_.sequences) {
        for (const Segment& s : sequence) {
            if (!s.dropped && keeps_f16(s, next_of(sequence) - 1)) marks_[static_cast<size_t>(s.page)] = 1;
        }
    }
    size_t n = n_open_ - state_.free[reach].open.size();
    for (const int32_t id : state_.both)
        n -= slots(id, reach).open != kNone && marks_[static_cast<size_t>(id)] == kNone ? 1 : 0;
    return n;
}

size_t PageTable::n_sequences() const noexcept {
    return static_cast<size_t>(std::count_if(state_.sequences.begin(), state_.sequences.end(),
                                             [](const Sequence& sequence) { return !sequence.empty(); }));
}

PageTable::SlotCount PageTable::shared(size_t reach) const noexcept {
    SlotCount count;
    std::fill(marks_.begin(), marks_.end(), kNone);
    for (size_t s = 0; s < state_.sequences.size(); ++s) {
        for (const Segment& segment : state_.sequences[s]) {
            int32_t& holder = marks_[static_cast<size_t>(segment.page)];
            if (!segment.keeps(reach) || holder == static_cast<int32_t>(s)) continue;
            if (holder != kNone) {  // another sequence has it already
                const PageSlots& ids = slots(segment.page, reach);
                count.packed += ids.packed != kNone ? 1 : 0;
                count.open += ids.open != kNone ? 1 : 0;
                count.sink += ids.sink != kNone ? 1 : 0;
            }
            holder = static_cast<int32_t>(s);
        }
    }
    return count;
}

int32_t PageTable::new_page(int32_t frame) {
    const int32_t id = state_.free_pages.take();
    if (id == kNone) return kNone;
    at(id) = Page{.frame = frame};
    return id;
}

void PageTable::add_ref(const Segment& segment) noexcept {
    ++at(segment.page).refs;
    for (size_t r = 0; r < n_reaches(); ++r) {
        if (segment.keeps(r)) ++slots_at(segment.page, r).live;
    }
}

// The sequence no longer keeps the page in this reach.
void PageTable::give_up(Segment& segment, size_t reach) noexcept {
    PageSlots& slots = slots_at(segment.page, reach);
    segment.kept = static_cast<uint8_t>(segment.kept & ~(1U << reach));
    if (--slots.live > 0) return;
    state_.free[reach].packed.give(slots.packed);
    state_.free[reach].open.give(slots.open);
    state_.free[reach].sink.give(slots.sink);
}

void PageTable::drop_ref(const Segment& segment) noexcept {
    Segment gone = segment;
    for (size_t r = 0; r < n_reaches(); ++r) {
        if (gone.keeps(r)) give_up(gone, r);
    }
    Page& page = at(gone.page);
    if (--page.refs > 0) return;
    if (page.sealed && page.has_f16()) std::erase(state_.both, gone.page);
    state_.free_scratch.give(page.scratch);
    page.f16 = page.sealed = false;
    state_.free_pages.give(gone.page);
}

void PageTable::free_packed(int32_t id) noexcept {
    for (size_t r = 0; r < n_reaches(); ++r) {
        state_.free[r].packed.give(slots_at(id, r).packed);
        state_.free[r].sink.give(slots_at(id, r).sink);
    }
    if (at(id).has_f16()) std::erase(state_.both, id);
    at(id).sealed = false;
}

void PageTable::free_f16(int32_t id) noexcept {
    for (size_t r = 0; r < n_reaches(); ++r) state_.free[r].open.give(slots_at(id, r).open);
    state_.free_scratch.give(at(id).scratch);
    at(id).f16 = false;
}

bool PageTable::take_open(int32_t id) noexcept {
    for (size_t r = 0; r < n_reaches(); ++r) {
        PageSlots& slots = slots_at(id, r);
        if (slots.live == 0 || slots.open != kNone) continue;
        if ((slots.open = state_.free[r].open.take()) == kNone) return false;
    }
    at(id).f16 = true;
    return true;
}

bool PageTable::take_packed(int32_t id) noexcept {
    for (size_t r = 0; r < n_reaches(); ++r) {
        PageSlots& slots = slots_at(id, r);
        if (slots.live == 0) continue;
        if ((slots.packed = state_.free[r].packed.take()) == kNone) return false;
        ++state_.n_sealed[r];
        if (at(id).frame == 0 && options_.sinks > 0 && (slots.sink = state_.free[r].sink.take()) == kNone) return false;
    }
    at(id).sealed = true;
    return true;
}

void PageTable::drop_f16(int32_t seq_id, int32_t rewind) noexcept {
    const int32_t newest = next_pos(seq_id) - 1;
    for (Segment& segment : seq(seq_id)) {
        if (at(segment.page).sealed && !wants_f16(segment, newest - rewind)) segment.dropped = true;
    }
}

void PageTable::settle(int32_t seq_id) noexcept {
    drop_f16(seq_id, options_.f16_rewind);
    state_.unsettled[static_cast<size_t>(seq_id)] = 0;
}

void PageTable::give_up_rewinds() noexcept {
    for (size_t s = 0; s < state_.sequences.size(); ++s)
        drop_f16(static_cast<int32_t>(s),
                 state_.unsettled[s] != 0 ? static_cast<int32_t>(options_.tile_tokens) - 1 : 0);
}

void PageTable::free_unwanted_f16() noexcept {
    if (state_.both.empty()) return;
    std::fill(marks_.begin(), marks_.end(), kNone);
    for (const Sequence& sequence : state_.sequences) {
        for (const Segment& s : sequence) {
            if (!s.dropped) marks_[static_cast<size_t>(s.page)] = 1;
        }
    }
    std::erase_if(state_.both, [this](int32_t id) {
        if (marks_[static_cast<size_t>(id)] != kNone) return false;
        free_f16(id);
        return true;
    });
}

bool PageTable::begin(std::span<const BatchToken> tokens, size_t block_tokens) {
    KVAQ_CHECK(!open_batch_);
    if (state_.n_tokens + tokens.size() > options_.n_ctx) {
        work_ = Work{};
        return false;
    }
    saved_ = state_;
    gave_up_rewinds_ = false;
    bool fits = false;
    try {
        fits = try_begin(tokens, block_tokens);
        if (!fits && options_.f16_rewind > 0) {  // what is kept for rewinds only makes room
            state_ = saved_;
            gave_up_rewinds_ = true;
            fits = try_begin(tokens, block_tokens);
        }
    } catch (...) {
        std::swap(state_, saved_);
        work_ = Work{};
        throw;
    }
    if (!fits) {
        std::swap(state_, saved_);
        work_ = Work{};
        return false;
    }
    open_batch_ = true;
    return true;
}

/// Changes state_ and work_; the caller puts state_ back if it throws or does not fit.
bool PageTable::try_begin(std::span<const BatchToken> tokens, size_t block_tokens) {
    work_ = Work{};
    touched_.clear();
    fresh_.clear();
    std::fill(n_written_.begin(), n_written_.end(), 0);
    // Only sequences that go on: another one may still be cut back, and what it reads does not depend on this one.
    for (const BatchToken& token : tokens) {
        for (const int32_t s : token.seq_ids) {
            if (s >= 0 && static_cast<size_t>(s) < options_.n_seq_max && state_.unsettled[static_cast<size_t>(s)] != 0)
                settle(s);
        }
    }
    if (gave_up_rewinds_) give_up_rewinds();
    free_unwanted_f16();
    place(tokens);
    if (!seal_and_house()) return false;
    make_blocks(tokens, block_tokens);
    return true;
}

bool PageTable::fits(std::span<const BatchToken> tokens) {
    KVAQ_CHECK(!open_batch_);
    State before = state_;
    bool all = true;
    try {
        for (size_t i = 0; i < tokens.size() && all; i += options_.max_batch_tokens) {
            const size_t n = std::min(options_.max_batch_tokens, tokens.size() - i);
            all = begin(tokens.subspan(i, n), n);
            if (all) end();
        }
    } catch (...) {
        std::swap(state_, before);
        throw;
    }
    std::swap(state_, before);
    work_ = Work{};
    return all;
}

// The page that takes the token: the sequences' last one, a copy of it if others share it, or a fresh one. Its segments are last.
int32_t PageTable::writable_page(const BatchToken& token) {
    const auto tile = static_cast<int32_t>(options_.tile_tokens);
    // Also where the end was cut off inside a sealed page.
    const auto full = [&](const Sequence& s) { return s.empty() || s.back().end == tile || s.back().dropped; };
    const Sequence& first = seq(token.seq_ids[0]);
    for (const int32_t s : token.seq_ids) {
        const bool same = full(first) ? full(seq(s))
                                      : !full(seq(s)) && seq(s).back().page == first.back().page &&
                                            seq(s).back().base == first.back().base;
        if (same) continue;
        throw Error(ErrorCode::kInvalidArgument, "a token belongs to sequences whose earlier tokens differ", "",
                    "sequences " + std::to_string(token.seq_ids[0]) + " and " + std::to_string(s) + " at position " +
                        std::to_string(token.pos));
    }
    if (full(first)) {
        const int32_t id = new_page(token.pos);
        KVAQ_CHECK(id != kNone);
        for (const int32_t s : token.seq_ids) {
            seq(s).push_back({.page = id, .base = token.pos});
            add_ref(seq(s).back());
        }
        fresh_.push_back(id);
        return id;
    }
    const int32_t id = first.back().page;
    const int32_t slot = first.back().end;
    int32_t n_own = 0;
    for (const int32_t s : token.seq_ids) {
        if (at(id).refs == static_cast<int32_t>(token.seq_ids.size())) {
            n_own = at(id).refs;  // the usual case, without a scan
            break;
        }
        n_own += static_cast<int32_t>(
            std::count_if(seq(s).begin(), seq(s).end(), [id](const Segment& g) { return g.page == id; }));
    }
    if (at(id).refs == n_own) {
        if (at(id).sealed) {
            // Left over from a longer sequence that shared this page: its packed bits hold tokens that are gone.
            KVAQ_CHECK(at(id).has_f16());
            free_packed(id);
        }
        return id;
    }
    const int32_t copy = new_page(at(id).frame);  // copy on write
    KVAQ_CHECK(copy != kNone);
    at(copy).n_filled = slot;
    at(copy).requantized = at(id).requantized;
    for (size_t r = 0; r < n_reaches(); ++r) {
        int32_t movers = 0;
        for (const int32_t s : token.seq_ids) {
            for (const Segment& g : seq(s)) movers += g.page == id && g.keeps(r) ? 1 : 0;
        }
        PageSlots& from = slots_at(id, r);
        if (movers > 0 && from.live == movers)
            std::swap(slots_at(copy, r).open, from.open);  // the others have given it up: nothing to copy
    }
    for (const int32_t s : token.seq_ids) {
        for (Segment& g : seq(s)) {
            if (g.page != id) continue;
            const Segment old = g;
            g.page = copy;
            add_ref(g);
            drop_ref(old);
        }
    }
    work_.copies.push_back({.from = id, .to = copy, .n_tokens = slot, .before_write = work_.writes.size()});
    fresh_.push_back(copy);
    return copy;
}

// A line of numbers goes on where a sequence does, unless another one has gone on there before it.
uint64_t PageTable::next_number(int32_t seq_id) noexcept {
    constexpr int kLineBits = 32;
    const auto runs = state_.tokens[static_cast<size_t>(seq_id)].runs();
    if (!runs.empty()) {
        const uint64_t number = runs.back().end_number();
        const auto has = [number](const TokenRuns& tokens) { return tokens.holds(number); };
        if (number >> kLineBits == runs.back().number >> kLineBits &&
            std::none_of(state_.tokens.begin(), state_.tokens.end(), has))
            return number;
    }
    return ++state_.n_lines << kLineBits;
}

void PageTable::place(std::span<const BatchToken> tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
        const BatchToken& token = tokens[i];
        KVAQ_CHECK(!token.seq_ids.empty());
        for (const int32_t id : token.seq_ids) {
            if (id < 0 || static_cast<size_t>(id) >= options_.n_seq_max) {
                throw Error(ErrorCode::kInvalidArgument, "invalid sequence id",
                            "0.." + std::to_string(options_.n_seq_max - 1), std::to_string(id));
            }
            if (next_pos(id) != token.pos) {
                throw Error(ErrorCode::kInvalidArgument,
                            "the tokens of sequence " + std::to_string(id) + " do not continue what is cached",
                            "position " + std::to_string(next_pos(id)), "position " + std::to_string(token.pos));
            }
        }
        const int32_t id = writable_page(token);
        const Segment& place = seq(token.seq_ids[0]).back();
        const int32_t slot = place.end;
        work_.writes.push_back(
            {.token = static_cast<int32_t>(i), .page = id, .slot = slot, .turn = place.base - at(id).frame});
        at(id).n_filled = slot + 1;
        ++state_.n_tokens;
        const uint64_t number = next_number(token.seq_ids[0]);
        for (const int32_t s : token.seq_ids) {
            seq(s).back().end = slot + 1;
            ++n_written_[static_cast<size_t>(s)];
            state_.tokens[static_cast<size_t>(s)].append(token.pos, number);
            if (std::find(touched_.begin(), touched_.end(), s) == touched_.end()) touched_.push_back(s);
        }
    }
}

// Decides which pages are sealed now and gives every new page a place for its f16 rows.
bool PageTable::seal_and_house() {
    const auto tile = static_cast<int32_t>(options_.tile_tokens);
    for (const int32_t s : touched_) {
        const int32_t newest = next_pos(s) - 1;
        for (auto segment = seq(s).rbegin(); segment != seq(s).rend(); ++segment) {
            const Page& page = at(segment->page);
            if (page.sealed || page.n_filled < tile || wants_f16(*segment, newest)) continue;
            if (!take_packed(segment->page)) return false;
            work_.seals.push_back(segment->page);
            state_.both.push_back(segment->page);
        }
    }
    for (const int32_t id : fresh_) {
        Page& page = at(id);
        if (page.refs == 0) continue;
        const bool lasts = !page.sealed || std::any_of(touched_.begin(), touched_.end(), [&](int32_t s) {
            return std::any_of(seq(s).rbegin(), seq(s).rend(), [&](const Segment& g) {
                return g.page == id && (may_be_cut(s) || keeps_f16(g, next_pos(s) - 1));
            });
        });
        if (!lasts) {
            page.scratch = state_.free_scratch.take();
            if (page.scratch == kNone) return false;
        } else if (!take_open(id)) {
            return false;
        }
    }
    return has_open_reserve();
}

bool PageTable::has_open_reserve() const noexcept {
    for (size_t r = 0; r < n_reaches(); ++r) {
        if (state_.free[r].open.size() < options_.n_seq_max) return false;
    }
    return true;
}

void PageTable::make_blocks(std::span<const BatchToken> tokens, size_t block_tokens) {
    for (size_t i = 0; i < tokens.size();) {
        const int32_t s = tokens[i].seq_ids[0];
        size_t n = 1;
        while (i + n < tokens.size() && n < block_tokens && tokens[i + n].seq_ids[0] == s &&
               tokens[i + n].pos == tokens[i].pos + static_cast<int32_t>(n)) {
            ++n;
        }
        const int32_t last = tokens[i].pos + static_cast<int32_t>(n) - 1;
        QueryBlock block{.seq = s, .first_token = i, .n_tokens = n, .first_pos = tokens[i].pos, .segments = {}};
        for (const Segment& segment : seq(s)) {
            if (segment.first() <= last) block.segments.push_back(segment);
        }
        work_.blocks.push_back(std::move(block));
        i += n;
    }
}

void PageTable::end() noexcept {
    KVAQ_CHECK(open_batch_);
    open_batch_ = false;
    for (const int32_t s : touched_) {
        if (may_be_cut(s)) {
            state_.unsettled[static_cast<size_t>(s)] = 1;
        } else {
            settle(s);
        }
    }
    free_unwanted_f16();
    for (const int32_t s : touched_) {
        for (size_t r = 1; r < n_reaches(); ++r) {
            const int32_t needed = needed_from(r, next_pos(s), options_.rewind);
            for (Segment& segment : seq(s)) {
                if (segment.last() >= needed) break;
                if (!segment.keeps(r)) continue;
                const PageSlots& slots = slots_at(segment.page, r);
                if (slots.live == 1 && slots.packed != kNone) ++state_.n_evicted[r];
                give_up(segment, r);
            }
        }
    }
}

void PageTable::rollback() noexcept {
    if (!open_batch_) return;
    open_batch_ = false;
    std::swap(state_, saved_);
    // f16 pages that begin() had freed may have been written since.
    for (size_t s = 0; s < state_.unsettled.size(); ++s) {
        if (state_.unsettled[s] != 0) settle(static_cast<int32_t>(s));
    }
    if (gave_up_rewinds_) give_up_rewinds();
    free_unwanted_f16();
}

}  // namespace kvaq
