#include "kvaq/cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace kvaq {

Progress::Progress(std::string what) : what_(std::move(what)), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
    if (terminal_ && drawn_) std::fputc('\n', stderr);
}

void Progress::update(size_t done, size_t total, const std::string& now) {
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double left = done > 0 ? elapsed / static_cast<double>(done) * static_cast<double>(total - done) : 0;
    const size_t tenth = total > 0 ? done * 10 / total : 10;
    const std::string line =
        fmt::format("{}: {}/{}{}{}, {:.0f} s left", what_, done, total, now.empty() ? "" : " ", now, left);
    if (terminal_) {
        fmt::print(stderr, "\r\033[K{}", line);
        std::fflush(stderr);
        drawn_ = true;
    } else if (tenth != last_tenth_) {
        fmt::print(stderr, "{}\n", line);
        last_tenth_ = tenth;
    }
}

}  // namespace kvaq
