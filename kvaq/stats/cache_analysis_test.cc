#include "kvaq/stats/cache_analysis.h"

#include <gtest/gtest.h>

#include <cmath>
#include <eigen3/Eigen/SVD>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "kvaq/base/error.h"
#include "kvaq/stats/distortion.h"

namespace kvaq {
namespace {

/// Statistics of two layers with one KV head: random rows, of which the moments are exact; keys of layer 0 have an
/// outlier channel.
ModelStats made_up(std::vector<Eigen::MatrixXd>& matrices) {
    std::mt19937 random(9);
    std::normal_distribution<double> normal;
    constexpr size_t kRows = 128;
    constexpr size_t kDim = 64;
    ModelStats stats;
    stats.n_tokens = kRows;
    stats.n_sample_tiles = 2;
    for (int32_t layer = 0; layer < 2; ++layer) {
        HeadStats head;
        for (const Side side : {Side::kKey, Side::kValue}) {
            Eigen::MatrixXd x(kRows, kDim);
            std::vector<float16> tiles(kRows * kDim);
            for (size_t t = 0; t < kRows; ++t) {
                for (size_t c = 0; c < kDim; ++c) {
                    double value = normal(random) * (side == Side::kKey ? 4 : 1);
                    if (layer == 0 && side == Side::kKey && c == 7) value = 40 + value;
                    tiles[t * kDim + c] = static_cast<float16>(value);
                    x(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c)) =
                        static_cast<double>(tiles[t * kDim + c]);
                }
            }
            const Eigen::MatrixXd gram = x.transpose() * x / kRows;
            std::vector<double> second(gram.data(), gram.data() + gram.size());
            (side == Side::kKey ? head.key_second : head.value_second) = second;
            (side == Side::kKey ? head.key_mean : head.value_mean).assign(kDim, 0.0);
            (side == Side::kKey ? head.key_tiles : head.value_tiles) = tiles;
            matrices.push_back(x);
        }
        stats.layers.push_back({.shape = {.layer = layer,
                                          .n_heads = 1,
                                          .n_kv_heads = 1,
                                          .head_dim_k = kDim,
                                          .head_dim_v = kDim,
                                          .sliding_window = 0},
                                .heads = {head},
                                .probe = {}});
    }
    return stats;
}

TEST(CacheAnalysis, NormsAndSpectraAgreeWithADirectDecomposition) {
    std::vector<Eigen::MatrixXd> matrices;
    const CacheAnalysis analysis = analyze_cache(made_up(matrices), 8, 1);
    ASSERT_EQ(analysis.layers.size(), 2U);
    EXPECT_EQ(analysis.n_sample_tokens, 128U);
    for (size_t layer = 0; layer < 2; ++layer) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const Eigen::MatrixXd& x = matrices[layer * 2 + (side == Side::kKey ? 0 : 1)];
            const Eigen::VectorXd s = Eigen::JacobiSVD<Eigen::MatrixXd>(x).singularValues();
            const SideAnalysis& own = analysis.layers[layer].heads[0].side(side);
            ASSERT_EQ(own.spectrum.size(), 64U);
            for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(own.spectrum[i], s(static_cast<Eigen::Index>(i)), 1e-6 * s(0));
            EXPECT_NEAR(own.frobenius, x.norm(), 1e-9 * x.norm());
            EXPECT_NEAR(own.mean_square, x.squaredNorm() / static_cast<double>(x.size()), 1e-9 * own.mean_square);
            EXPECT_NEAR(own.first_four, s.head(4).squaredNorm() / s.squaredNorm(), 1e-9);
        }
    }
    // One channel of 40 beside 63 of size 4: almost rank one by energy.
    EXPECT_GT(analysis.layers[0].heads[0].key.first_four, 0.6);
    EXPECT_LT(analysis.layers[1].heads[0].key.first_four, 0.25);
    EXPECT_LT(analysis.layers[0].heads[0].key.rank, analysis.layers[1].heads[0].key.rank);
}

TEST(CacheAnalysis, ErrorsAreThoseOfTheCodecsAndTheBoundsHold) {
    std::vector<Eigen::MatrixXd> matrices;
    const ModelStats stats = made_up(matrices);
    const CacheAnalysis analysis = analyze_cache(stats, 8, 2);
    const HeadStats& head = stats.layers[1].heads[0];
    const HeadAnalysis& own = analysis.layers[1].heads[0];
    EXPECT_EQ(own.key.mse[2], quantization_mse({.bits = CodeBits::k4}, Side::kKey, head.key_tiles, 64, 64));
    EXPECT_EQ(own.value.mse_grouped[0],
              quantization_mse({.bits = CodeBits::k2, .group = 32}, Side::kValue, head.value_tiles, 64, 64));
    for (const LayerAnalysis& layer : analysis.layers) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const SideAnalysis& s = layer.heads[0].side(side);
            for (size_t i = 0; i + 1 < s.mse.size(); ++i) EXPECT_GT(s.mse[i], s.mse[i + 1]);
            EXPECT_LT(s.mse_grouped[0], s.mse_grouped[2]);
            ASSERT_EQ(s.bounds.size(), kStudyBits.size());
            for (const BoundCheck& check : s.bounds) EXPECT_TRUE(check.holds());
        }
    }
    // The outlier channel costs the unrotated keys of layer 0 dearly; without one rotation changes little.
    EXPECT_LT(analysis.layers[0].heads[0].key.mse_rotated[2], 0.6 * analysis.layers[0].heads[0].key.mse[2]);
    EXPECT_GT(analysis.layers[1].heads[0].key.mse_rotated[2], 0.8 * analysis.layers[1].heads[0].key.mse[2]);
    // Threads change nothing.
    EXPECT_EQ(analyze_cache(stats, 8, 1).layers[0].heads[0].key.mse, analysis.layers[0].heads[0].key.mse);
}

