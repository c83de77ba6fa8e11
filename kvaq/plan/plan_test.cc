#include "kvaq/plan/plan.h"

#include <gtest/gtest.h>

#include <string>

#include "kvaq/base/error.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

ModelShape small_model() {
    ModelShape shape{.architecture = "llama", .name = "tiny", .fingerprint = "aa", .n_ctx_train = 2048, .layers = {}};
    for (int32_t i = 0; i < 3; ++i) {
        shape.layers.push_back({.layer = i, .n_heads = 6, .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64});
    }
    return shape;
}

/// The message of the Error a call throws, with its code in front.
template <typename Call>
std::string error_of(const Call& call) {
    try {
        call();
    } catch (const Error& error) {
        return std::to_string(static_cast<int>(error.code())) + " " + error.what();
    }
    return "no Error";
}

TEST(Preset, SaysBitsGroupAxisRuleAndBasisOfEachSide) {
    const Preset p = parse_preset("K4V2-gk32-gv128-kchan-rotv-w64-s4");
    EXPECT_EQ(p.key, (CodecSpec{.bits = CodeBits::k4, .axis = GroupAxis::kPerChannel, .group = 32}));
    EXPECT_EQ(p.value, (CodecSpec{.bits = CodeBits::k2, .group = 128, .basis = Basis::kHadamard}));
    EXPECT_EQ(p.window, 64);
    EXPECT_EQ(p.sinks, 4);
    EXPECT_EQ(p.name, "k4v2-gk32-gv128-kchan-rotv-w64-s4");

    const Preset hqq = parse_preset("k1.58v3-hqq-vchan-g32-rot");
    EXPECT_EQ(hqq.key.bits, CodeBits::kTernary);
    EXPECT_EQ(hqq.value.bits, CodeBits::k3);
    EXPECT_EQ(hqq.key.rule, AffineRule::kHqq);
    EXPECT_EQ(hqq.value.rule, AffineRule::kHqq);
    EXPECT_EQ(hqq.key.axis, GroupAxis::kPerToken);
    EXPECT_EQ(hqq.value.axis, GroupAxis::kPerChannel);
    EXPECT_EQ(hqq.key.basis, Basis::kHadamard);
    EXPECT_EQ(hqq.value.group, 32);
    EXPECT_TRUE(parse_preset("k4v4-sym").key.symmetric);
    EXPECT_EQ(parse_preset("k4v4-quanto").value.rule, AffineRule::kQuanto);
}

TEST(Preset, KnowsTheNamesOfLlamaCppsTypes) {
    const Preset q8 = parse_preset("Q8_0");
    EXPECT_EQ(q8.key, (CodecSpec{.bits = CodeBits::k8, .group = 32, .symmetric = true, .basis = Basis::kHadamard}));
    EXPECT_EQ(q8.key, q8.value);
    EXPECT_EQ(parse_preset("q5_1").key.bits, CodeBits::k5);
    EXPECT_FALSE(parse_preset("q5_1").key.symmetric);
    EXPECT_TRUE(parse_preset("q4_0-w32").value.symmetric);
    EXPECT_EQ(parse_preset("q4_0-w32").window, 32);
    EXPECT_EQ(parse_preset("q4_0-w32").name, "q4_0-w32");
    EXPECT_EQ(parse_preset("f16").key, CodecSpec{});
    EXPECT_EQ(parse_preset("k16v16").name, "f16");
}

TEST(Preset, CanonicalNameParsesToTheSamePreset) {
    for (const char* text :
         {"k4v2", "k2v4-g32", "k8v4-gv32-rotk", "k16v4-gv128", "k4v16-rot", "k1v1.58-sym-rot-w8", "k3v5-s4-w0",
          "k6v8-hqq-kchan-g128", "q5_0-s4-w128", "f16-w64", "k16v3-rotv-vchan-g32", "k4v4-rotk-rotv", "k3v3-g32-gv128",
          "k4v3-lm", "k16v2-lm-s4-w64", "k8v16-lm", "k4v2-tcq", "k16v2-tcq-s4-w64"}) {
        const Preset p = parse_preset(text);
        const Preset again = parse_preset(p.name);
        EXPECT_EQ(again.name, p.name) << text;
        EXPECT_EQ(again.key, p.key) << text;
        EXPECT_EQ(again.value, p.value) << text;
        EXPECT_EQ(again.window, p.window) << text;
        EXPECT_EQ(again.sinks, p.sinks) << text;
        EXPECT_EQ(again.lloyd_max, p.lloyd_max) << text;
        EXPECT_EQ(again.trellis, p.trellis) << text;
    }
}

TEST(Preset, NamesTheUnknownPartAndWhatIsAllowed) {
    const auto error = [](const char* text) { return error_of([&] { (void)parse_preset(text); }); };
    EXPECT_NE(error("k4v7").find("'7'"), std::string::npos) << error("k4v7");
    EXPECT_NE(error("k4v7").find("1, 1.58, 2, 3"), std::string::npos);
    EXPECT_NE(error("k4v2-foo").find("-foo"), std::string::npos) << error("k4v2-foo");
    EXPECT_NE(error("k4v2-foo").find("-kchan"), std::string::npos);
    EXPECT_NE(error("iq4_nl").find("q4_0"), std::string::npos);
    for (const char* text : {"",
                             "k",
                             "kv",
                             "k4",
                             "v4",
                             "k4v",
                             "k4v2-",
                             "k4v2-g",
                             "k4v2-g48",
                             "k4v2-gk",
                             "k4v2-w",
                             "k4v2-w-1",
                             "k4v2-s999",
                             "k4v2-w99999999999999999999",
                             "k4v2-sym-hqq",
                             "k4v2-g32-g64",
                             "k4v2-w1-w2",
                             "q4_0-rot",
                             "q4_0-g64",
                             "k4v2 ",
                             "k4v2-rotx",
                             "k 4v2",
                             "k4v2-lm-g32",
                             "k4v2-lm-rot",
                             "k4v2-lm-tcq",
                             "k4v2-tcq-g32",
                             "k4v1.58-lm",
                             "q4_0-lm",
                             "k4.0v2",
                             "k4v2-hqq-quanto"}) {
        EXPECT_EQ(error(text).substr(0, 2), "0 ") << text << ": " << error(text);
    }
}

