#include "kvaq/report/markup.h"

#include <algorithm>
#include <cctype>
#include <cstdint>

namespace kvaq {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Length of the UTF-8 sequence that `text` starts with, 0 if it starts with none or with a character that XML does not allow.
size_t sequence_length(std::string_view text) noexcept {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t first = byte(0);
    if (first < 0x80) return first >= 0x20 && first != 0x7F ? 1 : (first == '\t' || first == '\n' || first == '\r');
    const size_t n = first >= 0xF0 && first <= 0xF4 ? 4 : first >= 0xE0 ? 3 : first >= 0xC2 ? 2 : 0;
    if (first > 0xF4 || n == 0 || text.size() < n) return 0;
    uint32_t code = first & (0xFFU >> (n + 1));
    for (size_t i = 1; i < n; ++i) {
        if ((byte(i) & 0xC0U) != 0x80U) return 0;
        code = code << 6U | (byte(i) & 0x3FU);
    }
    const bool too_long = (n == 3 && code < 0x800) || (n == 4 && code < 0x10000);
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    // U+0080 .. U+009F are controls, U+202A .. U+202E and U+2066 .. U+2069 turn the direction of what follows.
    const bool unwanted = code < 0xA0 || code == 0xFFFE || code == 0xFFFF || code > 0x10FFFF ||
                          (code >= 0x202A && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
    return too_long || surrogate || unwanted ? 0 : n;
}

/// Calls one(character) for every character, the replacement for those that are none.
template <class F>
void each_character(std::string_view text, const F& one) {
    while (!text.empty()) {
        const size_t n = sequence_length(text);
        one(n == 0 ? kReplacement : text.substr(0, n));
        text.remove_prefix(std::max<size_t>(n, 1));
    }
}

}  // namespace

std::string escape_markup(std::string_view text) {
    std::string out;
    each_character(text, [&](std::string_view c) {
        if (c == "&") {
            out += "&amp;";
        } else if (c == "<") {
            out += "&lt;";
        } else if (c == ">") {
            out += "&gt;";
        } else if (c == "\"") {
            out += "&quot;";
        } else if (c == "'") {
            out += "&#39;";
        } else {
            out += c;
        }
    });
    return out;
}

std::string escape_markdown(std::string_view text) {
    std::string out;
    bool after_word = false;
    while (!text.empty()) {
        const size_t n = sequence_length(text);
        const std::string_view c = n == 0 ? kReplacement : text.substr(0, n);
        text.remove_prefix(std::max<size_t>(n, 1));
        const char first = c[0];
        if (first == '\n' || first == '\r' || first == '\t') {
            out += ' ';
        } else if (first == '<') {
            out += "&lt;";
        } else if (first == '&') {
            out += "&amp;";
        } else if (first == '_') {  // inside a word it is only itself
            const bool before_word = !text.empty() && std::isalnum(static_cast<unsigned char>(text[0])) != 0;
            out += after_word && before_word ? "_" : "\\_";
        } else if (std::string_view("\\`*{}[]()#+!|~>$").find(first) != std::string_view::npos) {
            const bool plain =
                (first == '(' || first == ')' || first == '+' || first == '!' || first == '#') && !out.empty();
            // Brackets are escaped, so parentheses make no link; # and + mean something only where a line starts.
            out += plain ? std::string(1, first) : std::string("\\") + first;
        } else if (first == '@' && !after_word) {
            out += "&#64;";  // no mention of somebody who happens to have that name
        } else {
            out += c;
        }
        after_word = std::isalnum(static_cast<unsigned char>(first)) != 0;
    }
    return out;
}

std::string markdown_code(std::string_view text, bool in_table) {
    size_t longest = 0;
    size_t run = 0;
    std::string body;
    each_character(text, [&](std::string_view c) {
        run = c == "`" ? run + 1 : 0;
        longest = std::max(longest, run);
        if (c == "|" && in_table) {
            body += "\\|";
        } else if (c == "\n" || c == "\r" || c == "\t") {
            body += ' ';
        } else {
            body += c;
        }
    });
    if (body.empty()) return "";
    const std::string fence(longest + 1, '`');
    const bool padded = body.front() == '`' || body.back() == '`';
    return fence + (padded ? " " : "") + body + (padded ? " " : "") + fence;
}

}  // namespace kvaq
