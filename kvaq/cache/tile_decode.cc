#include "kvaq/cache/tile_decode.h"

#include <algorithm>
#include <array>

#include "kvaq/base/error.h"
#include "kvaq/quant/affine.h"
#include "kvaq/quant/bit_planes.h"
#include "kvaq/quant/transform.h"

namespace kvaq {

namespace tile_decode_scalar {
const DecodeKernels& table() noexcept;
}
#if defined(__x86_64__)
namespace tile_decode_avx2 {
const DecodeKernels& table() noexcept;
}
namespace tile_decode_avx512 {
const DecodeKernels& table() noexcept;
}
#elif defined(__aarch64__)
namespace tile_decode_neon {
const DecodeKernels& table() noexcept;
}
#endif

const DecodeKernels& decode_kernels(SimdTarget target) noexcept {
    switch (target) {
        case SimdTarget::kScalar: return tile_decode_scalar::table();
#if defined(__x86_64__)
        case SimdTarget::kAvx2: return tile_decode_avx2::table();
        case SimdTarget::kAvx512: return tile_decode_avx512::table();
#elif defined(__aarch64__)
        case SimdTarget::kNeon: return tile_decode_neon::table();
#endif
        default: break;
    }
    KVAQ_CHECK(!"SIMD target not compiled in");
    return tile_decode_scalar::table();
}

namespace {

constexpr size_t kMaxElements = 128 * 512;

struct Scratch {
    std::array<float, kMaxElements> scale, offset;  // worst case: one group per 8 elements, spread along lanes
    std::array<uint8_t, kMaxElements> codes;
};

// Ternary bytes to one code a byte, in code order.
void spread_ternary(const uint8_t* packed, size_t n_bytes, size_t n_codes, uint8_t* codes) noexcept {
    for (size_t i = 0; i < n_bytes; ++i) {
        unsigned rest = packed[i];
        for (size_t j = 0; j < 5; ++j) {
            if (j * n_bytes + i < n_codes) codes[j * n_bytes + i] = static_cast<uint8_t>(rest % 3);
            rest /= 3;
        }
    }
}

void decode_affine(const DecodeKernels& kernels, const TileLayout& layout, const Band& band, const std::byte* packed,
                   float* out) noexcept {
    thread_local Scratch scratch;
    const size_t tile = layout.tile_tokens;
    const bool key = layout.side == Side::kKey;
    const size_t channels = key ? band.n_channels : (band.n_channels + 15U) / 16U * 16U;
    const size_t n_codes = channels * tile;
    DecodeJob job;
    const auto* bytes = reinterpret_cast<const uint8_t*>(packed + band.codes_offset);
    if (band.bits == CodeBits::kTernary) {
        spread_ternary(bytes, band.codes_bytes, n_codes, scratch.codes.data());
        job.low = scratch.codes.data();
        job.low_bits = 8;
    } else {
        const std::array<uint8_t, 2> planes = plane_bits(band.bits);
        job.low = bytes;
        job.low_bits = planes[0];
        job.high_bits = planes[1];
        job.high = bytes + n_codes * planes[0] / 8;
    }
    job.n_lanes16 = (key ? tile : channels) / 16;
    job.n_quads = (key ? channels : tile) / 4;
    job.ld_out = key ? tile : channels;

    const size_t n_groups = size_t{band.n_token_blocks} * band.n_channel_blocks;
    std::array<float, kMaxElements>& scale = scratch.scale;
    std::array<float, kMaxElements>& offset = scratch.offset;
    const auto* scales = reinterpret_cast<const float16*>(packed + band.scale_offset);
    const auto* offsets = reinterpret_cast<const float16*>(packed + band.offset_offset);
    // Groups in [token block][channel block] order, spread to one entry per lane of the kernel where lanes differ.
    const bool lanes_differ = key ? band.group_tokens < 16 || band.group_channels > 1 : band.group_channels == 1;
    thread_local std::array<float, kMaxElements / 8> raw_scale, raw_offset;
    kernels.to_float(scales, n_groups, raw_scale.data());
    if (layout.spec.symmetric) {
        const auto factor = static_cast<float>(symmetric_offset(band.bits));
        for (size_t i = 0; i < n_groups; ++i) raw_offset[i] = raw_scale[i] * factor;
    } else {
        kernels.to_float(offsets, n_groups, raw_offset.data());
    }
    const size_t n_cb = band.n_channel_blocks;
    job.by_lane = lanes_differ;
    if (key && lanes_differ) {  // lanes are tokens: [channel block][token]
        for (size_t cb = 0; cb < n_cb; ++cb) {
            for (size_t t = 0; t < tile; ++t) {
                scale[cb * tile + t] = raw_scale[t / band.group_tokens * n_cb + cb];
                offset[cb * tile + t] = raw_offset[t / band.group_tokens * n_cb + cb];
            }
        }
        job.quad_group = band.group_channels;
        job.scale_stride = tile;
    } else if (key) {  // one number per (token block, channel): [token block][channel]
        job.lane_group = band.group_tokens;
        job.scale_stride = n_cb;
    } else if (lanes_differ) {  // lanes are channels: [token block][padded channel]
        for (size_t tb = 0; tb < band.n_token_blocks; ++tb) {
            for (size_t c = 0; c < channels; ++c) {
                scale[tb * channels + c] = c < band.n_channels ? raw_scale[tb * n_cb + c] : 0.0F;
                offset[tb * channels + c] = c < band.n_channels ? raw_offset[tb * n_cb + c] : 0.0F;
            }
        }
        job.quad_group = band.group_tokens;
        job.scale_stride = channels;
    } else {  // one number per (channel block, token): [channel block][token]
        for (size_t cb = 0; cb < n_cb; ++cb) {
            for (size_t t = 0; t < tile; ++t) {
                scale[cb * tile + t] = raw_scale[t / band.group_tokens * n_cb + cb];
                offset[cb * tile + t] = raw_offset[t / band.group_tokens * n_cb + cb];
            }
        }
        job.lane_group = band.group_channels;
        job.scale_stride = tile;
    }
    const bool raw = key && !lanes_differ;
    job.scale = raw ? raw_scale.data() : scale.data();
    job.offset = raw ? raw_offset.data() : offset.data();
    kernels.affine(job, out);
    if (!key && channels != band.n_channels) {
        for (size_t t = 0; t < tile; ++t) std::fill_n(out + t * channels + band.n_channels, channels - band.n_channels, 0.0F);
    }
}

void decode_codebook(const DecodeKernels& kernels, const TileLayout& layout, const std::byte* packed, float* out) noexcept {
    constexpr size_t kMaxLanes = 512;
    static constexpr std::array<float, kMaxLanes> kZeros = {};
    const TransformFit& fit = *layout.spec.transform->fit;
    const size_t tile = layout.tile_tokens;
    const bool key = layout.side == Side::kKey;
    const size_t ld_out = key ? tile : (layout.head_dim + 15U) / 16U * 16U;
    std::array<float, 128> gains;
    for (size_t t = 0; t < tile; ++t) gains[t] = transform_gain(static_cast<uint8_t>(packed[layout.gain_offset + t]));
    for (const Band& band : layout.bands) {
        const size_t first = band.first_channel;
        float* target = key ? out + first * tile : out + first;
        const size_t channels = key ? size_t{band.n_channels} : (band.n_channels + 15U) / 16U * 16U;
        // Padded to whole lanes; a channel past the last has scale and offset 0.
        std::array<float, kMaxLanes> scale = {};
        std::array<float, kMaxLanes> offset = {};
        std::copy_n(&fit.scale[first], band.n_channels, scale.data());
        std::copy_n(&fit.offset[first], band.n_channels, offset.data());
        const auto bits = static_cast<size_t>(band.bits);
        if (bits == 0) {
            for (size_t j = 0; j < (key ? channels : tile); ++j) {
                if (key) {
                    std::fill_n(target + j * ld_out, tile, offset[j]);
                } else {
                    std::copy_n(offset.data(), channels, target + j * ld_out);
                }
            }
            continue;
        }
        const std::array<uint8_t, 2> planes = plane_bits(band.bits);
        const auto* bytes = reinterpret_cast<const uint8_t*>(packed + band.codes_offset);
        std::array<float, 64> table = {};
        if (bits <= 6) {
            for (size_t i = 0; i < fit.levels[bits].size(); ++i) table[i] = static_cast<float>(fit.levels[bits][i]);
        }
        kernels.codebook({.low = bytes,
                          .high = bytes + channels * tile * planes[0] / 8,
                          .low_bits = planes[0],
                          .high_bits = planes[1],
                          .n_lanes16 = (key ? tile : channels) / 16,
                          .n_quads = (key ? channels : tile) / 4,
                          .ld_out = ld_out,
                          .table = bits == 8 ? nullptr : table.data(),
                          .quad_scale = key ? scale.data() : gains.data(),
                          .quad_offset = key ? offset.data() : kZeros.data(),
                          .lane_scale = key ? gains.data() : scale.data(),
                          .lane_offset = key ? kZeros.data() : offset.data()},
                         target);
    }
}

}  // namespace

void decode_tile_on(SimdTarget target, const TileLayout& layout, const std::byte* packed, float* out) noexcept {
    const DecodeKernels& kernels = decode_kernels(target);
    if (layout.spec.transform != nullptr) {
        decode_codebook(kernels, layout, packed, out);
        return;
    }
    const Band& band = layout.bands[0];
    if (band.coding == BandCoding::kAffine) {
        decode_affine(kernels, layout, band, packed, out);
        return;
    }
    const auto* values = reinterpret_cast<const float16*>(packed + band.codes_offset);
    const size_t dim = layout.head_dim;
    if (layout.side == Side::kKey) {
        kernels.to_float(values, dim * layout.tile_tokens, out);
        return;
    }
    const size_t padded = (dim + 15) / 16 * 16;
    for (size_t t = 0; t < layout.tile_tokens; ++t) {
        kernels.to_float(values + t * dim, dim, out + t * padded);
        std::fill_n(out + t * padded + dim, padded - dim, 0.0F);
    }
}

void decode_tile(const TileLayout& layout, const std::byte* packed, float* out) noexcept {
    decode_tile_on(best_simd_target(), layout, packed, out);
}

}  // namespace kvaq
