#include "kvaq/attention/tile_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvaq/base/error.h"
#include "kvaq/quant/hadamard.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

bool is_hadamard(const CodecSpec& codec) noexcept {
    return codec.transform != nullptr ? codec.transform->fit->hadamard : codec.basis == Basis::kHadamard;
}

// Adds a head's learned sink logit to (m, l), divides and writes one row of the output.
void write_row(const AttentionCall& call, size_t token, size_t head, const float* o, size_t dim, float m, float l) noexcept {
    float scale = 1.0F;
    if (call.rule.sink_logits != nullptr) {
        const float sink = call.rule.sink_logits[head];
        const float top = std::max(m, sink);
        scale = m == kMinusInf ? 0.0F : std::exp(m - top);
        l = l * scale + std::exp(sink - top);
    }
    const float factor = l > 0.0F ? scale / l : 0.0F;  // a fully masked row gives zeros
    float* out = call.out.row(token, head);
    for (size_t d = 0; d < dim; ++d) out[d] = o[d] * factor;
}

}  // namespace

float alibi_slope(float max_bias, size_t head, size_t n_heads) noexcept {
    if (max_bias <= 0.0F) return 0.0F;
    const auto n_log2 = static_cast<size_t>(1) << static_cast<size_t>(std::floor(std::log2(static_cast<double>(n_heads))));
    const float base = static_cast<float>(n_log2);
    if (head < n_log2) return std::pow(std::pow(2.0F, -max_bias / base), static_cast<float>(head + 1));
    return std::pow(std::pow(2.0F, -(max_bias / 2.0F) / base), static_cast<float>(2 * (head - n_log2) + 1));
}

void TileAttention::reserve(const Shape& largest, size_t tile_tokens) {
    const auto grow = [](std::vector<float>& v, size_t n) {
        if (v.size() < n) v.resize(n);
    };
    const size_t rows = largest.n_rows();
    grow(keys_, largest.head_dim_k * tile_tokens);
    grow(values_, largest.padded_v() * tile_tokens);
    grow(q_plain_, rows * largest.head_dim_k);
    grow(q_packed_, rows * largest.head_dim_k);
    grow(scores_, rows * tile_tokens);
    grow(o_plain_, rows * largest.padded_v());
    grow(o_packed_, rows * largest.padded_v());
    grow(m_, rows);
    grow(l_, rows);
    const size_t dim = std::max(largest.head_dim_k, largest.head_dim_v);
    grow(matrix_, dim * dim);
    grow(rows_, rows * ((dim + 15) / 16 * 16));
}

void TileAttention::start(const AttentionCall& call, size_t first_token, int32_t first_pos, size_t kv_head, const Shape& shape,
                          const CodecSpec& key_codec) noexcept {
    shape_ = shape;
    rule_ = call.rule;
    first_token_ = first_token;
    first_pos_ = first_pos;
    kv_head_ = kv_head;
    packed_used_ = false;
    kernels_ = &block_kernels(best_simd_target());
    call_ = &call;
    key_codec_ = &key_codec;
    turn_ = 0;
    load_queries();
    std::fill_n(o_plain_.data(), shape.n_rows() * shape.padded_v(), 0.0F);
    std::fill_n(o_packed_.data(), shape.n_rows() * shape.padded_v(), 0.0F);
    std::fill_n(m_.data(), shape.n_rows(), kMinusInf);
    std::fill_n(l_.data(), shape.n_rows(), 0.0F);
}

void TileAttention::turn(const RopeRule* rope, int32_t turn) noexcept {
    if (turn == turn_ || rope == nullptr || rope->n_dims == 0) return;
    turn_ = turn;
    rope_turn_.set(*rope, turn);
    load_queries();
}

