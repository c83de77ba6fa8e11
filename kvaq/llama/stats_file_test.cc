#include "kvaq/llama/stats_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/stats/stats_samples.h"

namespace kvaq {
namespace {

constexpr size_t kDim = 32;

ModelStats sample_stats() {
    ModelStats stats;
    stats.architecture = "llama";
    stats.model_name = "sample";
    stats.fingerprint = std::string(64, 'a');
    stats.text_sha256 = std::string(64, 'b');
    stats.settings = "some";
    stats.n_tokens = 4096;
    stats.n_sample_tiles = kSampleTiles;
    stats.probe_bits = 1;
    stats.base_bits = 3;
    stats.base_kl = 0.05;
    stats.joint_floor = 0.003;
    stats.joint = {{.key_bits = 3, .value_bits = 16, .window = 0, .kl = 0.1},
                   {.key_bits = 3, .value_bits = 3, .window = 64, .kl = 0.08}};
    stats.lengths = {{.n_ctx = 4096, .short_ctx = 2048, .kl = 0.2, .short_kl = 0.1}};
    LayerStats layer;
    layer.shape = {
        .layer = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim_k = kDim, .head_dim_v = kDim, .sliding_window = 512};
    layer.heads = {correlated_head(kDim, 1), correlated_head(kDim, 2)};
    layer.probe = {.key_kl = 0.2, .value_kl = -0.001};
    layer.rope = {.interleaved = true, .first_channel = 4, .n_dims = 4, .frequencies = {1.0, 0.0125}};
    stats.key_period = 256;
    stats.layers.push_back(std::move(layer));
    return stats;
}

std::string temporary(const char* name) { return (std::filesystem::temp_directory_path() / name).string(); }

TEST(StatsFile, ComesBackAsItWas) {
    const ModelStats stats = sample_stats();
    const std::string path = temporary("kvaq-stats-file-test.gguf");
    write_stats(stats, path);
    const ModelStats back = read_stats(path);
    EXPECT_EQ(back.settings, stats.settings);
    EXPECT_EQ(back.n_tokens, stats.n_tokens);
    EXPECT_EQ(back.base_kl, stats.base_kl);
    ASSERT_EQ(back.joint.size(), 2U);
    EXPECT_EQ(back.joint[1].window, 64);
    EXPECT_EQ(back.joint[1].kl, 0.08);
    ASSERT_EQ(back.lengths.size(), 1U);
    EXPECT_EQ(back.lengths[0].n_ctx, 4096);
    EXPECT_EQ(back.lengths[0].short_ctx, 2048);
    EXPECT_EQ(back.lengths[0].kl, 0.2);
    EXPECT_EQ(back.lengths[0].short_kl, 0.1);
    ASSERT_EQ(back.layers.size(), 1U);
    EXPECT_EQ(back.layers[0].shape, stats.layers[0].shape);
    EXPECT_EQ(back.layers[0].probe.value_kl, -0.001);
    EXPECT_EQ(back.layers[0].rope, stats.layers[0].rope);
    EXPECT_EQ(back.key_period, 256);
    for (size_t h = 0; h < 2; ++h) {
        const HeadStats& a = stats.layers[0].heads[h];
        const HeadStats& b = back.layers[0].heads[h];
        EXPECT_EQ(a.key_second, b.key_second);
        EXPECT_EQ(a.value_second, b.value_second);
        EXPECT_EQ(a.query_second, b.query_second);
        EXPECT_EQ(a.key_metric, b.key_metric);
        EXPECT_EQ(a.value_metric, b.value_metric);
        EXPECT_EQ(a.key_mean, b.key_mean);
        EXPECT_EQ(a.value_mean, b.value_mean);
        EXPECT_EQ(a.key_tiles.size(), b.key_tiles.size());
        EXPECT_TRUE(std::equal(a.value_tiles.begin(), a.value_tiles.end(), b.value_tiles.begin(), b.value_tiles.end()));
    }
    std::filesystem::remove(path);
}

TEST(StatsFile, RefusesNonsenseByName) {
    const std::string path = temporary("kvaq-stats-file-bad-test.gguf");
    const auto refusal = [&](const ModelStats& stats) {
        write_stats(stats, path);
        try {
            (void)read_stats(path);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    ModelStats stats = sample_stats();
    stats.joint[1].kl = std::numeric_limits<double>::quiet_NaN();
    EXPECT_NE(refusal(stats).find("joint probe 1"), std::string::npos);
    stats = sample_stats();
    stats.lengths[0].n_ctx = 1024;
    EXPECT_NE(refusal(stats).find("length probe 0"), std::string::npos);
    stats = sample_stats();
    stats.layers[0].rope.first_channel = kDim - 2;
    EXPECT_NE(refusal(stats).find("channels of a head of 32"), std::string::npos);
    stats = sample_stats();
    stats.layers[0].rope.frequencies[1] = std::numeric_limits<double>::infinity();
    EXPECT_NE(refusal(stats).find("frequencies of at most"), std::string::npos);
    stats = sample_stats();
    stats.layers[0].heads[1].key_metric.pop_back();
    EXPECT_NE(refusal(stats).find("k_metric"), std::string::npos);
    std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
    EXPECT_THROW((void)read_stats(path), Error);
    std::filesystem::remove(path);
}

TEST(StatsFile, NoticesEveryChangedBitAndEveryTruncation) {
    ModelStats stats = sample_stats();
    stats.layers[0].heads.resize(1);
    stats.layers[0].shape.n_kv_heads = 1;
    const std::string path = temporary("kvaq-stats-file-flip-test.gguf");
    write_stats(stats, path);
    const std::vector<std::byte> good = read_file(path);
    const auto refused = [&](std::span<const std::byte> bytes) {
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        try {
            (void)read_stats(path);
        } catch (const Error& error) {
            EXPECT_TRUE(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kMismatch) << error.what();
            return true;
        }
        return false;
    };
    testing::internal::CaptureStderr();
    std::mt19937 random(20261126);
    for (size_t i = 0; i < 1500; ++i) {
        std::vector<std::byte> bad = good;
        const size_t at = i < 500 ? i * 7 % 3500 : random() % good.size();  // the header, then anywhere
        bad[at] ^= static_cast<std::byte>(1U << random() % 8);
        EXPECT_TRUE(refused(bad)) << "byte " << at;
    }
    for (size_t i = 0; i < 500; ++i) {
        const size_t n = i < 200 ? i * 17 : i < 240 ? good.size() - 1 - (i - 200) : random() % good.size();
        EXPECT_TRUE(refused(std::span(good).first(std::min(n, good.size() - 1)))) << n << " bytes";
    }
    (void)testing::internal::GetCapturedStderr();
    EXPECT_FALSE(refused(good));
    std::filesystem::remove(path);
}

}  // namespace
}  // namespace kvaq
