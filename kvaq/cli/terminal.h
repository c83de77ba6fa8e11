#pragma once

#include <cstdio>

namespace kvaq {

/// While it lives and stdout is a terminal, Markdown tables printed there by any verb are shown aligned and coloured (kvaq/report/terminal_table.h).
/// Not on a pipe or file, with NO_COLOR set (no-color.org), or where TERM is dumb: there the Markdown stays as it is. One at a time, main's.
class PrettyStdout {
  public:
    PrettyStdout();
    PrettyStdout(const PrettyStdout&) = delete;
    PrettyStdout& operator=(const PrettyStdout&) = delete;
    ~PrettyStdout();

  private:
    FILE* plain_ = nullptr;
    FILE* pretty_ = nullptr;
};

}  // namespace kvaq
