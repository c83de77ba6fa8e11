#include "kvaq/cache/tile.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "kvaq/base/clones.h"
#include "kvaq/base/error.h"
#include "kvaq/quant/affine.h"
#include "kvaq/quant/bit_planes.h"
#include "kvaq/quant/hadamard.h"
#include "kvaq/quant/transform.h"
#include "kvaq/quant/trellis.h"

namespace kvaq {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kMaxDim = 512;
constexpr size_t kMaxTile = 128;
constexpr size_t kMaxGroup = 128;

size_t round_up(size_t n, size_t to) noexcept { return (n + to - 1) / to * to; }

size_t f16_index(const TileLayout& layout, size_t token, size_t channel) noexcept {
    return layout.side == Side::kKey ? channel * layout.tile_tokens + token : token * layout.head_dim + channel;
}

AffineParams stored(double scale, double offset) noexcept {
    return {.scale = static_cast<double>(to_float16(static_cast<float>(scale))),
            .offset = static_cast<double>(to_float16(static_cast<float>(offset)))};
}

/// cell[lane] = the four neighbouring codes of row `lane`.
inline void gather_quads(const uint8_t* from, size_t stride, size_t n, uint8_t* cell) noexcept {
    for (size_t lane = 0; lane < n; ++lane) std::memcpy(cell + 4 * lane, from + lane * stride, 4);
}

/// cell[lane] = codes of four rows at column `lane`.
KVAQ_CLONES void interleave_quads(const uint8_t* __restrict from, size_t stride, size_t n,
                                  uint8_t* __restrict cell) noexcept {
    for (size_t lane = 0; lane < n; ++lane) {
        for (size_t i = 0; i < 4; ++i) cell[4 * lane + i] = from[i * stride + lane];
    }
}

KVAQ_CLONES void clamp_to_float16(const float* __restrict x, size_t n, float* __restrict out) noexcept {
    for (size_t i = 0; i < n; ++i) {
        const float low = x[i] < -kFloat16Max ? -kFloat16Max : x[i];
        const float both = low > kFloat16Max ? kFloat16Max : low;
        out[i] = x[i] == x[i] ? both : 0.0F;
    }
}

KVAQ_CLONES void to_doubles(const float* __restrict x, size_t n, double* __restrict out) noexcept {
    for (size_t i = 0; i < n; ++i) out[i] = static_cast<double>(x[i]);
}

/// affine_code of every element, the group's parameters given.
KVAQ_CLONES void affine_codes(const double* __restrict x, size_t n, AffineParams params, double most,
                              uint8_t* __restrict codes) noexcept {
    constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: rounds half to even
    if (!(params.scale > 0)) {
        for (size_t i = 0; i < n; ++i) codes[i] = 0;
        return;
    }
    alignas(64) std::array<int64_t, kMaxGroup> rounded;
    for (size_t i = 0; i < n; ++i) {
        const double v = (x[i] - params.offset) / params.scale;
        const double low = v < 0.0 ? 0.0 : v;
        const double both = low > most ? most : low;
        rounded[i] = std::bit_cast<int64_t>(both + kMagic) & 0xFF;
    }
    for (size_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(rounded[i]);
}

/// Least and largest of n > 0 values.
KVAQ_CLONES void find_range(const double* __restrict x, size_t n, double& least, double& largest) noexcept {
    constexpr size_t kLanes = 8;
    alignas(64) std::array<double, kLanes> low;
    alignas(64) std::array<double, kLanes> high;
    low.fill(x[0]);
    high.fill(x[0]);
    const size_t whole = n / kLanes * kLanes;
    for (size_t i = 0; i < whole; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) {
            low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
            high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
        }
    }
    least = *std::min_element(low.begin(), low.end());
    largest = *std::max_element(high.begin(), high.end());
    for (size_t i = whole; i < n; ++i) {
        least = std::min(least, x[i]);
        largest = std::max(largest, x[i]);
    }
}

AffineParams group_params(const CodecSpec& spec, std::span<const double> group) noexcept {
    if (spec.rule == AffineRule::kQuanto) {
        const AffineParams params = quanto_params(group, spec.bits);
        return stored(params.scale, params.offset);
    }
    if (spec.symmetric) {
        // The offset is not stored: it is a fixed multiple of the scale.
        const double scale = static_cast<double>(round_up_f16(symmetric_params(group, spec.bits).scale));
        return {.scale = scale, .offset = symmetric_offset(spec.bits) * scale};
    }
    double low = 0;
    double high = 0;
    find_range(group.data(), group.size(), low, high);
    const double offset = static_cast<double>(round_down_f16(low));
    const double range = high - offset;
    return {.scale = static_cast<double>(round_up_f16(range / static_cast<double>(n_levels(spec.bits) - 1))),
            .offset = offset};
}

void put_f16(std::byte* packed, size_t offset, size_t index, double value) noexcept {
    reinterpret_cast<float16*>(packed + offset)[index] = to_float16(static_cast<float>(value));
}
double get_f16(const std::byte* packed, size_t offset, size_t index) noexcept {
    return static_cast<double>(reinterpret_cast<const float16*>(packed + offset)[index]);
}

struct Scratch {
    std::array<float, kMaxTile * kMaxDim> x;
    std::array<double, kMaxTile * kMaxDim> grouped;
    std::array<uint32_t, kMaxTile * kMaxDim> hqq_codes;
    std::array<uint8_t, kMaxTile * kMaxDim> grouped_codes;  // in the order of the groups
    std::array<uint8_t, kMaxTile * kMaxDim> codes;          // [token][channel]
    std::array<uint8_t, kMaxTile * kMaxDim> ordered;        // in code order
    std::array<AffineParams, kMaxTile * kMaxDim / 8> params;
};

/// Pieces of one group that lie together in a row: visit(first element of x, n).
template <typename Visit>
void for_each_piece(const TileLayout& layout, const Band& band, size_t token_block, size_t channel_block, Visit visit) {
    const size_t t0 = token_block * band.group_tokens;
    const size_t c0 = channel_block * band.group_channels;
    const size_t n = std::min<size_t>(band.group_channels, band.n_channels - c0);
    for (size_t t = t0; t < t0 + band.group_tokens; ++t) visit(t * layout.head_dim + c0, n);
}

void encode_affine(const TileLayout& layout, const Band& band, Scratch& s, std::byte* packed) noexcept {
    const CodecSpec& spec = layout.spec;
    const size_t n_groups = size_t{band.n_token_blocks} * band.n_channel_blocks;
    const size_t group_size = size_t{band.group_tokens} * band.group_channels;
    const bool hqq = spec.rule == AffineRule::kHqq;
    size_t n = 0;
    const auto gather = [&](size_t tb, size_t cb) {
        for_each_piece(layout, band, tb, cb, [&](size_t first, size_t count) {
            to_doubles(&s.x[first], count, &s.grouped[n]);
            n += count;
        });
    };
    if (hqq) {  // all groups of the tile are refined together where they have one size
        const bool together = group_size * n_groups == layout.tile_tokens * band.n_channels;
        size_t group = 0;
        for (size_t tb = 0; tb < band.n_token_blocks; ++tb) {
            for (size_t cb = 0; cb < band.n_channel_blocks; ++cb, ++group) {
                const size_t first = n;
                gather(tb, cb);
                if (together) continue;
                hqq_quantize({&s.grouped[first], n - first}, n - first, spec.bits, {&s.params[group], 1},
                             {&s.hqq_codes[first], n - first});
            }
        }
        if (together)
            hqq_quantize({s.grouped.data(), n}, group_size, spec.bits, {s.params.data(), n_groups},
                         {s.hqq_codes.data(), n});
        for (size_t i = 0; i < n; ++i) s.grouped_codes[i] = static_cast<uint8_t>(s.hqq_codes[i]);
        n = 0;
    }
    for (size_t tb = 0, group = 0; tb < band.n_token_blocks; ++tb) {
        for (size_t cb = 0; cb < band.n_channel_blocks; ++cb, ++group) {
            size_t at = n;
            if (hqq) {
                for_each_piece(layout, band, tb, cb, [&](size_t, size_t count) { n += count; });
            } else {
                at = n = 0;
                gather(tb, cb);
                s.params[group] = group_params(spec, {s.grouped.data(), n});
                affine_codes(s.grouped.data(), n, s.params[group], static_cast<double>(n_levels(spec.bits) - 1),
                             s.grouped_codes.data());
            }
            for_each_piece(layout, band, tb, cb, [&](size_t first, size_t count) {
                std::copy_n(&s.grouped_codes[at], count, &s.codes[first]);
                at += count;
            });
            put_f16(packed, band.scale_offset, group, s.params[group].scale);
            if (!spec.symmetric) put_f16(packed, band.offset_offset, group, s.params[group].offset);
        }
    }
    order_codes(layout, band, s.codes.data(), layout.head_dim, QuadAxis::kChannels, s.ordered.data());
    pack_codes(spec.bits, {s.ordered.data(), band_codes(layout, band)}, packed + band.codes_offset);
}

/// Level of one element of a transform codec's band (channel counts from the band's first).
double transform_level(const TileLayout& layout, const Band& band, const std::byte* packed, size_t token,
                       size_t channel) {
    const auto bits = static_cast<unsigned>(band.bits);
    const size_t index = code_index(layout, band, token, channel);
    const auto code = [&](size_t at) {
        return unpack_code(band.bits, band_codes(layout, band), packed + band.codes_offset, at);
    };
    if (band.coding == BandCoding::kTrellis) {
        std::array<uint8_t, kTrellisCell> codes;
        const size_t cell = index / kTrellisCell * kTrellisCell;
        for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(code(cell + i));
        return static_cast<double>(trellis_outputs(bits)[trellis_window(bits, codes.data(), index - cell)]);
    }
    return bits == 8 ? static_cast<double>(code(index)) - 128
                     : static_cast<double>(layout.spec.transform->fit->levels[bits][code(index)]);
}

}  // namespace

