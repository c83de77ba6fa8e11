#pragma once

// For fuzz targets: bytes read as choices, and a check that ends the program.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

namespace kvaq::fuzz {

/// Choices taken from the front; zeros when the bytes are used up.
class Choices {
  public:
    explicit Choices(std::span<const uint8_t> bytes) : bytes_(bytes) {}
    [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }
    [[nodiscard]] uint8_t byte() noexcept {
        if (bytes_.empty()) return 0;
        const uint8_t first = bytes_[0];
        bytes_ = bytes_.subspan(1);
        return first;
    }
    /// 0..n-1, two bytes for n above 256.
    [[nodiscard]] int32_t below(int32_t n) noexcept {
        if (n <= 1) return 0;
        uint32_t x = byte();
        if (n > 256) x = x << 8U | byte();
        return static_cast<int32_t>(x % static_cast<uint32_t>(n));
    }
    [[nodiscard]] std::span<const uint8_t> rest() const noexcept { return bytes_; }

  private:
    std::span<const uint8_t> bytes_;
};

}  // namespace kvaq::fuzz

/// A property that does not hold is a finding, in every build.
#define FUZZ_CHECK(condition)                                                              \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                  \
        }                                                                                  \
    } while (false)
