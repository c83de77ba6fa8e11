#include "kvaq/plan/export.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/plan/import.h"

namespace kvaq {
namespace {

ModelShape model() {
    ModelShape shape{.architecture = "llama", .name = "made up", .fingerprint = "", .n_ctx_train = 4096, .layers = {}};
    for (int32_t i = 0; i < 3; ++i)
        shape.layers.push_back(
            {.layer = i, .n_heads = 4, .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64, .sliding_window = 0});
    return shape;
}
Plan uniform(const char* preset) { return make_uniform_plan(parse_preset(preset), model()); }
bool loses(const ExportedPlan& exported, const std::string& what) {
    for (const std::string& lost : exported.lost) {
        if (lost.find(what) != std::string::npos) return true;
    }
    return false;
}

TEST(Export, LlamaCppGetsTheNearestTypesInTrueBits) {
    EXPECT_EQ(export_plan(uniform("f16"), "llama.cpp").text, "--cache-type-k f16 --cache-type-v f16 --flash-attn on\n");
    EXPECT_TRUE(export_plan(uniform("f16"), "llama.cpp").lost.empty());
    // q8_0 here is 8.5 bits as there; k4v4 in groups of 32 is 5 bits with its zero point: q4_1.
    const ExportedPlan q8 = export_plan(uniform("q8_0"), "llama.cpp");
    EXPECT_EQ(q8.text, "--cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on\n");
    EXPECT_FALSE(loses(q8, "bits per element"));
    EXPECT_EQ(export_plan(uniform("k4v4-g32"), "llama.cpp").text,
              "--cache-type-k q4_1 --cache-type-v q4_1 --flash-attn on\n");
    const ExportedPlan low = export_plan(uniform("k4v2-rot-w32-s4"), "llama.cpp");
    EXPECT_EQ(low.text, "--cache-type-k q4_0 --cache-type-v q4_0 --flash-attn on\n");
    EXPECT_TRUE(loses(low, "values of 2.50 bits per element become q4_0"));
    EXPECT_TRUE(loses(low, "the cache grows"));
    EXPECT_TRUE(loses(low, "newest 32 tokens"));
    EXPECT_TRUE(loses(low, "first 4"));
    EXPECT_TRUE(loses(low, "rotation"));
    EXPECT_FALSE(loses(low, "choice per layer"));
}

TEST(Export, ServersGetTheirNearestTypeAndLayersLeftAlone) {
    Plan plan = uniform("k4v4");
    for (HeadPlan& head : plan.layers[1].heads) head = {};
    const ExportedPlan vllm = export_plan(plan, "vllm");
    EXPECT_EQ(vllm.text, "--kv-cache-dtype turboquant_4bit_nc --kv-cache-dtype-skip-layers 1\n");
    EXPECT_TRUE(loses(vllm, "choice per layer"));
    EXPECT_TRUE(loses(vllm, "first two"));
    EXPECT_EQ(export_plan(uniform("k8v4"), "vllm").text, "--kv-cache-dtype turboquant_k8v4\n");
    EXPECT_EQ(export_plan(uniform("f16"), "vllm").text, "--kv-cache-dtype auto\n");
    const ExportedPlan sglang = export_plan(uniform("k8v6"), "sglang");
    EXPECT_EQ(sglang.text, "--kv-cache-dtype fp8_e4m3\n");
    EXPECT_TRUE(loses(sglang, "one type for both"));
    EXPECT_TRUE(loses(export_plan(plan, "sglang"), "layers 1 in f16"));
    EXPECT_EQ(export_plan(uniform("k4v2"), "sglang").text, "--kv-cache-dtype fp4_e2m1\n");
}

TEST(Export, WhatTheImportReadsComesBack) {
    Plan plan = uniform("k4v2-g32");
    for (HeadPlan& head : plan.layers[1].heads) head.key.bits = CodeBits::k8;
    const ImportContext context{.what = "x",
                                .shape = model(),
                                .base = parse_preset("k4v4-g32"),
                                .budget = 0,
                                .group_budget = 0,
                                .qk_norm = false,
                                .weight_norms = {}};
    for (const char* format : {"kvtuner", "kvq"}) {
        const ExportedPlan exported = export_plan(plan, format);
        EXPECT_EQ(import_plan(exported.text, context).plan.layers, plan.layers) << exported.text;
        EXPECT_FALSE(exported.lost.empty());
    }
    plan.layers[2].heads[1].value.bits =
        CodeBits::k4;  // one head apart: KVTuner's form has heads, the authors' has not
    EXPECT_EQ(import_plan(export_plan(plan, "kvtuner").text, context).plan.layers, plan.layers);
    EXPECT_FALSE(loses(export_plan(plan, "kvtuner"), "per KV head"));
    const ExportedPlan kvq = export_plan(plan, "kvq");
    EXPECT_TRUE(loses(kvq, "the widest of a layer"));
    EXPECT_EQ(nlohmann::json::parse(kvq.text).at("nbits_v"), nlohmann::json({2, 2, 4}));
    const ExportedPlan odd = export_plan(uniform("k6v1.58"), "kvtuner");
    EXPECT_TRUE(loses(odd, "1.58 -> 2, 6 -> 8"));
    EXPECT_EQ(nlohmann::json::parse(export_plan(uniform("k6v1.58"), "kvq").text).at("nbits_v")[0], 1.58);
}

TEST(Export, JsonLosesNothingAndUnknownFormatsAreRefused) {
    EXPECT_TRUE(export_plan(uniform("k4v2"), "json").lost.empty());
    EXPECT_EQ(nlohmann::json::parse(export_plan(uniform("k4v2"), "json").text).at("layers").size(), 3U);
    try {
        (void)export_plan(uniform("k4v2"), "onnx");
        ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("kvtuner"), std::string::npos) << error.what();
    }
}

TEST(Export, ATransformCodecIsItsOwnBitsAndItsTransformIsLost) {
    const Plan plan = uniform("k3v5-lm");
    const ExportedPlan kvq = export_plan(plan, "kvq");
    EXPECT_EQ(nlohmann::json::parse(kvq.text).at("nbits_k"), (std::vector<int>{3, 3, 3}));
    EXPECT_EQ(nlohmann::json::parse(kvq.text).at("nbits_v"), (std::vector<int>{5, 5, 5}));
    EXPECT_TRUE(loses(kvq, "the transforms"));
    const ExportedPlan kvtuner = export_plan(plan, "kvtuner");
    EXPECT_NE(kvtuner.text.find("nbits_key: 4\n  nbits_value: 8\n"), std::string::npos) << kvtuner.text;
    EXPECT_TRUE(loses(kvtuner, "3 -> 4, 5 -> 8"));
}

}  // namespace
}  // namespace kvaq