size_t band_codes(const TileLayout& layout, const Band& band) noexcept {
    const size_t channels = layout.side == Side::kKey ? band.n_channels : round_up(band.n_channels, 16);
    return channels * layout.tile_tokens;
}

// Place of an element in code order; channel counts from the band's first.
size_t code_index(const TileLayout& layout, const Band& band, size_t token, size_t channel) noexcept {
    if (layout.side == Side::kKey) {
        const size_t cell = channel / 4 * (layout.tile_tokens / 16) + token / 16;
        return cell * 64 + token % 16 * 4 + channel % 4;
    }
    const size_t cell = token / 4 * (round_up(band.n_channels, 16) / 16) + channel / 16;
    return cell * 64 + channel % 16 * 4 + token % 4;
}

void order_codes(const TileLayout& layout, const Band& band, const uint8_t* codes, size_t stride, QuadAxis rows,
                 uint8_t* out) noexcept {
    const bool key = layout.side == Side::kKey;
    const size_t n_lanes = key ? layout.tile_tokens : band.n_channels;
    const size_t n_quads = key ? band.n_channels : layout.tile_tokens;
    const size_t lane_blocks = round_up(n_lanes, 16) / 16;
    const bool quads_lie_together = key == (rows == QuadAxis::kChannels);
    if (n_lanes % 16 != 0) std::fill_n(out, band_codes(layout, band), uint8_t{0});
    for (size_t quad = 0; quad < n_quads; quad += 4) {
        for (size_t block = 0; block < lane_blocks; ++block) {
            const size_t n = std::min<size_t>(16, n_lanes - 16 * block);
            uint8_t* cell = out + (quad / 4 * lane_blocks + block) * 64;
            if (quads_lie_together) {
                gather_quads(codes + 16 * block * stride + quad, stride, n, cell);
            } else {
                interleave_quads(codes + quad * stride + 16 * block, stride, n, cell);
            }
        }
    }
}

