// llama.cpp's public functions on a context that a plan serves, beside the same calls on a plain one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/eval/compare.h"
#include "kvaq/eval/divergence.h"
#include "tests/llama_session.h"
#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::vector<std::string> kPrompts = {
    "The history of the steam engine begins", "def quicksort(items):\n", "In the middle of the night the sailors saw",
    "The three most important facts about the Moon are", "Dear Sir or Madam,\n\nI am writing to you because"};

TEST(InProcess, GreedyTextPartsFromPlainLlamaCppOnlyAtNearTies) {
    // The control is plain llama.cpp without flash attention: the same model, rounded elsewhere in attention. It says how far
    // rounding alone moves the gap of the two best.
    struct Parting {
        std::string prompt;
        size_t token;
        TopTwo plain, served;
    };
    std::vector<Parting> partings;
    float noise = 0;
    for (const std::string& prompt : kPrompts) {
        const Session plain("");
        const Session control("", 1024, 4, false);
        const Session served("f16");
        const Tokens tokens = tokenize(prompt);
        ASSERT_EQ(plain.decode(tokens, 0), 0);
        ASSERT_EQ(served.decode(tokens, 0), 0);
        ASSERT_EQ(control.decode(tokens, 0), 0);
        bool together = true;
        for (size_t i = 0; i < 200; ++i) {
            const TopTwo a = plain.top_two();
            const std::vector<float> x = control.logits();
            noise =
                std::max(noise, std::fabs(x[static_cast<size_t>(a.best)] - x[static_cast<size_t>(a.second)] - a.gap));
            if (together) {
                const TopTwo b = served.top_two();
                together = a.best == b.best;
                if (!together) partings.push_back({prompt, i, a, b});
            }
            const auto position = static_cast<llama_pos>(tokens.size() + i);
            ASSERT_EQ(plain.decode({a.best}, position), 0);
            ASSERT_EQ(control.decode({a.best}, position), 0);
            if (together) {
                ASSERT_EQ(served.decode({a.best}, position), 0);
            }
        }
    }
    std::printf("plain llama.cpp's own rounding moves the gap by up to %.4f\n", static_cast<double>(noise));
    for (const Parting& p : partings) {
        std::printf("'%.20s' parts at token %zu, gaps %.4f (plain) and %.4f (f16 plan)\n", p.prompt.c_str(), p.token,
                    static_cast<double>(p.plain.gap), static_cast<double>(p.served.gap));
        EXPECT_LE(p.plain.gap + p.served.gap, noise) << p.prompt << " at " << p.token;
    }
    EXPECT_LT(noise, 3) << "the control itself is broken";
}

TEST(InProcess, BatchesWithoutPositionsContinueTheSequence) {
    Tokens tokens = tokenize("One two three four five six seven");
    const Session expected("f16");
    ASSERT_EQ(expected.decode(tokens, 0), 0);
    ASSERT_EQ(expected.decode({tokens[2]}, static_cast<llama_pos>(tokens.size())), 0);

    const Session served("f16");
    ASSERT_EQ(llama_decode(served.ctx(), llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()))), 0);
    ASSERT_EQ(llama_decode(served.ctx(), llama_batch_get_one(&tokens[2], 1)), 0);
    EXPECT_EQ(llama_memory_seq_pos_max(served.memory(), 0), static_cast<llama_pos>(tokens.size()));
    EXPECT_EQ(served.logits(), expected.logits());
}

TEST(InProcess, BatchesThatNameASequenceAloneGoThere) {
    Tokens tokens = tokenize("One two three four five six seven");
    const Session served("f16");
    llama_seq_id second = 1;
    std::vector<llama_seq_id*> seq_ids(tokens.size(), &second);
    llama_batch batch = llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()));
    batch.seq_id = seq_ids.data();  // without n_seq_id: one each
    ASSERT_EQ(llama_decode(served.ctx(), batch), 0);
    EXPECT_EQ(llama_memory_seq_pos_max(served.memory(), 0), -1);
    EXPECT_EQ(llama_memory_seq_pos_max(served.memory(), 1), static_cast<llama_pos>(tokens.size()) - 1);
}

