// Operations on whole sequences: removal, copies, shifted positions, restored snapshots.
#include <algorithm>
#include <limits>

#include "kvaq/base/error.h"
#include "kvaq/cache/page_table.h"

namespace kvaq {
namespace {

constexpr int32_t kInfinity = std::numeric_limits<int32_t>::max();

}  // namespace

/// Makes a segment begin at `pos` if one goes across it.
void PageTable::split(Sequence& sequence, int32_t pos) {
    for (size_t i = 0; i < sequence.size(); ++i) {
        if (sequence[i].first() >= pos || sequence[i].last() < pos) continue;
        Segment right = sequence[i];
        right.begin = pos - right.base;
        sequence[i].end = right.begin;
        add_ref(right);
        sequence.insert(sequence.begin() + static_cast<ptrdiff_t>(i) + 1, right);
        return;
    }
}

/// Joins neighbours that split() has parted and nothing keeps apart any more.
void PageTable::join(Sequence& sequence) {
    for (size_t i = 1; i < sequence.size();) {
        Segment& left = sequence[i - 1];
        const Segment right = sequence[i];
        if (left.page != right.page || left.base != right.base || left.end != right.begin || left.kept != right.kept ||
            left.dropped != right.dropped) {
            ++i;
            continue;
        }
        left.end = right.end;
        drop_ref(right);
        sequence.erase(sequence.begin() + static_cast<ptrdiff_t>(i));
    }
}

/// Whether a sequence that is cut to positions below n still has what its next query sees.
bool PageTable::can_end_at(const Sequence& sequence, int32_t n) const noexcept {
    int32_t end = 0;  // n may lie in a hole: the next query comes after the last token below it
    for (const Segment& segment : sequence) {
        if (segment.first() < n) end = std::max(end, std::min(segment.last() + 1, n));
    }
    n = end;
    for (size_t r = 1; r < n_reaches(); ++r) {
        for (const Segment& segment : sequence) {
            if (segment.first() < n && segment.last() > n - std::max(options_.sliding_windows[r - 1], 2) &&
                !segment.keeps(r))
                return false;
        }
    }
    return true;
}

/// Whether a sequence whose last segment ends inside a sealed page, its f16 rows gone, keeps the page; the next token begins another one then. Else the kept
/// tokens are decoded to f16 in a page that is filled up and sealed, which quantizes them once more. A page is kept while the sequence has no other that
/// is partly used; one that holds requantized tokens while it has few: where a server reuses the same prefix again and again, noise is
/// added once at most. Sink tokens are decoded without loss, and a page of theirs must begin at position 0.
bool PageTable::keeps_cut_page(const Sequence& sequence) const noexcept {
    const Page& page = this->page(sequence.back().page);
    if (page.frame == 0 && sequence.back().end <= options_.sinks) return false;
    size_t n_partly_used = 0;
    for (size_t i = 0; i + 1 < sequence.size(); ++i) {
        if (sequence[i].page != sequence[i + 1].page && sequence[i].end < static_cast<int32_t>(options_.tile_tokens))
            ++n_partly_used;
    }
    const size_t most = n_reaches() > 1 ? kCutPages : kMostCutPages;
    return n_partly_used < (page.requantized ? most : kCutPages - 1);
}

void PageTable::truncate(int32_t seq_id, int32_t n, std::vector<Unseal>& unseals) {
    Sequence& sequence = seq(seq_id);
    while (!sequence.empty() && sequence.back().first() >= n) {
        drop_ref(sequence.back());
        sequence.pop_back();
    }
    if (sequence.empty()) return;
    Segment& last = sequence.back();
    last.end = std::min(last.end, n - last.base);
    if (last.end == static_cast<int32_t>(options_.tile_tokens)) return;
    Page& page = at(last.page);
    if (!last.dropped) {
        KVAQ_CHECK(page.has_f16());
        // All of the page is open again, also what was shifted to where it had been read packed.
        for (Segment& segment : sequence) segment.dropped = segment.dropped && segment.page != last.page;
        if (page.refs > 1) return;  // the next write copies what is kept
        if (page.sealed) free_packed(last.page);
        page.n_filled = last.end;
        return;
    }
    KVAQ_CHECK(page.sealed);
    if (keeps_cut_page(sequence)) return;
    const Segment old = last;
    last.page = new_page(at(old.page).frame);
    KVAQ_CHECK(last.page != kNone);
    last.dropped = false;
    at(last.page).n_filled = last.end;
    at(last.page).requantized = at(old.page).requantized || at(old.page).frame != 0 || last.end > options_.sinks;
    add_ref(last);
    const bool housed = take_open(last.page);
    KVAQ_CHECK(housed);
    unseals.push_back({.from = old.page, .to = last.page, .n_tokens = last.end});
    deferred_.push_back(old);
}

void PageTable::release() noexcept {
    for (const Segment& segment : deferred_) drop_ref(segment);
    deferred_.clear();
    recount();
}

/// Takes [from, to) out of the middle: what is before and after stays where it is.
void PageTable::remove(int32_t seq_id, int32_t from, int32_t to) {
    Sequence& sequence = seq(seq_id);
    split(sequence, from);
    split(sequence, to);
    std::erase_if(sequence, [&](const Segment& segment) {
        const bool gone = segment.first() >= from && segment.last() < to;
        if (gone) drop_ref(segment);
        return gone;
    });
    join(sequence);
}

bool PageTable::seq_rm(int32_t seq_id, int32_t p0, int32_t p1, std::vector<Unseal>& unseals) {
    return transact([&] {
        if (seq_id >= 0) return remove_range(seq_id, p0, p1, unseals);
        bool done = true;
        for (size_t s = 0; s < options_.n_seq_max; ++s)
            done = remove_range(static_cast<int32_t>(s), p0, p1, unseals) && done;
        return done;
    });
}

bool PageTable::remove_range(int32_t seq_id, int32_t p0, int32_t p1, std::vector<Unseal>& unseals) {
    const int32_t from = std::max(p0, 0);
    const int32_t to = p1 < 0 ? kInfinity : p1;
    if (from >= next_pos(seq_id) || to <= from) return true;
    if (to < next_pos(seq_id)) {
        remove(seq_id, from, to);
    } else {
        if (!can_end_at(seq(seq_id), from)) return false;
        truncate(seq_id, from, unseals);
    }
    state_.tokens[static_cast<size_t>(seq_id)].remove(from, to);
    return true;
}

bool PageTable::seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1, std::vector<Unseal>& unseals) {
    if (src == dst) return true;
    const int32_t from = std::max(p0, 0);
    const int32_t to = p1 < 0 ? next_pos(src) : std::min(p1, next_pos(src));
    if (to <= from) return true;
    if (!seq(dst).empty() || !can_end_at(seq(src), to)) return false;
    return transact([&] {
        seq(dst) = seq(src);
        for (const Segment& segment : seq(dst)) add_ref(segment);
        if (from > 0) remove(dst, 0, from);
        if (to < next_pos(src)) truncate(dst, to, unseals);
        TokenRuns& tokens = state_.tokens[static_cast<size_t>(dst)];
        tokens = state_.tokens[static_cast<size_t>(src)];
        tokens.remove(0, from);
        tokens.remove(to, kInfinity);
        state_.unsettled[static_cast<size_t>(dst)] = state_.unsettled[static_cast<size_t>(src)];
        return true;
    });
}

