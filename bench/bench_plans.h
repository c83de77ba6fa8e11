#pragma once

// For benchmarks: plans over a few equal layers, and a team of one.

#include <array>
#include <string>
#include <vector>

#include "kvaq/base/attention_call.h"
#include "kvaq/plan/plan.h"
#include "kvaq/quant/transform_samples.h"

namespace kvaq {

inline constexpr size_t kBenchLayers = 4;  // more than one, so that tiles do not all stay in a cache

class OneThread final : public Team {
  public:
    [[nodiscard]] size_t index() const noexcept override { return 0; }
    [[nodiscard]] size_t size() const noexcept override { return 1; }
    void barrier() noexcept override {}
};

struct Heads {
    size_t n_heads, n_kv_heads, head_dim;
};
inline constexpr Heads kSmolLm = {9, 3, 64};
inline constexpr Heads kGemma = {4, 1, 256};
inline constexpr Heads kLlama8b = {32, 8, 128};

/// "measured": trellis codes in sorted bases as a measured plan of 3.25 bits has them (keys 4 to 2 bits, values 3). Otherwise a preset, or "klt", "tcq" (matrices), "tcq-sorted" (sorted bases): transform codecs of 5 to 2 bits, 3.5 in the mean.
inline Plan bench_plan(const std::string& name, const Heads& heads, size_t n_layers = kBenchLayers) {
    ModelShape shape;
    shape.architecture = "bench";
    for (size_t i = 0; i < n_layers; ++i) {
        shape.layers.push_back({.layer = static_cast<int32_t>(i),
                                .n_heads = heads.n_heads,
                                .n_kv_heads = heads.n_kv_heads,
                                .head_dim_k = heads.head_dim,
                                .head_dim_v = heads.head_dim});
    }
    const bool measured = name == "measured";
    if (name != "klt" && name != "tcq" && name != "tcq-sorted" && !measured)
        return make_uniform_plan(parse_preset(name), shape);
    Plan plan = make_uniform_plan(parse_preset("k4v4-s4"), shape);
    for (LayerPlan& layer : plan.layers) {
        for (HeadPlan& head : layer.heads) {
            const TransformBasis basis =
                name == "tcq-sorted" || measured ? TransformBasis::kSorted : TransformBasis::kMatrix;
            const auto spec = [&](Side side, unsigned seed) {
                const size_t unit = transform_unit(side);
                const size_t n = (heads.head_dim + unit - 1) / unit;
                CodecSpec codec;
                std::vector<uint8_t> bits;
                const auto by_quarter = measured ? side == Side::kKey ? std::array{4, 3, 3, 2} : std::array{3, 3, 3, 3}
                                                 : std::array{5, 4, 3, 2};
                for (size_t i = 0; i < n; ++i)
                    bits.push_back(static_cast<uint8_t>(by_quarter[i < n / 4       ? 0
                                                                   : i < n / 2     ? 1
                                                                   : i < n * 3 / 4 ? 2
                                                                                   : 3]));
                codec.transform = make_transform_codec(
                    with_basis(*sample_fit(side, heads.head_dim, seed), basis), bits,
                    measured || name.rfind("tcq", 0) == 0 ? TransformCodes::kTrellis : TransformCodes::kCodebook);
                return codec;
            };
            head.key = spec(Side::kKey, 2);
            head.value = spec(Side::kValue, 4);
        }
    }
    return plan;
}

}  // namespace kvaq