// As mtmd does around an image: what the switch refuses must not outlive it, nor be forgotten by a cleared memory.
TEST(InProcess, NonCausalAttentionIsRefusedUntilItIsSwitchedOff) {
    const Tokens tokens = tokenize("One two three four five six seven");
    const Session served("f16");
    llama_set_causal_attn(served.ctx(), false);
    llama_memory_clear(served.memory(), true);
    EXPECT_EQ(served.decode(tokens, 0), -1);
    llama_set_causal_attn(served.ctx(), true);
    EXPECT_EQ(served.decode(tokens, 0), 0);
}

TEST(InProcess, ExtendedBatchesGiveTheSameLogits) {
    const Tokens tokens = tokenize("One two three four five six seven");
    const Session expected("k4v4-rot");
    ASSERT_EQ(expected.decode(tokens, 0, 2), 0);
    const Session served("k4v4-rot");
    llama_batch_ext* batch = llama_batch_ext_init(served.ctx());
    for (size_t i = 0; i < tokens.size(); ++i) {
        const int32_t index = llama_batch_ext_add_token(batch, 2, tokens[i]);
        ASSERT_EQ(index, static_cast<int32_t>(i));
        const auto position = static_cast<llama_pos>(i);
        ASSERT_TRUE(llama_batch_ext_set_pos(batch, index, &position));
        ASSERT_TRUE(llama_batch_ext_set_output_logits(batch, index, i + 1 == tokens.size()));
    }
    ASSERT_EQ(llama_process(served.ctx(), LLAMA_PROCESS_TYPE_DECODE, batch), 0);
    EXPECT_EQ(served.positions(), expected.positions());
    EXPECT_EQ(served.logits(), expected.logits());
    llama_batch_ext_clear(batch);  // and the batch can be used again
    const auto next = static_cast<llama_pos>(tokens.size());
    ASSERT_EQ(llama_batch_ext_add_token(batch, 2, tokens[1]), 0);
    ASSERT_TRUE(llama_batch_ext_set_pos(batch, 0, &next));
    EXPECT_EQ(llama_process(served.ctx(), LLAMA_PROCESS_TYPE_DECODE, batch), 0);
    EXPECT_EQ(llama_memory_seq_pos_max(served.memory(), 2), next);
    llama_batch_ext_free(batch);
}

TEST(InProcess, SequenceOperationsLeaveThePositionsAndLogitsOfPlainLlamaCpp) {
    const Session plain("");
    const Session served("f16");
    const Tokens stem = tokenize("The sun rose over the quiet harbour and the first boats");
    const Tokens left = tokenize(" went out to sea");
    const Tokens right = tokenize(" burned in the fire");
    const auto n = static_cast<llama_pos>(stem.size());
    const auto both = [&](const std::string& step, const auto& operation) {
        EXPECT_EQ(operation(plain), operation(served)) << step;
        EXPECT_EQ(plain.positions(), served.positions()) << step;
    };
    const auto both_decode = [&](const std::string& step, const Tokens& tokens, llama_pos first, llama_seq_id seq) {
        both(step, [&](const Session& s) { return s.decode(tokens, first, seq); });
        EXPECT_LT(rms_difference(plain.logits(), served.logits()), kSameLogits) << step;
    };
    both_decode("stem", stem, 0, 0);
    both("copy", [](const Session& s) {
        llama_memory_seq_cp(s.memory(), 0, 1, -1, -1);
        return 0;
    });
    both_decode("left", left, n, 0);
    const std::vector<float> after_left = served.logits();
    both_decode("right", right, n, 1);
    EXPECT_GT(rms_difference(after_left, served.logits()), 2 * kSameLogits)
        << "the continuations must differ, else this proves nothing";
    both("remove a suffix", [&](const Session& s) { return llama_memory_seq_rm(s.memory(), 0, n, -1); });
    both_decode("again after removing", right, n, 0);
    both("copy to the third", [](const Session& s) {
        llama_memory_seq_cp(s.memory(), 1, 2, -1, -1);
        return 0;
    });
    both("keep one", [](const Session& s) {
        llama_memory_seq_keep(s.memory(), 2);
        return 0;
    });
    both_decode("after keeping", {left[0]}, n + static_cast<llama_pos>(right.size()), 2);
    both("remove all of it", [](const Session& s) { return llama_memory_seq_rm(s.memory(), 2, -1, -1); });
    both_decode("new in 3", stem, 0, 3);
    both("clear", [](const Session& s) {
        llama_memory_clear(s.memory(), true);
        return 0;
    });
    both_decode("after clear", left, 0, 1);
}

