#include "kvaq/cache/page_table.h"

#include <algorithm>
#include <limits>
#include <string>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

std::vector<int32_t> all_free(size_t n) {
    std::vector<int32_t> ids(n);
    for (size_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>(n - 1 - i);  // low ids are handed out first
    return ids;
}

int32_t take(std::vector<int32_t>& free_ids) {
    if (free_ids.empty()) return kNone;
    const int32_t id = free_ids.back();
    free_ids.pop_back();
    return id;
}

void give(std::vector<int32_t>& free_ids, int32_t& id) noexcept {
    if (id != kNone) free_ids.push_back(id);  // never grows past its first capacity
    id = kNone;
}

}  // namespace

PageTable::PageTable(const PageTableOptions& options) : options_(options) {
    const size_t tile = options_.tile_tokens;
    const size_t window_pages = (static_cast<size_t>(options_.window) + tile - 1) / tile + 2;
    n_packed_ = (options_.n_ctx + tile - 1) / tile + (options_.n_seq_max > 1 ? options_.n_seq_max : 0);
    n_open_ = 2 * window_pages * options_.n_seq_max;
    n_scratch_ = options_.max_batch_tokens / tile + 1 + options_.n_seq_max;
    const size_t n_pages = n_packed_ + n_open_ + n_scratch_;
    state_.pages.resize(n_pages);
    clear();
}

void PageTable::clear() noexcept {
    std::fill(state_.pages.begin(), state_.pages.end(), Page{});
    state_.free_pages = all_free(state_.pages.size());
    state_.free_packed = all_free(n_packed_);
    state_.free_open = all_free(n_open_);
    state_.free_scratch = all_free(n_scratch_);
    state_.free_sink = all_free(n_sink());
    state_.sequences.assign(options_.n_seq_max, Sequence{});
    state_.both.clear();
    state_.n_stored = 0;
    deferred_.clear();
    work_ = Work{};
    open_batch_ = false;
}

int32_t PageTable::n_tokens(int32_t seq_id) const noexcept {
    return state_.sequences[static_cast<size_t>(seq_id)].n_tokens;
}

int32_t PageTable::f16_from(int32_t seq_id) const noexcept {
    return state_.sequences[static_cast<size_t>(seq_id)].f16_from;
}

std::span<const int32_t> PageTable::pages(int32_t seq_id) const noexcept {
    return state_.sequences[static_cast<size_t>(seq_id)].pages;
}

int32_t PageTable::new_page(int32_t index) {
    const int32_t id = take(state_.free_pages);
    if (id == kNone) return kNone;
    at(id) = Page{.index = index};
    return id;
}

void PageTable::free_f16(Page& page) noexcept {
    give(state_.free_open, page.open);
    give(state_.free_scratch, page.scratch);
}

void PageTable::drop_ref(int32_t id) noexcept {
    Page& page = at(id);
    if (--page.refs > 0) return;
    if (page.packed != kNone && page.has_f16()) std::erase(state_.both, id);
    free_f16(page);
    give(state_.free_packed, page.packed);
    give(state_.free_sink, page.sink);
    state_.n_stored -= static_cast<size_t>(page.n_own);
    state_.free_pages.push_back(id);
}

bool PageTable::someone_wants_f16(int32_t id) const noexcept {
    const int32_t index = page(id).index;
    return std::any_of(state_.sequences.begin(), state_.sequences.end(), [&](const Sequence& s) {
        return static_cast<size_t>(index) < s.pages.size() && s.pages[static_cast<size_t>(index)] == id &&
               index >= s.f16_from && wants_f16(index, s.n_tokens);
    });
}

bool PageTable::begin(std::span<const BatchToken> tokens, size_t block_tokens) {
    KVAQ_CHECK(!open_batch_);
    saved_ = state_;
    work_ = Work{};
    touched_.clear();
    fresh_.clear();
    bool fits = state_.n_stored + tokens.size() <= options_.n_ctx;
    try {
        if (fits) {
            place(tokens);
            fits = seal_and_house();
        }
    } catch (...) {
        state_ = saved_;
        work_ = Work{};
        throw;
    }
    if (!fits) {
        state_ = saved_;
        work_ = Work{};
        return false;
    }
    make_blocks(tokens, block_tokens);
    open_batch_ = true;
    return true;
}

