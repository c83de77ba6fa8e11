#include "kvaq/llama/graph_rope.h"

#include <ggml-backend.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace kvaq {
namespace {

constexpr int kMaxSteps = 64;

/// op_params of GGML_OP_ROPE (ggml_rope_impl of ggml/src/ggml.c; the version check at load holds the layout together).
struct RopeParams {
    int32_t n_dims = 0, mode = 0, n_ctx_orig = 0, first_channel = 0;
    float freq_base = 0, freq_scale = 0, ext_factor = 0, beta_fast = 0, beta_slow = 0;
};

RopeParams params_of(const ggml_tensor* rope) {
    const auto integer = [&](size_t i) { return rope->op_params[i]; };
    const auto number = [&](size_t i) {
        float value = 0;
        std::memcpy(&value, &rope->op_params[i], sizeof value);
        return value;
    };
    return {.n_dims = integer(1),
            .mode = integer(2),
            .n_ctx_orig = integer(4),
            .first_channel = integer(15),
            .freq_base = number(5),
            .freq_scale = number(6),
            .ext_factor = number(7),
            .beta_fast = number(9),
            .beta_slow = number(10)};
}

bool on_host(const ggml_tensor* tensor) {
    const ggml_backend_buffer_t buffer = tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
    return tensor->data != nullptr && (buffer == nullptr || ggml_backend_buffer_is_host(buffer));
}

/// Whether the op keeps every head's channels in place, up to one factor for all of them.
bool commutes(const ggml_tensor* node) {
    switch (node->op) {
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
        case GGML_OP_CONT:
        case GGML_OP_CPY:
        case GGML_OP_DUP:
        case GGML_OP_RMS_NORM:  // weights would be a GGML_OP_MUL
        case GGML_OP_L2_NORM:
            return true;
        case GGML_OP_SCALE: {
            float bias = 0;
            std::memcpy(&bias, &node->op_params[1], sizeof bias);
            return bias == 0.0F;
        }
        case GGML_OP_MUL:
            return node->src[1]->ne[0] == 1;  // one factor a token or head
        default:
            return false;
    }
}

}  // namespace

RopeRule rope_rule_of(const ggml_tensor* rope) {
    const RopeParams p = params_of(rope);
    const float theta_scale = std::pow(p.freq_base, -2.0F / static_cast<float>(p.n_dims));
    const auto* factors = rope->src[2] != nullptr ? static_cast<const float*>(rope->src[2]->data) : nullptr;
    std::array<float, 2> corr = {};
    if (p.ext_factor != 0.0F)
        ggml_rope_yarn_corr_dims(p.n_dims, p.n_ctx_orig, p.freq_base, p.beta_fast, p.beta_slow, corr.data());
    RopeRule rule{.interleaved = p.mode == GGML_ROPE_TYPE_NORMAL,
                  .first_channel = static_cast<size_t>(p.first_channel),
                  .n_dims = static_cast<size_t>(p.n_dims),
                  .frequencies = {}};
    for (int32_t i = 0; i < p.n_dims / 2; ++i) {
        const double extrapolated = std::pow(static_cast<double>(theta_scale), i) /
                                    (factors != nullptr ? static_cast<double>(factors[i]) : 1.0);
        double share = 0;  // of extrapolation, in YaRN
        if (p.ext_factor != 0.0F) {
            const double ramp = (i - static_cast<double>(corr[0])) /
                                std::max(0.001, static_cast<double>(corr[1]) - static_cast<double>(corr[0]));
            share = (1.0 - std::clamp(ramp, 0.0, 1.0)) * static_cast<double>(p.ext_factor);
        }
        rule.frequencies.push_back(extrapolated * (static_cast<double>(p.freq_scale) * (1.0 - share) + share));
    }
    return rule;
}

GraphRope rope_of_queries(const ggml_tensor* q) {
    const ggml_tensor* between = nullptr;  // the first op that does not commute with a rotation
    const ggml_tensor* node = q;
    for (int step = 0; node != nullptr; ++step) {
        if (step == kMaxSteps)
            return {.rule = {}, .why_not = "its queries come from further away than was looked for RoPE"};
        if (node->op == GGML_OP_ROPE) {
            const RopeParams p = params_of(node);
            if (between != nullptr)
                return {.rule = {},
                        .why_not = std::string("its queries pass ") + ggml_op_desc(between) + " after RoPE"};
            if (p.mode != GGML_ROPE_TYPE_NORMAL && p.mode != GGML_ROPE_TYPE_NEOX)
                return {.rule = {}, .why_not = "its positions have several coordinates (M-RoPE)"};
            if (node->ne[0] != q->ne[0])
                return {.rule = {}, .why_not = "RoPE turns parts of heads that are put together afterwards"};
            if (p.n_dims > static_cast<int32_t>(2 * kMaxRopePairs) || p.n_dims % 2 != 0)
                return {.rule = {}, .why_not = "RoPE turns " + std::to_string(p.n_dims) + " channels of a head"};
            if (node->src[2] != nullptr && !on_host(node->src[2]))
                return {.rule = {}, .why_not = "RoPE's frequency factors are on a device"};
            return {.rule = rope_rule_of(node), .why_not = ""};
        }
        // The scheduler's copy from another device; true inputs of a graph are behind a projection.
        if (node->op == GGML_OP_NONE) return {.rule = {}, .why_not = "its queries come from where RoPE cannot be seen"};
        if (!commutes(node) && between == nullptr) between = node;
        if (node->op == GGML_OP_CONCAT) {
            for (const ggml_tensor* part : {node->src[0], node->src[1]}) {
                const GraphRope inner = rope_of_queries(part);
                if (inner.rule.n_dims > 0 || !inner.why_not.empty())
                    return {.rule = {}, .why_not = "RoPE turns parts of heads that are put together afterwards"};
            }
            return {};
        }
        if (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) {
            // The projection that made the queries from the hidden state ends the search; a square matrix on heads (a Hadamard transform) does not.
            const ggml_tensor* matrix = node->src[0];
            if (matrix->ne[0] != q->ne[0] || matrix->ne[0] != matrix->ne[1]) return {};
            node = node->src[1];
        } else {
            node = node->src[0];
        }
    }
    return {};
}

}  // namespace kvaq
