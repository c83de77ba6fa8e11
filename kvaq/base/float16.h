#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace kvaq {

/// IEEE binary16 as stored in caches and files. The compiler's _Float16 converts with round-to-nearest-even.
#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
using float16 = __fp16;  // what g++ 12 has there in C++: the same format, and every operation is one of float
#else
using float16 = _Float16;
#endif

static_assert(sizeof(float16) == 2);

[[nodiscard]] inline float16 float16_from_bits(uint16_t bits) noexcept { return std::bit_cast<float16>(bits); }
[[nodiscard]] inline uint16_t float16_bits(float16 value) noexcept { return std::bit_cast<uint16_t>(value); }

/// Largest finite binary16; encoders clamp parameters to it.
inline constexpr float kFloat16Max = 65504.0F;

/// Converts to binary16, clamping to the finite range (an infinite scale would poison a whole tile).
[[nodiscard]] inline float16 to_float16(float value) noexcept {
    const float clamped = value > kFloat16Max ? kFloat16Max : (value < -kFloat16Max ? -kFloat16Max : value);
    return static_cast<float16>(clamped);
}

}  // namespace kvaq
