#include "kvaq/eval/perturbed_cache.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvaq/base/forwarding_handler.h"
#include "kvaq/plan/plan.h"

namespace kvaq {
namespace {

/// splitmix64's mixing function (Steele, Lea and Flood 2014).
uint64_t mixed(uint64_t x) noexcept {
    x += 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31);
}

class PerturbedCache final : public ForwardingHandler {
  public:
    PerturbedCache(const ModelShape& shape, std::unique_ptr<AttentionHandler> inner)
        : ForwardingHandler(std::move(inner)) {
        for (const LayerShape& layer : shape.layers) {
            const auto number = static_cast<size_t>(layer.layer);
            if (layers_.size() <= number) layers_.resize(number + 1);
            layers_[number] = layer;
        }
    }

    bool begin(std::span<const BatchToken> tokens) override {
        positions_.clear();
        for (const BatchToken& token : tokens) positions_.push_back(token.pos);
        return inner_->begin(tokens);
    }
    void attend(const AttentionCall& call, Team& team) noexcept override {
        thread_local std::vector<float16> keys;
        thread_local std::vector<float16> values;
        const LayerShape& shape = layers_[static_cast<size_t>(call.layer)];
        AttentionCall other = call;
        other.k = rows(call, call.k, shape.n_kv_heads, shape.head_dim_k, 0, keys);
        other.v = rows(call, call.v, shape.n_kv_heads, shape.head_dim_v, 1, values);
        inner_->attend(other, team);
    }

  private:
    [[nodiscard]] HeadRows<const float16> rows(const AttentionCall& call, const HeadRows<const float16>& x,
                                               size_t n_heads, size_t dim, uint64_t side,
                                               std::vector<float16>& out) const {
        out.resize(call.n_tokens * n_heads * dim);
        for (size_t t = 0; t < call.n_tokens; ++t) {
            const auto pos = static_cast<uint64_t>(positions_[t]);
            for (size_t h = 0; h < n_heads; ++h) {
                const uint64_t place = mixed(pos << 32 | static_cast<uint64_t>(call.layer) << 16 | h << 1 | side);
                for (size_t c = 0; c < dim; ++c)
                    out[(t * n_heads + h) * dim + c] = perturbed(x.row(t, h)[c], mixed(place + c));
            }
        }
        return {out.data(), n_heads * dim, dim};
    }

    std::vector<LayerShape> layers_;
    std::vector<int32_t> positions_;
};

}  // namespace

float16 perturbed(float16 x, uint64_t hash) noexcept {
    constexpr uint16_t kInfinityBits = 0x7C00;
    const uint16_t bits = float16_bits(x);
    const auto size = static_cast<uint16_t>(bits & 0x7FFFU);
    const bool up = (hash & 1) != 0;
    if (size == 0 || size + 1 >= kInfinityBits) return x;
    const auto neighbour = static_cast<uint16_t>(up ? bits + 1 : bits - 1);  // away from zero, towards it
    const auto value = static_cast<double>(x);
    const double step = std::abs(static_cast<double>(float16_from_bits(neighbour)) - value);
    const double uniform = static_cast<double>(hash >> 11) * 0x1p-53;
    return uniform * step < std::abs(value) * kPerturbation ? float16_from_bits(neighbour) : x;
}

HandlerFactory serve_perturbed_f16() {
    return [](const ModelShape& shape, const KvCacheOptions& options) -> std::unique_ptr<AttentionHandler> {
        return std::make_unique<PerturbedCache>(shape,
                                                make_kv_cache(make_uniform_plan(parse_preset("f16"), shape), options));
    };
}

}  // namespace kvaq
