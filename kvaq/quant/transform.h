#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvaq/base/side.h"

namespace kvaq {

/// The orthonormal basis U of a transform codec, z = U x.
enum class TransformBasis : uint8_t {
    kMatrix,    ///< any, rounded to int8
    kHadamard,  ///< the Hadamard matrix (kvaq/quant/hadamard.h) over the whole head
    kSorted,  ///< the model's channels in another order, those of a unit mixed by a Hadamard matrix: 2 bytes a channel
};

/// What a transform codec knows of one (layer, side, KV head), fitted on calibration data (kvaq/stats/transform_fit.h):
///   x = U^T z,  U [dim, dim] orthonormal but for rounding to int8, so z = U^-T x, and <U q, z> = <q, x> exactly
///   z_i ~ offset_i + gain * scale_i * level,  level in int8
/// in units of kLevelsPerSigma: at gain 1 the standard deviation of z_i is kLevelsPerSigma steps.
/// Channels are sorted by what an error in them costs, so that equal numbers of bits lie side by side.
struct TransformFit {
    Side side = Side::kKey;
    size_t dim = 0;
    TransformBasis basis = TransformBasis::kMatrix;
    /// kMatrix, else empty: rows of U as int8, each with its own step: U_ij = row_scale_i * matrix(i, j). In the order in which attention multiplies:
    /// keys [j][i] (queries go from model channel j to codec channel i), values [i][j] (sums go back).
    std::vector<int8_t> matrix;
    std::vector<float> row_scale;  ///< [dim], kMatrix, else empty
    std::vector<uint16_t>
        order;  ///< [dim], kSorted, else empty: unit u codes H times the model's channels order[u * unit..], H Hadamard, of the unit's size
    std::vector<float> scale;   ///< [dim] step of one level at gain 1
    std::vector<float> offset;  ///< [dim] mean of z
    /// Codebooks, ascending, by bits 1..6: levels[b] has 2^b entries; others are empty. 8 bits: level = code - 128.
    std::array<std::vector<int8_t>, 7> levels;

    bool operator==(const TransformFit&) const = default;
    /// kMatrix only.
    [[nodiscard]] int8_t at(size_t i, size_t j) const noexcept {
        return matrix[side == Side::kKey ? j * dim + i : i * dim + j];
    }
    /// Bytes kept in memory for it beside the tiles.
    [[nodiscard]] size_t bytes() const noexcept;
};

/// How codes of 1 to 6 bits become levels.
enum class TransformCodes {
    kCodebook,  ///< Lloyd-Max codebooks of the fit
    kTrellis,  ///< trellis codes (kvaq/quant/trellis.h): a third to a half less noise, more work when sealing and reading
};

/// Codec of one (layer, side, KV head): a fit and the bits of every unit of channels.
struct TransformCodec {
    std::shared_ptr<const TransformFit> fit;
    std::vector<uint8_t>
        unit_bits;  ///< bits of each run of transform_unit(side) channels: 0, 1, 2, 3, 4, 5, 6 or 8, never rising
    TransformCodes codes = TransformCodes::kCodebook;
    std::string digest;  ///< hex, of everything above; see transform_digest

    bool operator==(const TransformCodec& other) const {
        return digest == other.digest && unit_bits == other.unit_bits && codes == other.codes && *fit == *other.fit;
    }
    [[nodiscard]] double mean_bits() const noexcept;
};

inline constexpr float kLevelsPerSigma = 32;

/// Channels that share a number of bits: as many as fill whole 64-byte blocks of a tile's code planes.
[[nodiscard]] constexpr size_t transform_unit(Side side) noexcept { return side == Side::kKey ? 8 : 16; }

/// A codec with its digest. Throws Error kCorrupt when sizes, bits or codebooks do not fit together.
[[nodiscard]] std::shared_ptr<const TransformCodec> make_transform_codec(
    std::shared_ptr<const TransformFit> fit, std::vector<uint8_t> unit_bits,
    TransformCodes codes = TransformCodes::kCodebook);

/// A fit as bytes for files, little-endian, and back. parse throws Error kCorrupt.
[[nodiscard]] std::vector<std::byte> transform_fit_bytes(const TransformFit& fit);
[[nodiscard]] TransformFit parse_transform_fit(std::span<const std::byte> bytes);

/// z = U x and x = U^T z, [dim], for bases without a matrix: exact but for rounding in f32. to_codec_channels of kSorted needs x and z apart.
void to_codec_channels(const TransformFit& fit, const float* x, float* z) noexcept;
void to_model_channels(const TransformFit& fit, const float* z, float* x) noexcept;

/// z = U^-T x (to 1e-9 where U is orthonormal to a few percent) and x = U^T z, [dim], in place; the oracle of the kernels.
void transform_forward(const TransformFit& fit, double* x);
void transform_backward(const TransformFit& fit, double* z);

/// Gains are 2^((code - 128) / 16), code 0..255.
[[nodiscard]] float transform_gain(uint8_t code) noexcept;
/// All of them, by code.
[[nodiscard]] const std::array<float, 256>& transform_gains() noexcept;

}  // namespace kvaq
