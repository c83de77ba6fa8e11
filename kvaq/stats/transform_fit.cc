#include "kvaq/stats/transform_fit.h"

#include <Eigen/Dense>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <thread>

#include "kvaq/base/error.h"
#include "kvaq/quant/hadamard.h"
#include "kvaq/quant/trellis.h"

namespace kvaq {
namespace {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

constexpr size_t kTile = 64;
constexpr std::array kBits = {1, 2, 3, 4, 5, 6, 8};
constexpr double kRidge =
    1e-3;  ///< of the metric's mean diagonal: directions that the calibration text never asked for
constexpr int kSweeps = 6;
constexpr size_t kTrellisTiles = 8;  ///< of the sample, for the costs of trellis codes

Matrix matrix_of(const std::vector<double>& values, size_t dim) {
    return Eigen::Map<const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
        values.data(), static_cast<Eigen::Index>(dim), static_cast<Eigen::Index>(dim));
}

/// Diagonal entries of a symmetric 2 x 2 matrix turned by an angle (cosine c, sine s); their sum does not change.
double turned(double a, double b, double ab, double c, double s) { return c * c * a + s * s * b + 2 * c * s * ab; }

/// The angle in [0, pi) that minimizes the product of all four diagonal entries of A and B.
double best_angle(double a1, double a2, double a12, double b1, double b2, double b12) {
    const auto product = [&](double angle) {
        const double c = std::cos(angle);
        const double s = std::sin(angle);
        const double a = turned(a1, a2, a12, c, s);
        const double b = turned(b1, b2, b12, c, s);
        return a * (a1 + a2 - a) * b * (b1 + b2 - b);
    };
    constexpr int kGrid = 16;  // the product has period pi / 2
    constexpr double kStep = 1.5707963267948966 / kGrid;
    double best = 0;
    double least = product(0);
    for (int i = 1; i < kGrid; ++i) {
        const double value = product(i * kStep);
        if (value < least) {
            least = value;
            best = i * kStep;
        }
    }
    double width = kStep / 2;
    for (int round = 0; round < 12; ++round, width /= 2) {
        for (const double angle : {best - width, best + width}) {
            const double value = product(angle);
            if (value < least) {
                least = value;
                best = angle;
            }
        }
    }
    return best;
}

void rotate(Matrix& m, Eigen::Index i, Eigen::Index j, double c, double s) {
    const Vector ci = m.col(i);
    m.col(i) = c * ci + s * m.col(j);
    m.col(j) = c * m.col(j) - s * ci;
    const Eigen::RowVectorXd ri = m.row(i);
    m.row(i) = c * ri + s * m.row(j);
    m.row(j) = c * m.row(j) - s * ri;
}

/// Rows of U.
Matrix find_basis(const Matrix& metric, const Matrix& covariance) {
    const Eigen::SelfAdjointEigenSolver<Matrix> eigen(covariance);
    Matrix u = eigen.eigenvectors().transpose();
    Matrix a = u * metric * u.transpose();
    Matrix b = u * covariance * u.transpose();
    const Eigen::Index n = u.rows();
    const auto total = [&] { return a.diagonal().array().log().sum() + b.diagonal().array().log().sum(); };
    double before = total();
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
        for (Eigen::Index i = 0; i < n; ++i) {
            for (Eigen::Index j = i + 1; j < n; ++j) {
                const double angle = best_angle(a(i, i), a(j, j), a(i, j), b(i, i), b(j, j), b(i, j));
                if (std::abs(angle) < 1e-4) continue;
                const double c = std::cos(angle);
                const double s = std::sin(angle);
                rotate(a, i, j, c, s);
                rotate(b, i, j, c, s);
                const Eigen::RowVectorXd row = u.row(i);
                u.row(i) = c * row + s * u.row(j);
                u.row(j) = c * u.row(j) - s * row;
            }
        }
        const double after = total();
        if (before - after < 1e-3 * static_cast<double>(n)) break;
        before = after;
    }
    return u;
}

Matrix hadamard_matrix(Eigen::Index n) {
    Matrix u = Matrix::Identity(n, n);
    for (Eigen::Index i = 0; i < n; ++i) hadamard_transform(u.col(i).data(), static_cast<size_t>(n));
    return u;
}

