#include "kvaq/quant/bit_planes.h"

#include <algorithm>

#include "kvaq/base/clones.h"

namespace kvaq {
namespace {

constexpr size_t kBlock = 64;
constexpr std::array<uint8_t, 5> kPowersOf3 = {1, 3, 9, 27, 81};

size_t plane_bytes(size_t bits, size_t n_codes) noexcept { return (n_codes * bits / 8 + kBlock - 1) / kBlock * kBlock; }

size_t ternary_bytes(size_t n_codes) noexcept { return ((n_codes + 4) / 5 + kBlock - 1) / kBlock * kBlock; }

/// One plane: block b of 64 bytes holds 8 / plane cells of 64 codes.
KVAQ_CLONES void pack_plane(const uint8_t* __restrict codes, size_t n_cells, size_t plane, size_t low_bit,
                            uint8_t* __restrict out) noexcept {
    const auto mask = static_cast<uint8_t>((1U << plane) - 1U);
    const size_t per_block = 8 / plane;
    for (size_t cell = 0; cell < n_cells; ++cell) {
        const uint8_t* from = codes + cell * kBlock;
        uint8_t* to = out + cell / per_block * kBlock;
        const size_t shift = cell % per_block * plane;
        for (size_t i = 0; i < kBlock; ++i)
            to[i] = static_cast<uint8_t>(to[i] | static_cast<uint8_t>(((from[i] >> low_bit) & mask) << shift));
    }
}

}  // namespace

std::array<uint8_t, 2> plane_bits(CodeBits bits) noexcept {
    switch (bits) {
        case CodeBits::k1:
            return {1, 0};
        case CodeBits::k2:
            return {2, 0};
        case CodeBits::k3:
            return {2, 1};
        case CodeBits::k4:
            return {4, 0};
        case CodeBits::k5:
            return {4, 1};
        case CodeBits::k6:
            return {4, 2};
        case CodeBits::k8:
            return {8, 0};
        default:
            return {0, 0};
    }
}

size_t code_bytes(CodeBits bits, size_t n_codes) noexcept {
    if (bits == CodeBits::kTernary) return ternary_bytes(n_codes);
    size_t bytes = 0;
    for (const uint8_t plane : plane_bits(bits)) bytes += plane == 0 ? 0 : plane_bytes(plane, n_codes);
    return bytes;
}

void pack_codes(CodeBits bits, std::span<const uint8_t> codes, std::byte* out) noexcept {
    std::fill_n(out, code_bytes(bits, codes.size()), std::byte{0});
    auto* bytes = reinterpret_cast<uint8_t*>(out);
    if (bits == CodeBits::kTernary) {
        const size_t n = ternary_bytes(codes.size());
        for (size_t i = 0; i < codes.size(); ++i) {
            bytes[i % n] = static_cast<uint8_t>(bytes[i % n] + codes[i] * kPowersOf3[i / n]);
        }
        return;
    }
    size_t low_bit = 0;
    for (const uint8_t plane : plane_bits(bits)) {
        if (plane == 0) break;
        const size_t whole = codes.size() / kBlock;
        pack_plane(codes.data(), whole, plane, low_bit, bytes);
        for (size_t i = whole * kBlock; i < codes.size(); ++i) {  // a last cell that is not full
            const size_t cells_per_block = 8U / plane;
            const unsigned part = (static_cast<unsigned>(codes[i]) >> low_bit) & ((1U << plane) - 1U);
            uint8_t& byte = bytes[whole / cells_per_block * kBlock + i % kBlock];
            byte = static_cast<uint8_t>(byte | (part << (whole % cells_per_block * plane)));
        }
        bytes += plane_bytes(plane, codes.size());
        low_bit += plane;
    }
}

uint32_t unpack_code(CodeBits bits, size_t n_codes, const std::byte* packed, size_t index) noexcept {
    const auto* bytes = reinterpret_cast<const uint8_t*>(packed);
    if (bits == CodeBits::kTernary) {
        const size_t n = ternary_bytes(n_codes);
        return bytes[index % n] / kPowersOf3[index / n] % 3U;
    }
    uint32_t code = 0;
    size_t low_bit = 0;
    for (const uint8_t plane : plane_bits(bits)) {
        if (plane == 0) break;
        const size_t cells_per_block = 8U / plane;
        const size_t cell = index / kBlock;
        const uint32_t byte = bytes[cell / cells_per_block * kBlock + index % kBlock];
        code |= ((byte >> (cell % cells_per_block * plane)) & ((1U << plane) - 1U)) << low_bit;
        bytes += plane_bytes(plane, n_codes);
        low_bit += plane;
    }
    return code;
}

}  // namespace kvaq