void PageTable::seq_keep(int32_t seq_id) noexcept {
    for (size_t s = 0; s < state_.sequences.size(); ++s) {
        if (static_cast<int32_t>(s) == seq_id) continue;
        for (const Segment& segment : state_.sequences[s]) drop_ref(segment);
        state_.sequences[s].clear();
        state_.tokens[s].clear();
    }
    recount();
}

bool PageTable::seq_add(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta) {
    return transact([&] {
        if (seq_id >= 0) return add_to_range(seq_id, p0, p1, delta);
        bool done = true;
        for (size_t s = 0; s < options_.n_seq_max; ++s)
            done = add_to_range(static_cast<int32_t>(s), p0, p1, delta) && done;
        return done;
    });
}

bool PageTable::add_to_range(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta) {
    Sequence& sequence = seq(seq_id);
    const int32_t from = std::max(p0, 0);
    const int32_t to = p1 < 0 ? kInfinity : p1;
    if (delta == 0 || to <= from || from >= next_pos(seq_id)) return true;
    int32_t before = -1, first = kInfinity, last = -1, after = kInfinity;  // positions around and inside the range
    for (const Segment& g : sequence) {
        if (g.first() < from) before = std::max(before, std::min(g.last(), from - 1));
        if (g.last() >= to) after = std::min(after, std::max(g.first(), to));
        if (g.first() >= to || g.last() < from) continue;
        first = std::min(first, std::max(g.first(), from));
        last = std::max(last, std::min(g.last(), to - 1));
    }
    if (last < 0) return true;
    const int64_t shifted_first = int64_t{first} + delta;
    const int64_t shifted_last = int64_t{last} + delta;
    if (shifted_first <= before || shifted_last >= after) return false;
    split(sequence, from);
    if (to != kInfinity) split(sequence, to);
    const auto begin =
        std::find_if(sequence.begin(), sequence.end(), [&](const Segment& g) { return g.first() >= from; });
    const auto end = std::find_if(begin, sequence.end(), [&](const Segment& g) { return g.last() >= to; });
    std::for_each(begin, end, [delta](Segment& g) { g.base += delta; });
    const bool sees_all = can_end_at(sequence, next_of(sequence));  // not what sliding-window layers gave up
    if (!sees_all) std::for_each(begin, end, [delta](Segment& g) { g.base -= delta; });
    join(sequence);
    if (sees_all) state_.tokens[static_cast<size_t>(seq_id)].shift(from, to, delta);
    return sees_all;
}