TEST(Preset, IsToldFromAFileName) {
    for (const char* text :
         {"k4v2", "K4V2-g32", "k7v2", "k1.58v2", "q8_0", "q4_0-w3", "f16", "F16-w32", "bf16", "iq4_nl", "q4_k"}) {
        EXPECT_TRUE(is_preset(text)) << text;
    }
    for (const char* text :
         {"", "k4v2.gguf", "./k4v2", "plans/k4v2", "k4v2.plan.gguf", "K4V2.GGUF", "my-plan", "kvplan", "k4", "q",
          "qwen_plan", "q8_0/plan", "f16.gguf", "f160", "key4value2", "c:\\k4v2", "q8_0longname"}) {
        EXPECT_FALSE(is_preset(text)) << text;
    }
}

TEST(Plan, PutsThePresetOnEveryHead) {
    const Plan plan = make_uniform_plan(parse_preset("k4v2-g32-w16-s4"), small_model());
    ASSERT_EQ(plan.layers.size(), 3U);
    for (const LayerPlan& layer : plan.layers) {
        ASSERT_EQ(layer.heads.size(), 2U);
        EXPECT_EQ(layer.heads[1].key.bits, CodeBits::k4);
        EXPECT_EQ(layer.heads[1].value.bits, CodeBits::k2);
    }
    EXPECT_EQ(plan.name, "k4v2-g32-w16-s4");
    EXPECT_EQ(plan.tile_tokens, 64U);
    EXPECT_EQ(plan.window, 16);
    EXPECT_EQ(plan.sinks, 4);
    EXPECT_TRUE(plan.fingerprint.empty());
    EXPECT_EQ(plan.architecture, "llama");
}

TEST(Plan, TakesLongTilesOnlyWhereGroupsAlongTokensNeedThem) {
    EXPECT_EQ(make_uniform_plan(parse_preset("k4v4-gk128-kchan"), small_model()).tile_tokens, 128U);
    EXPECT_EQ(make_uniform_plan(parse_preset("k4v4-g128"), small_model()).tile_tokens, 64U);
    EXPECT_EQ(make_uniform_plan(parse_preset("k4v4-kchan"), small_model()).tile_tokens, 64U);
    // 100 sink tokens fit into a tile of 128 only.
    EXPECT_EQ(error_of([] { (void)make_uniform_plan(parse_preset("k4v4-s100"), small_model()); }).substr(0, 2), "0 ");
    EXPECT_EQ(make_uniform_plan(parse_preset("k4v4-g128-kchan-s100"), small_model()).sinks, 100);
}

TEST(Plan, OfAnotherModelIsRefusedWithWantedAndFound) {
    Plan plan = make_uniform_plan(parse_preset("k4v4"), small_model());
    EXPECT_NO_THROW(check_plan_fits(plan, small_model()));
    const auto refused = [&](const ModelShape& shape) { return error_of([&] { check_plan_fits(plan, shape); }); };

    ModelShape other = small_model();
    other.fingerprint = "bb";
    EXPECT_NO_THROW(check_plan_fits(plan, other)) << "a preset's plan has no fingerprint";
    plan.fingerprint = "aa";
    EXPECT_NE(refused(other).find("aa"), std::string::npos) << refused(other);
    EXPECT_NE(refused(other).find("bb"), std::string::npos);
    EXPECT_EQ(refused(other).substr(0, 2), "3 ");

    other = small_model();
    other.architecture = "gemma3";
    EXPECT_NE(refused(other).find("gemma3"), std::string::npos) << refused(other);
    other = small_model();
    other.layers.pop_back();
    EXPECT_NE(refused(other).find("wanted 3 layers"), std::string::npos) << refused(other);
    other = small_model();
    other.layers[1].head_dim_v = 128;
    EXPECT_NE(refused(other).find("V 128"), std::string::npos) << refused(other);
    plan.layers[0].heads.pop_back();
    EXPECT_EQ(refused(small_model()).substr(0, 2), "2 ");
}

TEST(Plan, CanonicalTextTellsPlansApart) {
    const Plan plan = make_uniform_plan(parse_preset("k4v4"), small_model());
    Plan other = plan;
    EXPECT_EQ(canonical_text(plan), canonical_text(other));
    other.layers[2].heads[1].value.bits = CodeBits::k3;
    EXPECT_NE(canonical_text(plan), canonical_text(other));
    other = plan;
    other.window = 1;
    EXPECT_NE(canonical_text(plan), canonical_text(other));
    other = plan;
    other.model_name = "\xff\xfe no UTF-8";
    EXPECT_NO_THROW((void)canonical_text(other));
}

}  // namespace
}  // namespace kvaq
