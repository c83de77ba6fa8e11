#include "bench/escape_cache.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/base/forwarding_handler.h"
#include "kvaq/base/rope.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/cache/tile.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

/// What the codec weighs the error d [dim] by; d is overwritten.
double cost_of(const CodecSpec& spec, size_t dim, double* d) {
    double sum = 0;
    if (spec.transform == nullptr) {
        for (size_t c = 0; c < dim; ++c) sum += d[c] * d[c];
        return sum;
    }
    const TransformFit& fit = *spec.transform->fit;
    transform_forward(fit, d);
    const size_t unit = transform_unit(fit.side);
    for (size_t i = 0; i < dim; ++i) {
        if (!(fit.scale[i] > 0)) continue;
        const double steps = d[i] / static_cast<double>(fit.scale[i]);
        sum += std::ldexp(steps * steps, 2 * spec.transform->unit_bits[i / unit]);
    }
    return sum;
}

class EscapeCache final : public ForwardingHandler {
  public:
    /// inner: for micro-batches of two pages.
    EscapeCache(const Plan& plan, size_t kept, std::unique_ptr<AttentionHandler> inner)
        : ForwardingHandler(std::move(inner)), plan_(plan), kept_(kept) {
        KVAQ_CHECK(plan.window == 0);
        for (const LayerPlan& layer : plan_.layers) {
            const auto number = static_cast<size_t>(layer.shape.layer);
            if (layers_.size() <= number) layers_.resize(number + 1);
            Layer& one = layers_[number];
            one.plan = &layer;
            if (plan_.key_period > 0 && layer.key_turn.n_dims > 0)
                one.turns = std::make_unique<TurnTable>(layer.key_turn, plan_.key_period, 0);
            for (const HeadPlan& head : layer.heads) {
                one.key_layouts.push_back(
                    make_tile_layout(head.key, Side::kKey, layer.shape.head_dim_k, plan_.tile_tokens));
                one.value_layouts.push_back(
                    make_tile_layout(head.value, Side::kValue, layer.shape.head_dim_v, plan_.tile_tokens));
            }
        }
    }

    bool begin(std::span<const BatchToken> tokens) override {
        first_ = static_cast<size_t>(tokens.front().pos);
        const size_t page = plan_.tile_tokens;
        KVAQ_CHECK(first_ % page == 0 && tokens.size() <= page);
        std::vector<BatchToken> all;
        before_ = first_ == 0 ? 0 : page;
        for (size_t t = 0; t < before_; ++t)
            all.push_back({static_cast<int32_t>(first_ - page + t), tokens.front().seq_ids});
        all.insert(all.end(), tokens.begin(), tokens.end());
        KVAQ_CHECK(inner_->seq_rm(tokens.front().seq_ids[0], static_cast<int32_t>(first_ - before_), -1));
        return inner_->begin(all);
    }
    void attend(const AttentionCall& call, Team& team) noexcept override {
        const LayerShape& shape = layers_[static_cast<size_t>(call.layer)].plan->shape;
        if (team.index() == 0) prepare(call);
        team.barrier();
        AttentionCall other = call;
        other.n_tokens = before_ + call.n_tokens;
        other.q = {q_.data(), shape.n_heads * shape.head_dim_k, shape.head_dim_k};
        other.k = {k_.data(), shape.n_kv_heads * shape.head_dim_k, shape.head_dim_k};
        other.v = {v_.data(), shape.n_kv_heads * shape.head_dim_v, shape.head_dim_v};
        other.out = {out_.data(), shape.n_heads * shape.head_dim_v, shape.head_dim_v};
        inner_->attend(other, team);
        team.barrier();
        if (team.index() != 0) return;
        for (size_t t = 0; t < call.n_tokens; ++t) {
            for (size_t h = 0; h < shape.n_heads; ++h)
                std::copy_n(other.out.row(before_ + t, h), shape.head_dim_v, call.out.row(t, h));
        }
    }

  private:
    struct Layer {
        const LayerPlan* plan = nullptr;
        std::unique_ptr<TurnTable> turns;
        std::vector<TileLayout> key_layouts, value_layouts;  // [head]
        std::vector<float16> keys, values;                   // of the newest page as they came, [token][head][channel]
    };

