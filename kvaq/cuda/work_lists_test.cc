#ifdef KVAQ_WITH_CUDA

#include "kvaq/cuda/work_lists.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

namespace kvaq::cuda {
namespace {

constexpr size_t kGroup = 3;
constexpr std::array<int32_t, 3> kSequences = {0, 1, 2};

/// n tokens of the sequences [first, last] from a position on.
std::vector<BatchToken> tokens_of(size_t first, size_t last, int32_t pos, int32_t n) {
    std::vector<BatchToken> tokens;
    for (int32_t i = 0; i < n; ++i)
        tokens.push_back({.pos = pos + i, .seq_ids = std::span(kSequences).subspan(first, last - first + 1)});
    return tokens;
}

PageTable table_of() {
    return PageTable({.tile_tokens = 64,
                      .window = 20,
                      .sinks = 4,
                      .n_seq_max = 3,
                      .n_ctx = 4096,
                      .max_batch_tokens = 1200,
                      .sliding_windows = {},
                      .rewind = 64,
                      .f16_rewind = 0});
}

WorkLists lists_of(const PageTable& table) {
    WorkLists lists;
    make_work_lists(table, 0, kGroup, 0, lists);
    return lists;
}

/// What the query tokens from first_token on do, wherever their pages lie.
std::vector<int32_t> work_from(const WorkLists& lists, int32_t first_token) {
    std::vector<int32_t> work;
    for (const RowTile& tile : lists.row_tiles) {
        if (tile.first_token < first_token) continue;
        work.insert(work.end(), {tile.first_token - first_token, tile.first_pos, tile.first_row, tile.n_rows,
                                 tile.n_packed_runs, tile.n_runs, tile.in_block ? 1 : 0});
        for (int32_t r = 0; r < tile.n_runs; ++r) {
            const Run& run = lists.runs[static_cast<size_t>(tile.first_run + r)];
            for (int32_t v = 0; v < run.n_visits; ++v) {
                const Visit& visit = lists.visits[static_cast<size_t>(run.first_visit + v)];
                work.insert(work.end(), {r, visit.first_pos, visit.begin, visit.end, visit.token_begin, visit.token_end,
                                         visit.source == Source::kPacked ? 1 : 0});
            }
        }
    }
    return work;
}

TEST(WorkLists, ASequencesAreTheSameBesideOthersAlsoBehindTokensThatItShares) {
    for (const int32_t shared : {64, 70, 128}) {
        PageTable alone = table_of();
        ASSERT_TRUE(alone.begin(tokens_of(0, 1, 0, shared), 16));
        alone.end();
        ASSERT_TRUE(alone.begin(tokens_of(1, 1, shared, 150), 16));
        const std::vector<int32_t> expected = work_from(lists_of(alone), 0);

        PageTable together = table_of();
        std::vector<BatchToken> batch = tokens_of(2, 2, 0, 33);
        for (const std::vector<BatchToken>& more : {tokens_of(0, 1, 0, shared), tokens_of(1, 1, shared, 150)})
            batch.insert(batch.end(), more.begin(), more.end());
        ASSERT_TRUE(together.begin(batch, 16));
        EXPECT_EQ(work_from(lists_of(together), 33 + shared), expected) << shared;
    }
}

TEST(WorkLists, ARestThatWouldBeDecodedJoinsAPromptsLastBlock) {
    PageTable table = table_of();
    ASSERT_TRUE(table.begin(tokens_of(0, 0, 0, 512), 6));  // 126 of them are the most up to 128
    const WorkLists lists = lists_of(table);
    std::set<int32_t> firsts;
    int32_t n_rows = 0;
    for (const RowTile& tile : lists.row_tiles) {
        EXPECT_TRUE(tile.in_block);
        firsts.insert(tile.first_token);
        n_rows += tile.n_rows;
    }
    EXPECT_EQ(firsts, (std::set<int32_t>{0, 126, 252, 378}));
    EXPECT_EQ(n_rows, 512 * static_cast<int32_t>(kGroup));
    table.end();

    ASSERT_TRUE(table.begin(tokens_of(0, 0, 512, 3), 6));  // decode: a run a visit, not in a block
    const WorkLists decode = lists_of(table);
    ASSERT_EQ(decode.row_tiles.size(), 1U);
    EXPECT_FALSE(decode.row_tiles[0].in_block);
    EXPECT_EQ(static_cast<size_t>(decode.row_tiles[0].n_runs), decode.visits.size());
}

}  // namespace
}  // namespace kvaq::cuda

#endif