bool PageTable::replace(int32_t seq_id, const Saved& saved) {
    const bool fits = transact([&] { return put_instead(seq_id, saved); });
    if (!fits) std::swap(state_, saved_);
    return fits;
}

bool PageTable::replace_all(std::span<const SavedSequence> saved) {
    const bool fits = transact([&] {
        seq_keep(kNone);
        return std::all_of(saved.begin(), saved.end(),
                           [this](const SavedSequence& one) { return put_instead(one.seq, one.saved); });
    });
    if (!fits) std::swap(state_, saved_);
    return fits;
}

bool PageTable::put_instead(int32_t seq_id, const Saved& saved) {
    for (const Segment& segment : seq(seq_id)) drop_ref(segment);
    seq(seq_id).clear();
    TokenRuns& tokens = state_.tokens[static_cast<size_t>(seq_id)];
    tokens.clear();
    std::vector<int32_t> ids;
    bool fits = true;
    for (const SavedPage& page : saved.pages) {
        ids.push_back(new_page(page.frame));
        fits = ids.back() != kNone;
        if (!fits) break;
        at(ids.back()).n_filled = page.n_filled;
        at(ids.back()).requantized = page.requantized;
    }
    for (size_t i = 0; i < saved.segments.size() && fits; ++i) {
        Segment segment = saved.segments[i];
        segment.page = ids[static_cast<size_t>(segment.page)];
        add_ref(segment);
        for (int32_t pos = segment.first(); pos <= segment.last(); ++pos) tokens.append(pos, next_number(seq_id));
        seq(seq_id).push_back(segment);
    }
    for (size_t i = 0; i < saved.pages.size() && fits; ++i) {
        if (saved.pages[i].sealed) fits = take_packed(ids[i]);
        if (fits && saved.pages[i].f16) fits = take_open(ids[i]);
        if (fits && saved.pages[i].sealed && saved.pages[i].f16) state_.both.push_back(ids[i]);
    }
    if (fits) recount();
    return fits && has_open_reserve() && state_.n_tokens <= options_.n_ctx;
}

}  // namespace kvaq
