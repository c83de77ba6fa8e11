#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kvaq {

/// Streaming SHA-256 (FIPS 180-4). Not thread-safe; any split of the input into updates gives the same digest.
class Sha256 {
  public:
    void update(std::span<const std::byte> bytes) noexcept;
    void update(std::string_view text) noexcept { update(std::as_bytes(std::span(text.data(), text.size()))); }
    /// The digest of everything so far; the object must not be used afterwards.
    [[nodiscard]] std::array<uint8_t, 32> digest() noexcept;
    /// The same as 64 lower-case hex digits.
    [[nodiscard]] std::string hex_digest();

  private:
    void block(const uint8_t* data) noexcept;

    std::array<uint32_t, 8> state_ = {0x6a09e667U, 0xbb67ae85U, 0x3c6ef372U, 0xa54ff53aU,
                                      0x510e527fU, 0x9b05688cU, 0x1f83d9abU, 0x5be0cd19U};
    std::array<uint8_t, 64> buffer_ = {};
    uint64_t n_bytes_ = 0;
};

/// Hex SHA-256 of a byte range.
[[nodiscard]] std::string sha256_hex(std::span<const std::byte> bytes);
[[nodiscard]] std::string sha256_hex(std::string_view text);

}  // namespace kvaq
