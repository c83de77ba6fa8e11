#include "kvaq/attention/tile_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvaq/base/alibi.h"
#include "kvaq/base/error.h"
#include "kvaq/quant/hadamard.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

/// Null: none, or an affine codec's.
const TransformFit* fit_of(const CodecSpec& codec) noexcept {
    return codec.transform != nullptr ? codec.transform->fit.get() : nullptr;
}

/// Rounding q to bytes adds little to the error of codecs of so few bits. With D the codec's mean squared error in sigma^2 (.0095 at 4 bits, .0025 at 5): max(q)^2 / (127^2 * 12 D) of
/// mean(q^2), a hundredth at 4 bits for largest of 4 sigma; where bits follow what q asks of channels, 127 steps reach from the most asked channel, of 5 bits,
/// to a tenth of what is left of the least asked one.
bool takes_bytes(const TileLayout& layout) noexcept {
    constexpr int kMostBits = 4, kMostTransformBits = 5;
    int most = 0;
    for (const Band& band : layout.bands)
        most = std::max(most, band.bits == CodeBits::kTernary ? 2 : static_cast<int>(band.bits));
    return most <= (layout.spec.transform != nullptr ? kMostTransformBits : kMostBits);
}

/// From a tile's start to where its scales or gains begin.
size_t code_bytes_of(const TileLayout& layout) noexcept {
    return layout.bands.back().codes_offset + layout.bands.back().codes_bytes;
}

bool has_matrix(const TransformFit* fit) noexcept { return fit != nullptr && fit->basis == TransformBasis::kMatrix; }

