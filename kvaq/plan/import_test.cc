#include "kvaq/plan/import.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "kvaq/base/error.h"
#include "kvaq/plan/kvtuner_yaml.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

ModelShape model(size_t n_layers) {
    ModelShape shape{
        .architecture = "llama", .name = "made up", .fingerprint = "abc", .n_ctx_train = 4096, .layers = {}};
    for (size_t i = 0; i < n_layers; ++i) {
        shape.layers.push_back({.layer = static_cast<int32_t>(i),
                                .n_heads = 4,
                                .n_kv_heads = 2,
                                .head_dim_k = 64,
                                .head_dim_v = 64,
                                .sliding_window = 0});
    }
    return shape;
}

ImportContext context(size_t n_layers, const char* base = "k4v4") {
    return {.what = "x.json",
            .shape = model(n_layers),
            .base = parse_preset(base),
            .budget = 0,
            .group_budget = 0,
            .qk_norm = false,
            .weight_norms = {}};
}

std::string bits_of(const Plan& plan) {  // "4/2 4/2 ..." of head 0
    const auto text = [](const CodecSpec& codec) {
        return codec.transform == nullptr ? to_string(codec.bits)
                                          : std::to_string(std::lround(codec.transform->mean_bits()));
    };
    std::string out;
    for (const LayerPlan& layer : plan.layers)
        out += (out.empty() ? "" : " ") + text(layer.heads[0].key) + "/" + text(layer.heads[0].value);
    return out;
}

bool warned(const ImportedPlan& imported, const std::string& of) {
    for (const std::string& warning : imported.warnings) {
        if (warning.find(of) != std::string::npos) return true;
    }
    return false;
}

/// Expects an Error of that code whose message names every one of `things`.
void expect_error(const std::string& text, const ImportContext& ctx, ErrorCode code,
                  const std::vector<std::string>& things) {
    SCOPED_TRACE(text);
    try {
        (void)import_plan(text, ctx);
        ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), code) << error.what();
        for (const std::string& thing : things)
            EXPECT_NE(std::string(error.what()).find(thing), std::string::npos)
                << error.what() << "\nshould name " << thing;
    }
}

TEST(Import, AllocationsSetBitsAndGroupsPerLayerAndKeepTheRestOfTheBase) {
    const ImportedPlan bits =
        import_plan(R"({"nbits_k": [4, 6, 16], "nbits_v": [2, 1.58, 8]})", context(3, "k4v4-g32-rot-w16-s4"));
    EXPECT_EQ(bits_of(bits.plan), "4/2 6/1.58 16/8");
    EXPECT_EQ(to_string(bits.plan.layers[0].heads[1].key), "4b-g32-tok-asym-minmax-had");
    EXPECT_EQ(bits.plan.layers[2].heads[0].key, CodecSpec{});
    EXPECT_EQ(bits.plan.window, 16);
    EXPECT_EQ(bits.plan.sinks, 4);
    EXPECT_EQ(bits.plan.fingerprint, "abc");
    EXPECT_TRUE(bits.warnings.empty());
    EXPECT_EQ(bits_of(import_plan(R"({"nbits_k": 4, "nbits_v": 2})", context(3)).plan), "4/2 4/2 4/2");

    const ImportedPlan groups = import_plan(R"({"g_k": [32, 64], "g_v": [128, 256]})", context(2, "k4v2"));
    EXPECT_EQ(groups.plan.layers[0].heads[0].key.group, 32);
    EXPECT_EQ(groups.plan.layers[0].heads[0].value.group, 128);
    EXPECT_EQ(groups.plan.layers[1].heads[0].key.group, 64);
    EXPECT_EQ(groups.plan.layers[1].heads[0].value.group, 128);
    EXPECT_TRUE(warned(groups, "256"));
    EXPECT_EQ(bits_of(groups.plan), "4/2 4/2");
}