TEST(InProcess, SequencesThatShareAPrefixContinueAsIfTheyDidNot) {
    const Tokens stem = tokenize("Once there was a baker who lived by the river. Every morning he");
    for (const std::string plan : {"f16", "k4v2-rot"}) {
        const Session alone(plan);
        ASSERT_EQ(alone.decode(stem, 0, 0), 0);
        const Tokens expected = alone.generate(40, 0);
        const Session shared(plan);
        ASSERT_EQ(shared.decode(stem, 0, 0), 0);
        llama_memory_seq_cp(shared.memory(), 0, 1, -1, -1);
        ASSERT_EQ(shared.decode(tokenize(" never baked a thing but stones and old hats"),
                                static_cast<llama_pos>(stem.size()), 1),
                  0);
        (void)shared.generate(40, 1);
        ASSERT_TRUE(llama_memory_seq_rm(shared.memory(), 0, static_cast<llama_pos>(stem.size()) - 1, -1));
        ASSERT_EQ(shared.decode({stem.back()}, static_cast<llama_pos>(stem.size()) - 1, 0), 0);
        const Tokens got = shared.generate(8, 0);
        EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << plan;
    }
}

TEST(InProcess, PositionsThatDoNotContinueTheCacheAreRefused) {
    const Tokens tokens = tokenize("One two three four five six seven");
    const auto n = static_cast<llama_pos>(tokens.size());
    const Session plain("");
    const Session served("f16");
    testing::internal::CaptureStderr();
    for (const Session* s : {&plain, &served}) {
        EXPECT_EQ(s->decode(tokens, 0), 0);
        EXPECT_EQ(s->decode({tokens[0]}, n + 5), -1) << "a gap";
        EXPECT_EQ(s->decode({tokens[0]}, 1), -1) << "a position that is cached";
        EXPECT_EQ(s->decode({tokens[0]}, 0, 77), -1) << "no such sequence";
        EXPECT_EQ(s->decode({-5}, n), -1) << "no such token";
        EXPECT_EQ(llama_memory_seq_pos_max(s->memory(), 0), n - 1);
        EXPECT_EQ(s->decode({tokens[0]}, n), 0);
    }
    (void)testing::internal::GetCapturedStderr();
    EXPECT_LT(rms_difference(plain.logits(), served.logits()), kSameLogits);
}

TEST(InProcess, AFullCacheAnswersOneAndStaysUsable) {
    const Tokens tokens(100, tokenize("one")[0]);
    for (const std::string plan : {"", "f16", "k4v4-rot"}) {
        SCOPED_TRACE("plan '" + plan + "'");
        const Session session(plan, 256, 2);
        EXPECT_EQ(llama_n_ctx(session.ctx()), 256U);
        EXPECT_EQ(session.decode(tokens, 0, 0), 0);
        EXPECT_EQ(session.decode(tokens, 0, 1), 0);
        testing::internal::CaptureStderr();
        EXPECT_EQ(session.decode(tokens, 100, 0), 1);
        (void)testing::internal::GetCapturedStderr();
        EXPECT_EQ(session.positions(2), (std::vector<llama_pos>{0, 99, 0, 99}));
        EXPECT_TRUE(llama_memory_seq_rm(session.memory(), 1, -1, -1));
        EXPECT_EQ(session.decode(tokens, 100, 0), 0);
        EXPECT_EQ(session.positions(2), (std::vector<llama_pos>{0, 199, -1, -1}));
    }
}

