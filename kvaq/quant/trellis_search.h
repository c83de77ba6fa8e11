#pragma once

// PRIVATE header of kvaq/quant: what the two implementations of the trellis search share. They compute the same numbers.

#include <cstddef>
#include <cstdint>

#include "kvaq/quant/trellis.h"

namespace kvaq {

/// In the search's units errors grow as d^2 up to here and as |d| beyond: 110^2 + 256 * 2^4 - 110 + kTrellisMostPath < 2^15.
inline constexpr int16_t kTrellisSquared = 110;
inline constexpr int16_t kTrellisMostPath = 16000;  ///< of a path beyond the best one
inline constexpr size_t kTrellisNormalize = 4;      ///< steps between subtractions of the best path's error

/// State: the last bits of the codes before, newest lowest. A code with last bit u leads from state s to (2 s + u) mod n_states, so
/// state 2 s + u is reached from s and from s + n_states / 2.
template <unsigned kBits>
struct TrellisShape {
    static constexpr size_t kStates = size_t{256} >> kBits;
    static constexpr size_t kPicks = size_t{1} << (kBits - 1);  ///< codes with one last bit
    /// Values searched on each side of the seam: the fewer bits, the longer a window reaches back.
    static constexpr size_t kLead = kBits == 1 ? 48 : kBits == 2 ? 40 : kBits == 3 ? 32 : 24;
    static constexpr size_t kSteps = 2 * kLead > kTrellisCell ? 2 * kLead : kTrellisCell;
};

/// Which instructions trellis_encode uses, for tests; all give the same codes.
enum class TrellisTarget : uint8_t { kPlain, kAvx512 };
[[nodiscard]] bool trellis_target_runs(TrellisTarget target) noexcept;
void trellis_encode_on(TrellisTarget target, unsigned bits, const float* x, uint8_t* codes) noexcept;
void trellis_add_errors_on(TrellisTarget target, unsigned bits, const float* u, size_t n_channels, size_t n,
                           const float* gain, const float* inverse, float weight, float* error) noexcept;

}  // namespace kvaq
