#include "kvaq/cli/terminal.h"

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "kvaq/report/terminal_table.h"

namespace kvaq {
namespace {

struct Sink {
    FILE* to;
    TerminalTables tables;
};

ssize_t write_sink(void* cookie, const char* text, size_t size) {
    auto* sink = static_cast<Sink*>(cookie);
    const std::string shown = sink->tables.feed({text, size});
    if (std::fwrite(shown.data(), 1, shown.size(), sink->to) != shown.size()) return 0;
    return std::fflush(sink->to) == 0 ? static_cast<ssize_t>(size) : 0;
}

int close_sink(void* cookie) {
    auto* sink = static_cast<Sink*>(cookie);
    const std::string rest = sink->tables.finish();
    const bool written = std::fwrite(rest.data(), 1, rest.size(), sink->to) == rest.size();
    const bool flushed = std::fflush(sink->to) == 0;
    delete sink;  // fopencookie takes a plain pointer
    return written && flushed ? 0 : EOF;
}

bool wanted() {
    const char* no_color = std::getenv("NO_COLOR");
    const char* term = std::getenv("TERM");
    return isatty(STDOUT_FILENO) == 1 && (no_color == nullptr || *no_color == '\0') && term != nullptr &&
           std::string_view(term) != "dumb";
}

}  // namespace

PrettyStdout::PrettyStdout() {
    if (!wanted()) return;
    auto* sink = new Sink{stdout, {}};
    pretty_ = fopencookie(sink, "w", {.read = nullptr, .write = write_sink, .seek = nullptr, .close = close_sink});
    if (pretty_ == nullptr) {
        delete sink;
        return;
    }
    std::setvbuf(pretty_, nullptr, _IOLBF, BUFSIZ);
    std::fflush(stdout);
    plain_ = stdout;
    stdout = pretty_;  // glibc: stdout is a variable
}

PrettyStdout::~PrettyStdout() {
    if (pretty_ == nullptr) return;
    stdout = plain_;
    std::fclose(pretty_);
}

}  // namespace kvaq
