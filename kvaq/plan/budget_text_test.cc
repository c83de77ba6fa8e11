#include "kvaq/plan/budget_text.h"

#include <gtest/gtest.h>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

TEST(BudgetText, ReadsTheThreeUnits) {
    EXPECT_EQ(parse_budget("3.25bits").amount, 3.25);
    EXPECT_EQ(parse_budget("700B/token").unit, Budget::Unit::kBytesPerToken);
    EXPECT_EQ(parse_budget("1.5KiB/token").amount, 1536);
    const Budget budget = parse_budget("512MiB@32768");
    EXPECT_EQ(budget.amount, 512.0 * 1024 * 1024);
    EXPECT_EQ(budget.n_tokens, 32768U);
    EXPECT_EQ(parse_bytes("4GiB"), size_t{4} << 30);
    EXPECT_EQ(parse_bytes("2TiB"), size_t{2} << 40);
    EXPECT_EQ(parse_bytes("536870912"), size_t{512} << 20);
    EXPECT_EQ(parse_bytes("64B"), 64U);
}

TEST(BudgetText, RefusesEverythingElse) {
    for (const char* text : {"", "3.25", "bits", "-1bits", "0bits", "nanbits", "512MiB", "512MiB@", "512MiB@x",
                             "512XiB@1024", "1e400bits", "3bits@100", "5B/tokens"}) {
        EXPECT_THROW((void)parse_budget(text), Error) << text;
    }
    EXPECT_THROW((void)parse_bytes("64"), Error) << "of what?";
}

TEST(BudgetText, SaysWhereTheContextOfBitsBelongs) {
    try {
        (void)parse_budget("3.25bits@2048");
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("-c"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace kvaq