TEST(InProcess, AMemoryLimitAnswersAsAFullCacheDoes) {
    const Tokens tokens(400, tokenize("one")[0]);
    const Session whole("k4v4-rot", 4096, 1);
    setenv("KVAQ_KV_BUDGET", "20MiB", 1);
    const Session session("k4v4-rot", 4096, 1);
    EXPECT_EQ(llama_n_ctx(session.ctx()), 4096U) << "what the program asked for";
    const KvCache& cache = *cache_of(session.ctx());
    EXPECT_GT(cache_of(whole.ctx())->use().allocated, size_t{20} << 20);
    EXPECT_LE(cache.use().allocated, size_t{20} << 20);
    llama_pos n = 0;
    testing::internal::CaptureStderr();
    while (session.decode(tokens, n) == 0) n += 400;
    EXPECT_GE(n, 400);
    EXPECT_LT(n, 4000);
    EXPECT_EQ(session.decode(tokens, n), 1) << "no space: llama-server frees other slots or ends the answer";
    EXPECT_EQ(session.positions(1), (std::vector<llama_pos>{0, n - 1}));
    EXPECT_TRUE(llama_memory_seq_rm(session.memory(), 0, n - 400, -1));
    EXPECT_EQ(session.decode(tokens, n - 400), 0);
    setenv("KVAQ_KV_BUDGET", "1MiB", 1);
    EXPECT_THROW((Session("k4v4-rot", 4096, 1)), Error);
    unsetenv("KVAQ_KV_BUDGET");
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("memory limit"), std::string::npos) << said;
}

// As a chat program does that asks for another answer, or llama-server with drafts of several tiles.
TEST(InProcess, WithRewindAnAnswerWrittenAgainIsAsIfTheFirstHadNeverBeen) {
    const Tokens tokens = wiki_tokens(640);
    const Tokens prompt(tokens.begin(), tokens.begin() + 290);
    const Tokens first(tokens.begin() + 290, tokens.begin() + 590);
    const Tokens second(tokens.begin() + 590, tokens.end());
    const auto logits_of = [&](const char* rewind, bool with_first) {
        setenv("KVAQ_KV_REWIND", rewind, 1);
        const Session session("k3v2-tcq-s4");
        unsetenv("KVAQ_KV_REWIND");
        EXPECT_EQ(session.decode(prompt, 0), 0);
        if (with_first) {
            EXPECT_EQ(session.decode(first, 290), 0);
            EXPECT_TRUE(llama_memory_seq_rm(session.memory(), 0, 290, -1));
        }
        EXPECT_EQ(session.decode(second, 290), 0);
        return session.logits();
    };
    const auto never = logits_of("0", false);
    EXPECT_TRUE(logits_of("300", true) == never);
    EXPECT_FALSE(logits_of("0", true) == never) << "the control: without it the prompt's end is read packed";
    setenv("KVAQ_KV_REWIND", "much", 1);
    testing::internal::CaptureStderr();
    EXPECT_THROW((Session("k4v4-rot")), Error);
    unsetenv("KVAQ_KV_REWIND");
    EXPECT_NE(testing::internal::GetCapturedStderr().find("--kv-rewind"), std::string::npos);
}

TEST(InProcess, AnUnknownWayOfMultiplyingIsRefused) {
    setenv("KVAQ_ATTENTION", "fast", 1);
    testing::internal::CaptureStderr();
    EXPECT_THROW((Session("k4v4-rot")), Error);
    unsetenv("KVAQ_ATTENTION");
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("(KVAQ_ATTENTION): wanted wide, exact, or not set, found 'fast'"), std::string::npos) << said;
}

