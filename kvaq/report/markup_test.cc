#include "kvaq/report/markup.h"

#include <gtest/gtest.h>

namespace kvaq {
namespace {

TEST(Markup, WritesEveryCharacterThatWouldBeMarkupAsAnEntity) {
    EXPECT_EQ(escape_markup("<a href=\"x\" b='y'>&amp;</a>"),
              "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;amp;&lt;/a&gt;");
    EXPECT_EQ(escape_markup("naïve ± 😀"), "naïve ± 😀");
}

TEST(Markup, ReplacesWhatXmlOrUtf8DoesNotAllow) {
    const std::string bad = "\xEF\xBF\xBD";
    EXPECT_EQ(escape_markup(std::string("a\0b\x01\x7F", 5)), "a" + bad + "b" + bad + bad);
    EXPECT_EQ(escape_markup("\xC0\xAF"), bad + bad) << "overlong";
    EXPECT_EQ(escape_markup("\xE0\x80\xAF"), bad + bad + bad) << "overlong";
    EXPECT_EQ(escape_markup("\xED\xA0\x80"), bad + bad + bad) << "surrogate";
    EXPECT_EQ(escape_markup("\xE2\x82"), bad + bad) << "cut short";
    EXPECT_EQ(escape_markup("\xF5\x80\x80\x80"), bad + bad + bad + bad) << "beyond Unicode";
    EXPECT_EQ(escape_markup("x\xE2\x80\xAEy").find("\xE2\x80\xAE"), std::string::npos) << "turns the line around";
}

TEST(Markup, KeepsMarkdownFromFormattingNames) {
    EXPECT_EQ(escape_markdown("q8_0 _x_ a*b | c"), "q8_0 \\_x\\_ a\\*b \\| c");
    EXPECT_EQ(escape_markdown("[x](javascript:1) <b> `c`"), "\\[x\\](javascript:1) &lt;b\\> \\`c\\`");
    EXPECT_EQ(escape_markdown("# no title\nno line"), "\\# no title no line");
    EXPECT_EQ(escape_markdown("@somebody 3.13bits@4096"), "&#64;somebody 3.13bits@4096");
}

TEST(Markup, FencesCodeThatHoldsBackticks) {
    EXPECT_EQ(markdown_code("kvaq plan"), "`kvaq plan`");
    EXPECT_EQ(markdown_code("a``b|c", true), "```a``b\\|c```");
    EXPECT_EQ(markdown_code("`x"), "`` `x ``");
    EXPECT_EQ(markdown_code(""), "");
}

}  // namespace
}  // namespace kvaq