void PageTable::place(std::span<const BatchToken> tokens) {
    const auto tile = static_cast<int32_t>(options_.tile_tokens);
    for (size_t i = 0; i < tokens.size(); ++i) {
        const BatchToken& token = tokens[i];
        KVAQ_CHECK(!token.seq_ids.empty());
        for (const int32_t id : token.seq_ids) {
            if (id < 0 || static_cast<size_t>(id) >= options_.n_seq_max) {
                throw Error(ErrorCode::kInvalidArgument, "invalid sequence id",
                            "0.." + std::to_string(options_.n_seq_max - 1), std::to_string(id));
            }
            if (seq(id).n_tokens != token.pos) {
                throw Error(ErrorCode::kInvalidArgument,
                            "the tokens of sequence " + std::to_string(id) + " do not continue what is cached",
                            "position " + std::to_string(seq(id).n_tokens), "position " + std::to_string(token.pos));
            }
        }
        const int32_t index = token.pos / tile;
        const int32_t slot = token.pos % tile;
        Sequence& first = seq(token.seq_ids[0]);
        int32_t id = kNone;
        if (slot == 0) {
            id = new_page(index);
            KVAQ_CHECK(id != kNone);
            at(id).refs = static_cast<int32_t>(token.seq_ids.size());
            fresh_.push_back(id);
            for (const int32_t s : token.seq_ids) seq(s).pages.push_back(id);
        } else {
            id = first.pages[static_cast<size_t>(index)];
            for (const int32_t s : token.seq_ids) {
                if (seq(s).pages[static_cast<size_t>(index)] != id) {
                    throw Error(ErrorCode::kInvalidArgument, "a token belongs to sequences whose earlier tokens differ",
                                "",
                                "sequences " + std::to_string(token.seq_ids[0]) + " and " + std::to_string(s) +
                                    " at position " + std::to_string(token.pos));
                }
            }
            if (at(id).refs > static_cast<int32_t>(token.seq_ids.size())) {  // copy on write
                const int32_t copy = new_page(index);
                KVAQ_CHECK(copy != kNone);
                at(copy).refs = static_cast<int32_t>(token.seq_ids.size());
                at(id).refs -= at(copy).refs;
                for (const int32_t s : token.seq_ids) seq(s).pages[static_cast<size_t>(index)] = copy;
                work_.copies.push_back({.from = id, .to = copy, .n_tokens = slot});
                fresh_.push_back(copy);
                id = copy;
            } else if (at(id).packed != kNone) {
                // Left over from a longer sequence that shared this page: its packed bits hold tokens that are gone.
                KVAQ_CHECK(at(id).has_f16());
                std::erase(state_.both, id);
                give(state_.free_packed, at(id).packed);
                give(state_.free_sink, at(id).sink);
            }
        }
        work_.writes.push_back({.token = static_cast<int32_t>(i), .page = id, .slot = slot});
        ++at(id).n_own;
        ++state_.n_stored;
        for (const int32_t s : token.seq_ids) {
            seq(s).n_tokens = token.pos + 1;
            if (std::find(touched_.begin(), touched_.end(), s) == touched_.end()) touched_.push_back(s);
        }
    }
}

// Decides which pages are sealed now and gives every new page a place for its f16 rows.
bool PageTable::seal_and_house() {
    for (const int32_t s : touched_) {
        const Sequence& sequence = seq(s);
        const int32_t newest = sequence.n_tokens - 1;
        for (size_t i = sequence.pages.size(); i-- > 0;) {
            const auto index = static_cast<int32_t>(i);
            if (wants_f16(index, newest)) continue;
            const int32_t id = sequence.pages[i];
            if (at(id).packed != kNone) {
                if (at(id).has_f16()) continue;
                break;  // older ones are sealed as well
            }
            at(id).packed = take(state_.free_packed);
            if (at(id).packed == kNone) return false;
            if (index == 0 && options_.sinks > 0) {
                at(id).sink = take(state_.free_sink);
                if (at(id).sink == kNone) return false;
            }
            work_.seals.push_back(id);
            state_.both.push_back(id);
        }
    }
    for (const int32_t id : fresh_) {
        Page& page = at(id);
        if (page.refs == 0) continue;
        if (page.packed != kNone && !someone_wants_f16(id)) {
            page.scratch = take(state_.free_scratch);
        } else {
            page.open = take(state_.free_open);
        }
        if (!page.has_f16()) return false;
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
        const size_t last_index = (static_cast<size_t>(tokens[i].pos) + n - 1) / options_.tile_tokens;
        const std::vector<int32_t>& all = seq(s).pages;
        work_.blocks.push_back({.first_token = i,
                                .n_tokens = n,
                                .first_pos = tokens[i].pos,
                                .f16_from = seq(s).f16_from,
                                .pages = {all.begin(), all.begin() + static_cast<ptrdiff_t>(last_index) + 1}});
        i += n;
    }
}

void PageTable::give_up_f16(Sequence& sequence) noexcept {
    while (static_cast<size_t>(sequence.f16_from) < sequence.pages.size() &&
           at(sequence.pages[static_cast<size_t>(sequence.f16_from)]).packed != kNone &&
           !wants_f16(sequence.f16_from, sequence.n_tokens)) {
        ++sequence.f16_from;
    }
}

void PageTable::end() noexcept {
    KVAQ_CHECK(open_batch_);
    open_batch_ = false;
    for (const int32_t s : touched_) give_up_f16(seq(s));
    std::erase_if(state_.both, [this](int32_t id) {
        if (someone_wants_f16(id)) return false;
        free_f16(at(id));
        return true;
    });
}

void PageTable::rollback() noexcept {
    if (!open_batch_) return;
    open_batch_ = false;
    std::swap(state_, saved_);
}