/// Lloyd-Max codebook of n levels for sorted values, in steps, rounded to int8. Values in units of kLevelsPerSigma.
std::vector<int8_t> lloyd_max(const std::vector<float>& sorted, const std::vector<double>& prefix, size_t n) {
    // Quantiles of the values' cube-root-of-density law would be the asymptotic optimum; equal parts of a clipped range do for a start.
    const size_t count = sorted.size();
    std::vector<double> level(n);
    for (size_t k = 0; k < n; ++k) {
        const auto at =
            static_cast<size_t>((static_cast<double>(k) + 0.5) / static_cast<double>(n) * static_cast<double>(count));
        level[k] = static_cast<double>(sorted[std::min(at, count - 1)]) * 1.3;
    }
    for (int round = 0; round < 200; ++round) {
        double moved = 0;
        size_t begin = 0;
        for (size_t k = 0; k < n; ++k) {
            size_t end = count;
            if (k + 1 < n) {
                const double middle = (level[k] + level[k + 1]) / 2;
                end = static_cast<size_t>(std::upper_bound(sorted.begin() + static_cast<ptrdiff_t>(begin), sorted.end(),
                                                           static_cast<float>(middle)) -
                                          sorted.begin());
            }
            if (end > begin) {
                const double mean = (prefix[end] - prefix[begin]) / static_cast<double>(end - begin);
                moved = std::max(moved, std::abs(mean - level[k]));
                level[k] = mean;
            }
            begin = end;
        }
        if (moved < 1e-3) break;
    }
    std::vector<int8_t> out;
    for (const double x : level) out.push_back(static_cast<int8_t>(std::clamp(std::lround(x), -128L, 127L)));
    std::sort(out.begin(), out.end());
    return out;
}

double nearest(const std::vector<int8_t>& levels, double v) {
    const auto above = std::lower_bound(levels.begin(), levels.end(), v,
                                        [](int8_t a, double b) { return static_cast<double>(a) < b; });
    if (above == levels.begin()) return static_cast<double>(levels.front());
    if (above == levels.end()) return static_cast<double>(levels.back());
    const double high = static_cast<double>(*above);
    const double low = static_cast<double>(*(above - 1));
    return v - low <= high - v ? low : high;
}

/// Mean squared errors of trellis codes, [channel][bits 1..6], in steps^2 of each token's gain times the channel's sigma:
/// every cell of the tile format coded at every number of bits. z: centred samples [channel][token].
std::vector<std::array<double, 9>> trellis_squared_errors(const Matrix& z, const Vector& sigma,
                                                          const Eigen::RowVectorXd& gain, Side side) {
    const auto dim = static_cast<size_t>(z.rows());
    const size_t n_tokens = std::min<size_t>(static_cast<size_t>(z.cols()), kTrellisTiles * kTile);
    const bool key = side == Side::kKey;
    const size_t lanes = key ? kTile : (dim + 15) / 16 * 16;
    const size_t quads = key ? dim : kTile;
    std::vector<std::array<double, 9>> sum(dim);
    for (std::array<double, 9>& one : sum) one.fill(0);
    std::array<float, kTrellisCell> x;
    std::array<double, kTrellisCell> step;
    std::array<uint8_t, kTrellisCell> codes;
    for (size_t tile = 0; tile < n_tokens; tile += kTile) {
        for (size_t quad = 0; quad < quads; quad += 4) {
            for (size_t lane = 0; lane < lanes; lane += 16) {
                const auto channel = [&](size_t i) { return key ? quad + i % 4 : lane + i / 4; };
                for (size_t i = 0; i < kTrellisCell; ++i) {
                    const auto t = static_cast<Eigen::Index>(tile + (key ? lane + i / 4 : quad + i % 4));
                    const auto c = static_cast<Eigen::Index>(std::min(channel(i), dim - 1));
                    step[i] = gain[t] * sigma[c] / static_cast<double>(kLevelsPerSigma);
                    x[i] = channel(i) < dim ? static_cast<float>(z(c, t) / step[i]) : 0.0F;
                }
                for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits) {
                    trellis_encode(bits, x.data(), codes.data());
                    const std::array<int8_t, 256>& levels = trellis_outputs(bits);
                    for (size_t i = 0; i < kTrellisCell; ++i) {
                        if (channel(i) >= dim) continue;
                        const double e = (static_cast<double>(x[i]) -
                                          static_cast<double>(levels[trellis_window(bits, codes.data(), i)])) *
                                         step[i];
                        sum[channel(i)][bits] += e * e / static_cast<double>(n_tokens);
                    }
                }
            }
        }
    }
    return sum;
}

FitTrial fit_trial;

}  // namespace