void undo_codec_basis(const CodecSpec& spec, double* x, size_t head_dim) noexcept {
    if (spec.transform != nullptr) {
        transform_backward(*spec.transform->fit, x);
    } else if (spec.basis == Basis::kHadamard) {
        hadamard_transform(x, head_dim);
    }
}

TileLayout make_tile_layout(const CodecSpec& spec, Side side, size_t head_dim, size_t tile_tokens) {
    const auto refuse = [&](const std::string& what, const std::string& wanted, const std::string& found,
                            const std::string& hint) {
        throw Error(ErrorCode::kInvalidArgument, what + " (codec " + to_string(spec) + ")", wanted, found, hint);
    };
    if (head_dim % 8 != 0 || head_dim < 8 || head_dim > kMaxDim) {
        refuse("head size not served", "a multiple of 8 from 8 to 512", std::to_string(head_dim), "");
    }
    if (tile_tokens != 64 && tile_tokens != 128)
        refuse("tile size not served", "64 or 128 tokens", std::to_string(tile_tokens), "");
    TileLayout layout;
    layout.spec = spec;
    layout.side = side;
    layout.tile_tokens = tile_tokens;
    layout.head_dim = head_dim;
    if (spec.transform != nullptr) {
        const TransformCodec& codec = *spec.transform;
        if (codec.fit->dim != head_dim || codec.fit->side != side) {
            refuse("a transform fitted for another head",
                   std::string(to_string(codec.fit->side)) + " of " + std::to_string(codec.fit->dim) + " channels",
                   std::string(to_string(side)) + " of " + std::to_string(head_dim),
                   "Make the plan again with kvaq plan");
        }
        const size_t unit = transform_unit(side);
        for (size_t first = 0; first < codec.unit_bits.size();) {
            size_t end = first + 1;
            while (end < codec.unit_bits.size() && codec.unit_bits[end] == codec.unit_bits[first]) ++end;
            Band band;
            band.first_channel = static_cast<uint16_t>(first * unit);
            band.n_channels = static_cast<uint16_t>(std::min(end * unit, head_dim) - first * unit);
            band.bits = static_cast<CodeBits>(codec.unit_bits[first]);
            band.coding = codec.codes == TransformCodes::kTrellis && codec.unit_bits[first] >= 1 &&
                                  codec.unit_bits[first] <= kTrellisMostBits
                              ? BandCoding::kTrellis
                              : BandCoding::kCodebook;
            band.codes_offset = layout.bytes;
            band.codes_bytes = codec.unit_bits[first] == 0 ? 0 : code_bytes(band.bits, band_codes(layout, band));
            layout.bytes += band.codes_bytes;
            layout.bands.push_back(band);
            first = end;
        }
        layout.gain_offset = layout.bytes;
        layout.bytes = round_up(layout.bytes + tile_tokens, kAlign);
        return layout;
    }
    Band band;
    band.n_channels = static_cast<uint16_t>(head_dim);
    band.bits = spec.bits;
    if (spec.bits == CodeBits::k16) {
        band.codes_bytes = tile_tokens * head_dim * sizeof(float16);
        layout.bytes = round_up(band.codes_bytes, kAlign);
        layout.bands = {band};
        return layout;
    }
    if (spec.group != 32 && spec.group != 64 && spec.group != 128) {
        refuse("group size not served", "32, 64 or 128", std::to_string(spec.group), "");
    }
    if (spec.symmetric && spec.rule != AffineRule::kMinMax) {
        refuse("the Quanto and HQQ rules have a zero point", "no -sym", "-sym", "Leave out -sym");
    }
    band.coding = BandCoding::kAffine;
    if (spec.axis == GroupAxis::kPerChannel) {
        if (spec.group > tile_tokens) {
            refuse("a group along tokens must fit in a tile", "at most " + std::to_string(tile_tokens),
                   std::to_string(spec.group), "Use tiles of 128 tokens");
        }
        band.group_tokens = spec.group;
        band.group_channels = 1;
    } else if (spec.group > head_dim && spec.group % head_dim == 0 && tile_tokens % (spec.group / head_dim) == 0) {
        band.group_tokens = static_cast<uint16_t>(spec.group / head_dim);
        band.group_channels = static_cast<uint16_t>(head_dim);
    } else {
        band.group_tokens = 1;
        band.group_channels = static_cast<uint16_t>(std::min<size_t>(spec.group, head_dim));
    }
    band.n_token_blocks = static_cast<uint16_t>(tile_tokens / band.group_tokens);
    band.n_channel_blocks = static_cast<uint16_t>((head_dim + band.group_channels - 1) / band.group_channels);
    band.codes_bytes = code_bytes(spec.bits, band_codes(layout, band));
    const size_t param_bytes = size_t{band.n_token_blocks} * band.n_channel_blocks * sizeof(float16);
    band.scale_offset = band.codes_bytes;
    band.offset_offset = spec.symmetric ? 0 : band.scale_offset + param_bytes;
    layout.bytes = round_up(band.codes_bytes + (spec.symmetric ? 1 : 2) * param_bytes, kAlign);
    layout.bands = {band};
    return layout;
}