// Adds a head's learned sink logit to (m, l), divides and writes one row of the output.
void write_row(const AttentionCall& call, size_t token, size_t head, const float* o, size_t dim, float m,
               float l) noexcept {
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

void TileAttention::reserve(const Shape& largest, size_t tile_tokens) {
    const auto grow = [](auto& v, size_t n) {
        if (v.size() < n) v.resize(n);
    };
    const size_t rows = largest.n_rows();
    const size_t padded_k = (largest.head_dim_k + 15) / 16 * 16;
    grow(keys_, std::max(largest.head_dim_k, largest.head_dim_v) * tile_tokens);  // sealing uses it for both sides
    grow(values_, largest.padded_v() * tile_tokens);
    const size_t n_scores = std::min(rows, kStageRows) * kSeveralTiles * tile_tokens;
    grow(scores_, std::max(n_scores, rows * tile_tokens));
    grow(o_plain_, rows * largest.padded_v());
    grow(o_packed_, rows * largest.padded_v());
    grow(m_, rows);
    grow(l_, rows);
    const size_t dim = std::max(largest.head_dim_k, largest.head_dim_v);
    const size_t padded = std::max(padded_k, largest.padded_v());
    const size_t blocks = dim / 32 + 1;
    grow(matrix_, dim * dim);
    grow(turned_, rows * dim);
    grow(rows_, rows * padded);
    key_levels_.reserve(dim, kSeveralTiles * tile_tokens);
    value_levels_.reserve(dim, kSeveralTiles * tile_tokens);
    const size_t stage_rows = std::min(rows, kStageRows);
    grow(coefs_, std::max(stage_rows * dim, n_scores));
    for (PlainQueries& q : plain_queries_) grow(q.rows, rows * largest.head_dim_k);
    for (PackedQueries& q : packed_queries_) {
        grow(q.rows, rows * largest.head_dim_k);
        grow(q.coefs, rows * largest.head_dim_k);
        grow(q.steps, rows * blocks);
        grow(q.sums, rows * blocks);
        grow(q.totals, rows * blocks);
        grow(q.offsets, rows);
    }
    grow(steps_, stage_rows);
    grow(constants_, stage_rows);
    grow(factors_, rows);
    grow(sums_, stage_rows);
    grow(init_, stage_rows);
    grow(acc_, std::max(stage_rows * padded, n_scores));
    grow(p_packed_, rows);
    grow(tile_sums_, rows);
}

void TileAttention::start(const AttentionCall& call, size_t first_token, int32_t first_pos, size_t kv_head,
                          const Shape& shape, const TileLayout& key_layout, const TurnTable* key_turns) noexcept {
    std::fill_n(o_plain_.data(), shape.n_rows() * shape.padded_v(), 0.0F);
    std::fill_n(o_packed_.data(), shape.n_rows() * shape.padded_v(), 0.0F);
    std::fill_n(p_packed_.data(), shape.n_rows(), 0.0F);
    std::fill_n(m_.data(), shape.n_rows(), kMinusInf);
    std::fill_n(l_.data(), shape.n_rows(), 0.0F);
    packed_used_ = false;
    key_reader_.reset();
    value_reader_.reset();
    call_ = &call;
    key_layout_ = &key_layout;
    key_turns_ = key_turns;
    if (first_token_ != first_token || kv_head_ != kv_head || shape_.n_tokens != shape.n_tokens) forget_queries();
    const AttentionMode mode = attention_mode();
    exact_ = mode == AttentionMode::kExact;
    coefs_of_q_ = mode == AttentionMode::kIntegers && takes_bytes(key_layout) ? CoefSize::kByte : CoefSize::kWide;
    shape_ = shape;
    rule_ = call.rule;
    first_token_ = first_token;
    first_pos_ = first_pos;
    kv_head_ = kv_head;
    target_ = best_simd_target();
    kernels_ = &block_kernels(target_);
}

void TileAttention::forget_queries() noexcept {
    for (PlainQueries& q : plain_queries_) q.made = false;
    for (PackedQueries& q : packed_queries_) q.made = false;
}

/// The ones that fit, else the ones not used for the longest time, marked as not made.
template <typename Queries, typename Fits>
Queries& TileAttention::find_or_oldest(std::array<Queries, kTurns>& made, const Fits& fits) noexcept {
    Queries* found = &made[0];
    for (Queries& q : made) {
        if (q.made && fits(q)) {
            found = &q;
            break;
        }
        if (!q.made ? found->made : found->made && q.used < found->used) found = &q;
    }
    found->made = found->made && fits(*found);
    found->used = ++clock_;
    return *found;
}

void TileAttention::turn(int32_t delta) noexcept {
    if (call_->rope != nullptr && call_->rope->n_dims == 0) delta = 0;  // nothing is rotated
    const auto fits = [&](const PlainQueries& q) { return q.delta == delta; };
    if (plain_->made && fits(*plain_)) return;
    plain_ = &find_or_oldest(plain_queries_, fits);
    if (!plain_->made) make_plain(delta, *plain_);
}

void TileAttention::turn(int32_t delta, int32_t steps_back) noexcept {
    if (call_->rope != nullptr && call_->rope->n_dims == 0) delta = 0;
    const auto fits = [&](const PackedQueries& q) { return q.delta == delta && q.steps_back == steps_back; };
    if (packed_->made && fits(*packed_)) return;
    packed_ = &find_or_oldest(packed_queries_, fits);
    if (packed_->made) return;
    turn(delta);
    make_packed(delta, steps_back, *packed_);
}

void TileAttention::load_matrix(const TransformFit& fit) noexcept {
    if (matrix_of_ == &fit) return;
    kernels_->bytes_to_float(fit.matrix.data(), fit.dim * fit.dim, matrix_.data());
    matrix_of_ = &fit;
}

void TileAttention::make_plain(int32_t delta, PlainQueries& plain) noexcept {
    plain.made = true;
    plain.delta = delta;
    if (delta != 0) {
        KVAQ_CHECK(call_->rope != nullptr);
        plain.rope.set(*call_->rope, delta);
    }
    const size_t dim = shape_.head_dim_k;
    const float scale = rule_.softcap > 0.0F ? rule_.scale / rule_.softcap : rule_.scale;
    for (size_t row = 0; row < shape_.n_rows(); ++row) {
        const float* q = call_->q.row(first_token_ + row / shape_.group, kv_head_ * shape_.group + row % shape_.group);
        float* out = &plain.rows[row * dim];
        if (delta != 0) {
            plain.rope.apply(q, out, dim);
            q = out;
        }
        for (size_t c = 0; c < dim; ++c) out[c] = q[c] * scale;
    }
}

/// From plain_, turned by delta already.
void TileAttention::make_packed(int32_t delta, int32_t steps_back, PackedQueries& packed) noexcept {
    packed.made = true;
    packed.delta = delta;
    packed.steps_back = steps_back;
    const CodecSpec& key_codec = key_layout_->spec;
    const size_t dim = shape_.head_dim_k;
    const size_t n_rows = shape_.n_rows();
    const TransformFit* fitted = fit_of(key_codec);
    float* turned = fitted != nullptr ? turned_.data() : packed.rows.data();
    std::copy_n(plain_->rows.data(), n_rows * dim, turned);
    if (steps_back != 0) {
        KVAQ_CHECK(key_turns_ != nullptr);
        key_turns_->back(steps_back, turned, n_rows, dim);
    }
    if (has_matrix(fitted)) {
        const TransformFit& fit = *fitted;  // q^T x^ = (U q)^T z^
        if (dim % 16 == 0) {
            load_matrix(fit);
            kernels_->scores(turned, dim, n_rows, dim, matrix_.data(), dim, dim, packed.rows.data(), dim);
        } else {
            for (size_t row = 0; row < n_rows; ++row) {
                for (size_t i = 0; i < dim; ++i) {
                    float sum = 0;
                    for (size_t j = 0; j < dim; ++j) sum += turned[row * dim + j] * static_cast<float>(fit.at(i, j));
                    packed.rows[row * dim + i] = sum;
                }
            }
        }
        for (size_t row = 0; row < n_rows; ++row) {
            for (size_t i = 0; i < dim; ++i) packed.rows[row * dim + i] *= fit.row_scale[i];
        }
    } else if (fitted != nullptr) {
        for (size_t row = 0; row < n_rows; ++row)
            to_codec_channels(*fitted, &turned[row * dim], &packed.rows[row * dim]);
    } else if (key_codec.basis == Basis::kHadamard) {
        for (size_t row = 0; row < n_rows; ++row) hadamard_transform(&packed.rows[row * dim], dim);
    }
    make_coefs(packed);
}

int32_t TileAttention::first_visible(size_t token_begin) const noexcept {
    if (rule_.sliding_window <= 0) return 0;
    const int32_t pos = first_pos_ + static_cast<int32_t>(token_begin);
    if (rule_.chunked_window) return pos / rule_.sliding_window * rule_.sliding_window;
    return std::max(0, pos - rule_.sliding_window + 1);
}

void TileAttention::add_f16(const Keys& keys, size_t tile_tokens, size_t token_begin, size_t token_end) noexcept {
    if (token_begin >= token_end || keys.begin >= keys.end) return;
    const size_t dim_k = shape_.head_dim_k;
    const size_t dim_v = shape_.padded_v();
    const Rows rows = rows_of(token_begin, token_end);
    const size_t n_keys = std::min((keys.end + 15) / 16 * 16, tile_tokens);
    kernels_->scores(&plain_->rows[rows.first * dim_k], dim_k, rows.n, dim_k, keys_.data(), tile_tokens, n_keys,
                     scores_.data(), tile_tokens);
    const Range seen = weigh(keys, n_keys, tile_tokens, rows);
    if (seen.begin >= seen.end) return;
    kernels_->accumulate(scores_.data(), tile_tokens, rows.n, seen.begin, seen.end, values_.data(), dim_v, dim_v,
                         &o_plain_[rows.first * dim_v], dim_v);
}

void TileAttention::Ahead::begin(const TileLayout& key_layout, size_t keys_but, const TileLayout& value_layout,
                                 size_t values_but, std::span<const PackedTile> soon, size_t n_steps) noexcept {
    n_parts_ = part_ = line_ = 0;
    size_t n_lines = 0;
    const auto add = [&](const std::byte* from, size_t but, size_t bytes) {
        if (from == nullptr) return;
        parts_[n_parts_++] = {from + but, (bytes - but) / kLine};
        n_lines += (bytes - but) / kLine;
    };
    for (const PackedTile& tile : soon) add(tile.keys, keys_but, key_layout.bytes);
    for (const PackedTile& tile : soon) add(tile.values, values_but, value_layout.bytes);
    lines_a_step_ = (n_lines + n_steps - 1) / n_steps;
}

void TileAttention::Ahead::step() noexcept {
    for (size_t left = lines_a_step_; left > 0 && part_ < n_parts_;) {
        const Part& part = parts_[part_];
        const size_t end = line_ + std::min(left, part.n_lines - line_);
        left -= end - line_;
        for (; line_ < end; ++line_) __builtin_prefetch(part.from + line_ * kLine, 0, 2);
        if (line_ < part.n_lines) return;
        ++part_;
        line_ = 0;
    }
}

void TileAttention::add_packed(const TileLayout& key_layout, const TileLayout& value_layout,
                               std::span<const PackedTile> tiles, const Keys& keys, size_t token_begin,
                               size_t token_end, std::span<const PackedTile> soon) noexcept {
    if (token_begin >= token_end || keys.begin >= keys.end) return;
    const size_t n_keys = tiles.size() * key_layout.tile_tokens;
    const Rows all = rows_of(token_begin, token_end);
    packed_used_ = true;
    if (!exact_ && !key_layout.spec.is_float16() && !key_reader_)
        key_reader_.emplace(target_, key_layout, tiles[0].keys);
    if (!exact_ && !value_layout.spec.is_float16() && !value_reader_)
        value_reader_.emplace(target_, value_layout, tiles[0].values);
    const bool key_codes = multiplies_codes(key_reader_, all.n);
    const bool value_codes = multiplies_codes(value_reader_, all.n);
    const size_t n_stages = (all.n + kStageRows - 1) / kStageRows;
    ahead_.begin(key_layout, key_codes ? code_bytes_of(key_layout) : 0, value_layout,
                 value_codes ? code_bytes_of(value_layout) : 0, soon,
                 tiles.size() + (value_codes ? 1 : tiles.size()) + 2 * n_stages);  // steps of what follows
    if (!key_codes) read_tiles(Side::kKey, key_layout, tiles);
    if (!value_codes) read_tiles(Side::kValue, value_layout, tiles);
    for (size_t i = 0; i < all.n; i += kStageRows) {
        const Rows rows{.first = all.first + i, .n = std::min(kStageRows, all.n - i)};
        ahead_.step();
        if (key_codes) {
            score_codes(key_layout.tile_tokens, tiles, soon, rows);
        } else if (key_reader_) {
            score_levels(n_keys, rows);
        } else {
            const size_t dim = shape_.head_dim_k;
            kernels_->scores(&packed_->rows[rows.first * dim], dim, rows.n, dim, keys_.data(), n_keys, n_keys,
                             scores_.data(), n_keys);
        }
        ahead_.step();
        if (value_codes) {
            sum_codes(value_layout, tiles, soon, keys, rows);
        } else if (value_reader_) {
            sum_levels(value_layout, n_keys, keys, rows);
        } else {
            const size_t dim = shape_.padded_v();
            const Range seen = weigh(keys, n_keys, n_keys, rows);
            if (seen.begin >= seen.end) continue;
            kernels_->accumulate(scores_.data(), n_keys, rows.n, seen.begin, seen.end, values_.data(), dim, dim,
                                 &o_packed_[rows.first * dim], dim);
        }
    }
    ahead_.finish();
}

void TileAttention::read_tiles(Side side, const TileLayout& layout, std::span<const PackedTile> tiles) noexcept {
    const bool key = side == Side::kKey;
    std::optional<LevelReader>& reader = key ? key_reader_ : value_reader_;
    for (size_t i = 0; i < tiles.size(); ++i) {
        const std::byte* tile = key ? tiles[i].keys : tiles[i].values;
        ahead_.step();
        if (reader) {
            reader->read(tile, key ? key_levels_ : value_levels_, i, tiles.size());
        } else {
            decode_tile(layout, tile, key ? keys_.data() : values_.data());
        }
    }
}

void TileAttention::bend(float* scores, const Range& range, int32_t first_key, size_t row) const noexcept {
    if (rule_.softcap > 0.0F) {
        for (size_t j = range.begin; j < range.end; ++j) scores[j] = rule_.softcap * std::tanh(scores[j]);
    }
    if (rule_.alibi_max_bias > 0.0F) {
        const float slope =
            alibi_slope(rule_.alibi_max_bias, kv_head_ * shape_.group + row % shape_.group, shape_.n_heads);
        const int32_t pos = first_pos_ + static_cast<int32_t>(row / shape_.group);
        for (size_t j = range.begin; j < range.end; ++j)
            scores[j] += slope * static_cast<float>(first_key + static_cast<int32_t>(j) - pos);
    }
}

TileAttention::Range TileAttention::weigh(const Keys& keys, size_t n_keys, size_t ld, const Rows& rows,
                                          const TileLevels* scales, bool has_offset) noexcept {
    const size_t dim_v = shape_.padded_v();
    const size_t end = rows.first + rows.n;
    const auto range_of = [&](size_t row) {
        const size_t t = row / shape_.group;
        const int32_t seen_to = first_pos_ + static_cast<int32_t>(t) - keys.first_pos + 1;
        const int32_t seen_from = first_visible(t) - keys.first_pos;
        return Range{.begin = static_cast<size_t>(std::max(static_cast<int32_t>(keys.begin), seen_from)),
                     .end = static_cast<size_t>(std::max(0, std::min(static_cast<int32_t>(keys.end), seen_to)))};
    };
    Range all{.begin = n_keys, .end = 0};
    for (size_t first = rows.first; first < end;) {
        const Range range = range_of(first);
        size_t next = first + 1;  // rows that see the same keys are weighed together
        while (next < end && range_of(next) == range) ++next;
        const size_t n_rows = next - first;
        const size_t r = first - rows.first;
        float* s = &scores_[r * ld];
        for (size_t row = first; row < next; ++row) bend(s + (row - first) * ld, range, keys.first_pos, row);
        if (scales != nullptr) {
            kernels_->softmax_coefs(s, ld, n_rows, n_keys, range.begin, range.end, scales->scale.data(),
                                    has_offset ? scales->offset.data() : nullptr, &m_[first], &l_[first],
                                    &tile_sums_[first], &factors_[first], &coefs_[r * ld], ld, &steps_[r], &sums_[r],
                                    &constants_[r]);
        } else {
            kernels_->softmax_step(s, ld, n_rows, n_keys, range.begin, range.end, &m_[first], &l_[first],
                                   &tile_sums_[first], &factors_[first]);
        }
        for (size_t row = first; row < next; ++row) {
            const float factor = factors_[row];
            if (factor == 1.0F) continue;
            kernels_->scale(&o_plain_[row * dim_v], dim_v, factor);
            if (packed_used_) kernels_->scale(&o_packed_[row * dim_v], dim_v, factor);
            p_packed_[row] *= factor;
        }
        if (range.begin < range.end) {
            all.begin = std::min(all.begin, range.begin);
            all.end = std::max(all.end, range.end);
        }
        first = next;
    }
    return all;
}

void TileAttention::finish(const TileLayout& value_layout) noexcept {
    if (!packed_used_) return;
    const CodecSpec& value_codec = value_layout.spec;
    const size_t dim = shape_.padded_v();
    const size_t n_rows = shape_.n_rows();
    float* sums = o_packed_.data();
    const TransformFit* fitted = fit_of(value_codec);
    if (fitted != nullptr && !exact_) {  // sums of gain * level so far
        const TransformFit& fit = *fitted;
        const size_t n_coded = level_shape(value_layout).n_channels;
        for (size_t row = 0; row < n_rows; ++row) {
            float* o = sums + row * dim;
            for (size_t i = 0; i < n_coded; ++i) o[i] = o[i] * fit.scale[i] + p_packed_[row] * fit.offset[i];
            for (size_t i = n_coded; i < shape_.head_dim_v; ++i) o[i] = p_packed_[row] * fit.offset[i];
        }
    }
    if (has_matrix(fitted)) {
        const TransformFit& fit = *fitted;
        for (size_t row = 0; row < n_rows; ++row) {
            for (size_t i = 0; i < shape_.head_dim_v; ++i) o_packed_[row * dim + i] *= fit.row_scale[i];
        }
        if (shape_.head_dim_v == dim) {
            load_matrix(fit);
            kernels_->scores(o_packed_.data(), dim, n_rows, dim, matrix_.data(), dim, dim, rows_.data(), dim);
        } else {
            for (size_t row = 0; row < n_rows; ++row) {
                for (size_t j = 0; j < shape_.head_dim_v; ++j) {
                    float sum = 0;
                    for (size_t i = 0; i < shape_.head_dim_v; ++i)
                        sum += o_packed_[row * dim + i] * static_cast<float>(fit.at(i, j));
                    rows_[row * dim + j] = sum;
                }
            }
        }
        sums = rows_.data();
    }
    for (size_t row = 0; row < n_rows; ++row) {
        float* packed = sums + row * dim;
        if (fitted != nullptr && !has_matrix(fitted)) {
            to_model_channels(*fitted, packed, packed);
        } else if (fitted == nullptr && value_codec.basis == Basis::kHadamard) {
            hadamard_transform(packed, shape_.head_dim_v);
        }
        for (size_t d = 0; d < shape_.head_dim_v; ++d) o_plain_[row * dim + d] += packed[d];
    }
}

void TileAttention::save(float* state) const noexcept {
    const size_t rows = shape_.n_rows();
    const size_t sums = rows * shape_.padded_v();
    state = std::copy_n(m_.data(), rows, state);
    state = std::copy_n(l_.data(), rows, state);
    state = std::copy_n(p_packed_.data(), rows, state);
    state = std::copy_n(o_plain_.data(), sums, state);
    std::copy_n(o_packed_.data(), sums, state);
}

void TileAttention::write(const AttentionCall& call, const TileLayout& value_layout) noexcept {
    finish(value_layout);
    for (size_t row = 0; row < shape_.n_rows(); ++row) {
        write_row(call, first_token_ + row / shape_.group, kv_head_ * shape_.group + row % shape_.group,
                  &o_plain_[row * shape_.padded_v()], shape_.head_dim_v, m_[row], l_[row]);
    }
}

void TileAttention::merge(const AttentionCall& call, const Shape& shape, size_t first_token, size_t kv_head,
                          const float* states, size_t n_states, size_t state_stride) noexcept {
    shape_ = shape;
    rule_ = call.rule;
    first_token_ = first_token;
    kv_head_ = kv_head;
    forget_queries();
    packed_used_ = true;
    exact_ = attention_mode() == AttentionMode::kExact;
    kernels_ = &block_kernels(best_simd_target());
    const size_t rows = shape.n_rows();
    const size_t dim = shape.padded_v();
    std::fill_n(o_plain_.data(), rows * dim, 0.0F);
    std::fill_n(o_packed_.data(), rows * dim, 0.0F);
    for (size_t row = 0; row < rows; ++row) {
        float m = kMinusInf;
        for (size_t i = 0; i < n_states; ++i) m = std::max(m, states[i * state_stride + row]);
        m_[row] = m;
        l_[row] = 0.0F;
        p_packed_[row] = 0.0F;
        for (size_t i = 0; i < n_states && m > kMinusInf; ++i) {
            const float* state = states + i * state_stride;
            if (state[row] == kMinusInf) continue;
            const float factor = std::exp(state[row] - m);
            l_[row] += state[rows + row] * factor;
            p_packed_[row] += state[2 * rows + row] * factor;
            const float* plain = state + 3 * rows + row * dim;
            const float* packed = plain + rows * dim;
            for (size_t d = 0; d < dim; ++d) o_plain_[row * dim + d] += plain[d] * factor;
            for (size_t d = 0; d < dim; ++d) o_packed_[row * dim + d] += packed[d] * factor;
        }
    }
}

}  // namespace kvaq