void set_fit_trial(const FitTrial& trial) noexcept { fit_trial = trial; }

FittedTransform fit_transform(const HeadStats& head, Side side, size_t n_sample_tiles, KeyBasis key_basis) {
    const bool key = side == Side::kKey;
    const std::vector<double>& mean = key ? head.key_mean : head.value_mean;
    const size_t dim = mean.size();
    const auto n = static_cast<Eigen::Index>(dim);
    const std::vector<float16>& rows = key ? head.key_tiles : head.value_tiles;
    const size_t n_tokens = n_sample_tiles * kTile;
    KVAQ_CHECK(n_tokens > 0 && rows.size() == n_tokens * dim);

    Vector mu = Vector::Zero(n);
    if (key) mu = Eigen::Map<const Vector>(mean.data(), n);
    Matrix covariance = matrix_of(key ? head.key_second : head.value_second, dim) - mu * mu.transpose();
    covariance.diagonal().array() += 1e-6 * covariance.trace() / static_cast<double>(dim) + 1e-12;
    const FitTrial::Basis basis = key ? fit_trial.keys : fit_trial.values;
    const bool for_output = basis == FitTrial::Basis::kOutput;
    auto fit = std::make_shared<TransformFit>();
    fit->side = side;
    fit->dim = dim;
    fit->basis = TransformBasis::kHadamard;
    if (for_output || (key && basis == FitTrial::Basis::kChosen)) fit->basis = TransformBasis::kMatrix;
    if (key && key_basis == KeyBasis::kSorted) fit->basis = TransformBasis::kSorted;
    const bool with_matrix = fit->basis == TransformBasis::kMatrix;
    Matrix metric = for_output ? matrix_of(key ? head.key_metric : head.value_metric, dim)
                    : key      ? matrix_of(head.query_second, dim)
                               : Matrix::Identity(n, n);
    metric.diagonal().array() += kRidge * metric.trace() / static_cast<double>(dim) + 1e-12;
    // Values: mixing the whole head leaves nothing of an eigenbasis, so no matrix is kept.
    Matrix u = Matrix::Identity(n, n);
    if (with_matrix) u = find_basis(metric, covariance);
    if (fit->basis == TransformBasis::kHadamard) {
        u = hadamard_matrix(n);
    } else {
        const Matrix a = u * metric * u.transpose();
        const Matrix b = u * covariance * u.transpose();
        std::vector<Eigen::Index> order(dim);
        std::iota(order.begin(), order.end(), Eigen::Index{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](Eigen::Index i, Eigen::Index j) { return a(i, i) * b(i, i) > a(j, j) * b(j, j); });
        Matrix falling(n, n);
        for (Eigen::Index i = 0; i < n; ++i) falling.row(i) = u.row(order[static_cast<size_t>(i)]);
        u = falling;
        if (fit->basis == TransformBasis::kSorted) {
            for (const Eigen::Index channel : order) fit->order.push_back(static_cast<uint16_t>(channel));
        }
        const auto block = static_cast<Eigen::Index>(transform_unit(side));
        for (Eigen::Index first = 0; first + block <= n; first += block) {
            for (Eigen::Index c = 0; c < n; ++c) {
                std::vector<double> column(static_cast<size_t>(block));
                for (Eigen::Index i = 0; i < block; ++i) column[static_cast<size_t>(i)] = u(first + i, c);
                hadamard_transform(column.data(), column.size());
                for (Eigen::Index i = 0; i < block; ++i) u(first + i, c) = column[static_cast<size_t>(i)];
            }
        }
    }

    if (with_matrix) {
        fit->matrix.resize(dim * dim);
        fit->row_scale.resize(dim);
    }
    for (Eigen::Index i = 0; i < n && with_matrix; ++i) {
        const double largest = u.row(i).cwiseAbs().maxCoeff();
        fit->row_scale[static_cast<size_t>(i)] = static_cast<float>(largest / 127);
        for (Eigen::Index j = 0; j < n; ++j) {
            const auto step = static_cast<int8_t>(std::lround(u(i, j) / largest * 127));
            fit->matrix[static_cast<size_t>(key ? j * n + i : i * n + j)] = step;
            u(i, j) = static_cast<double>(step) *
                      static_cast<double>(fit->row_scale[static_cast<size_t>(i)]);  // from here on as it is stored
        }
    }
    const Vector weight = (u * metric * u.transpose()).diagonal();
    // Tiles hold z = U^-T x, which readers turn back by U^T exactly (kvaq/quant/transform.h).
    if (with_matrix) u = u.transpose().inverse().eval();
    const Vector offset = u * mu;
    const Vector variance = (u * covariance * u.transpose()).diagonal();

    // Centred samples, every token divided by its gain. The variances of the whole text fix the first scale; the samples' own the last.
    Matrix z(n, static_cast<Eigen::Index>(n_tokens));
    for (size_t t = 0; t < n_tokens; ++t) {
        Vector x(n);
        for (size_t c = 0; c < dim; ++c) x[static_cast<Eigen::Index>(c)] = static_cast<double>(rows[t * dim + c]);
        z.col(static_cast<Eigen::Index>(t)) = u * x - offset;
    }
    Vector sigma = variance.cwiseMax(1e-20).cwiseSqrt();
    Eigen::RowVectorXd gain;
    for (int round = 0; round < 3; ++round) {
        gain = (z.array().colwise() / sigma.array()).square().colwise().mean().sqrt().max(1e-6).matrix();
        sigma = (z.array().rowwise() / gain.array()).square().rowwise().mean().sqrt().max(1e-10).matrix();
    }
    fit->scale.resize(dim);
    fit->offset.resize(dim);
    for (size_t i = 0; i < dim; ++i) {
        fit->scale[i] = static_cast<float>(sigma[static_cast<Eigen::Index>(i)] / static_cast<double>(kLevelsPerSigma));
        fit->offset[i] = static_cast<float>(offset[static_cast<Eigen::Index>(i)]);
    }
    std::vector<float> pooled;
    pooled.reserve(dim * n_tokens);
    for (Eigen::Index t = 0; t < z.cols(); ++t) {
        for (Eigen::Index i = 0; i < n; ++i)
            pooled.push_back(static_cast<float>(z(i, t) / (gain[t] * sigma[i]) * static_cast<double>(kLevelsPerSigma)));
    }
    std::sort(pooled.begin(), pooled.end());
    std::vector<double> prefix(pooled.size() + 1, 0.0);
    for (size_t i = 0; i < pooled.size(); ++i) prefix[i + 1] = prefix[i] + static_cast<double>(pooled[i]);
    for (size_t b = 1; b < fit->levels.size(); ++b) fit->levels[b] = lloyd_max(pooled, prefix, size_t{1} << b);

    FittedTransform out;
    out.cost.resize(dim);
    for (Eigen::Index i = 0; i < n; ++i) {
        std::array<double, 9>& cost = out.cost[static_cast<size_t>(i)];
        cost.fill(0);
        for (Eigen::Index t = 0; t < z.cols(); ++t) {
            cost[0] += z(i, t) * z(i, t);
            const double step = gain[t] * static_cast<double>(fit->scale[static_cast<size_t>(i)]);
            const double v = z(i, t) / step;
            for (const int bits : kBits) {
                const auto wide = static_cast<double>(kWideStep);
                const double level = bits == 8 ? wide * std::clamp(std::nearbyint(v / wide), -128.0, 127.0)
                                               : nearest(fit->levels[static_cast<size_t>(bits)], v);
                cost[static_cast<size_t>(bits)] += (v - level) * (v - level) * step * step;
            }
        }
        for (double& c : cost) c *= weight[i] / static_cast<double>(n_tokens);
    }
    out.trellis_cost = trellis_squared_errors(z, sigma, gain, side);
    for (size_t i = 0; i < dim; ++i) {
        for (double& c : out.trellis_cost[i]) c *= weight[static_cast<Eigen::Index>(i)];
        out.trellis_cost[i][0] = out.cost[i][0];
        out.trellis_cost[i][8] = out.cost[i][8];
    }
    out.fit = std::move(fit);
    return out;
}

