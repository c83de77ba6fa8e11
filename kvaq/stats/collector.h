#pragma once

#include <memory>

#include "kvaq/base/forwarding_handler.h"
#include "kvaq/stats/model_stats.h"
#include "kvaq/stats/moments.h"
#include "kvaq/stats/output_metric.h"

namespace kvaq {

/// Sums K, V and Q of every attention call into a ModelStats while another handler does the attention; the threads of a
/// team split the KV heads. Keeps the K and V of the text that is running in f16: every 16th query is followed to where
/// its attention rests (OutputMetric). Only micro-batches of one sequence that begins at position 0 and goes on without
/// a gap can be followed.
/// Channels that RoPE turns slowly have means that come round only after thousands of positions; a text of 2048 tokens would take where they
/// stand for where they stay. So queries are summed as they would be at positions spread over all that the layer's queries can be from the keys'
/// frame (each micro-batch is turned to another place, in golden-ratio steps), and keys as packed tiles hold them: turned back by multiples of
/// key_period (Plan::key_period), or, where that is 0, spread likewise.
class StatsCollector final : public ForwardingHandler {
  public:
    /// n_sample_tiles whole tiles of 64 tokens are kept per head, one per micro-batch of at least 64 tokens, never a
    /// sequence's first tile (its first tokens are attention sinks, which plans keep in f16).
    /// output: W_O's grams by layer; empty: the identity everywhere.
    StatsCollector(const ModelShape& shape, std::unique_ptr<AttentionHandler> inner, size_t n_sample_tiles,
                   const std::vector<OutputGrams>& output = {}, int32_t key_period = 0);

    /// Means so far.
    [[nodiscard]] ModelStats stats() const;

    bool begin(std::span<const BatchToken> tokens) override;
    void attend(const AttentionCall& call, Team& team) noexcept override;
    void end() noexcept override;
    bool seq_add(int32_t seq, int32_t p0, int32_t p1, int32_t delta) override {
        return inner_->seq_add(seq, p0, p1, delta);
    }

  private:
    struct HeadSums {
        Moments keys, cached_keys, values,
            queries;  ///< cached: before they are turned; queries: of all query heads of the group
        OutputMetric output;
        std::vector<float16> past_keys, past_values;  ///< [positions, dim] of the running text
    };

    /// Positions by which this micro-batch's queries are turned, and its key t.
    [[nodiscard]] int32_t spread(const LayerShape& shape) const noexcept;
    [[nodiscard]] int32_t key_turn(const LayerShape& shape, size_t t) const noexcept;

    void follow(const AttentionCall& call, const LayerShape& shape, size_t head, HeadSums& sums);

    ModelStats sums_;
    std::vector<int32_t> layer_index_;
    std::vector<std::vector<HeadSums>> head_sums_;  ///< [layer][kv head]
    size_t tile_slot_ = 0;     ///< where this micro-batch's sample tile goes; n_sample_tiles = nowhere
    size_t tile_first_ = 0;    ///< its first token in the micro-batch
    size_t n_batches_ = 0;     ///< sample tiles taken so far
    int32_t tile_turn_ = 0;    ///< positions by which this micro-batch's sample tile of keys is turned
    bool turns_known_ = true;  ///< every sample tile was turned by one number
    size_t batch_tokens_ = 0;
    size_t n_begun_ = 0;  ///< micro-batches
    double place_ = 0;    ///< of this micro-batch in all positions, [0, 1)
    int32_t first_pos_ = 0;
    int32_t n_positions_;   ///< that the model was trained for; 0: not known, nothing is spread
    size_t n_past_ = 0;     ///< of the running text before this micro-batch
    bool follows_ = false;  ///< this micro-batch goes on with the running text
};

}  // namespace kvaq