/// The rows of tests/golden/cache_analysis.py.
std::vector<float16> golden_rows(uint64_t seed, double scale, double outlier) {
    std::vector<float16> rows(128 * 64);
    uint64_t state = seed;
    for (size_t i = 0; i < rows.size(); ++i) {
        state = (state * 1103515245 + 12345) % (uint64_t{1} << 31);
        const double x = scale * (static_cast<double>(state >> 16) / 16384 - 1) + (i % 64 == 5 ? outlier : 0.0);
        rows[i] = static_cast<float16>(x);
    }
    return rows;
}

TEST(CacheAnalysis, AgreesWithNumpy) {
    std::ifstream file(std::string(KVAQ_DATA_DIR) + "/cache_analysis.json");
    const nlohmann::json golden = nlohmann::json::parse(file);
    HeadStats head;
    head.key_tiles = golden_rows(1, 4, 20);
    head.value_tiles = golden_rows(2, 1, 0);
    head.key_mean.assign(64, 0.0);
    head.value_mean.assign(64, 0.0);
    for (const Side side : {Side::kKey, Side::kValue}) {
        const std::vector<float16>& rows = side == Side::kKey ? head.key_tiles : head.value_tiles;
        std::vector<double>& second = side == Side::kKey ? head.key_second : head.value_second;
        second.assign(64 * 64, 0.0);
        for (size_t t = 0; t < 128; ++t) {
            for (size_t i = 0; i < 64; ++i) {
                for (size_t j = 0; j < 64; ++j)
                    second[i * 64 + j] +=
                        static_cast<double>(rows[t * 64 + i]) * static_cast<double>(rows[t * 64 + j]) / 128;
            }
        }
    }
    ModelStats stats;
    stats.n_tokens = 128;
    stats.n_sample_tiles = 2;
    stats.layers.push_back(
        {.shape = {.layer = 0, .n_heads = 1, .n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 64, .sliding_window = 0},
         .heads = {head},
         .probe = {}});
    const CacheAnalysis analysis = analyze_cache(stats, 2, 1);
    const auto near = [](double own, const nlohmann::json& wanted, const char* what) {
        EXPECT_NEAR(own, wanted.get<double>(), 1e-4 * wanted.get<double>()) << what;
    };
    for (const Side side : {Side::kKey, Side::kValue}) {
        SCOPED_TRACE(to_string(side));
        const SideAnalysis& own = analysis.layers[0].heads[0].side(side);
        const nlohmann::json& wanted = golden.at(side == Side::kKey ? "key" : "value");
        near(own.frobenius, wanted.at("frobenius"), "frobenius");
        near(own.rank, wanted.at("effective_rank"), "rank");
        for (size_t i = 0; i < 64; ++i) near(own.spectrum[i], wanted.at("singular_values")[i], "singular value");
        for (size_t i = 0; i < kStudyBits.size(); ++i) {
            near(own.mse[i], wanted.at("mse")[i], "mse");
            near(own.mse_rotated[i], wanted.at("mse_rotated")[i], "mse_rotated");
            near(own.bounds[i].error_spectral, wanted.at("bounds")[i][0], "error_spectral");
            near(own.bounds[i].error_frobenius, wanted.at("bounds")[i][1], "error_frobenius");
            near(own.bounds[i].bound_spectral, wanted.at("bounds")[i][2], "Theorem 3");
            near(own.bounds[i].bound_frobenius, wanted.at("bounds")[i][3], "Theorem 4");
        }
        for (size_t i = 0; i < kStudyGroups.size(); ++i)
            near(own.mse_grouped[i], wanted.at("mse_grouped")[i], "mse_grouped");
    }
}

TEST(CacheAnalysis, NeedsSampleTiles) {
    std::vector<Eigen::MatrixXd> matrices;
    ModelStats stats = made_up(matrices);
    stats.n_sample_tiles = 0;
    EXPECT_THROW((void)analyze_cache(stats, 8, 1), Error);
}

}  // namespace
}  // namespace kvaq