TEST(Import, WarnsOfWhatThePaperSaysGoesWrong) {
    const ImportedPlan bad = import_plan(R"({"nbits_k": [2, 4, 4, 4, 3.5], "nbits_v": [4, 1, 1, 1, 2]})", context(5));
    EXPECT_TRUE(warned(bad, "values of 1 bit in layers 1-3:"));
    EXPECT_TRUE(warned(bad, "fewer bits for keys than for values in layers 0:"));
    EXPECT_TRUE(warned(bad, "1 entries of 3.5 bits"));
    EXPECT_EQ(bits_of(bad.plan), "2/4 4/1 4/1 4/1 4/2");
    EXPECT_EQ(bad.warnings.size(), 3U);
    EXPECT_EQ(layer_list({0, 1, 2, 5, 7, 8}), "0-2, 5, 7, 8");
}

TEST(Import, BitsAreThoseOfTheFileWhateverTheBasesCodec) {
    for (const char* base : {"k4v4-tcq", "k4v4-lm", "k4v4-rot"}) {
        const ImportedPlan plan = import_plan(R"({"nbits_k": [4, 16, 3], "nbits_v": [2, 8, 1]})", context(3, base));
        EXPECT_EQ(bits_of(plan.plan), "4/2 16/8 3/1") << base;
        EXPECT_TRUE(warned(plan, "values of 1 bit in layers 2:")) << base;
        const bool gaussian = std::string(base) != "k4v4-rot";
        EXPECT_EQ(plan.plan.layers[0].heads[0].key.transform != nullptr, gaussian) << base;
        EXPECT_TRUE(plan.plan.layers[1].heads[0].key.is_float16()) << base;
    }
    expect_error(R"({"nbits_k": [1.58], "nbits_v": [2]})", context(1, "k4v4-tcq"), ErrorCode::kInvalidArgument,
                 {"1.58", "-tcq"});
    expect_error(R"({"g_k": [32], "g_v": [64]})", context(1, "k4v4-lm"), ErrorCode::kInvalidArgument,
                 {"group", "k4v4-rot"});
    // Rule and axis say nothing of codebooks: said, not silently dropped.
    const std::string config = R"({"nbits": 4, "backend": "hqq", "axis": 0})";
    EXPECT_TRUE(warned(import_plan(config, context(1, "k4v4-lm")), "backend and axis are left out"));
    EXPECT_FALSE(warned(import_plan(config, context(1, "k4v4-rot")), "backend and axis are left out"));
}

TEST(Import, TheAllocatorLeavesOutWidthsThatTheBaseDoesNotHave) {
    std::ostringstream text;
    text << std::ifstream(std::string(KVAQ_DATA_DIR) + "/norms/frobenius_norm/Llama3.2-1B-it.json").rdbuf();
    ImportContext ctx = context(16, "k4v4-rot");
    ctx.budget = 2;
    EXPECT_NE(bits_of(import_plan(text.str(), ctx).plan).find("1.58"), std::string::npos);
    ctx.base = parse_preset("k4v4-tcq");
    const ImportedPlan imported = import_plan(text.str(), ctx);
    EXPECT_EQ(bits_of(imported.plan).find("1.58"), std::string::npos);
    EXPECT_TRUE(warned(imported, "no 1.58 bits"));
}

TEST(Import, NormsBecomeTheAuthorsPlanAtABudget) {
    std::ostringstream text;
    text << std::ifstream(std::string(KVAQ_DATA_DIR) + "/norms/spectral_norm/Llama3.2-1B-it.json").rdbuf();
    ImportContext ctx = context(16);
    expect_error(text.str(), ctx, ErrorCode::kInvalidArgument, {"x.json", "budget"});
    ctx.budget = 4;
    ctx.group_budget = 64;
    const ImportedPlan imported = import_plan(text.str(), ctx);
    EXPECT_EQ(bits_of(imported.plan), "6/2 6/2 4/2 6/2 6/2 6/2 6/2 6/2 6/2 6/2 6/2 6/2 6/2 6/2 4/4 6/4");
    EXPECT_EQ(imported.plan.layers[0].heads[0].value.group, 128);
    EXPECT_TRUE(imported.warnings.empty()) << imported.warnings[0];
    ctx.qk_norm = true;
    EXPECT_TRUE(warned(import_plan(text.str(), ctx), "QK-norm"));
    ctx.shape = model(15);
    expect_error(text.str(), ctx, ErrorCode::kMismatch, {"15 layers", "16"});
    const LayerNorms norms = parse_norms(text.str(), "x");
    EXPECT_EQ(parse_norms(norms_to_json(norms), "x"), norms);
}