// Decode's kernels and prefill's, on the same packed tokens: KL of the last token's logits, a text read in one piece and its end token by token. The floor is
// that of plain llama.cpp's f16, whose matrix products round differently in batches as well.
TEST(InProcess, DecodeOneByOneIsPrefillToTheFloorOfRounding) {
    constexpr llama_pos kShared = 400, kEvery = 9, kMost = 54;  // up to 8 query tokens are decode
    const Tokens tokens = wiki_tokens(kShared + kMost);
    const auto piece = [&](llama_pos first, llama_pos end) {
        return Tokens(tokens.begin() + first, tokens.begin() + end);
    };
    const auto mean_kl = [&](const std::string& plan) {
        const Session session(plan, 4096);
        const auto logs = [&] {
            std::vector<float> log_q(static_cast<size_t>(session.n_vocab()));
            log_softmax(session.logits(), log_q);
            return log_q;
        };
        EXPECT_EQ(session.decode(piece(0, kShared), 0), 0);
        llama_memory_seq_cp(session.memory(), 0, 1, -1, -1);
        double sum = 0;
        for (llama_pos n = 1; n <= kMost; ++n) {
            EXPECT_EQ(session.decode(piece(kShared + n - 1, kShared + n), kShared + n - 1, 1), 0);
            if (n % kEvery != 0) continue;
            const std::vector<float> one_by_one = logs();
            llama_memory_seq_cp(session.memory(), 0, 2, -1, -1);
            EXPECT_EQ(session.decode(piece(kShared, kShared + n), kShared, 2), 0);
            sum += kl_divergence(logs(), one_by_one);
            llama_memory_seq_rm(session.memory(), 2, -1, -1);
        }
        return sum / (kMost / kEvery);
    };
    const double floor = mean_kl("");
    std::printf("plain llama.cpp %.2e\n", floor);
    for (const char* plan : {"f16", "k4v4-rot-s4", "k3v2-tcq-s4"}) {
        const double kl = mean_kl(plan);
        std::printf("%s %.2e\n", plan, kl);
        EXPECT_LT(kl, 1.5 * floor) << plan;
    }
    EXPECT_LT(floor, 0.01);
}

TEST(InProcess, TheF16PlanIsAsCloseToPlainAsPlainToItselfInOtherBatches) {
    const CompareResult result = compare({.model = KVAQ_MODEL,
                                          .text = std::string(KVAQ_DATA_DIR) + "/wiki-excerpt.txt",
                                          .plans = {"f16"},
                                          .made = {},
                                          .types = {},
                                          .n_ctx = 512,
                                          .n_chunks = 4,
                                          .partial = {}},
                                         [](size_t, size_t, const std::string&) {});
    ASSERT_EQ(result.rows.size(), 3U);
    const ScoreSummary& control = result.rows[1].summary;
    const ScoreSummary& plan = result.rows[2].summary;
    std::printf("mean KL: batches of 3 %.6f, f16 plan %.6f nats; PPL plain %.4f, control %.4f, f16 plan %.4f\n",
                control.mean_kl.value, plan.mean_kl.value, result.rows[0].summary.perplexity.value,
                control.perplexity.value, plan.perplexity.value);
    EXPECT_GT(control.mean_kl.value, 0);
    EXPECT_LE(plan.mean_kl.value, 1.5 * control.mean_kl.value);
}

TEST(InProcess, AnEmptySequenceIsSavedAndRestored) {
    TemporaryFolder folder;
    const std::string path = folder.file("empty.slot");
    const Session served("k4v4-rot");
    ASSERT_GT(llama_state_seq_save_file(served.ctx(), path.c_str(), 0, nullptr, 0), 0U);
    ASSERT_EQ(served.decode(tokenize("One two three"), 0), 0);
    Tokens room(16);
    size_t n = 99;
    EXPECT_GT(llama_state_seq_load_file(served.ctx(), path.c_str(), 0, room.data(), room.size(), &n), 0U);
    EXPECT_EQ(n, 0U);
    EXPECT_EQ(llama_memory_seq_pos_max(served.memory(), 0), -1);
}

