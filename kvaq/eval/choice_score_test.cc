#include "kvaq/eval/choice_score.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

TEST(ChoiceScore, LengthsDecideWhereSumsDoNot) {
    ChoiceScores scores;
    scores.shared = -2;
    scores.own = {-8, -9, -12, -30};
    scores.tokens = {4, 6, 6, 10};         // means -2, -1.5, -2, -3
    scores.characters = {20, 10, 40, 60};  // (shared + own) / characters: -.5, -1.1, -.35, -.533
    EXPECT_EQ(scores.best_per_token(), 1U);
    EXPECT_EQ(scores.best_per_character(), 2U);
    scores.tokens = {8, 9, 12, 30};  // all equal: the first
    EXPECT_EQ(scores.best_per_token(), 0U);
    EXPECT_EQ(count_characters("na\xc3\xafve"), 5U);
}

std::string error_of(const std::string& content) {
    const std::string path = std::filesystem::temp_directory_path() / ("kvaq_choice_" + std::to_string(::getpid()));
    std::ofstream(path, std::ios::binary) << content;
    std::string what = "no error";
    try {
        (void)read_hellaswag(path);
    } catch (const Error& error) {
        what = error.what();
    }
    std::filesystem::remove(path);
    return what;
}

TEST(ChoiceScore, ReadsTheFileOfLlamaPerplexity) {
    const std::vector<ChoiceItem> items = read_hellaswag(KVAQ_DATA_DIR "/hellaswag-excerpt.txt");
    ASSERT_EQ(items.size(), 12U);
    EXPECT_EQ(items[0].context, "Roof shingle removal: A man is sitting on a roof. he");
    EXPECT_EQ(items[0].gold, 3U);
    EXPECT_EQ(items[0].endings[3], "starts pulling up roofing on a roof.");
}

TEST(ChoiceScore, RefusesOtherFilesByWhatIsWrong) {
    EXPECT_EQ(error_of("c\n1\na\nb\nc\nd\n"), "no error");
    EXPECT_EQ(error_of("c\r\n1\r\na\r\nb\r\nc\r\nd\r\n"), "no error");
    EXPECT_NE(error_of("c\n1\na\nb\nc\n").find("5 lines"), std::string::npos);
    EXPECT_NE(error_of("c\n4\na\nb\nc\nd\n").find("line 2"), std::string::npos);
    EXPECT_NE(error_of("c\n1\na\n\nc\nd\n").find("line 4"), std::string::npos);
    EXPECT_NE(error_of("BZh91AY").find("bunzip2"), std::string::npos);
    EXPECT_NE(error_of("").find("empty"), std::string::npos);
    EXPECT_NE(error_of(std::string("a\0b", 3)).find("no text"), std::string::npos);
    EXPECT_THROW((void)read_hellaswag("/no/such/file"), Error);
}

}  // namespace
}  // namespace kvaq
