#include "kvaq/report/terminal_table.h"

#include <gtest/gtest.h>

#include <regex>

namespace kvaq {
namespace {

const std::string kText =
    "a title\n\n| cache | KL |\n|---|---|\n| q4_0 | 0.0474 ± 0.0018 |\n| a longer name | 12 |\nverdict: safe (KL "
    "0.01)\n";

std::string plain(const std::string& text) { return std::regex_replace(text, std::regex("\033\\[[0-9]*m"), ""); }

std::string in_pieces(const std::string& text, size_t n) {
    TerminalTables tables;
    std::string out;
    for (size_t at = 0; at < text.size(); at += n) out += tables.feed(std::string_view(text).substr(at, n));
    return out + tables.finish();
}

TEST(TerminalTables, AlignsColumnsAndNumbers) {
    EXPECT_EQ(plain(in_pieces(kText, kText.size())),
              "a title\n\ncache                       KL\n─────────────  ───────────────\nq4_0           0.0474 ± "
              "0.0018\na longer name               12\nverdict: safe (KL 0.01)\n");
    EXPECT_NE(in_pieces(kText, 1000).find("\033[32msafe\033[0m"), std::string::npos);
    EXPECT_NE(in_pieces(kText, 1000).find("\033[1mcache"), std::string::npos);
}

TEST(TerminalTables, DoesNotDependOnThePieces) {
    // Verdict lines written in pieces keep their words, not their colour.
    for (size_t n = 1; n < 40; ++n) EXPECT_EQ(plain(in_pieces(kText, n)), plain(in_pieces(kText, kText.size()))) << n;
}

TEST(TerminalTables, LeavesEverythingElseAlone) {
    for (const std::string text :
         {"no table\n", "", "half a line", "| just a bar\n", "|", "{\"json\": [1, 2]}\n", "| a | b |\n| c | d |\n"}) {
        const std::string out = in_pieces(text, 3);
        EXPECT_EQ(out, text == "|" ? "|\n" : text);
    }
}

}  // namespace
}  // namespace kvaq