void TileAttention::load_queries() noexcept {
    const Shape& shape = shape_;
    const CodecSpec& key_codec = *key_codec_;
    const size_t dim = shape.head_dim_k;
    const float scale = rule_.softcap > 0.0F ? rule_.scale / rule_.softcap : rule_.scale;
    for (size_t t = 0; t < shape.n_tokens; ++t) {
        for (size_t g = 0; g < shape.group; ++g) {
            const size_t row = t * shape.group + g;
            const float* q = call_->q.row(first_token_ + t, kv_head_ * shape.group + g);
            float* plain = &q_plain_[row * dim];
            if (turn_ != 0) {
                rope_turn_.apply(q, plain, dim);
                q = plain;
            }
            for (size_t c = 0; c < dim; ++c) plain[c] = q[c] * scale;
        }
    }
    const size_t n_rows = shape.n_rows();
    const bool hadamard = is_hadamard(key_codec);
    if (key_codec.transform == nullptr || hadamard) {
        std::copy_n(q_plain_.data(), n_rows * dim, q_packed_.data());
        for (size_t row = 0; row < n_rows && hadamard; ++row) hadamard_transform(&q_packed_[row * dim], dim);
    } else {
        const TransformFit& fit = *key_codec.transform->fit;  // q^T x^ = (U q)^T z^
        if (dim % 16 == 0) {
            kernels_->bytes_to_float(fit.matrix.data(), dim * dim, matrix_.data());
            kernels_->scores(q_plain_.data(), dim, n_rows, dim, matrix_.data(), dim, dim, q_packed_.data(), dim);
        } else {
            for (size_t row = 0; row < n_rows; ++row) {
                for (size_t i = 0; i < dim; ++i) {
                    float sum = 0;
                    for (size_t j = 0; j < dim; ++j) sum += q_plain_[row * dim + j] * static_cast<float>(fit.at(i, j));
                    q_packed_[row * dim + i] = sum;
                }
            }
        }
        for (size_t row = 0; row < n_rows; ++row) {
            for (size_t i = 0; i < dim; ++i) q_packed_[row * dim + i] *= fit.row_scale[i];
        }
    }
}

int32_t TileAttention::first_visible(size_t token_begin) const noexcept {
    if (rule_.sliding_window <= 0) return 0;
    const int32_t pos = first_pos_ + static_cast<int32_t>(token_begin);
    if (rule_.chunked_window) return pos / rule_.sliding_window * rule_.sliding_window;
    return std::max(0, pos - rule_.sliding_window + 1);
}

void TileAttention::add_tile(Form form, int32_t first_key_pos, size_t key_begin, size_t key_end, size_t ld_keys,
                             size_t token_begin, size_t token_end) noexcept {
    if (token_begin >= token_end || key_begin >= key_end) return;
    const size_t group = shape_.group;
    const size_t dim_k = shape_.head_dim_k;
    const size_t dim_v = shape_.padded_v();
    const size_t row0 = token_begin * group;
    const size_t n_rows = (token_end - token_begin) * group;
    const size_t n_keys = std::min((key_end + 15) / 16 * 16, ld_keys);
    float* s = scores_.data();
    const std::vector<float>& q = form == Form::kPacked ? q_packed_ : q_plain_;
    std::vector<float>& o = form == Form::kPacked ? o_packed_ : o_plain_;
    if (form == Form::kPacked) packed_used_ = true;
    kernels_->scores(&q[row0 * dim_k], dim_k, n_rows, dim_k, keys_.data(), ld_keys, n_keys, s, ld_keys);
    size_t t_begin = n_keys;
    size_t t_end = 0;
    for (size_t t = token_begin; t < token_end; ++t) {
        const int32_t pos = first_pos_ + static_cast<int32_t>(t);
        const int32_t lo_pos = first_visible(t);
        const auto lo = static_cast<size_t>(std::max({static_cast<int32_t>(key_begin), lo_pos - first_key_pos, 0}));
        const auto hi = static_cast<size_t>(std::max(0, std::min(static_cast<int32_t>(key_end), pos - first_key_pos + 1)));
        for (size_t g = 0; g < group; ++g) {
            const size_t row = t * group + g;
            float* row_scores = s + (row - row0) * ld_keys;
            if (rule_.softcap > 0.0F) {
                for (size_t j = lo; j < hi; ++j) row_scores[j] = rule_.softcap * std::tanh(row_scores[j]);
            }
            if (rule_.alibi_max_bias > 0.0F) {
                const float slope = alibi_slope(rule_.alibi_max_bias, kv_head_ * group + g, shape_.n_heads);
                for (size_t j = lo; j < hi; ++j) {
                    row_scores[j] += slope * static_cast<float>(first_key_pos + static_cast<int32_t>(j) - pos);
                }
            }
            const float factor = kernels_->softmax_step(row_scores, n_keys, lo, hi, &m_[row], &l_[row]);
            if (factor != 1.0F) {
                kernels_->scale(&o_plain_[row * dim_v], dim_v, factor);
                if (packed_used_) kernels_->scale(&o_packed_[row * dim_v], dim_v, factor);
            }
        }
        if (lo < hi) {
            t_begin = std::min(t_begin, lo);
            t_end = std::max(t_end, hi);
        }
    }
    if (t_begin >= t_end) return;
    kernels_->accumulate(s, ld_keys, n_rows, t_begin, t_end, values_.data(), dim_v, dim_v, &o[row0 * dim_v], dim_v);
}

