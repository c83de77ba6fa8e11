#include "kvaq/cuda/work_lists.h"

#include <algorithm>
#include <span>
#include <utility>

#include "kvaq/base/error.h"

namespace kvaq::cuda {
namespace {

// Blocks up to this many query tokens are cut as finely as it helps.
constexpr size_t kDecodeTokens = 8;
// Visits of a run of larger ones: at most so many, and one for every kTokensAVisit query tokens.
constexpr size_t kPrefillVisits = 8;
constexpr size_t kTokensAVisit = 4;
// Query tokens of a block: the page table's, which fit the host's kernels, are joined. A rest that would be decoded is joined to the last one too.
constexpr size_t kMostTokens = 128;

/// Query tokens side by side of one sequence, and all that any of them may see.
struct QueryRows {
    size_t first_token, n_tokens;
    int32_t first_pos;
    std::span<const Segment> segments;
};

/// b's tokens come right after a's in the same sequence: all that a's see, b's do.
bool continues(const PageTable::QueryBlock& a, const PageTable::QueryBlock& b) {
    return b.seq == a.seq && b.first_token == a.first_token + a.n_tokens &&
           b.first_pos == a.first_pos + static_cast<int32_t>(a.n_tokens) && a.segments.size() <= b.segments.size() &&
           std::equal(a.segments.begin(), a.segments.end(), b.segments.begin());
}

std::vector<QueryRows> joined_blocks(const std::vector<PageTable::QueryBlock>& blocks) {
    std::vector<QueryRows> joined;
    for (size_t i = 0; i < blocks.size();) {
        size_t end = i + 1;  // of the blocks that continue each other
        while (end < blocks.size() && continues(blocks[end - 1], blocks[end])) ++end;
        const size_t end_token = blocks[end - 1].first_token + blocks[end - 1].n_tokens;
        while (i < end) {
            QueryRows rows{blocks[i].first_token, 0, blocks[i].first_pos, {}};
            const auto fits = [&](const PageTable::QueryBlock& block) {
                return rows.n_tokens == 0 || rows.n_tokens + block.n_tokens <= kMostTokens ||
                       end_token - block.first_token <= kDecodeTokens;
            };
            for (; i < end && fits(blocks[i]); ++i) {
                rows.n_tokens += blocks[i].n_tokens;
                rows.segments = blocks[i].segments;
            }
            joined.push_back(rows);
        }
    }
    return joined;
}

int16_t turn_of(std::vector<QueryTurn>& turns, const QueryTurn& turn) {
    auto found = std::find(turns.begin(), turns.end(), turn);
    if (found == turns.end()) found = turns.insert(found, turn);
    KVAQ_CHECK(found - turns.begin() < INT16_MAX);
    return static_cast<int16_t>(found - turns.begin());
}

struct BlockVisits {
    std::vector<Visit> packed, float16;
};

void visit(const PageTable& table, const QueryRows& block, const Segment& segment, size_t reach, int32_t key_period,
           std::vector<QueryTurn>& turns, BlockVisits& visits) {
    const PageSlots& slots = table.slots(segment.page, reach);
    if (!segment.keeps(reach) || slots.live == 0) return;  // behind the window of these layers
    const Page& page = table.page(segment.page);
    const auto tile = static_cast<int32_t>(table.options().tile_tokens);
    const auto n_tokens = static_cast<int32_t>(block.n_tokens);
    // Query tokens [begin, split) read the page in f16, [split, n_tokens) packed; those before begin do not see it.
    const int32_t begin = std::clamp(segment.first() - block.first_pos, 0, n_tokens);
    int32_t split = std::clamp(segment.base + tile - 1 + table.options().window - block.first_pos, begin, n_tokens);
    if (segment.dropped) split = begin;
    if (!page.sealed) split = n_tokens;
    const int32_t delta = page.frame - segment.base;
    Visit common{.first_pos = segment.base, .begin = static_cast<int16_t>(segment.begin)};
    if (split > begin) {
        Visit f16 = common;
        const int32_t newest = block.first_pos + split - 1;
        f16.turn = turn_of(turns, {.delta = delta});
        f16.end = static_cast<int16_t>(std::min(segment.end, newest - segment.base + 1));
        f16.token_begin = static_cast<int16_t>(begin);
        f16.token_end = static_cast<int16_t>(split);
        f16.source = slots.open != kNone ? Source::kOpen : Source::kScratch;
        f16.item = slots.open != kNone ? slots.open : page.scratch;
        if (f16.begin < f16.end) visits.float16.push_back(f16);
    }
    if (split < n_tokens) {
        common.token_begin = static_cast<int16_t>(split);
        common.token_end = static_cast<int16_t>(n_tokens);
        const int32_t sinks = slots.sink != kNone ? std::min(table.options().sinks, segment.end) : 0;
        if (sinks > segment.begin) {
            Visit sink = common;
            sink.turn = turn_of(turns, {.delta = delta});
            sink.end = static_cast<int16_t>(sinks);
            sink.source = Source::kSink;
            sink.item = slots.sink;
            visits.float16.push_back(sink);
            common.begin = static_cast<int16_t>(sinks);
        }
        const int32_t back = key_period > 0 ? page.frame / key_period * key_period : 0;
        common.turn = turn_of(turns, {.delta = delta, .back = back});
        common.end = static_cast<int16_t>(segment.end);
        common.item = slots.packed;
        if (common.begin < common.end) visits.packed.push_back(common);
    }
}

/// Runs of the visits [first, first + n) by one row tile.
int32_t cut(int32_t row_tile, size_t first, size_t n, size_t least, std::vector<Run>& runs) {
    const size_t length = std::max(least, (n + kMaxRuns - 1) / kMaxRuns);
    int32_t n_runs = 0;
    for (size_t i = 0; i < n; i += length, ++n_runs) {
        runs.push_back({.row_tile = row_tile,
                        .first_visit = static_cast<int32_t>(first + i),
                        .n_visits = static_cast<int32_t>(std::min(length, n - i))});
    }
    return n_runs;
}

void list_writes(const PageTable& table, size_t reach, std::vector<RowWrite>& writes) {
    const std::vector<PageTable::Write>& all = table.work().writes;
    for (size_t i = 0; i < all.size(); ++i) {
        const int32_t open = table.slots(all[i].page, reach).open;
        writes.push_back({.token = all[i].token,
                          .item = open != kNone ? open : table.page(all[i].page).scratch,
                          .slot = static_cast<int16_t>(all[i].slot),
                          .scratch = open == kNone});
    }
    // A page begun in this micro-batch: its last token clears the slots behind it.
    for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].slot != 0) continue;
        size_t last = i;
        for (size_t j = i + 1; j < all.size(); ++j) {
            if (all[j].page == all[i].page) last = j;
        }
        writes[last].clear_rest = true;
    }
}

}  // namespace