namespace {

struct FitJob {
    const HeadStats* head;
    Side side;
};

/// By all processors.
std::vector<FittedTransform> fit_heads(const ModelStats& stats, const std::vector<Side>& sides, KeyBasis basis) {
    if (stats.n_sample_tiles == 0)
        throw Error(ErrorCode::kInvalidArgument, "the statistics hold no sample tiles", "a longer calibration text",
                    "none");
    std::vector<FitJob> jobs;
    for (const LayerStats& layer : stats.layers) {
        for (const Side side : sides) {
            for (const HeadStats& head : layer.heads) jobs.push_back({&head, side});
        }
    }
    std::vector<FittedTransform> fits(jobs.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1))
            fits[i] = fit_transform(*jobs[i].head, jobs[i].side, stats.n_sample_tiles, basis);
    };
    std::vector<std::jthread> helpers;
    for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) helpers.emplace_back(work);
    work();
    helpers.clear();
    return fits;
}

}  // namespace

std::vector<FittedTransform> fit_all(const ModelStats& stats, KeyBasis keys) {
    return fit_heads(stats, {Side::kKey, Side::kValue}, keys);
}

std::vector<FittedTransform> fit_sorted_keys(const ModelStats& stats) {
    return fit_heads(stats, {Side::kKey}, KeyBasis::kSorted);
}

