#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvaq {

/// Trellis-coded quantization (Marcellin and Fischer 1990) in cells of 64 values. What a code means depends on the codes before it:
///   value i = trellis_outputs[window_i],   window_i = code_i | h_1 << bits | h_2 << (bits + 1) | ...,   h_j = last bit of code_{i-j}
/// a window of 8 bits: the code and the last bits of the 8 - bits codes before it. Indices wrap around in the cell (tail biting), so a cell
/// decodes alone, in parallel, and takes no more bits than plain codes: bits * 64. Ungerboeck's structure: the last bit of a code is the
/// convolutionally coded one, the others choose within its subset.
/// On a Gaussian source, signal to noise in dB (Lloyd-Max codebooks of as many bits: 4.40, 9.30, 14.62, 20.22, 26.0, 31.9):
///   bits 1..6:  5.4, 11.2, 17.0, 22.8, 28.2, 33.0
inline constexpr size_t kTrellisCell = 64;
inline constexpr unsigned kTrellisMostBits = 6;

/// What all 256 windows decode to, in steps: the search's levels / (1 - D), D the mean squared error of a normal source in sigma^2. Levels that are the means
/// of what they stand for are too small by 1 - D on average (E[x x^] = (1 - D) E[x^2]), the same way in every channel and token, so attention adds it up:
/// 28 % at 1 bit, 8 % at 2. With it put right the error is D / (1 - D), and is no longer correlated with x.
[[nodiscard]] const std::array<int8_t, 256>& trellis_outputs(unsigned bits) noexcept;

/// Levels that the search aims at, of all 256 windows for 1 to 6 bits, in steps of sigma / 32 (kLevelsPerSigma), trained on a standard normal source by
/// bench/trellis_tables (kvaq/quant/trellis_tables.cc holds its output).
[[nodiscard]] const std::array<int8_t, 256>& trellis_levels(unsigned bits) noexcept;

/// Mean squared error, in steps^2, of a value by its size, in bins of 8 steps: what a gain costs without trying it. Beyond 128 steps the
/// nearest level is 127: add (|x| - 127)^2.
inline constexpr size_t kTrellisErrorBins = 16;
inline constexpr float kTrellisErrorStep = 8;
[[nodiscard]] const std::array<float, kTrellisErrorBins>& trellis_errors(unsigned bits) noexcept;

/// What gains cost: of each of n tokens (a multiple of 16), error[t] += weight * gain[t]^2 * E(|u[c * n + t] * inverse[t]|), channel after channel,
/// with E from trellis_errors; inverse[t] = 1 / gain[t]. The same bits on every instruction set.
void trellis_add_errors(unsigned bits, const float* u, size_t n_channels, size_t n, const float* gain,
                        const float* inverse, float weight, float* error) noexcept;

/// Window of value i. codes [64], each below 2^bits. The definition; kernels compute the same in registers.
[[nodiscard]] uint8_t trellis_window(unsigned bits, const uint8_t* codes, size_t i) noexcept;

/// The codes of least sum of (x_i - level_i)^2 over the cell, by Viterbi's algorithm in 16-bit integers: first over a piece around the cell's seam to
/// find a good state there, then over the cell from that state to itself. x [64] in steps (beyond +-128 it is cut), codes [64].
/// Deterministic, the same on every instruction set.
void trellis_encode(unsigned bits, const float* x, uint8_t* codes) noexcept;

namespace internal {
/// trellis_encode with another table: for bench/trellis_tables.
void trellis_encode_with(unsigned bits, const std::array<float, 256>& levels, const float* x, uint8_t* codes) noexcept;
}  // namespace internal

}  // namespace kvaq