void PageTable::truncate(int32_t seq_id, int32_t n, std::vector<Unseal>& unseals) {
    Sequence& sequence = seq(seq_id);
    const auto tile = static_cast<int32_t>(options_.tile_tokens);
    const size_t n_pages = static_cast<size_t>((n + tile - 1) / tile);
    while (sequence.pages.size() > n_pages) {
        drop_ref(sequence.pages.back());
        sequence.pages.pop_back();
    }
    const bool shortened = n < sequence.n_tokens;
    sequence.n_tokens = n;
    const int32_t kept = n % tile;
    const bool gave_up = sequence.f16_from > n / tile;
    sequence.f16_from = std::min(sequence.f16_from, n / tile);
    if (kept == 0 || !shortened) return;
    const int32_t id = sequence.pages.back();
    if (!gave_up) {
        KVAQ_CHECK(at(id).packed == kNone || at(id).has_f16());
        if (at(id).refs > 1) return;  // the next write copies what is kept
        if (at(id).packed != kNone) {
            std::erase(state_.both, id);
            give(state_.free_packed, at(id).packed);
            give(state_.free_sink, at(id).sink);
        }
        const int32_t own = std::min(at(id).n_own, kept);
        state_.n_stored -= static_cast<size_t>(at(id).n_own - own);
        at(id).n_own = own;
        return;
    }
    const int32_t fresh = new_page(at(id).index);
    KVAQ_CHECK(fresh != kNone);
    at(fresh).refs = 1;
    at(fresh).open = take(state_.free_open);
    KVAQ_CHECK(at(fresh).open != kNone);
    at(fresh).n_own = kept;
    state_.n_stored += static_cast<size_t>(kept);
    sequence.pages.back() = fresh;
    unseals.push_back({.from = id, .to = fresh, .n_tokens = kept});
    deferred_.push_back(id);
}

void PageTable::release() noexcept {
    for (const int32_t id : deferred_) drop_ref(id);
    deferred_.clear();
}

bool PageTable::seq_rm(int32_t seq_id, int32_t p0, int32_t p1, std::vector<Unseal>& unseals) {
    KVAQ_CHECK(!open_batch_);
    const int32_t n = n_tokens(seq_id);
    const int32_t from = std::max(p0, 0);
    const int32_t to = p1 < 0 ? std::numeric_limits<int32_t>::max() : p1;
    if (from >= n || to <= from) return true;
    if (to < n) return false;
    truncate(seq_id, from, unseals);
    return true;
}

bool PageTable::seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1, std::vector<Unseal>& unseals) {
    KVAQ_CHECK(!open_batch_);
    if (src == dst) return true;
    const int32_t n = n_tokens(src);
    const int32_t from = std::max(p0, 0);
    const int32_t to = p1 < 0 ? n : std::min(p1, n);
    if (to <= from) return true;
    if (from > 0 || n_tokens(dst) != 0) return false;
    seq(dst) = seq(src);
    for (const int32_t id : seq(dst).pages) ++at(id).refs;
    truncate(dst, to, unseals);
    return true;
}

void PageTable::seq_keep(int32_t seq_id) noexcept {
    for (size_t s = 0; s < state_.sequences.size(); ++s) {
        if (static_cast<int32_t>(s) == seq_id) continue;
        for (const int32_t id : state_.sequences[s].pages) drop_ref(id);
        state_.sequences[s] = Sequence{};
    }
}

bool PageTable::replace(int32_t seq_id, int32_t n, std::span<const uint8_t> sealed, std::span<const uint8_t> f16) {
    KVAQ_CHECK(!open_batch_ && sealed.size() == f16.size());
    saved_ = state_;
    for (const int32_t id : seq(seq_id).pages) drop_ref(id);
    seq(seq_id) = Sequence{};
    if (state_.n_stored + static_cast<size_t>(n) > options_.n_ctx) {
        std::swap(state_, saved_);
        return false;
    }
    const auto tile = static_cast<int32_t>(options_.tile_tokens);
    bool fits = true;
    for (size_t i = 0; i < sealed.size() && fits; ++i) {
        const int32_t id = new_page(static_cast<int32_t>(i));
        if (id == kNone) {
            fits = false;
            break;
        }
        Page& page = at(id);
        page.refs = 1;
        page.n_own = std::min(tile, n - static_cast<int32_t>(i) * tile);
        state_.n_stored += static_cast<size_t>(page.n_own);
        if (sealed[i] != 0) {
            fits = (page.packed = take(state_.free_packed)) != kNone;
            if (fits && i == 0 && options_.sinks > 0) fits = (page.sink = take(state_.free_sink)) != kNone;
        }
        if (fits && f16[i] != 0) {
            fits = (page.open = take(state_.free_open)) != kNone;
            if (fits && sealed[i] != 0) state_.both.push_back(id);
        }
        seq(seq_id).pages.push_back(id);
    }
    if (!fits) {
        std::swap(state_, saved_);
        return false;
    }
    seq(seq_id).n_tokens = n;
    while (static_cast<size_t>(seq(seq_id).f16_from) < sealed.size() &&
           f16[static_cast<size_t>(seq(seq_id).f16_from)] == 0) {
        ++seq(seq_id).f16_from;
    }
    return true;
}

}  // namespace kvaq
