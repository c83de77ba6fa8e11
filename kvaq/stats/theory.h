#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kvaq/base/float16.h"

namespace kvaq {

/// Theorems 3 and 4 beside what happens, for the paper's quantizer (checklist 12): one symmetric scale for a whole
/// matrix A [m, n], M = max|A_ij|, alpha = M / (2^(b-1) - 1), A^ = alpha * round(A / alpha), ties to even.
///   |A - A^|_2 <= |A - A^|_F <= sqrt(mn) M / (2 (2^(b-1) - 1)) <= sqrt(mn) |A|_2 / (...) <= sqrt(mn) |A|_F / (...)
/// The paper prints M <= |A - A^|_2; what holds is M <= |A|_2 (checklist 17). Nothing is defined at 1 bit.
struct BoundCheck {
    int bits = 0;
    double error_spectral = 0;
    double error_frobenius = 0;
    double bound_max = 0;        ///< sqrt(mn) M / (2 (2^(b-1) - 1))
    double bound_spectral = 0;   ///< Theorem 3
    double bound_frobenius = 0;  ///< Theorem 4
    /// All of the chain above, to 1e-9 relative.
    [[nodiscard]] bool holds() const noexcept;
};

/// rows [m, dim] row-major; bits from 2 to 16. Throws Error kInvalidArgument for other bits.
[[nodiscard]] std::vector<BoundCheck> check_bounds(std::span<const float16> rows, size_t dim,
                                                   std::span<const int> bits);

/// b_K - b_V that makes 2^(-b_K) |K| = 2^(-b_V) |V|: log2(|K| / |V|). The paper's appendix B.4 prints it upside down
/// (checklist 14, 16). NaN unless both norms are above 0.
[[nodiscard]] double balance_gap(double key_norm, double value_norm) noexcept;

/// Weight errors through a linear residual network h_(l+1) = h_l + W_l h_l, in the form that is a bound (checklist 18;
/// the paper's own, prod |W_i| * max |D_i|, is not one):
///   |h_L - h~_L| / |h_0| <= sum_l (prod_(j>l) (1 + |W~_j|)) |D_l| (prod_(i<l) (1 + |W_i|)),   D_l = W~_l - W_l,
///   spectral norms
/// Returns log10 of the right side (it overflows early); -infinity when all errors are 0. Spans of one length.
[[nodiscard]] double log10_propagation_bound(std::span<const double> weights, std::span<const double> quantized,
                                             std::span<const double> errors);

}  // namespace kvaq
