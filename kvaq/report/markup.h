#pragma once

#include <string>
#include <string_view>

namespace kvaq {

/// Text for HTML and XML, between tags as well as in a quoted attribute: & < > " ' are written as entities, characters that XML does not allow
/// and bytes that are no UTF-8 become U+FFFD. Model names and file names are bytes from a file: whatever they hold stays text.
[[nodiscard]] std::string escape_markup(std::string_view text);

/// The same for running text of GitHub's Markdown: characters that would start formatting, a table cell, a link or a tag are written so that they
/// show as themselves; line breaks become spaces.
[[nodiscard]] std::string escape_markdown(std::string_view text);

/// Code as GitHub's Markdown shows it: backticks around it, more of them than it holds in a row. `in_table`: a | in it is escaped, which Markdown
/// wants there and nowhere else.
[[nodiscard]] std::string markdown_code(std::string_view text, bool in_table = false);

}  // namespace kvaq
