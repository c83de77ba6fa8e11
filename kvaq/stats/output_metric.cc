#include "kvaq/stats/output_metric.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include "kvaq/base/alibi.h"
#include "kvaq/base/error.h"

namespace kvaq {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix widened(std::span<const float16> rows, size_t dim) {
    Matrix out(static_cast<Eigen::Index>(rows.size() / dim), static_cast<Eigen::Index>(dim));
    for (size_t i = 0; i < rows.size(); ++i) out.data()[i] = static_cast<float>(rows[i]);
    return out;
}

/// L with gram = L L^T: eigenvectors times square roots, so that a gram without full rank will do.
std::vector<float> factor_of(const std::vector<double>& gram, size_t dim) {
    const auto n = static_cast<Eigen::Index>(dim);
    Eigen::MatrixXd root = Eigen::MatrixXd::Identity(n, n);
    if (!gram.empty()) {
        const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(
            Eigen::Map<const Eigen::MatrixXd>(gram.data(), n, n));
        root = solver.eigenvectors() * solver.eigenvalues().cwiseMax(0.0).cwiseSqrt().asDiagonal();
    }
    const Eigen::MatrixXf narrow = root.cast<float>();
    return {narrow.data(), narrow.data() + narrow.size()};
}

/// Scores of one query become probabilities; slope[t] = d(bent score) / d(scaled dot product).
void attend(Eigen::Ref<Eigen::RowVectorXf> scores, Eigen::RowVectorXf& slope, const ScoreRule& rule, size_t pos,
            size_t head, size_t n_heads) {
    const auto n = static_cast<size_t>(scores.size());
    size_t first = 0;
    if (rule.sliding_window > 0) {
        const auto window = static_cast<size_t>(rule.sliding_window);
        first = rule.chunked_window ? pos / window * window : (pos + 1 > window ? pos + 1 - window : 0);
    }
    const float tilt = alibi_slope(rule.alibi_max_bias, head, n_heads);
    float largest = rule.sink_logits != nullptr ? rule.sink_logits[head] : -INFINITY;
    slope.setOnes(scores.size());
    for (size_t t = first; t <= pos; ++t) {
        float& s = scores[static_cast<Eigen::Index>(t)];
        s *= rule.scale;
        if (rule.softcap > 0) {
            const float bent = std::tanh(s / rule.softcap);
            s = rule.softcap * bent;
            slope[static_cast<Eigen::Index>(t)] = 1 - bent * bent;
        }
        s += tilt * (static_cast<float>(t) - static_cast<float>(pos));
        largest = std::max(largest, s);
    }
    float sum = rule.sink_logits != nullptr ? std::exp(rule.sink_logits[head] - largest) : 0.0F;
    for (size_t t = 0; t < n; ++t) {
        float& s = scores[static_cast<Eigen::Index>(t)];
        s = t >= first && t <= pos ? std::exp(s - largest) : 0.0F;
        sum += s;
    }
    scores /= sum;
}

}  // namespace

OutputMetric::OutputMetric(size_t dim_k, size_t dim_v, std::span<const std::vector<double>> grams)
    : dim_k_(dim_k),
      dim_v_(dim_v),
      grams_(grams.begin(), grams.end()),
      key_sum_(dim_k * dim_k, 0.0),
      mass_(grams.size(), 0.0) {
    for (const std::vector<double>& gram : grams_) {
        KVAQ_CHECK(gram.empty() || gram.size() == dim_v * dim_v);
        factors_.push_back(factor_of(gram, dim_v));
    }
}

void OutputMetric::add(const Sample& sample) {
    const Matrix keys = widened(sample.keys, dim_k_);
    const Matrix values = widened(sample.values, dim_v_);
    const auto n_queries = static_cast<Eigen::Index>(sample.query_tokens.size());
    const auto dk = static_cast<Eigen::Index>(dim_k_);
    const auto dv = static_cast<Eigen::Index>(dim_v_);
    Eigen::Map<Eigen::MatrixXd> key_sum(key_sum_.data(), dk, dk);
    Eigen::RowVectorXf slope;
    for (size_t g = 0; g < grams_.size(); ++g) {
        Matrix queries(n_queries, dk);
        for (Eigen::Index i = 0; i < n_queries; ++i)
            queries.row(i) = Eigen::Map<const Eigen::RowVectorXf>(
                sample.queries.row(sample.query_tokens[static_cast<size_t>(i)], g), dk);
        const Matrix seen =
            values * Eigen::Map<const Eigen::MatrixXf>(factors_[g].data(), dv, dv);  // W_O v up to a turn
        const Eigen::VectorXf power = seen.rowwise().squaredNorm();
        Matrix p = queries * keys.transpose();
        Matrix bent(p.rows(), p.cols());  // (p * slope)^2
        for (Eigen::Index i = 0; i < n_queries; ++i) {
            attend(p.row(i), slope, sample.rule, sample.query_positions[static_cast<size_t>(i)], sample.first_head + g,
                   sample.n_heads);
            bent.row(i) = (p.row(i).array() * slope.array()).square().matrix();
        }
        const Matrix out = p * seen;
        const Matrix leaning = bent * seen;
        const Eigen::VectorXf weight = bent * power;
        const Eigen::VectorXf mass = bent.rowwise().sum();
        Eigen::VectorXf root(n_queries);
        for (Eigen::Index i = 0; i < n_queries; ++i) {
            const float c = weight[i] - 2 * out.row(i).dot(leaning.row(i)) + mass[i] * out.row(i).squaredNorm();
            root[i] = sample.rule.scale * std::sqrt(std::max(0.0F, c));
            mass_[g] += static_cast<double>(p.row(i).squaredNorm());
        }
        const Eigen::MatrixXd weighted = (root.asDiagonal() * queries).cast<double>();
        key_sum.noalias() += weighted.transpose() * weighted;
    }
    n_queries_ += static_cast<uint64_t>(n_queries);
}

std::vector<double> OutputMetric::keys() const {
    std::vector<double> out = key_sum_;
    for (double& x : out) x /= static_cast<double>(std::max<uint64_t>(n_queries_, 1));
    return out;
}

std::vector<double> OutputMetric::values() const {
    std::vector<double> out(dim_v_ * dim_v_, 0.0);
    for (size_t g = 0; g < grams_.size(); ++g) {
        const double weight = mass_[g] / static_cast<double>(std::max<uint64_t>(n_queries_, 1));
        for (size_t i = 0; i < dim_v_; ++i) {
            for (size_t j = 0; j < dim_v_; ++j)
                out[i * dim_v_ + j] += weight * (grams_[g].empty() ? (i == j ? 1.0 : 0.0) : grams_[g][i * dim_v_ + j]);
        }
    }
    return out;
}

}  // namespace kvaq
