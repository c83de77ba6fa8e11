#pragma once

#include <cstddef>

namespace kvaq {

/// Orthonormal Walsh-Hadamard transform in place, in blocks of the largest power of two that divides n (96 = 3 blocks of
/// 32): x <- H x / sqrt(block). Its own inverse. f32, fixed order of additions: the same bits on every machine.
void hadamard_transform(float* x, size_t n) noexcept;
void hadamard_transform(double* x, size_t n) noexcept;

/// The same of every `unit` neighbours by themselves; the last ones may be fewer.
void hadamard_units(float* x, size_t n, size_t unit) noexcept;
void hadamard_units(double* x, size_t n, size_t unit) noexcept;

/// The same of every column of x [n][stride] (columns 0..n_columns-1): the bits that hadamard_transform gives each of them.
void hadamard_columns(float* x, size_t n, size_t n_columns, size_t stride) noexcept;

}  // namespace kvaq
