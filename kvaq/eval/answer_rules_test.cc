#include "kvaq/eval/answer_rules.h"

#include <gtest/gtest.h>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

TEST(AnswerRules, StrictTakesTheNumberBehindTheFirstMark) {
    EXPECT_EQ(strict_number("so 3 + 4 = 7\n#### 7\n\n#### 8"), "7");
    EXPECT_EQ(strict_number("#### -1,234.50"), "-1234.50");
    EXPECT_EQ(strict_number("#### 12."), "12");  // one full stop at the end goes
    EXPECT_EQ(strict_number("#### none, then #### 5"), "5");
    EXPECT_EQ(strict_number("#### $5"), std::nullopt);  // the rule has no dollar sign
    EXPECT_EQ(strict_number("the answer is 7"), std::nullopt);
    EXPECT_EQ(strict_number("####7"), std::nullopt);
    EXPECT_EQ(strict_number(""), std::nullopt);
}

TEST(AnswerRules, FlexibleTakesTheLastNumber) {
    EXPECT_EQ(flexible_number("She makes 9 * 2 = $18 every day."), "18");
    EXPECT_EQ(flexible_number("#### 18"), "18");
    EXPECT_EQ(flexible_number("it costs $1,200.00."), "1200.00");
    EXPECT_EQ(flexible_number("x = -5"), "-5");
    EXPECT_EQ(flexible_number("10-3 apples"), "-3");  // as the regular expression has it
    EXPECT_EQ(flexible_number("7 days... or so"),
              "..");  // three stops match [$0-9.,]{2,}, one is cut: the harness does the same
    EXPECT_EQ(flexible_number("no number"), std::nullopt);
    EXPECT_EQ(flexible_number("a - b"), std::nullopt);
}

TEST(AnswerRules, GoldIsWhatStandsBehindTheMark) {
    EXPECT_EQ(gold_number("5 + 5 = <<5+5=10>>10\n#### 1,010"), "1010");
    EXPECT_THROW((void)gold_number("no mark 10"), Error);
    EXPECT_THROW((void)gold_number(""), Error);
}

TEST(AnswerRules, CallsAreJudgedInThreeSteps) {
    const std::string wanted = R"({"tool":"order","arguments":{"item":"lamp","count":3}})";
    const auto steps = [&](const std::string& text) {
        const CallScore s = score_call(text, wanted);
        return (s.valid ? 1 : 0) + (s.shaped ? 10 : 0) + (s.right ? 100 : 0);
    };
    EXPECT_EQ(steps(wanted), 111);
    EXPECT_EQ(steps(R"( { "arguments": {"count": 3, "item": "lamp"}, "tool": "order" } )"), 111);  // order is no matter
    EXPECT_EQ(steps(R"({"tool":"order","arguments":{"item":"lamp","count":4}})"), 11);
    EXPECT_EQ(steps(R"({"tool":"order","arguments":{"item":"lamp","count":3},"more":1})"), 1);
    EXPECT_EQ(steps(R"({"tool":"order"})"), 1);
    EXPECT_EQ(steps(R"({"tool":"order","arguments":{"item":"lamp","count":3})"), 0);
    EXPECT_EQ(steps(wanted + " done"), 0);
    EXPECT_EQ(steps("[1]"), 0);
    EXPECT_EQ(steps(""), 0);
}

TEST(AnswerRules, MentionsWholeWordsOnly) {
    EXPECT_TRUE(mentions("Your cat is called Rosa.", "rosa"));
    EXPECT_FALSE(mentions("Your cat likes Rosamund.", "Rosa"));
    EXPECT_TRUE(mentions("Rosamund? No: Rosa", "Rosa"));
    EXPECT_FALSE(mentions("", "Rosa"));
}

TEST(AnswerRules, RepetitionIsTheShareOfRunsSeenBefore) {
    EXPECT_EQ(repetition("a b c d e f"), 0);
    EXPECT_EQ(repetition("a b"), 0);
    // a b a b a b a b: five runs of four, two distinct
    EXPECT_NEAR(repetition("a b a b a b a b"), 3.0 / 5, 1e-12);
}

}  // namespace
}  // namespace kvaq
