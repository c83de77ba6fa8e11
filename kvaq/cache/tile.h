#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvaq/base/float16.h"
#include "kvaq/base/side.h"
#include "kvaq/quant/codec_spec.h"

namespace kvaq {

/// THE format. A tile holds `tile_tokens` consecutive tokens of one (layer, side, KV head) in a fixed number of bytes.
/// It is cut into bands of consecutive channels, each with its own number of bits and its own coding, then parameter
/// sections; every offset follows from the codec and the head size alone, so a tile is addressed by index arithmetic
/// and needs no header. Described byte for byte in docs/formats.md.
///
/// Code planes. A band's codes are cut into power-of-two planes (3 = 2+1, 5 = 4+1, 6 = 4+2; low bits first), each a
/// sequence of 64-byte blocks. Codes are ordered in *cells* of 64 = 16 lanes x 4 quads:
///   key tiles:    lane = token,   quad = channel;  cell = (channel / 4) * (tile_tokens / 16) + token / 16
///   value tiles:  lane = channel, quad = token;    cell = (token / 4) * (padded_channels / 16) + channel / 16
/// so the four bytes of one 32-bit lane run along the reduction axis of attention (int8 dot products eat them as they
/// are). A plane of b bits keeps 8 / b consecutive cells in one 64-byte block: cell c sits in block c / (8 / b) at bit
/// (c % (8 / b)) * b of each byte; byte = lane * 4 + quad.
/// Ternary bands keep five codes in a byte, byte i = sum_j code[i + j * n_bytes] * 3^j over the same code order.
/// float16 bands keep keys as [channel][token] and values as [token][channel], no padding.
enum class BandCoding : uint8_t {
    kFloat16,  ///< raw binary16
    kAffine,   ///< x = code * scale + offset, scale and offset per group in the parameter section
    kCodebook,  ///< transform codecs: x = gain[token] * scale[channel] * level[code] + offset[channel]; 0 bits: x = offset
    kTrellis,  ///< as kCodebook, the level by a window of codes of the same 64-byte cell in code order (kvaq/quant/trellis.h)
};

struct Band {
    uint16_t first_channel = 0;
    uint16_t n_channels = 0;
    CodeBits bits = CodeBits::k16;
    BandCoding coding = BandCoding::kFloat16;
    size_t codes_offset = 0;      ///< bytes from the tile's start, multiple of 64
    size_t codes_bytes = 0;       ///< multiple of 64, padding counted
    size_t scale_offset = 0;      ///< float16 [token_blocks][channel_blocks]
    size_t offset_offset = 0;     ///< float16, same shape; 0 when the codec is symmetric
    uint16_t group_tokens = 0;    ///< tokens covered by one group
    uint16_t group_channels = 0;  ///< channels covered by one group (the last group of a row may be shorter)
    uint16_t n_token_blocks = 0;
    uint16_t n_channel_blocks = 0;
};

/// Where everything lies in a tile of one codec.
struct TileLayout {
    CodecSpec spec;
    Side side = Side::kKey;
    size_t tile_tokens = 0;
    size_t head_dim = 0;
    std::vector<Band> bands;
    size_t gain_offset = 0;  ///< transform codecs: one byte a token, see transform_gain
    size_t bytes = 0;        ///< of one tile, multiple of 64: THE number that planner, allocator and reports use
};

/// Tokens in a tile unless a plan asks for 128 (needed by per-channel groups of 128).
inline constexpr size_t kDefaultTileTokens = 64;

/// Layout of a codec. head_dim: any multiple of 8 in 8..512. tile_tokens: 64 or 128.
/// Throws Error kInvalidArgument for a group that does not fit (per-channel group > tile_tokens, ...), in plain words.
[[nodiscard]] TileLayout make_tile_layout(const CodecSpec& spec, Side side, size_t head_dim, size_t tile_tokens);

/// Bytes of one sealed tile: make_tile_layout(...).bytes.
[[nodiscard]] size_t packed_bytes(const CodecSpec& spec, Side side, size_t head_dim, size_t tile_tokens);

/// Quantizes and packs one full tile.
///   x       [tile_tokens, head_dim] float, row-major, in the original basis (the codec's basis is applied inside)
///   packed  layout.bytes bytes, overwritten whole (padding is zeroed, so equal inputs give equal bytes)
/// Each token is quantized here, once. Deterministic: same x, same bytes, on every SIMD target. noexcept; scratch on stack
/// or thread_local.
void encode_tile(const TileLayout& layout, const float* x, std::byte* packed) noexcept;

/// Exact inverse of the packing, in double: the oracle of every kernel.
///   out  [tile_tokens, head_dim], in the *codec's* basis when `undo_basis` is false, else in the original one
void decode_tile_reference(const TileLayout& layout, const std::byte* packed, double* out, bool undo_basis);

/// Code of one element as stored (tests, golden files). Not for float16 bands.
[[nodiscard]] uint32_t code_at(const TileLayout& layout, const std::byte* packed, size_t token, size_t channel);

/// Fast decode into the shape attention multiplies with, in the codec's basis:
///   keys    out[channel * tile_tokens + token]
///   values  out[token * padded_dim + channel], padded_dim = round_up(head_dim, 16), padding zeroed
/// Runs the best SIMD target of the CPU (or the one forced for a test); equals decode_tile_reference to one f32 rounding
/// of code * scale + offset.
void decode_tile(const TileLayout& layout, const std::byte* packed, float* out) noexcept;

/// Encodes for transform codecs: called by encode_tile. x as there, within float16's range.
void encode_transform_tile(const TileLayout& layout, const float* x, std::byte* packed) noexcept;

/// Other ways to seal transform codecs' tiles, for measuring what they are worth (bench/seal_trials.cc). Readers of tiles need not know.
struct SealTrial {
    enum class Gain : uint8_t {
        kToken,  ///< the one that costs the token least: what the codec is
        kTile,   ///< one for all tokens of a tile
        kFixed,  ///< 1 for all
    };
    Gain gain = Gain::kToken;
    /// Trellis codes: this share of the mean error of a cell's tokens (values 4, keys 16) is added to those that follow, as in noise shaping.
    float key_feedback = 0;
    float value_feedback = 0;
};
/// From the next tile on, in the whole process. Not while a cache is in use.
void set_seal_trial(const SealTrial& trial) noexcept;

/// Places of codes, shared by both encoders. Codes of a band in code order (channel counts from the band's first).
[[nodiscard]] size_t band_codes(const TileLayout& layout, const Band& band) noexcept;
[[nodiscard]] size_t code_index(const TileLayout& layout, const Band& band, size_t token, size_t channel) noexcept;

/// Rows of plain codes into code order: out[code_index(t, c)] for every element, out overwritten (band_codes bytes, padding zero).
///   kTokens    codes[c * stride + t], rows of tokens
///   kChannels  codes[t * stride + c], rows of channels (counted from the band's first)
enum class QuadAxis { kTokens, kChannels };
void order_codes(const TileLayout& layout, const Band& band, const uint8_t* codes, size_t stride, QuadAxis rows,
                 uint8_t* out) noexcept;

/// A head vector from the codec's basis back to the model's, in place.
void undo_codec_basis(const CodecSpec& spec, double* x, size_t head_dim) noexcept;

}  // namespace kvaq
