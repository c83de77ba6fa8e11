#include "kvaq/cache/tile_codes.h"

#include <algorithm>
#include <array>

#include "kvaq/quant/bit_planes.h"
#include "kvaq/quant/transform.h"
#include "kvaq/quant/trellis.h"

namespace kvaq {
namespace {

// Ternary bytes to one code a byte, in code order: code j of a byte is digit j in base 3.
template <unsigned kPower>
void spread_digit(const uint8_t* packed, size_t n, uint8_t* codes) noexcept {
    for (size_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(packed[i] / kPower % 3U);
}

void spread_ternary(const uint8_t* packed, size_t n_bytes, size_t n_codes, uint8_t* codes) noexcept {
    size_t j = 0;
    for (const auto spread : {spread_digit<1>, spread_digit<3>, spread_digit<9>, spread_digit<27>, spread_digit<81>}) {
        const size_t first = std::min(n_codes, n_bytes * j++);
        spread(packed, std::min(n_bytes, n_codes - first), codes + first);
    }
}

}  // namespace

const uint8_t* trellis_table(unsigned bits) noexcept {
    static const auto tables = [] {
        std::array<std::array<uint8_t, 256>, kTrellisMostBits> all;
        for (unsigned b = 1; b <= kTrellisMostBits; ++b) {
            const unsigned low = plane_bits(static_cast<CodeBits>(b))[0];
            const unsigned high = b - low;
            for (unsigned window = 0; window < 256; ++window) {
                const unsigned history = window >> b;
                const unsigned at = (window & ((1U << low) - 1U)) | history << low |
                                    (window >> low & ((1U << high) - 1U)) << (8 - high);
                all[b - 1][at] = static_cast<uint8_t>(trellis_outputs(b)[window] + kLevelBias);
            }
        }
        return all;
    }();
    return tables[bits - 1].data();
}

CodePlanes code_planes(const TileLayout& layout, const Band& band, const std::byte* packed, uint8_t* codes) noexcept {
    const bool key = layout.side == Side::kKey;
    const size_t channels = key ? band.n_channels : (band.n_channels + 15U) / 16U * 16U;
    const size_t n_codes = channels * layout.tile_tokens;
    CodePlanes planes;
    planes.n_lanes16 = (key ? layout.tile_tokens : channels) / 16;
    planes.n_quads = (key ? channels : layout.tile_tokens) / 4;
    planes.low = reinterpret_cast<const uint8_t*>(packed + band.codes_offset);
    if (band.bits == CodeBits::kTernary) {
        spread_ternary(planes.low, band.codes_bytes, n_codes, codes);
        planes.low = codes;
        planes.low_bits = 8;
    } else {
        const std::array<uint8_t, 2> bits = plane_bits(band.bits);
        planes.low_bits = bits[0];
        planes.high_bits = bits[1];
        planes.high = planes.low + n_codes * bits[0] / 8;
    }
    return planes;
}

PackedCodes packed_codes(const TileLayout& layout, const Band& band, const std::byte* packed,
                         std::array<uint8_t, 64>& table, uint8_t* ternary) noexcept {
    const CodePlanes planes = code_planes(layout, band, packed, ternary);
    const auto bits = static_cast<size_t>(band.bits);
    if (band.coding == BandCoding::kTrellis)
        return {planes, CodeLevels::kTrellis, trellis_table(static_cast<unsigned>(bits))};
    if (band.coding != BandCoding::kCodebook || bits == 8) return {planes, CodeLevels::kPlain, nullptr};
    const std::vector<int8_t>& levels = layout.spec.transform->fit->levels[bits];
    for (size_t i = 0; i < levels.size(); ++i) table[i] = static_cast<uint8_t>(levels[i] + kLevelBias);
    return {planes, CodeLevels::kTable, table.data()};
}

}  // namespace kvaq