TEST(Import, ReadsTheKvqString) {
    const std::string published =
        R"({"budget":4,"bit_range":[1,1.58,2,4,6,8],"axis":{"k":1,"v":1},"residual_length":{"k":64,"v":64},"group_budget":64,"group_range":[32,64,128]})";
    ImportContext ctx = context(2);
    expect_error(published, ctx, ErrorCode::kInvalidArgument, {"norms", "-m"});
    NormScore asked = NormScore::kSpectral;
    ctx.weight_norms = [&](NormScore score) {
        asked = score;
        return LayerNorms{.key = {30, 20}, .value = {3, 2}};
    };
    const ImportedPlan imported = import_plan(published, ctx);
    EXPECT_EQ(asked, NormScore::kFrobenius);
    EXPECT_EQ(bits_of(imported.plan), "6/2 6/2");
    EXPECT_EQ(imported.plan.window, 64);
    EXPECT_EQ(to_string(imported.plan.layers[0].heads[0].key), "6b-g32-tok-asym-hqq-id");
    EXPECT_EQ(imported.plan.layers[0].heads[0].value.group, 128);

    const ImportedPlan pairs = import_plan(
        "nbits={\"k\":4,\"v\":2},score=1,residual_length=32,axis={\"k\":0,\"v\":1},model=meta-llama/X", context(2));
    EXPECT_EQ(to_string(pairs.plan.layers[1].heads[0].key), "4b-g64-chan-asym-hqq-id");
    EXPECT_EQ(to_string(pairs.plan.layers[1].heads[0].value), "2b-g64-tok-asym-hqq-id");
    EXPECT_EQ(pairs.plan.window, 32);
    EXPECT_TRUE(warned(pairs, "axis 0 of K"));
    EXPECT_EQ(import_plan("nbits=4", context(2)).plan.window, 64) << "their default";

    ImportContext spectral = ctx;
    (void)import_plan("budget=3,bit_range=[2,4],score=1", spectral);
    EXPECT_EQ(asked, NormScore::kSpectral);
    spectral.qk_norm = true;
    EXPECT_TRUE(warned(import_plan("budget=3,bit_range=[2,4]", spectral), "QK-norm"));

    // The older form is Quanto's: axis 0 there is what HQQ calls 1.
    const ImportedPlan old = import_plan(
        R"({"nbits_k": 4, "nbits_v": 2, "axis_key": 0, "axis_value": -1, "q_group_size": 128, "residual_length": 128, "backend": "quanto"})",
        context(1));
    EXPECT_EQ(to_string(old.plan.layers[0].heads[0].key), "4b-g128-tok-asym-quanto-id");
    EXPECT_EQ(to_string(old.plan.layers[0].heads[0].value), "2b-g128-chan-asym-quanto-id");
    EXPECT_EQ(old.plan.window, 128);
    EXPECT_EQ(old.plan.tile_tokens, 128U);
}

