#include "kvaq/llama/gguf_model.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/llama/estimate.h"
#include "kvaq/llama/gguf_file.h"

namespace kvaq {
namespace {

class GgufModel : public testing::Test {
  protected:
    GgufModel() {
        char name[] = "/tmp/kvaq_gguf_test_XXXXXX";
        folder_ = ::mkdtemp(name);
    }
    ~GgufModel() override { std::filesystem::remove_all(folder_); }
    [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
    /// Without atomic_write's fsync: thousands of broken files are written.
    static void put(const std::string& path, std::span<const std::byte> bytes) {
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }

    /// A model file's header with the keys every language model has; `more` adds or overrides.
    template <typename More>
    ModelShape shape_of(const std::string& arch, uint32_t n_layers, const More& more) {
        GgufWriter file;
        file.set("general.architecture", arch);
        file.set("general.name", std::string("made up"));
        file.set(arch + ".context_length", uint32_t{4096});
        file.set(arch + ".block_count", n_layers);
        file.set(arch + ".embedding_length", uint32_t{512});
        file.set(arch + ".attention.head_count", uint32_t{8});
        file.set(arch + ".attention.head_count_kv", uint32_t{2});
        more(file);
        file.add_tensor("token_embd.weight", weights_);
        file.write(path("m.gguf"));
        return read_model_shape(path("m.gguf"));
    }
    ModelShape shape_of(const std::string& arch, uint32_t n_layers) {
        return shape_of(arch, n_layers, [](GgufWriter&) {});
    }
    /// The last two read another layer's cache.
    static void gemma4_of_six_layers(GgufWriter& file) {
        file.set("gemma4.attention.sliding_window", uint32_t{512});
        file.set("gemma4.attention.sliding_window_pattern", std::vector<int32_t>{1, 1, 0, 1, 1, 0});
        file.set("gemma4.attention.shared_kv_layers", uint32_t{2});
        file.set("gemma4.attention.key_length", uint32_t{512});
        file.set("gemma4.attention.key_length_swa", uint32_t{256});
    }
    static std::string windows(const ModelShape& shape) {
        std::string text;
        for (const LayerShape& layer : shape.layers) text += layer.sliding_window > 0 ? 's' : 'F';
        return text;
    }
    template <typename Call>
    static ErrorCode code_of(const Call& call, std::string* what = nullptr) {
        try {
            call();
        } catch (const Error& error) {
            if (what != nullptr) *what = error.what();
            return error.code();
        }
        ADD_FAILURE() << "no Error";
        return ErrorCode::kIo;
    }

    std::string folder_;
    std::vector<float> weights_ = std::vector<float>(3000, 0.5F);
};

TEST_F(GgufModel, ReadsTheShapeOfSmolLm2) {
    const ModelShape shape = read_model_shape(KVAQ_MODEL);
    EXPECT_EQ(shape.architecture, "llama");
    EXPECT_EQ(shape.n_ctx_train, 8192);
    ASSERT_EQ(shape.layers.size(), 30U);
    for (int32_t i = 0; i < 30; ++i) {
        EXPECT_EQ(shape.layers[static_cast<size_t>(i)],
                  (LayerShape{.layer = i, .n_heads = 9, .n_kv_heads = 3, .head_dim_k = 64, .head_dim_v = 64}));
    }
    EXPECT_EQ(shape.fingerprint.size(), 64U);
    EXPECT_EQ(shape.fingerprint, model_fingerprint(KVAQ_MODEL));
}

TEST_F(GgufModel, ReadsHeadsPerLayerAndSkipsLayersWithoutAttention) {
    const ModelShape shape = shape_of("deci", 4, [](GgufWriter& file) {
        file.set("deci.attention.head_count", std::vector<int32_t>{8, 0, 8, 4});
        file.set("deci.attention.head_count_kv", std::vector<int32_t>{2, 0, 0, 4});
        file.set("deci.attention.key_length", uint32_t{128});
    });
    ASSERT_EQ(shape.layers.size(), 2U);
    EXPECT_EQ(shape.layers[0],
              (LayerShape{.layer = 0, .n_heads = 8, .n_kv_heads = 2, .head_dim_k = 128, .head_dim_v = 64}));
    EXPECT_EQ(shape.layers[1],
              (LayerShape{.layer = 3, .n_heads = 4, .n_kv_heads = 4, .head_dim_k = 128, .head_dim_v = 64}));
}

TEST_F(GgufModel, KnowsTheSlidingPatternOfEachArchitecture) {
    const auto window = [](const char* arch) {
        return [arch](GgufWriter& file) { file.set(std::string(arch) + ".attention.sliding_window", uint32_t{512}); };
    };
    EXPECT_EQ(windows(shape_of("gemma2", 4)), "sFsF");
    EXPECT_EQ(windows(shape_of("gemma3", 12, window("gemma3"))), "sssssFsssssF");
    EXPECT_EQ(windows(shape_of("gemma3", 4)), "FFFF");
    EXPECT_EQ(windows(shape_of("cohere2", 5, window("cohere2"))), "sssFs");
    EXPECT_EQ(windows(shape_of("gpt-oss", 4, window("gpt-oss"))), "sFsF");
    EXPECT_EQ(windows(shape_of("olmo2", 4, window("olmo2"))), "sssF");
    EXPECT_EQ(windows(shape_of("smallthinker", 5, window("smallthinker"))), "FsssF");
    EXPECT_EQ(windows(shape_of("phi3", 3, window("phi3"))), "FFF") << "disabled in llama.cpp";
    EXPECT_EQ(windows(shape_of("qwen2", 3, window("qwen2"))), "FFF") << "ignored by llama.cpp";
    EXPECT_EQ(shape_of("llama4", 4).layers[0].sliding_window, 8192);
    EXPECT_EQ(shape_of("gemma2", 4).layers[0].sliding_window, 4096);
    EXPECT_EQ(shape_of("gemma3", 6, window("gemma3")).layers[0].sliding_window, 512);
    EXPECT_EQ(windows(shape_of("gemma3", 4,
                               [&](GgufWriter& file) {
                                   window("gemma3")(file);
                                   file.set("gemma3.attention.sliding_window_pattern", uint32_t{2});
                               })),
              "sFsF");
    EXPECT_EQ(windows(shape_of("mimo2", 4,
                               [&](GgufWriter& file) {
                                   window("mimo2")(file);
                                   file.set("mimo2.attention.sliding_window_pattern", std::vector<int32_t>{0, 1, 1, 0});
                               })),
              "FssF");
    EXPECT_EQ(code_of([&] { (void)shape_of("mimo2", 4, window("mimo2")); }), ErrorCode::kCorrupt);
}

TEST_F(GgufModel, ListsOnlyLayersThatOwnACache) {
    const ModelShape gemma3n =
        shape_of("gemma3n", 30, [](GgufWriter& file) { file.set("gemma3n.attention.sliding_window", uint32_t{512}); });
    EXPECT_EQ(gemma3n.layers.size(), 20U);
    const ModelShape gemma4 = shape_of("gemma4", 6, gemma4_of_six_layers);
    ASSERT_EQ(gemma4.layers.size(), 4U);
    EXPECT_EQ(gemma4.layers[0].head_dim_k, 256U);
    EXPECT_EQ(gemma4.layers[2].head_dim_k, 512U);
    const ModelShape mtp =
        shape_of("glm4moe", 5, [](GgufWriter& file) { file.set("glm4moe.nextn_predict_layers", uint32_t{1}); });
    EXPECT_EQ(mtp.layers.size(), 4U);
    const ModelShape looped =
        shape_of("nanbeige", 3, [](GgufWriter& file) { file.set("nanbeige.num_loops", uint32_t{2}); });
    EXPECT_EQ(looped.layers.size(), 6U);
    EXPECT_EQ(looped.layers[5].layer, 5);
}

// Two of six layers read another layer's K and V and have no bytes; one of the others keeps everything, three a window.
TEST_F(GgufModel, LayersThatReadAnothersCacheTakeNoBytes) {
    const ModelShape shape = shape_of("gemma4", 6, [](GgufWriter& file) {
        gemma4_of_six_layers(file);
        file.set("gemma4.attention.value_length", uint32_t{512});
        file.set("gemma4.attention.value_length_swa", uint32_t{256});
    });
    EstimateRequest request;
    request.model = path("m.gguf");
    request.plans = {"k4v4"};
    request.n_ctx = 4096;
    request.swa_full = true;
    constexpr size_t kWidth = 2 * (512 + 3 * 256);  // KV heads x channels of all layers, of one side
    const Estimate whole = estimate(request);
    ASSERT_EQ(whole.plans.size(), 1U);
    ASSERT_EQ(whole.plans[0].bytes.layers.size(), 4U);
    EXPECT_EQ(whole.llama[0].bytes, 4096 * kWidth * 2 * 2);
    EXPECT_EQ(whole.plans[0].bytes.elements, 2 * 2 * (512 * 4096 + 3 * 256 * 512)) << "windows hold 512";
    EXPECT_EQ(whole.plans[0].bytes.total, 4096 * kWidth * 2 * 9 / 16) << "whole pages, all sealed: 4.5 bits an element";
    request.swa_full = false;
    EXPECT_LT(estimate(request).plans[0].bytes.total, whole.plans[0].bytes.total);
    EXPECT_TRUE(shape.shares_layers);
}

TEST_F(GgufModel, RefusesByNameWhatHasNoPlainCache) {
    std::string what;
    const auto refused = [&](const std::string& arch, const auto& more) {
        return code_of([&] { (void)shape_of(arch, 4, more); }, &what) == ErrorCode::kUnsupported;
    };
    const auto nothing = [](GgufWriter&) {};
    EXPECT_TRUE(refused("mamba2", nothing));
    EXPECT_NE(what.find("mamba2"), std::string::npos);
    EXPECT_NE(what.find("recurrent"), std::string::npos);
    EXPECT_TRUE(refused("jamba", nothing));
    EXPECT_TRUE(refused("bert", nothing));
    EXPECT_NE(what.find("encoder"), std::string::npos);
    EXPECT_TRUE(refused("t5", nothing));
    EXPECT_TRUE(refused("llada", nothing));
    EXPECT_TRUE(refused("made-up-arch", nothing));
    EXPECT_TRUE(
        refused("deepseek2", [](GgufWriter& file) { file.set("deepseek2.attention.kv_lora_rank", uint32_t{512}); }));
    EXPECT_NE(what.find("MLA"), std::string::npos);
    EXPECT_TRUE(refused("llama", [](GgufWriter& file) { file.set("llama.ssm.state_size", uint32_t{16}); }));
    EXPECT_TRUE(refused("llama", [](GgufWriter& file) { file.set("llama.attention.key_length", uint32_t{60}); }));
    EXPECT_NE(what.find("60"), std::string::npos);
    EXPECT_FALSE(HasFailure());
}

TEST_F(GgufModel, SaysHowManyBytesATruncatedFileLacks) {
    (void)shape_of("llama", 2);
    std::vector<std::byte> bytes = read_file(path("m.gguf"));
    const size_t full = bytes.size();
    std::string what;
    for (const size_t cut :
         {full - 4000, size_t{700}, size_t{300}, size_t{100}, size_t{20}, size_t{5}, size_t{3}, size_t{0}}) {
        atomic_write(path("cut.gguf"), std::span(bytes).first(cut));
        EXPECT_EQ(code_of([&] { (void)read_model_shape(path("cut.gguf")); }, &what), ErrorCode::kCorrupt) << cut;
        EXPECT_NE(what.find(std::to_string(cut) + " bytes"), std::string::npos) << what;
    }
    atomic_write(path("cut.gguf"), std::span(bytes).first(full - 4000));
    (void)code_of([&] { (void)read_model_shape(path("cut.gguf")); }, &what);
    EXPECT_NE(what.find("truncated: wanted "), std::string::npos) << what;
    EXPECT_EQ(code_of([&] { (void)read_model_shape(path("none.gguf")); }), ErrorCode::kNotFound);
    const std::string text = "this is not a model, it is a text of some length";
    atomic_write(path("text.gguf"), std::as_bytes(std::span(text)));
    EXPECT_EQ(code_of([&] { (void)read_model_shape(path("text.gguf")); }, &what), ErrorCode::kCorrupt);
    EXPECT_NE(what.find("not a GGUF file"), std::string::npos) << what;
}

TEST_F(GgufModel, SurvivesEveryFlippedByteOfTheHeader) {
    (void)shape_of("gemma3", 6, [](GgufWriter& file) { file.set("gemma3.attention.sliding_window", uint32_t{512}); });
    const std::vector<std::byte> bytes = read_file(path("m.gguf"));
    testing::internal::CaptureStderr();  // ggml tells every broken header there
    for (size_t i = 4; i < bytes.size() - 12000; ++i) {
        for (const int flip : {0x01, 0x80, 0xFF}) {
            std::vector<std::byte> broken = bytes;
            broken[i] ^= static_cast<std::byte>(flip);
            put(path("broken.gguf"), broken);
            try {
                const ModelShape shape = read_model_shape(path("broken.gguf"));
                EXPECT_LE(shape.layers.size(), 512U);
            } catch (const Error&) {
            }
        }
    }
    (void)testing::internal::GetCapturedStderr();
}

TEST_F(GgufModel, FingerprintSeesMetadataAndEveryTensor) {
    weights_.resize(100000, 0.5F);
    const std::string first = shape_of("llama", 2).fingerprint;
    EXPECT_EQ(shape_of("llama", 2).fingerprint, first) << "the same file gives the same fingerprint";
    EXPECT_NE(shape_of("llama", 3).fingerprint, first);
    weights_.back() = 0.25F;
    EXPECT_NE(shape_of("llama", 2).fingerprint, first);
    weights_.back() = 0.5F;
    weights_.front() = 0.25F;
    EXPECT_NE(shape_of("llama", 2).fingerprint, first);
}

}  // namespace
}  // namespace kvaq
