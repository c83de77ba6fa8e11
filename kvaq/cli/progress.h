#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace kvaq {

/// Progress on stderr: one line redrawn on a terminal, otherwise a line every tenth of the way. Shows the time left.
class Progress {
  public:
    explicit Progress(std::string what);
    ~Progress();
    void update(size_t done, size_t total, const std::string& now = "");

  private:
    std::string what_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    bool terminal_ = false;
    size_t last_tenth_ = 0;
    bool drawn_ = false;
};

}  // namespace kvaq