TEST(Import, ReadsKvtunerYaml) {
    const ImportedPlan layers =
        import_plan("# made by hand\n0:\n  nbits_key: 8\n  nbits_value: 4\n1:\n  nbits_key: 4\n  nbits_value: 2\n",
                    context(2, "k4v4-kchan"));
    EXPECT_EQ(bits_of(layers.plan), "8/4 4/2");
    EXPECT_EQ(layers.plan.layers[0].heads[1].key.axis, GroupAxis::kPerChannel);
    EXPECT_TRUE(warned(layers, "k4v4-kchan"));
    const ImportedPlan heads = import_plan(
        "0:\n  0:\n    nbits_key: 8\n    nbits_value: 4\n  1:\n    nbits_key: 4\n    nbits_value: 2\n", context(1));
    EXPECT_EQ(to_string(heads.plan.layers[0].heads[0].key.bits), "8");
    EXPECT_EQ(to_string(heads.plan.layers[0].heads[1].key.bits), "4");
    expect_error("0:\n  nbits_key: 8\n  nbits_value: 4\n", context(2), ErrorCode::kMismatch, {"layer 1, head 0"});
    expect_error("0:\n  nbits_key: 8\n  nbits_value: 4\n7:\n  nbits_key: 8\n  nbits_value: 4\n", context(1),
                 ErrorCode::kMismatch, {"layer 7"});
    expect_error("0:\n  2:\n    nbits_key: 8\n    nbits_value: 4\n", context(1), ErrorCode::kMismatch, {"head 2"});
}

TEST(Import, KvtunerReaderNamesTheLine) {
    const auto line = [](const std::string& text) -> std::string {
        try {
            (void)parse_kvtuner_yaml(text, "f.yaml");
        } catch (const Error& error) {
            return error.what();
        }
        return "accepted";
    };
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"0:\n\tnbits_key: 8\n", "line 2"},
        {"0:\n  bits: 8\n", "'bits'"},
        {"0: {nbits_key: 8, nbits_value: 4}\n", "line 1"},
        {"0:\n  nbits_key: 8\n", "nbits_key alone"},
        {"0:\n  nbits_key: 8\n  nbits_key: 8\n", "line 3"},
        {"0:\n  nbits_key: many\n", "'many'"},
        {"0:\n  nbits_key: 8\n  nbits_value: 8\n0:\n  nbits_key: 8\n  nbits_value: 8\n", "layer 0 again"},
        {"0:\nnbits_key: 8\n", "line 2"},
        {"0:\n  nbits_key: 8\n  1:\n    nbits_key: 8\n", "both"},
        {"x:\n  nbits_key: 8\n", "'x'"},
    };
    for (const auto& [text, wanted] : cases)
        EXPECT_NE(line(text).find(wanted), std::string::npos) << text << "\n" << line(text);
}

TEST(Import, RefusesByName) {
    const ImportContext ctx = context(2);
    const ErrorCode bad = ErrorCode::kInvalidArgument;
    expect_error("", ctx, bad, {"x.json", "empty"});
    expect_error("{\"nbits_k\": [", ctx, bad, {"x.json", "JSON"});
    expect_error("hello", ctx, bad, {"'hello'"});
    expect_error(R"({"colour": 3})", ctx, bad, {"'colour'", "nbits_k"});
    expect_error(R"({"nbits_k": [4, 4]})", ctx, bad, {"nbits_k alone"});
    expect_error(R"({"nbits": 4, "budget": 4})", ctx, bad, {"several"});
    expect_error(R"({"nbits_k": [4, 7], "nbits_v": [4, 4]})", ctx, bad, {"K of layer 1", "7"});
    expect_error(R"({"nbits_k": [4, "x"], "nbits_v": [4, 4]})", ctx, bad, {"nbits_k"});
    expect_error(R"({"nbits_k": [4], "nbits_v": [4]})", ctx, ErrorCode::kMismatch, {"2 layers", "1"});
    expect_error(R"({"nbits": {"k": 4}})", ctx, bad, {"no \"v\""});
    expect_error(R"({"nbits": 4, "axis": 2})", ctx, bad, {"axis", "2"});
    expect_error(R"({"residual_length": 64})", ctx, bad, {"nbits"});
    expect_error(R"({"w_k": [1, 2]})", ctx, bad, {"w_v"});
    expect_error(R"({"nbits": 4, "residual_length": -1})", ctx, bad, {"residual_length"});
}

}  // namespace
}  // namespace kvaq
