#include "kvaq/cache/tile_decode.h"

#include <algorithm>
#include <array>

#include "kvaq/base/error.h"
#include "kvaq/quant/affine.h"
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
namespace tile_decode_avx512vnni {
const DecodeKernels& table() noexcept;
}
#elif defined(__aarch64__)
namespace tile_decode_neon {
const DecodeKernels& table() noexcept;
}
#endif

const DecodeKernels& decode_kernels(SimdTarget target) noexcept {
    switch (target) {
        case SimdTarget::kScalar:
            return tile_decode_scalar::table();
#if defined(__x86_64__)
        case SimdTarget::kAvx2:
        case SimdTarget::kAvx2Vnni:
            return tile_decode_avx2::table();
        case SimdTarget::kAvx512:
            return tile_decode_avx512::table();
        case SimdTarget::kAvx512Vnni:
            return tile_decode_avx512vnni::table();
#elif defined(__aarch64__)
        case SimdTarget::kNeon:
            return tile_decode_neon::table();
#endif
        default:
            break;
    }
    KVAQ_CHECK(!"SIMD target not compiled in");
    return tile_decode_scalar::table();
}

namespace {

constexpr size_t kMaxElements = 128 * 512;

struct Scratch {
    std::array<float, kMaxElements / 8> scale, offset;
    std::array<uint8_t, kMaxElements> codes;
};

void decode_affine(const DecodeKernels& kernels, const TileLayout& layout, const Band& band, const std::byte* packed,
                   float* out) noexcept {
    thread_local Scratch scratch;
    const size_t tile = layout.tile_tokens;
    const bool key = layout.side == Side::kKey;
    const size_t channels = key ? band.n_channels : (band.n_channels + 15U) / 16U * 16U;
    affine_params(kernels, layout, band, packed, tile, scratch.scale.data(), scratch.offset.data());
    const bool per_channel = band.group_channels == 1;
    DecodeJob job;
    job.planes = code_planes(layout, band, packed, scratch.codes.data());
    job.ld_out = key ? tile : channels;
    job.scale = scratch.scale.data();
    job.offset = scratch.offset.data();
    job.by_lane = key != per_channel;
    job.quad_group = key ? band.group_channels : band.group_tokens;
    job.lane_group = key ? band.group_tokens : band.group_channels;
    job.scale_stride = per_channel ? (band.n_channels + 15U) / 16U * 16U : tile;
    kernels.affine(job, out);
    if (!key && channels != band.n_channels) {
        for (size_t t = 0; t < tile; ++t)
            std::fill_n(out + t * channels + band.n_channels, channels - band.n_channels, 0.0F);
    }
}

void decode_codebook(const DecodeKernels& kernels, const TileLayout& layout, const std::byte* packed,
                     float* out) noexcept {
    constexpr size_t kMaxLanes = 512;
    static constexpr std::array<float, kMaxLanes> kZeros = {};
    alignas(64) thread_local std::array<uint8_t, kMaxElements> levels;
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
        CodePlanes planes = code_planes(layout, band, packed, nullptr);
        std::array<float, 64> table = {};
        const bool trellis = band.coding == BandCoding::kTrellis;
        if (trellis) {  // to levels + 128, which are 8-bit codes
            kernels.trellis(planes, trellis_table(static_cast<unsigned>(bits)), levels.data(), planes.n_lanes16 * 64);
            planes.low = levels.data();
            planes.low_bits = 8;
            planes.high_bits = 0;
        } else if (bits <= 6) {
            for (size_t i = 0; i < fit.levels[bits].size(); ++i) table[i] = static_cast<float>(fit.levels[bits][i]);
        }
        kernels.codebook({.planes = planes,
                          .ld_out = ld_out,
                          .table = bits == 8 || trellis ? nullptr : table.data(),
                          .quad_scale = key ? scale.data() : gains.data(),
                          .quad_offset = key ? offset.data() : kZeros.data(),
                          .lane_scale = key ? gains.data() : scale.data(),
                          .lane_offset = key ? kZeros.data() : offset.data()},
                         target);
    }
}

}  // namespace

void affine_params(const DecodeKernels& kernels, const TileLayout& layout, const Band& band, const std::byte* packed,
                   size_t stride, float* scale, float* offset) noexcept {
    thread_local std::array<float, kMaxElements / 8> raw_scale, raw_offset;
    const size_t tile = layout.tile_tokens;
    const size_t n_blocks = band.n_channel_blocks;
    const size_t n_groups = size_t{band.n_token_blocks} * n_blocks;
    const bool as_stored = n_blocks == 1 && band.group_tokens == 1;
    float* scales = as_stored ? scale : raw_scale.data();
    float* offsets = as_stored ? offset : raw_offset.data();
    kernels.to_float(reinterpret_cast<const float16*>(packed + band.scale_offset), n_groups, scales);
    if (layout.spec.symmetric) {
        const auto factor = static_cast<float>(symmetric_offset(band.bits));
        for (size_t i = 0; i < n_groups; ++i) offsets[i] = scales[i] * factor;
    } else {
        kernels.to_float(reinterpret_cast<const float16*>(packed + band.offset_offset), n_groups, offsets);
    }
    if (as_stored) return;
    if (band.group_channels > 1) {  // [token block][channel block] to [channel block][token]
        for (size_t block = 0; block < n_blocks; ++block) {
            const float* from_scale = scales + block;
            const float* from_offset = offsets + block;
            for (size_t t = 0; t < tile;) {
                for (size_t i = 0; i < band.group_tokens; ++i, ++t) {
                    scale[block * stride + t] = *from_scale;
                    offset[block * stride + t] = *from_offset;
                }
                from_scale += n_blocks;
                from_offset += n_blocks;
            }
        }
        return;
    }
    const size_t padded = (n_blocks + 15) / 16 * 16;
    for (size_t block = 0; block < band.n_token_blocks; ++block) {
        std::fill(std::copy_n(scales + block * n_blocks, n_blocks, scale + block * padded),
                  scale + (block + 1) * padded, 0.0F);
        std::fill(std::copy_n(offsets + block * n_blocks, n_blocks, offset + block * padded),
                  offset + (block + 1) * padded, 0.0F);
    }
}

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