    /// The page before again, now through its tiles, with queries that nobody asks for, then the call's own rows.
    void prepare(const AttentionCall& call) {
        Layer& layer = layers_[static_cast<size_t>(call.layer)];
        const LayerShape& shape = layer.plan->shape;
        const size_t q_row = shape.n_heads * shape.head_dim_k;
        const size_t k_row = shape.n_kv_heads * shape.head_dim_k;
        const size_t v_row = shape.n_kv_heads * shape.head_dim_v;
        const size_t n = before_ + call.n_tokens;
        q_.assign(n * q_row, 0.0F);
        k_.resize(n * k_row);
        v_.resize(n * v_row);
        out_.resize(n * shape.n_heads * shape.head_dim_v);
        for (size_t h = 0; before_ > 0 && h < shape.n_kv_heads; ++h) {
            through_tile(layer.keys.data(), h, layer.key_layouts[h], layer.turns.get(), k_row, k_.data());
            through_tile(layer.values.data(), h, layer.value_layouts[h], nullptr, v_row, v_.data());
        }
        for (size_t t = 0; t < call.n_tokens; ++t) {
            for (size_t h = 0; h < shape.n_heads; ++h)
                std::copy_n(call.q.row(t, h), shape.head_dim_k, &q_[(before_ + t) * q_row + h * shape.head_dim_k]);
            for (size_t h = 0; h < shape.n_kv_heads; ++h) {
                std::copy_n(call.k.row(t, h), shape.head_dim_k, &k_[(before_ + t) * k_row + h * shape.head_dim_k]);
                std::copy_n(call.v.row(t, h), shape.head_dim_v, &v_[(before_ + t) * v_row + h * shape.head_dim_v]);
            }
        }
        layer.keys.assign(k_.begin() + static_cast<ptrdiff_t>(before_ * k_row), k_.end());
        layer.values.assign(v_.begin() + static_cast<ptrdiff_t>(before_ * v_row), v_.end());
    }

    /// A page of one head as attention would find it; x and out [token][head][channel], `row` numbers a token.
    void through_tile(const float16* x, size_t head, const TileLayout& layout, const TurnTable* turns, size_t row,
                      float16* out) const {
        const size_t tile = layout.tile_tokens;
        const size_t dim = layout.head_dim;
        const size_t first = first_ - tile;
        std::vector<float> original(tile * dim);
        std::vector<double> decoded(tile * dim);
        std::vector<double> error(dim);
        std::vector<std::byte> packed(layout.bytes);
        std::vector<std::pair<double, size_t>> costs;
        for (size_t t = 0; t < tile; ++t) {
            for (size_t c = 0; c < dim; ++c) original[t * dim + c] = static_cast<float>(x[t * row + head * dim + c]);
        }
        const auto multiple = turns == nullptr ? 0 : static_cast<int32_t>(first / static_cast<size_t>(turns->step()));
        if (turns != nullptr) turns->back(multiple, original.data(), tile, dim);
        encode_tile(layout, original.data(), packed.data());
        decode_tile_reference(layout, packed.data(), decoded.data(), true);
        for (size_t t = 0; t < tile; ++t) {
            if (first + t < static_cast<size_t>(plan_.sinks)) continue;
            for (size_t c = 0; c < dim; ++c)
                error[c] = decoded[t * dim + c] - static_cast<double>(original[t * dim + c]);
            costs.emplace_back(cost_of(layout.spec, dim, error.data()), t);
        }
        const size_t kept = std::min(kept_, costs.size());
        std::partial_sort(costs.begin(), costs.begin() + static_cast<ptrdiff_t>(kept), costs.end(),
                          [](const auto& a, const auto& b) { return a.first > b.first; });
        if (turns != nullptr) turns->forward(multiple, decoded.data(), tile, dim);
        for (size_t t = 0; t < tile; ++t) std::copy_n(&x[t * row + head * dim], dim, &out[t * row + head * dim]);
        for (size_t i = kept; i < costs.size(); ++i) {
            const size_t t = costs[i].second;
            for (size_t c = 0; c < dim; ++c) out[t * row + head * dim + c] = static_cast<float16>(decoded[t * dim + c]);
        }
    }

    Plan plan_;
    size_t kept_;
    std::vector<Layer> layers_;
    size_t first_ = 0;   ///< position of the micro-batch's first token
    size_t before_ = 0;  ///< tokens of the page before that are brought again
    std::vector<float> q_, out_;
    std::vector<float16> k_, v_;
};

}  // namespace

HandlerFactory serve_escaping(const Plan& plan, size_t kept) {
    return [plan, kept](const ModelShape& shape, KvCacheOptions options) -> std::unique_ptr<AttentionHandler> {
        options.max_batch_tokens = 2 * plan.tile_tokens;
        return std::make_unique<EscapeCache>(plan, kept,
                                             make_kv_cache(make_uniform_plan(parse_preset("f16"), shape), options));
    };
}

}  // namespace kvaq
