#include "kvaq/llama/weight_norms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/llama/gguf_file.h"

namespace kvaq {
namespace {

namespace fs = std::filesystem;

void expect_agrees_with_numpy(const std::string& model) {
    std::ifstream file(std::string(KVAQ_DATA_DIR) + "/weight_norms.json");
    const nlohmann::json golden = nlohmann::json::parse(file).at("models").at(fs::path(model).filename().string());
    const WeightNorms norms = read_weight_norms(model);
    ASSERT_EQ(norms.layers.size(), golden.at("w_k_frobenius").size());
    EXPECT_EQ(norms.qk_norm, golden.at("qk_norm").get<bool>());
    EXPECT_EQ(has_qk_norm(model), norms.qk_norm);
    for (size_t i = 0; i < norms.layers.size(); ++i) {
        const LayerWeightNorms& own = norms.layers[i];
        const auto near = [&](double value, const char* key) {
            const double wanted = golden.at(key).at(i).get<double>();
            EXPECT_NEAR(value, wanted, 1e-4 * wanted) << key << " of layer " << i;
        };
        near(own.key_frobenius, "w_k_frobenius");
        near(own.value_frobenius, "w_v_frobenius");
        near(own.key_spectral, "w_k_spectral");
        near(own.value_spectral, "w_v_spectral");
    }
}

TEST(WeightNorms, OfSmolLM2AgreeWithNumpy) { expect_agrees_with_numpy(KVAQ_MODEL); }

TEST(WeightNorms, OfGemma3AgreeWithNumpyAndItsQkNormIsSeen) {
    const fs::path gemma = fs::path(KVAQ_MODEL).parent_path() / "gemma-3-270m-q4_k_m.gguf";
    if (!fs::exists(gemma)) GTEST_SKIP() << "no " << gemma << " (scripts/fetch_gemma.sh brings it)";
    expect_agrees_with_numpy(gemma.string());
    EXPECT_TRUE(has_qk_norm(gemma.string()));
}

class MadeUpModel : public testing::Test {
  protected:
    MadeUpModel() {
        char name[] = "/tmp/kvaq_norms_test_XXXXXX";
        folder_ = ::mkdtemp(name);
        path_ = folder_ + "/m.gguf";
        file_.set("general.architecture", std::string("llama"));
        file_.set("llama.context_length", uint32_t{64});
        file_.set("llama.block_count", uint32_t{1});
        file_.set("llama.embedding_length", uint32_t{32});
        file_.set("llama.attention.head_count", uint32_t{4});
        file_.set("llama.attention.head_count_kv", uint32_t{2});
    }
    ~MadeUpModel() override { fs::remove_all(folder_); }

    std::string folder_, path_;
    GgufWriter file_;
};

TEST_F(MadeUpModel, FusedTensorsAreSplitIntoQThenKThenV) {
    // 64 rows of 32 columns: Q 32 rows of 9 (they must not count), K 16 rows with one 2 each on a diagonal, V rank one
    // of 3s.
    std::vector<float> fused(64 * 32, 0.0F);
    std::fill_n(fused.begin(), 32 * 32, 9.0F);
    for (size_t i = 0; i < 16; ++i) fused[(32 + i) * 32 + i] = i == 5 ? -7.0F : 2.0F;
    std::fill_n(fused.begin() + 48 * 32, 16 * 32, 3.0F);
    file_.add_tensor("blk.0.attn_qkv.weight", fused);
    file_.write(path_);
    const WeightNorms norms = read_weight_norms(path_);
    ASSERT_EQ(norms.layers.size(), 1U);
    EXPECT_NEAR(norms.layers[0].key_frobenius, std::sqrt(15 * 4.0 + 49), 1e-12);
    EXPECT_NEAR(norms.layers[0].key_spectral, 7, 1e-12);
    EXPECT_NEAR(norms.layers[0].value_frobenius, 3 * std::sqrt(16.0 * 32), 1e-9);
    EXPECT_NEAR(norms.layers[0].value_spectral, 3 * std::sqrt(16.0 * 32), 1e-9);
    EXPECT_EQ(norms.layers[0].key_elements, 16U * 32);
    EXPECT_FALSE(norms.qk_norm);
    EXPECT_EQ(norms.of(NormScore::kSpectral).key[0], norms.layers[0].key_spectral);
    EXPECT_EQ(norms.of(NormScore::kFrobenius).value[0], norms.layers[0].value_frobenius);
}

TEST_F(MadeUpModel, WithoutSuchTensorsOrOfAnotherSizeIsRefusedByName) {
    const std::vector<float> odd(16 * 32 - 5, 1.0F);
    const std::vector<float> some(32, 1.0F);
    file_.add_tensor("token_embd.weight", some);
    file_.write(path_);
    try {
        (void)read_weight_norms(path_);
        ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
        EXPECT_NE(std::string(error.what()).find("attn_k.weight"), std::string::npos) << error.what();
    }
    file_.add_tensor("blk.0.attn_k.weight", odd);
    file_.write(path_);
    try {
        (void)read_weight_norms(path_);
        ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
        EXPECT_NE(std::string(error.what()).find("16 whole rows"), std::string::npos) << error.what();
    }
}

TEST_F(MadeUpModel, WithoutWeightsOfValuesTakesThoseOfKeys) {
    std::vector<float> key(16 * 32, 0.5F);
    file_.add_tensor("blk.0.attn_k.weight", key);
    const std::vector<float> norm(8, 1.0F);
    file_.add_tensor("blk.0.attn_k_norm.weight", norm);
    file_.write(path_);
    const WeightNorms norms = read_weight_norms(path_);
    EXPECT_TRUE(norms.layers[0].value_is_key);
    EXPECT_EQ(norms.layers[0].value_frobenius, norms.layers[0].key_frobenius);
    EXPECT_TRUE(norms.qk_norm);
}

}  // namespace
}  // namespace kvaq