// As llama-server restores a slot: the tokens, then the state, from a file.
TEST(InProcess, DamagedSlotFilesAreRefusedAndChangeNothing) {
    TemporaryFolder folder;
    const std::string path = folder.file("slot.bin");
    const std::string damaged = folder.file("damaged.bin");
    const Tokens tokens =
        tokenize("It was the best of times, it was the worst of times, it was the age of wisdom. " +
                 std::string("It was the epoch of belief, it was the epoch of incredulity. ") +
                 "It was the season of Light, it was the season of Darkness, it was the spring of hope.");
    const Session served("k4v4-rot-w16-s4");
    ASSERT_EQ(served.decode(tokens, 0), 0);
    const size_t written = llama_state_seq_save_file(served.ctx(), path.c_str(), 0, tokens.data(), tokens.size());
    const std::vector<std::byte> good = read_file(path);
    ASSERT_EQ(written, good.size());
    Tokens found(tokens.size());
    size_t n_found = 0;
    const auto restore = [&](const std::string& from) {
        return llama_state_seq_load_file(served.ctx(), from.c_str(), 1, found.data(), found.size(), &n_found);
    };
    std::mt19937 random(20261126);
    testing::internal::CaptureStderr();
    for (int i = 0; i < 1000; ++i) {
        std::vector<std::byte> bad = good;
        const size_t n_own = 16 + tokens.size() * sizeof(llama_token) + 32;  // half of them before the snapshot
        if (i % 10 == 9) {
            bad.resize(random() % good.size());
        } else {
            bad[random() % (i % 2 == 0 ? n_own : good.size())] ^= static_cast<std::byte>(1U << random() % 8);
        }
        std::ofstream(damaged, std::ios::binary | std::ios::trunc)
            .write(reinterpret_cast<const char*>(bad.data()), static_cast<std::streamsize>(bad.size()));
        ASSERT_EQ(restore(damaged), 0U) << i;
    }
    const std::string said = testing::internal::GetCapturedStderr();
    size_t n_unchanged = 0;
    for (size_t at = said.find(" is unchanged"); at != std::string::npos; at = said.find(" is unchanged", at + 1))
        ++n_unchanged;
    EXPECT_EQ(n_unchanged, 1000U) << said.substr(0, 2000);
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1000) << "one line each";
    // Whole files of others: llama.cpp's own slot, another plan's, nothing at all.
    for (const std::string plan : {"", "k8v8", "nothing"}) {
        std::ofstream(damaged, std::ios::trunc).close();
        if (plan != "nothing") {
            const Session other(plan);
            ASSERT_EQ(other.decode(tokens, 0), 0);
            ASSERT_GT(llama_state_seq_save_file(other.ctx(), damaged.c_str(), 0, tokens.data(), tokens.size()), 0U);
        }
        testing::internal::CaptureStderr();
        EXPECT_EQ(restore(damaged), 0U) << plan;
        const std::string why = testing::internal::GetCapturedStderr();
        EXPECT_NE(why.find(" is unchanged"), std::string::npos) << plan << ": " << why;
        EXPECT_EQ(std::count(why.begin(), why.end(), '\n'), 1) << why;
    }
    EXPECT_EQ(llama_memory_seq_pos_max(served.memory(), 1), -1);
    ASSERT_EQ(restore(path), good.size());
    EXPECT_EQ(n_found, tokens.size());
    EXPECT_EQ(found, tokens);
    EXPECT_EQ(llama_memory_seq_pos_max(served.memory(), 1), static_cast<llama_pos>(tokens.size()) - 1);
    ASSERT_EQ(served.decode({tokens[1]}, static_cast<llama_pos>(tokens.size()), 1), 0);
    const std::vector<float> restored = served.logits();
    ASSERT_EQ(served.decode({tokens[1]}, static_cast<llama_pos>(tokens.size()), 0), 0);
    EXPECT_TRUE(served.logits() == restored);
}

