#include "kvaq/stats/spectrum.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Eigenvalues>

#include "kvaq/base/error.h"

namespace kvaq {

std::vector<double> singular_values(std::span<const double> second_moment, size_t dim, uint64_t count) {
    KVAQ_CHECK(second_moment.size() == dim * dim);
    std::vector<double> out(dim, 0.0);
    if (dim == 0 || count == 0) return out;
    const auto n = static_cast<Eigen::Index>(dim);
    const Eigen::Map<const Eigen::MatrixXd> matrix(second_moment.data(), n, n);
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(matrix, Eigen::EigenvaluesOnly);
    for (size_t i = 0; i < dim; ++i) {
        const double lambda = solver.eigenvalues()[n - 1 - static_cast<Eigen::Index>(i)];
        out[i] = std::sqrt(std::max(lambda, 0.0) * static_cast<double>(count));
    }
    return out;
}

double frobenius_norm(std::span<const double> second_moment, size_t dim, uint64_t count) {
    KVAQ_CHECK(second_moment.size() == dim * dim);
    double trace = 0;
    for (size_t i = 0; i < dim; ++i) trace += second_moment[i * dim + i];
    return std::sqrt(std::max(trace, 0.0) * static_cast<double>(count));
}

double spectral_norm(std::span<const double> second_moment, size_t dim, uint64_t count) {
    const std::vector<double> values = singular_values(second_moment, dim, count);
    return values.empty() ? 0 : values.front();
}

double effective_rank(std::span<const double> singular_values) {
    double energy = 0;
    for (const double s : singular_values) energy += s * s;
    if (energy <= 0) return 0;
    double entropy = 0;
    for (const double s : singular_values) {
        const double p = s * s / energy;
        if (p > 0) entropy -= p * std::log(p);
    }
    return std::exp(entropy);
}

}  // namespace kvaq