std::shared_ptr<const TransformCodec> fitted_codec(const FittedTransform& fitted, std::vector<uint8_t> unit_bits,
                                                   TransformCodes codes) {
    return FittedCodecs(fitted).codec(std::move(unit_bits), codes);
}

std::shared_ptr<const TransformCodec> FittedCodecs::codec(std::vector<uint8_t> unit_bits, TransformCodes codes) {
    const auto n_wide = static_cast<size_t>(std::count(unit_bits.begin(), unit_bits.end(), uint8_t{8}));
    if (fits_.size() <= n_wide) fits_.resize(n_wide + 1);
    if (fits_[n_wide] == nullptr) {
        TransformFit wide = *fits_[0];
        const size_t n_channels = std::min(n_wide * transform_unit(wide.side), wide.dim);
        for (size_t i = 0; i < n_channels; ++i) wide.scale[i] *= kWideStep;
        fits_[n_wide] = std::make_shared<const TransformFit>(std::move(wide));
    }
    return make_transform_codec(fits_[n_wide], std::move(unit_bits), codes);
}

TransformChoice rung_at(const FittedTransform& fitted, double bits, TransformCodes codes) {
    const size_t unit = transform_unit(fitted.fit->side);
    const auto mean_bits = [&](const TransformChoice& rung) {
        double sum = 0;
        for (size_t i = 0; i < fitted.fit->dim; ++i) sum += rung.unit_bits[i / unit];
        return sum / static_cast<double>(fitted.fit->dim);
    };
    TransformChoice best;
    for (TransformChoice& rung : transform_ladder(fitted, codes)) {
        if (!best.unit_bits.empty() && mean_bits(rung) > bits + 1e-9) break;
        best = std::move(rung);
    }
    return best;
}

std::vector<TransformChoice> transform_ladder(const FittedTransform& fitted, TransformCodes codes) {
    const size_t unit = transform_unit(fitted.fit->side);
    const size_t dim = fitted.fit->dim;
    const size_t n_units = (dim + unit - 1) / unit;
    std::vector<std::array<double, 9>> cost(n_units);
    for (std::array<double, 9>& c : cost) c.fill(0);
    for (size_t i = 0; i < dim; ++i) {
        for (size_t b = 0; b < 9; ++b)
            cost[i / unit][b] += (codes == TransformCodes::kTrellis ? fitted.trellis_cost : fitted.cost)[i][b];
    }
    TransformChoice now{.unit_bits = std::vector<uint8_t>(n_units, 0), .cost = 0};
    for (const std::array<double, 9>& c : cost) now.cost += c[0];
    std::vector<TransformChoice> ladder = {now};
    const auto bits_of = [&](const TransformChoice& choice) {
        return static_cast<double>(std::accumulate(choice.unit_bits.begin(), choice.unit_bits.end(), 0)) /
               static_cast<double>(n_units);
    };
    while (true) {
        double steepest = -1;
        size_t which = 0;
        uint8_t to = 0;
        for (size_t i = 0; i < n_units; ++i) {
            const size_t at = now.unit_bits[i];
            const size_t limit = i == 0 ? 8 : now.unit_bits[i - 1];
            for (const int bits : kBits) {
                const auto b = static_cast<size_t>(bits);
                if (b <= at || b > limit) continue;
                const double slope = (cost[i][at] - cost[i][b]) / static_cast<double>(b - at);
                if (slope > steepest) {
                    steepest = slope;
                    which = i;
                    to = static_cast<uint8_t>(b);
                }
            }
        }
        if (steepest < 0) break;
        now.cost += cost[which][to] - cost[which][now.unit_bits[which]];
        now.unit_bits[which] = to;
        if (bits_of(now) - bits_of(ladder.back()) >= 1.0 / 16 || bits_of(now) >= 8) ladder.push_back(now);
    }
    return ladder;
}

}  // namespace kvaq