void TileAttention::finish(const CodecSpec& value_codec) noexcept {
    if (!packed_used_) return;
    const size_t dim = shape_.padded_v();
    const size_t n_rows = shape_.n_rows();
    float* sums = o_packed_.data();
    const bool hadamard = is_hadamard(value_codec);
    if (value_codec.transform != nullptr && !hadamard) {
        const TransformFit& fit = *value_codec.transform->fit;
        for (size_t row = 0; row < n_rows; ++row) {
            for (size_t i = 0; i < shape_.head_dim_v; ++i) o_packed_[row * dim + i] *= fit.row_scale[i];
        }
        if (shape_.head_dim_v == dim) {
            kernels_->bytes_to_float(fit.matrix.data(), dim * dim, matrix_.data());
            kernels_->scores(o_packed_.data(), dim, n_rows, dim, matrix_.data(), dim, dim, rows_.data(), dim);
        } else {
            for (size_t row = 0; row < n_rows; ++row) {
                for (size_t j = 0; j < shape_.head_dim_v; ++j) {
                    float sum = 0;
                    for (size_t i = 0; i < shape_.head_dim_v; ++i) sum += o_packed_[row * dim + i] * static_cast<float>(fit.at(i, j));
                    rows_[row * dim + j] = sum;
                }
            }
        }
        sums = rows_.data();
    }
    for (size_t row = 0; row < n_rows; ++row) {
        float* packed = sums + row * dim;
        if (hadamard) hadamard_transform(packed, shape_.head_dim_v);
        for (size_t d = 0; d < shape_.head_dim_v; ++d) o_plain_[row * dim + d] += packed[d];
    }
}

void TileAttention::save(float* state) const noexcept {
    const size_t rows = shape_.n_rows();
    std::copy_n(m_.data(), rows, state);
    std::copy_n(l_.data(), rows, state + rows);
    for (size_t row = 0; row < rows; ++row) {
        std::copy_n(&o_plain_[row * shape_.padded_v()], shape_.head_dim_v, state + 2 * rows + row * shape_.head_dim_v);
    }
}

void TileAttention::write(const AttentionCall& call) noexcept {
    for (size_t row = 0; row < shape_.n_rows(); ++row) {
        write_row(call, first_token_ + row / shape_.group, kv_head_ * shape_.group + row % shape_.group,
                  &o_plain_[row * shape_.padded_v()], shape_.head_dim_v, m_[row], l_[row]);
    }
}

void TileAttention::merge_and_write(const AttentionCall& call, const Shape& shape, size_t first_token, size_t kv_head,
                                    const float* states, size_t n_states, size_t state_stride) noexcept {
    constexpr size_t kMaxDim = 512;
    KVAQ_DCHECK(shape.head_dim_v <= kMaxDim);
    const size_t rows = shape.n_rows();
    for (size_t row = 0; row < rows; ++row) {
        float m = kMinusInf;
        for (size_t i = 0; i < n_states; ++i) m = std::max(m, states[i * state_stride + row]);
        float o[kMaxDim] = {};
        float l = 0.0F;
        for (size_t i = 0; i < n_states && m > kMinusInf; ++i) {
            const float* state = states + i * state_stride;
            if (state[row] == kMinusInf) continue;
            const float factor = std::exp(state[row] - m);
            l += state[rows + row] * factor;
            const float* part = state + 2 * rows + row * shape.head_dim_v;
            for (size_t d = 0; d < shape.head_dim_v; ++d) o[d] += part[d] * factor;
        }
        write_row(call, first_token + row / shape.group, kv_head * shape.group + row % shape.group, o, shape.head_dim_v, m, l);
    }
}

}  // namespace kvaq
