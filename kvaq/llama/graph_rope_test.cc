#include "kvaq/llama/graph_rope.h"

#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>

namespace kvaq {
namespace {

constexpr int64_t kDim = 64;

struct FreeGgml {
    void operator()(ggml_context* ctx) const noexcept { ggml_free(ctx); }
};

struct RopeCase {
    const char* what;
    int n_dims;
    int mode;
    float freq_base, freq_scale;
    float ext_factor;
    int first_channel;
    bool factors;
};

std::unique_ptr<ggml_context, FreeGgml> make_context() {
    return std::unique_ptr<ggml_context, FreeGgml>(
        ggml_init({.mem_size = size_t{16} << 20, .mem_buffer = nullptr, .no_alloc = false}));
}

ggml_tensor* rope_node(ggml_context* ctx, const RopeCase& c, ggml_tensor* x, int32_t first_pos) {
    ggml_tensor* pos = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, x->ne[2]);
    for (int64_t i = 0; i < x->ne[2]; ++i) static_cast<int32_t*>(pos->data)[i] = first_pos + static_cast<int32_t>(i);
    ggml_tensor* factors = nullptr;
    if (c.factors) {
        factors = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, c.n_dims / 2);
        for (int i = 0; i < c.n_dims / 2; ++i) static_cast<float*>(factors->data)[i] = 1.0F + static_cast<float>(i) / 8;
    }
    ggml_tensor* node = ggml_rope_ext(ctx, x, pos, factors, c.n_dims, c.mode, 2048, c.freq_base, c.freq_scale,
                                      c.ext_factor, 1.0F, 32.0F, 1.0F);
    return c.first_channel > 0 ? ggml_rope_set_offset(node, c.first_channel) : node;
}

ggml_tensor* random_heads(ggml_context* ctx, int64_t n_tokens) {
    ggml_tensor* x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, kDim, 2, n_tokens);
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < ggml_nelements(x); ++i) static_cast<float*>(x->data)[i] = normal(random);
    return x;
}

void compute(ggml_context* ctx, ggml_tensor* node) {
    ggml_cgraph* graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, node);
    ASSERT_EQ(ggml_graph_compute_with_ctx(ctx, graph, 1), GGML_STATUS_SUCCESS);
}

TEST(GraphRope, TurningByTheRuleIsWhatGgmlDoesAtAnotherPosition) {
    for (const RopeCase& c : {RopeCase{"normal", 64, GGML_ROPE_TYPE_NORMAL, 10000, 1, 0, 0, false},
                              {"neox", 64, GGML_ROPE_TYPE_NEOX, 1e6F, 1, 0, 0, false},
                              {"half of the channels", 32, GGML_ROPE_TYPE_NEOX, 10000, 1, 0, 0, false},
                              {"the later channels", 32, GGML_ROPE_TYPE_NORMAL, 10000, 1, 0, 32, false},
                              {"linear scaling", 64, GGML_ROPE_TYPE_NORMAL, 10000, 0.125F, 0, 0, false},
                              {"factors", 64, GGML_ROPE_TYPE_NORMAL, 500000, 1, 0, 0, true},
                              {"YaRN", 64, GGML_ROPE_TYPE_NEOX, 10000, 0.25F, 1, 0, false}}) {
        SCOPED_TRACE(c.what);
        const auto ctx = make_context();
        ggml_tensor* x = random_heads(ctx.get(), 3);
        ggml_tensor* before = rope_node(ctx.get(), c, x, 700);
        ggml_tensor* after = rope_node(ctx.get(), c, x, 189);
        compute(ctx.get(), before);
        compute(ctx.get(), after);
        const RopeRule rule = rope_rule_of(before);
        ASSERT_EQ(rule.frequencies.size(), static_cast<size_t>(c.n_dims / 2));
        RopeTurn turn;
        turn.set(rule, 189 - 700);
        float worst = 0;
        for (int64_t row = 0; row < 6; ++row) {
            float turned[kDim];
            turn.apply(static_cast<const float*>(before->data) + row * kDim, turned, kDim);
            for (int64_t i = 0; i < kDim; ++i)
                worst = std::max(worst, std::fabs(turned[i] - static_cast<const float*>(after->data)[row * kDim + i]));
        }
        EXPECT_LT(worst, 2e-3F) << "ggml's own f32 angles of up to 700 radians are that good";
        EXPECT_GT(worst, 0);
    }
}

TEST(GraphRope, FindsTheRopeBehindWhatCommutesWithIt) {
    const RopeCase c{"", 64, GGML_ROPE_TYPE_NEOX, 10000, 1, 0, 0, false};
    const auto ctx = make_context();
    ggml_tensor* rope = rope_node(ctx.get(), c, random_heads(ctx.get(), 3), 0);
    ggml_tensor* per_token = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 1, 1, 3);
    ggml_tensor* scaled =
        ggml_scale(ctx.get(), ggml_mul(ctx.get(), ggml_rms_norm(ctx.get(), rope, 1e-5F), per_token), 0.5F);
    const GraphRope found = rope_of_queries(ggml_permute(ctx.get(), scaled, 0, 2, 1, 3));
    EXPECT_EQ(found.why_not, "");
    EXPECT_EQ(found.rule, rope_rule_of(rope));
}

TEST(GraphRope, ALayerWithoutRopeHasNone) {
    const auto ctx = make_context();
    ggml_tensor* weights = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 96, 2 * kDim);
    ggml_tensor* hidden = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 96, 3);
    ggml_tensor* q = ggml_reshape_3d(ctx.get(), ggml_mul_mat(ctx.get(), weights, hidden), kDim, 2, 3);
    const GraphRope found = rope_of_queries(ggml_permute(ctx.get(), q, 0, 2, 1, 3));
    EXPECT_EQ(found.why_not, "");
    EXPECT_EQ(found.rule.n_dims, 0U);
}

TEST(GraphRope, SaysWhyKeysCannotBeTurned) {
    const RopeCase c{"", 64, GGML_ROPE_TYPE_NEOX, 10000, 1, 0, 0, false};
    const auto ctx = make_context();
    ggml_tensor* rope = rope_node(ctx.get(), c, random_heads(ctx.get(), 3), 0);
    ggml_tensor* weights = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, kDim);
    EXPECT_NE(rope_of_queries(ggml_mul(ctx.get(), rope, weights)).why_not.find("MUL"), std::string::npos)
        << "a norm's weights after RoPE";
    ggml_tensor* square = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, kDim, kDim);
    EXPECT_NE(rope_of_queries(ggml_mul_mat(ctx.get(), square, rope)).why_not, "");
    EXPECT_NE(rope_of_queries(ggml_concat(ctx.get(), random_heads(ctx.get(), 3), rope, 0)).why_not, "");
    EXPECT_NE(rope_of_queries(ggml_permute(ctx.get(), random_heads(ctx.get(), 3), 0, 2, 1, 3)).why_not, "")
        << "a copy from another device: what made it cannot be seen";
    ggml_tensor* pos = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 12);
    int sections[4] = {16, 8, 8, 0};
    ggml_tensor* multi = ggml_rope_multi(ctx.get(), random_heads(ctx.get(), 3), pos, nullptr, 64, sections,
                                         GGML_ROPE_TYPE_MROPE, 2048, 10000, 1, 0, 1, 32, 1);
    EXPECT_NE(rope_of_queries(multi).why_not.find("M-RoPE"), std::string::npos);
}

}  // namespace
}  // namespace kvaq
