#pragma once

#include <string>
#include <string_view>

namespace kvaq {

/// Turns Markdown tables in text that comes in pieces into tables for a terminal: columns aligned, numbers to the right, the head bold, rules dim,
/// verdicts coloured (the word says it too). Everything else passes as it is. A table is held back until its last line is complete.
class TerminalTables {
  public:
    /// What can be shown now.
    [[nodiscard]] std::string feed(std::string_view text);
    /// The rest.
    [[nodiscard]] std::string finish();

  private:
    [[nodiscard]] std::string take_line(const std::string& line);
    [[nodiscard]] std::string take_table();

    std::string line_;   ///< begun and not ended
    std::string table_;  ///< whole lines
};

}  // namespace kvaq