size_t packed_bytes(const CodecSpec& spec, Side side, size_t head_dim, size_t tile_tokens) {
    return make_tile_layout(spec, side, head_dim, tile_tokens).bytes;
}

void encode_tile(const TileLayout& layout, const float* x, std::byte* packed) noexcept {
    thread_local Scratch scratch;
    std::fill_n(packed, layout.bytes, std::byte{0});
    const size_t dim = layout.head_dim;
    clamp_to_float16(x, layout.tile_tokens * dim, scratch.x.data());
    if (layout.spec.transform != nullptr) {
        encode_transform_tile(layout, scratch.x.data(), packed);
        return;
    }
    if (layout.spec.basis == Basis::kHadamard) {
        for (size_t t = 0; t < layout.tile_tokens; ++t) hadamard_transform(&scratch.x[t * dim], dim);
    }
    for (const Band& band : layout.bands) {
        if (band.coding == BandCoding::kFloat16) {
            auto* out = reinterpret_cast<float16*>(packed + band.codes_offset);
            for (size_t t = 0; t < layout.tile_tokens; ++t) {
                for (size_t c = 0; c < dim; ++c) out[f16_index(layout, t, c)] = to_float16(scratch.x[t * dim + c]);
            }
        } else {
            encode_affine(layout, band, scratch, packed);
        }
    }
}

