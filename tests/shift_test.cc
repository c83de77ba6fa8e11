// Context shift (llama_memory_seq_rm in the middle, llama_memory_seq_add) in this process, beside plain llama.cpp doing the same.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "tests/llama_session.h"

namespace kvaq {
namespace {

/// As llama-server shifts: [keep, keep + discard) goes, what is after it moves up.
void shift(const Session& session, llama_pos keep, llama_pos discard) {
    ASSERT_TRUE(llama_memory_seq_rm(session.memory(), 0, keep, keep + discard));
    llama_memory_seq_add(session.memory(), 0, keep + discard, -1, -discard);
}

TEST(Shift, LogitsAfterAShiftAreThoseOfPlainLlamaCpp) {
    const Tokens tokens = wiki_tokens(500);
    const Session plain(""), unshifted("f16");
    std::vector<float> expected;
    for (const std::string plan : {"", "f16", "k8v8-g32"}) {
        const Session session(plan);
        EXPECT_TRUE(llama_memory_can_shift(session.memory())) << plan;
        ASSERT_EQ(session.decode({tokens.begin(), tokens.begin() + 400}, 0), 0);
        EXPECT_TRUE(llama_memory_can_shift(session.memory())) << plan;
        shift(session, 4, 230);
        EXPECT_EQ(session.positions(1), (std::vector<llama_pos>{0, 169})) << plan;
        ASSERT_EQ(session.decode({tokens.begin() + 400, tokens.begin() + 450}, 170), 0);
        shift(session, 4, 20);
        ASSERT_EQ(session.decode({tokens.begin() + 450, tokens.end()}, 200), 0);
        if (plan.empty()) expected = session.logits();
        EXPECT_LT(rms_difference(expected, session.logits()), kSameLogits) << plan;
    }
    // The control: keys at the wrong distances give other logits, so that the comparison above proves something.
    const Session control("f16");
    Tokens left(tokens.begin(), tokens.begin() + 4);
    left.insert(left.end(), tokens.begin() + 254, tokens.begin() + 400);
    ASSERT_EQ(control.decode(left, 0), 0);
    ASSERT_TRUE(llama_memory_seq_rm(control.memory(), 0, 4, 100));
    llama_memory_seq_add(control.memory(), 0, 100, -1, 50);  // as far off as the tokens that are gone
    ASSERT_EQ(control.decode({tokens.begin() + 400, tokens.end()}, 200), 0);
    EXPECT_GT(rms_difference(expected, control.logits()), kSameLogits);
}

constexpr size_t kBatch = 32;

/// Mean negative log-likelihood (nats) of each batch of a text read through a context much shorter than it is, with a shift whenever it is full.
std::vector<double> nll_through_shifts(const std::string& plan, const Tokens& tokens, int& n_shifts) {
    const Session session(plan, 256, 1);
    llama_batch batch = llama_batch_init(static_cast<int32_t>(kBatch), 0, 1);
    llama_pos next = 0;
    std::vector<double> nll;
    n_shifts = 0;
    for (size_t first = 0; first + kBatch < tokens.size(); first += kBatch) {
        if (next + static_cast<llama_pos>(kBatch) > 256) {
            const llama_pos discard = (next - 4) / 2;
            shift(session, 4, discard);
            next -= discard;
            ++n_shifts;
        }
        batch.n_tokens = static_cast<int32_t>(kBatch);
        for (size_t i = 0; i < kBatch; ++i) {
            batch.token[i] = tokens[first + i];
            batch.pos[i] = next++;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(session.ctx(), batch) != 0) {
            ADD_FAILURE() << plan << " at token " << first;
            break;
        }
        double sum = 0;
        for (size_t i = 0; i < kBatch; ++i) {
            const float* logits = llama_get_logits_ith(session.ctx(), static_cast<int32_t>(i));
            sum += surprise(logits, session.n_vocab(), tokens[first + i + 1]);
        }
        nll.push_back(sum / static_cast<double>(kBatch));
    }
    llama_batch_free(batch);
    return nll;
}

/// Mean of a - b over [begin, end), and its standard error.
std::pair<double, double> paired(const std::vector<double>& a, const std::vector<double>& b, size_t begin, size_t end) {
    double sum = 0, squares = 0;
    for (size_t i = begin; i < end; ++i) sum += a[i] - b[i];
    const auto n = static_cast<double>(end - begin);
    for (size_t i = begin; i < end; ++i) squares += std::pow(a[i] - b[i] - sum / n, 2);
    return {sum / n, std::sqrt(squares / (n - 1) / n)};
}

// Each half of the text (the error must not grow with the shifts). f16: within .005 nats of plain llama.cpp. Two roundings of the same cache differ by about .1
// nats a token (standard deviation), so it takes a long text to tell .005 from 0: three and more standard errors of the paired difference. Two bits: a cache
// that is worse, which this must notice.
TEST(Shift, ReadsATextFarLongerThanTheContextAsWellAsPlainLlamaCpp) {
    const Tokens tokens = wiki_tokens(10400);
    int n_shifts = 0;
    const std::vector<double> plain = nll_through_shifts("", tokens, n_shifts);
    EXPECT_GE(n_shifts, 75);
    for (const auto& [plan, n_tokens] :
         {std::pair<std::string, size_t>{"f16", tokens.size()}, {"k4v4-rot-s4", 1600}, {"k2v2", 800}}) {
        const Tokens read(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(n_tokens));
        const std::vector<double> served = nll_through_shifts(plan, read, n_shifts);
        ASSERT_EQ(served.size(), (n_tokens - 1) / kBatch) << plan;
        ASSERT_LE(served.size(), plain.size());
        for (const size_t half : {0U, 1U}) {
            const size_t middle = served.size() / 2;
            const auto [mean, error] = paired(served, plain, half * middle, half == 0 ? middle : served.size());
            std::printf("%s, half %zu: %+.4f +- %.4f nats\n", plan.c_str(), half + 1, mean, error);
            if (plan == "f16") {
                EXPECT_LT(std::fabs(mean), 0.005);
                EXPECT_LT(error, 0.002) << "else nothing would be noticed";
            } else if (plan == "k2v2") {
                EXPECT_GT(mean, 0.06 + 4 * error);
            } else {
                EXPECT_LT(std::fabs(mean), 0.06);
                EXPECT_LT(error, 0.01);
            }
        }
    }
}

TEST(Shift, WhatCannotBeShiftedIsRefusedUntilTheMemoryIsCleared) {
    const Tokens tokens = tokenize("One two three four five six seven");
    const auto n = static_cast<llama_pos>(tokens.size());
    const Session served("k4v4-rot");
    for (const bool divide : {false, true}) {
        ASSERT_EQ(served.decode(tokens, 0), 0);
        testing::internal::CaptureStderr();
        llama_memory_seq_add(served.memory(), 0, n, -1, -2);  // touches nothing
        llama_memory_seq_div(served.memory(), 0, 0, -1, 1);
        EXPECT_EQ(served.decode({tokens[0]}, n), 0);
        if (divide) {
            llama_memory_seq_div(served.memory(), 0, 0, -1, 2);
        } else {
            llama_memory_seq_add(served.memory(), 0, 2, -1, -2);  // onto positions that are taken
        }
        EXPECT_EQ(served.decode({tokens[0]}, n + 1), -1);
        EXPECT_EQ(served.decode({tokens[0]}, n - 1), -1);
        const std::string said = testing::internal::GetCapturedStderr();
        EXPECT_NE(said.find(divide ? "kvaq: error: self-extend" : "kvaq: error: cannot shift positions [2, -1)"),
                  std::string::npos)
            << said;
        llama_memory_clear(served.memory(), false);
    }
    EXPECT_EQ(served.decode(tokens, 0), 0);
}

}  // namespace
}  // namespace kvaq
