#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvaq/quant/codec_spec.h"

namespace kvaq {

/// Power-of-two planes of a code width, low bits first: 3 = {2, 1}, 5 = {4, 1}, 6 = {4, 2}; unused entries are 0. Ternary and k16
/// have none.
[[nodiscard]] std::array<uint8_t, 2> plane_bits(CodeBits bits) noexcept;

/// Bytes of n_codes codes (n_codes a multiple of 64): planes of 64-byte blocks; ternary: five codes a byte, rounded up to 64.
[[nodiscard]] size_t code_bytes(CodeBits bits, size_t n_codes) noexcept;

/// Codes in code order (see kvaq/cache/tile.h: cells of 64) to planes. out: code_bytes bytes, padding zeroed.
void pack_codes(CodeBits bits, std::span<const uint8_t> codes, std::byte* out) noexcept;

/// One code back; n_codes as packed.
[[nodiscard]] uint32_t unpack_code(CodeBits bits, size_t n_codes, const std::byte* packed, size_t index) noexcept;

}  // namespace kvaq