// As llama-cpp-python's save_state and llama-completion's --prompt-cache do it: everything of a context, into another one.
TEST(InProcess, AWholeContextIsSavedAndRestored) {
    TemporaryFolder folder;
    const std::string path = folder.file("session.bin");
    const Tokens tokens = tokenize(
        "It was the best of times, it was the worst of times, it was the age of wisdom. It was the epoch of belief, it "
        "was the epoch of incredulity. It was the season of Light, it was the season of Darkness, it was the spring.");
    const Tokens others = tokenize("One two three four five six seven");
    ASSERT_GT(tokens.size(), 50U);
    const Session served("k4v2-rot-s4");
    ASSERT_EQ(served.decode(tokens, 0, 0), 0);
    ASSERT_EQ(served.decode(tokens, static_cast<llama_pos>(tokens.size()), 0), 0);
    ASSERT_EQ(served.decode(others, 0, 2), 0);
    ASSERT_TRUE(llama_state_save_file(served.ctx(), path.c_str(), tokens.data(), tokens.size()));
    std::vector<uint8_t> state(llama_state_get_size(served.ctx()));
    ASSERT_EQ(llama_state_get_data(served.ctx(), state.data(), state.size()), state.size());

    const Session second("k4v2-rot-s4");
    ASSERT_EQ(second.decode(others, 0, 1), 0);
    Tokens found(tokens.size());
    size_t n_found = 0;
    testing::internal::CaptureStderr();
    std::vector<std::byte> bad = read_file(path);
    bad[bad.size() / 2] ^= std::byte{1};
    atomic_write(folder.file("bad.bin"), bad);
    EXPECT_FALSE(
        llama_state_load_file(second.ctx(), folder.file("bad.bin").c_str(), found.data(), found.size(), &n_found));
    EXPECT_FALSE(llama_state_load_file(second.ctx(), path.c_str(), found.data(), 3, &n_found)) << "no room for tokens";
    EXPECT_EQ(llama_state_set_data(second.ctx(), state.data(), state.size() - 1), 0U);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 3) << said;
    EXPECT_EQ(llama_memory_seq_pos_max(second.memory(), 1), static_cast<llama_pos>(others.size()) - 1) << "unchanged";

    const auto n = static_cast<llama_pos>(tokens.size());
    ASSERT_TRUE(llama_state_load_file(second.ctx(), path.c_str(), found.data(), found.size(), &n_found));
    EXPECT_EQ(found, tokens);
    EXPECT_EQ(llama_memory_seq_pos_max(second.memory(), 0), 2 * n - 1);
    EXPECT_EQ(llama_memory_seq_pos_max(second.memory(), 1), -1) << "what was not saved is gone";
    EXPECT_EQ(llama_memory_seq_pos_max(second.memory(), 2), static_cast<llama_pos>(others.size()) - 1);
    const Session third("k4v2-rot-s4");
    std::vector<uint8_t> roomy = state;
    roomy.resize(state.size() + 100);
    ASSERT_EQ(llama_state_set_data(third.ctx(), roomy.data(), roomy.size()), state.size());
    for (const llama_seq_id seq : {0, 2}) {
        const llama_pos next = llama_memory_seq_pos_max(served.memory(), seq) + 1;
        ASSERT_EQ(served.decode({tokens[1]}, next, seq), 0);
        const std::vector<float> logits = served.logits();
        for (const Session* session : {&second, &third}) {
            ASSERT_EQ(session->decode({tokens[1]}, next, seq), 0);
            EXPECT_TRUE(session->logits() == logits) << seq;
        }
    }
}

}  // namespace
}  // namespace kvaq
