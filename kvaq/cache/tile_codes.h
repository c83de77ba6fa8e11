#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvaq/cache/tile.h"

namespace kvaq {

/// Code planes of one band (ternary codes already spread to bytes).
struct CodePlanes {
    const uint8_t* low = nullptr;   ///< plane of the low bits, 64-byte blocks
    const uint8_t* high = nullptr;  ///< second plane, or null
    unsigned low_bits = 0;          ///< 1, 2, 4 or 8
    unsigned high_bits = 0;         ///< 0, 1 or 2
    size_t n_lanes16 = 0;           ///< blocks of 16 lanes: tokens / 16 (keys), padded channels / 16 (values)
    size_t n_quads = 0;             ///< blocks of 4 along the reduction axis: channels / 4 (keys), tokens / 4 (values)
};

/// How a band's codes become the bytes that integers are multiplied with (LevelShape).
enum class CodeLevels : uint8_t {
    kPlain,    ///< the code itself
    kTable,    ///< table[code], 64 entries
    kTrellis,  ///< table[window], 256 entries, see trellis_table
};

/// A codebook's int8 levels as unsigned bytes; codes of 8 bits are biased by as much already.
inline constexpr int kLevelBias = 128;

/// A band's codes where they lie, and their levels.
struct PackedCodes {
    CodePlanes planes;
    CodeLevels levels = CodeLevels::kPlain;
    const uint8_t* table = nullptr;
    ptrdiff_t soon = 0;  ///< bytes from these codes to those that are read next: asked from memory as these are read
};

/// trellis_outputs + 128, [256], by windows whose bits lie as planes give them: the low plane's, the bits of codes before, the high plane's (trellis_window has the
/// code's together).
[[nodiscard]] const uint8_t* trellis_table(unsigned bits) noexcept;

/// Planes of a band; ternary codes are spread into `codes` (band_codes bytes).
[[nodiscard]] CodePlanes code_planes(const TileLayout& layout, const Band& band, const std::byte* packed,
                                     uint8_t* codes) noexcept;
/// Planes and levels of a band that has bits and is no float16; `table` is filled where levels need one of their own, `ternary` (band_codes bytes) by
/// ternary codes only.
[[nodiscard]] PackedCodes packed_codes(const TileLayout& layout, const Band& band, const std::byte* packed,
                                       std::array<uint8_t, 64>& table, uint8_t* ternary) noexcept;

}  // namespace kvaq
