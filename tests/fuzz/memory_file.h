#pragma once

// For fuzz targets: a file that exists in memory only, for readers that take a path.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <span>
#include <string>

#include "ggml.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvaq::fuzz {

class MemoryFile {
  public:
    explicit MemoryFile(std::span<const uint8_t> bytes) : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) {
        FUZZ_CHECK(fd_ >= 0 && ::write(fd_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    }
    ~MemoryFile() { ::close(fd_); }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;
    [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

  private:
    int fd_;
};

/// ggml tells of every bad header on stderr.
inline void silence_ggml() {
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
}

}  // namespace kvaq::fuzz
