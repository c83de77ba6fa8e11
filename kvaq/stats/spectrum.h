#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvaq {

/// Singular values, descending, of the matrix X [count, dim] whose uncentred second moment is given (X^T X / count):
///   sigma_i = sqrt(count * lambda_i(second_moment)). Negative eigenvalues (rounding) give 0.
/// Relative accuracy about 1e-8 * sigma_1: a Gram matrix halves the digits of the small ones.
[[nodiscard]] std::vector<double> singular_values(std::span<const double> second_moment, size_t dim, uint64_t count);

/// ||X||_F = sqrt(count * trace(second_moment)).
[[nodiscard]] double frobenius_norm(std::span<const double> second_moment, size_t dim, uint64_t count);

/// ||X||_2 = sigma_1.
[[nodiscard]] double spectral_norm(std::span<const double> second_moment, size_t dim, uint64_t count);

/// exp of the entropy of sigma_i^2 / sum sigma^2 (Roy and Vetterli, EUSIPCO 2007, on squared values): how many directions
/// carry the energy, 1..dim; 0 for an empty spectrum.
[[nodiscard]] double effective_rank(std::span<const double> singular_values);

}  // namespace kvaq
