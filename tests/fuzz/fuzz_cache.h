#pragma once

// For fuzz targets: small caches, and micro-batches run in one thread.

#include <array>
#include <memory>
#include <string>

#include "kvaq/cache/cache_testing.h"
#include "kvaq/cache/kv_cache.h"

namespace kvaq::fuzz {

inline constexpr int32_t kSequences = 3;
inline constexpr int32_t kContext = 400;
inline constexpr int32_t kBatch = 100;

inline constexpr std::array kPlans = {"f16",         "k4v2-w20-s4",  "k8v3-rot", "k3v2-kchan-g32-w70", "klt-s4",
                                      "k4v4-lm-w30", "k3v2-tcq-w20", "q4_0",     "k1v1.58-g32-s60"};
inline constexpr std::array kSlidingWindows = {0, 70, 20};

inline ModelShape tiny_model(int32_t sliding_window) {
    ModelShape shape;
    shape.architecture = "test";
    shape.layers = {{.layer = 0, .n_heads = 2, .n_kv_heads = 1, .head_dim_k = 16, .head_dim_v = 8, .sliding_window = 0},
                    {.layer = 2,
                     .n_heads = 2,
                     .n_kv_heads = 2,
                     .head_dim_k = 8,
                     .head_dim_v = 16,
                     .sliding_window = sliding_window}};
    return shape;
}

class OneThread final : public Team {
  public:
    [[nodiscard]] size_t index() const noexcept override { return 0; }
    [[nodiscard]] size_t size() const noexcept override { return 1; }
    void barrier() noexcept override {}
};

/// begin, attend and end of one micro-batch, or rollback. Empty if there was no room.
inline std::vector<float> run(AttentionHandler& handler, const ModelShape& model, const std::vector<TestToken>& tokens,
                              bool keep = true) {
    static const RopeRule rope = rope_of(8);
    std::optional<std::vector<float>> all =
        outputs_of(handler, model, tokens, {.scale = 0.2F}, &rope, [&](const AttentionCall& call) {
            OneThread team;
            handler.attend(call, team);
        });
    if (!all) return {};
    if (keep) {
        handler.end();
    } else {
        handler.rollback();
    }
    return std::move(*all);
}

}  // namespace kvaq::fuzz
