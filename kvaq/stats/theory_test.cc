#include "kvaq/stats/theory.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <eigen3/Eigen/SVD>
#include <random>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

double spectral(const Eigen::MatrixXd& a) { return Eigen::JacobiSVD<Eigen::MatrixXd>(a).singularValues()(0); }

TEST(Theory, Theorems3And4HoldInTheirCorrectForm) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    constexpr std::array kBits = {2, 3, 4, 5, 6, 8};
    for (int seed = 0; seed < 20; ++seed) {
        std::vector<float16> rows(40 * 16);
        for (float16& x : rows) x = static_cast<float16>(normal(random));
        if (seed % 2 == 0) {
            for (size_t i = 3; i < rows.size(); i += 16) rows[i] *= float16{20};  // an outlier channel
        }
        double last = 1e9;
        for (const BoundCheck& check : check_bounds(rows, 16, kBits)) {
            EXPECT_TRUE(check.holds()) << check.bits;
            EXPECT_GT(check.error_spectral, 0);
            EXPECT_LT(check.error_frobenius, last);
            last = check.error_frobenius;
        }
    }
}

TEST(Theory, BoundsOfAKnownMatrix) {
    // A = [[3, 0], [0, 1]], 2 bits: alpha = 3, codes 1 and round(1/3) = 0, so the error is [[0, 0], [0, 1]].
    const std::vector<float16> rows = {float16{3}, float16{0}, float16{0}, float16{1}};
    const std::array bits = {2, 3};
    const std::vector<BoundCheck> checks = check_bounds(rows, 2, bits);
    EXPECT_NEAR(checks[0].error_spectral, 1, 1e-12);
    EXPECT_NEAR(checks[0].error_frobenius, 1, 1e-12);
    EXPECT_NEAR(checks[0].bound_max, 2 * 3 / 2.0, 1e-12);
    EXPECT_NEAR(checks[0].bound_spectral, 2 * 3 / 2.0, 1e-12);
    EXPECT_NEAR(checks[0].bound_frobenius, 2 * std::sqrt(10.0) / 2, 1e-12);
    EXPECT_NEAR(checks[1].error_frobenius, 0, 1e-12);  // alpha = 1: exact, against the paper's "M <= |A - A^|"
    const std::array one = {1};
    EXPECT_THROW((void)check_bounds(rows, 2, one), Error);
}

TEST(Theory, BalanceGivesMoreBitsToTheLargerSide) {
    EXPECT_DOUBLE_EQ(balance_gap(8, 2), 2);
    EXPECT_DOUBLE_EQ(balance_gap(2, 8), -2);
    EXPECT_NEAR(std::exp2(-5.0) * 8, std::exp2(-3.0) * 2, 1e-12);  // b_K = 5, b_V = 3 balances 8 against 2
    EXPECT_TRUE(std::isnan(balance_gap(0, 1)));
}

TEST(Theory, PropagationBoundHoldsWhereThePapersFails) {
    std::mt19937 random(4);
    std::normal_distribution<double> normal;
    bool papers_fails = false;
    for (int seed = 0; seed < 30; ++seed) {
        const double size = seed % 2 == 0 ? 0.05 : 0.6;
        const auto matrix = [&](double s) {
            return Eigen::MatrixXd(Eigen::MatrixXd::NullaryExpr(6, 6, [&] { return s * normal(random); }));
        };
        Eigen::VectorXd h = matrix(1).col(0);
        Eigen::VectorXd q = h;
        const double start = h.norm();
        std::vector<double> w, wq, d;
        double product = 1;
        for (int layer = 0; layer < 5; ++layer) {
            const Eigen::MatrixXd weights = matrix(size);
            const Eigen::MatrixXd delta = matrix(size * 0.1);
            h += weights * h;
            q += (weights + delta) * q;
            w.push_back(spectral(weights));
            wq.push_back(spectral(weights + delta));
            d.push_back(spectral(delta));
            product *= w.back();
        }
        const double measured = (h - q).norm() / start;
        EXPECT_LE(measured, std::pow(10, log10_propagation_bound(w, wq, d)) * (1 + 1e-9));
        papers_fails = papers_fails || measured > product * *std::max_element(d.begin(), d.end());
    }
    EXPECT_TRUE(papers_fails);
    const std::vector<double> two = {1, 3};
    EXPECT_NEAR(log10_propagation_bound(two, two, std::vector<double>{0.5, 0.25}), std::log10(4 * 0.5 + 0.25 * 2),
                1e-12);
    EXPECT_EQ(log10_propagation_bound(two, two, std::vector<double>{0, 0}), -INFINITY);
    const std::vector<double> many(400, 50.0);
    EXPECT_GT(log10_propagation_bound(many, many, many), 600);  // no overflow
}

}  // namespace
}  // namespace kvaq
