#include "kvaq/stats/theory.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Eigenvalues>
#include <limits>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

double spectral_of(const Eigen::MatrixXd& a) {
    const Eigen::MatrixXd gram =
        a.rows() < a.cols() ? Eigen::MatrixXd(a * a.transpose()) : Eigen::MatrixXd(a.transpose() * a);
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram, Eigen::EigenvaluesOnly);
    return std::sqrt(std::max(0.0, solver.eigenvalues().maxCoeff()));
}

}  // namespace

bool BoundCheck::holds() const noexcept {
    constexpr double kSlack = 1 + 1e-9;
    return error_spectral <= error_frobenius * kSlack && error_frobenius <= bound_max * kSlack &&
           bound_max <= bound_spectral * kSlack && bound_spectral <= bound_frobenius * kSlack;
}

std::vector<BoundCheck> check_bounds(std::span<const float16> rows, size_t dim, std::span<const int> bits) {
    KVAQ_CHECK(dim > 0 && rows.size() % dim == 0);
    std::vector<BoundCheck> out;
    if (rows.empty()) return out;
    const auto n = static_cast<Eigen::Index>(dim);
    const auto m = static_cast<Eigen::Index>(rows.size() / dim);
    Eigen::MatrixXd a(m, n);
    for (Eigen::Index i = 0; i < m; ++i) {
        for (Eigen::Index j = 0; j < n; ++j) a(i, j) = static_cast<double>(rows[static_cast<size_t>(i * n + j)]);
    }
    const double largest = a.cwiseAbs().maxCoeff();
    const double spectral = spectral_of(a);
    const double frobenius = a.norm();
    for (const int b : bits) {
        if (b < 2 || b > 16)
            throw Error(ErrorCode::kInvalidArgument, "Theorems 3 and 4", "2 to 16 bits (they divide by 2^(b-1) - 1)",
                        std::to_string(b));
        const double steps = std::exp2(b - 1) - 1;
        const double alpha = largest / steps;
        Eigen::MatrixXd error = Eigen::MatrixXd::Zero(m, n);
        if (alpha > 0) error = a - alpha * (a / alpha).array().rint().matrix();
        const double factor = std::sqrt(static_cast<double>(rows.size())) / (2 * steps);
        out.push_back({.bits = b,
                       .error_spectral = spectral_of(error),
                       .error_frobenius = error.norm(),
                       .bound_max = factor * largest,
                       .bound_spectral = factor * spectral,
                       .bound_frobenius = factor * frobenius});
    }
    return out;
}

double balance_gap(double key_norm, double value_norm) noexcept {
    if (!(key_norm > 0) || !(value_norm > 0)) return std::numeric_limits<double>::quiet_NaN();
    return std::log2(key_norm / value_norm);
}

double log10_propagation_bound(std::span<const double> weights, std::span<const double> quantized,
                               std::span<const double> errors) {
    KVAQ_CHECK(weights.size() == quantized.size() && weights.size() == errors.size());
    const size_t n = weights.size();
    std::vector<double> after(n + 1, 0.0);  // log10 of prod over j >= l of (1 + |W~_j|)
    for (size_t l = n; l-- > 0;) after[l] = after[l + 1] + std::log10(1 + quantized[l]);
    double before = 0;
    double largest = -std::numeric_limits<double>::infinity();
    std::vector<double> terms;
    for (size_t l = 0; l < n; ++l) {
        if (errors[l] > 0) terms.push_back(after[l + 1] + std::log10(errors[l]) + before);
        if (errors[l] > 0) largest = std::max(largest, terms.back());
        before += std::log10(1 + weights[l]);
    }
    double sum = 0;
    for (const double term : terms) sum += std::pow(10.0, term - largest);
    return terms.empty() ? largest : largest + std::log10(sum);
}

}  // namespace kvaq
