// The page table alone: what it counts. What it does to K and V is in serving_cache_test.cc, shift_test.cc and sliding_window_test.cc.
#include "kvaq/cache/page_table.h"

#include <gtest/gtest.h>

#include <random>

#include "kvaq/cache/cache_testing.h"

namespace kvaq {
namespace {

constexpr int32_t kSequences = 4;
constexpr size_t kContext = 300;

class Counting : public testing::TestWithParam<int32_t> {
  protected:
    /// Whether the tokens were let in.
    bool decode(const std::vector<TestToken>& tokens) {
        std::vector<BatchToken> batch;
        for (const TestToken& token : tokens) batch.push_back({.pos = token.pos, .seq_ids = token.seq_ids});
        if (!table_.begin(batch, 8)) return false;
        table_.end();
        ledger_.add(tokens);
        return true;
    }
    bool remove(int32_t seq, int32_t from, int32_t to) {
        std::vector<PageTable::Unseal> unseals;
        const bool done = table_.seq_rm(seq, from, to, unseals);
        table_.release();
        if (done) ledger_.seq_rm(seq, from, to);
        return done;
    }
    bool copy(int32_t src, int32_t dst, int32_t from = -1, int32_t to = -1) {
        std::vector<PageTable::Unseal> unseals;
        const bool done = table_.seq_cp(src, dst, from, to, unseals);
        table_.release();
        if (done) ledger_.seq_cp(src, dst, from, to);
        return done;
    }
    void expect_count(const std::string& where) const {
        ASSERT_EQ(table_.used_tokens(), table_.count_tokens()) << where;
        ASSERT_EQ(table_.used_tokens(), ledger_.size()) << where;
        ASSERT_LE(table_.used_tokens(), kContext) << where;
    }

    PageTable table_{{.tile_tokens = 64,
                      .window = 20,
                      .sinks = 4,
                      .n_seq_max = kSequences,
                      .n_ctx = kContext,
                      .max_batch_tokens = 100,
                      .sliding_windows = GetParam() > 0 ? std::vector<int32_t>{GetParam()} : std::vector<int32_t>{},
                      .rewind = 64,
                      .f16_rewind = GetParam() > 0 ? 90 : 0}};
    TokenLedger ledger_{kSequences};
};

TEST_P(Counting, ATokenCountsOnceWhereverCopiesOfItLie) {
    ASSERT_TRUE(decode(text(0, 0, 100)));
    ASSERT_TRUE(copy(0, 1) && copy(0, 2));
    expect_count("shared");
    ASSERT_TRUE(decode(text(1, 100, 1)) && decode(text(2, 100, 5)));  // copies on write of tokens 64 to 99
    expect_count("forked");
    EXPECT_EQ(table_.used_tokens(), 106U);
    ASSERT_TRUE(remove(0, -1, -1));
    expect_count("the source is gone, the copies have all of it");
    EXPECT_EQ(table_.used_tokens(), 106U);
    ASSERT_TRUE(remove(1, 90, -1));
    expect_count("cut in what was shared");
    EXPECT_EQ(table_.used_tokens(), 105U);
    ASSERT_TRUE(decode(text(1, 90, 10, 1)));
    expect_count("tokens 90 to 99 are of each its own now");
    EXPECT_EQ(table_.used_tokens(), 115U);
    ASSERT_TRUE(remove(2, 50, -1));  // inside a sealed page, which it keeps
    expect_count("they are still the ones of sequence 1");
    EXPECT_EQ(table_.used_tokens(), 100U);
    ASSERT_TRUE(decode(text(2, 50, 100, 2)) && remove(2, 90, -1));  // inside a second one, which is decoded
    expect_count("some of its own, the others those of sequence 1");
    EXPECT_EQ(table_.used_tokens(), 140U);
}

TEST_P(Counting, TheContextCanBeFilledToItsLastTokenWhateverIsShared) {
    ASSERT_TRUE(decode(text(0, 0, 90)));
    for (int32_t s = 1; s < kSequences; ++s) ASSERT_TRUE(copy(0, s));
    for (int32_t s = 0; s < kSequences; ++s) ASSERT_TRUE(decode(text(s, 90, 52, static_cast<uint32_t>(s) + 1)));
    expect_count("90 shared ones and four times 52");
    EXPECT_EQ(table_.used_tokens(), 298U);
    EXPECT_FALSE(decode(text(1, 142, 3)));
    EXPECT_TRUE(decode(text(1, 142, 2)));
    EXPECT_FALSE(decode(text(2, 142, 1)));
    expect_count("full");
}

TEST_P(Counting, GoesOnAsItIsCountedAnewAndAsAPlainModelCounts) {
    std::mt19937 random(20261126);
    const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
    size_t n_refused = 0;
    for (int op = 0; op < 20000; ++op) {
        const int32_t seq = below(kSequences);
        const int32_t other = below(kSequences);
        const int32_t n = table_.next_pos(seq);
        switch (below(9)) {
            case 0:
                (void)remove(seq, below(n + 1), -1);
                break;
            case 1: {
                const int32_t from = below(n + 1);
                (void)remove(seq, from, from + 1 + below(80));
                break;
            }
            case 2:
                if (other == seq) break;
                ASSERT_TRUE(remove(other, -1, -1));
                (void)copy(seq, other, below(3) == 0 ? below(n + 1) : -1, below(3) == 0 ? below(n + 1) : -1);
                break;
            case 3: {
                const int32_t from = below(n + 1);
                const int32_t delta = below(41) - 20;
                if (table_.seq_add(seq, from, -1, delta)) ledger_.seq_add(seq, from, -1, delta);
                break;
            }
            case 4:
                if (below(40) != 0) break;
                table_.seq_keep(seq);
                ledger_.seq_keep(seq);
                break;
            case 5: {  // a token of two sequences, and a batch that is taken back
                if (other == seq || !remove(other, -1, -1) || !copy(seq, other)) break;
                (void)decode({{n, {seq, other}, 0}});
                std::vector<BatchToken> batch;
                const std::vector<TestToken> tokens = text(seq, table_.next_pos(seq), 30);
                for (const TestToken& token : tokens) batch.push_back({.pos = token.pos, .seq_ids = token.seq_ids});
                if (table_.begin(batch, 8)) table_.rollback();
                break;
            }
            case 6: {  // restored from a snapshot of its own
                PageTable::Saved saved;
                for (const Segment& segment : table_.segments(seq)) {
                    const Page& page = table_.page(segment.page);
                    saved.pages.push_back(
                        {.frame = page.frame, .n_filled = page.n_filled, .sealed = page.sealed, .f16 = true});
                    saved.segments.push_back(segment);
                    saved.segments.back().page = static_cast<int32_t>(saved.pages.size()) - 1;
                    saved.segments.back().dropped = false;
                }
                if (!saved.pages.empty() && table_.replace(other, saved)) ledger_.load(seq, other);
                break;
            }
            default: {
                std::vector<TestToken> tokens = text(seq, n, 1 + below(below(3) == 0 ? 60 : 4));
                if (other != seq) {
                    const std::vector<TestToken> more = text(other, table_.next_pos(other), 1 + below(30));
                    tokens.insert(tokens.end(), more.begin(), more.end());
                }
                if (!decode(tokens)) ++n_refused;
            }
        }
        expect_count("operation " + std::to_string(op));
        if (HasFatalFailure()) return;
    }
    EXPECT_GT(n_refused, 50U) << "the context was never full";
}

INSTANTIATE_TEST_SUITE_P(SlidingWindows, Counting, testing::Values(0, 30));

}  // namespace
}  // namespace kvaq