void make_work_lists(const PageTable& table, size_t reach, size_t group, int32_t key_period, WorkLists& lists) {
    lists.row_tiles.clear();
    lists.runs.clear();
    lists.visits.clear();
    lists.writes.clear();
    lists.turns.assign(1, {});
    list_writes(table, reach, lists.writes);
    BlockVisits visits;
    for (const QueryRows& block : joined_blocks(table.work().blocks)) {
        visits.packed.clear();
        visits.float16.clear();
        for (const Segment& segment : block.segments)
            visit(table, block, segment, reach, key_period, lists.turns, visits);
        const size_t first = lists.visits.size();
        lists.visits.insert(lists.visits.end(), visits.packed.begin(), visits.packed.end());
        lists.visits.insert(lists.visits.end(), visits.float16.begin(), visits.float16.end());
        const bool in_block = block.n_tokens > kDecodeTokens;
        const size_t n_rows = block.n_tokens * group;
        const size_t run_visits = in_block ? std::min(kPrefillVisits, block.n_tokens / kTokensAVisit) : 1;
        for (size_t row = 0; row < n_rows; row += kTileRows) {
            const auto index = static_cast<int32_t>(lists.row_tiles.size());
            RowTile tile{.first_token = static_cast<int32_t>(block.first_token),
                         .first_pos = block.first_pos,
                         .first_row = static_cast<int32_t>(row),
                         .n_rows = static_cast<int32_t>(std::min<size_t>(kTileRows, n_rows - row)),
                         .first_run = static_cast<int32_t>(lists.runs.size()),
                         .in_block = in_block};
            tile.n_packed_runs = cut(index, first, visits.packed.size(), run_visits, lists.runs);
            tile.n_runs = tile.n_packed_runs +
                          cut(index, first + visits.packed.size(), visits.float16.size(), run_visits, lists.runs);
            lists.row_tiles.push_back(tile);
        }
    }
}

}  // namespace kvaq::cuda