uint32_t code_at(const TileLayout& layout, const std::byte* packed, size_t token, size_t channel) {
    const Band& band = layout.bands.at(0);
    KVAQ_CHECK(band.coding == BandCoding::kAffine);
    return unpack_code(band.bits, band_codes(layout, band), packed + band.codes_offset,
                       code_index(layout, band, token, channel));
}

void decode_tile_reference(const TileLayout& layout, const std::byte* packed, double* out, bool undo_basis) {
    const size_t dim = layout.head_dim;
    for (size_t t = 0; t < layout.tile_tokens; ++t) {
        for (const Band& band : layout.bands) {
            for (size_t i = 0; i < band.n_channels; ++i) {
                const size_t c = band.first_channel + i;
                double value = 0;
                if (band.coding == BandCoding::kFloat16) {
                    value = get_f16(packed, band.codes_offset, f16_index(layout, t, c));
                } else if (layout.spec.transform != nullptr) {
                    const TransformFit& fit = *layout.spec.transform->fit;
                    const auto bits = static_cast<size_t>(band.bits);
                    value = static_cast<double>(fit.offset[c]);
                    if (bits > 0) {
                        const double level = transform_level(layout, band, packed, t, i);
                        const double gain =
                            static_cast<double>(transform_gain(static_cast<uint8_t>(packed[layout.gain_offset + t])));
                        value += gain * static_cast<double>(fit.scale[c]) * level;
                    }
                } else {
                    const size_t group = t / band.group_tokens * band.n_channel_blocks + c / band.group_channels;
                    const double scale = get_f16(packed, band.scale_offset, group);
                    const double offset = layout.spec.symmetric ? symmetric_offset(band.bits) * scale
                                                                : get_f16(packed, band.offset_offset, group);
                    value = static_cast<double>(code_at(layout, packed, t, c)) * scale + offset;
                }
                out[t * dim + c] = value;
            }
        }
        if (undo_basis) undo_codec_basis(layout.spec, out + t * dim, dim);
    }
}

}  // namespace kvaq
