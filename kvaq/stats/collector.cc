#include "kvaq/stats/collector.h"

#include <algorithm>
#include <cmath>

#include "kvaq/base/error.h"
#include "kvaq/base/rope.h"
#include "kvaq/cache/tile.h"

namespace kvaq {
namespace {

constexpr size_t kTile = kDefaultTileTokens;
constexpr size_t kQueryStride = 16;
constexpr double kGoldenRatio = 0.6180339887498949;

/// Rows of one head, token t turned by turn_of(t) positions: [token][dim] in a buffer of the thread's own.
template <typename T, typename TurnOf>
std::span<const T> turned(const RopeRule* rule, const HeadRows<const T>& x, size_t head, size_t n_tokens, size_t dim,
                          TurnOf turn_of) {
    thread_local std::vector<T> rows;
    rows.resize(n_tokens * dim);
    RopeTurn turn;  // without a rule it leaves every channel as it is
    for (size_t t = 0; t < n_tokens; ++t) {
        if (rule != nullptr) turn.set(*rule, turn_of(t));
        turn.apply(x.row(t, head), &rows[t * dim], dim);
    }
    return rows;
}

}  // namespace

StatsCollector::StatsCollector(const ModelShape& shape, std::unique_ptr<AttentionHandler> inner, size_t n_sample_tiles,
                               const std::vector<OutputGrams>& output, int32_t key_period)
    : ForwardingHandler(std::move(inner)), n_positions_(shape.n_ctx_train) {
    sums_.architecture = shape.architecture;
    sums_.model_name = shape.name;
    sums_.fingerprint = shape.fingerprint;
    sums_.n_sample_tiles = n_sample_tiles;
    sums_.key_period = key_period;
    sums_.tile_turns.assign(n_sample_tiles, 0);
    for (const LayerShape& layer : shape.layers) {
        const auto number = static_cast<size_t>(layer.layer);
        if (layer_index_.size() <= number) layer_index_.resize(number + 1, -1);
        layer_index_[number] = static_cast<int32_t>(sums_.layers.size());
        LayerStats stats{.shape = layer, .heads = std::vector<HeadStats>(layer.n_kv_heads), .probe = {}};
        std::vector<HeadSums> sums;
        const size_t group = layer.heads_per_kv();
        const OutputGrams identity(layer.n_heads);
        KVAQ_CHECK(output.empty() || output[sums_.layers.size()].size() == layer.n_heads);
        const std::span<const std::vector<double>> grams = output.empty() ? identity : output[sums_.layers.size()];
        for (HeadStats& head : stats.heads) {
            head.key_tiles.assign(n_sample_tiles * kTile * layer.head_dim_k, float16{0});
            head.value_tiles.assign(n_sample_tiles * kTile * layer.head_dim_v, float16{0});
            sums.push_back({Moments(layer.head_dim_k),
                            Moments(layer.head_dim_k),
                            Moments(layer.head_dim_v),
                            Moments(layer.head_dim_k),
                            OutputMetric(layer.head_dim_k, layer.head_dim_v, grams.subspan(sums.size() * group, group)),
                            {},
                            {}});
        }
        sums_.layers.push_back(std::move(stats));
        head_sums_.push_back(std::move(sums));
    }
}

bool StatsCollector::begin(std::span<const BatchToken> tokens) {
    if (!inner_->begin(tokens)) return false;
    batch_tokens_ = tokens.size();
    tile_slot_ = sums_.n_sample_tiles;
    const size_t n_tiles = tokens.size() / kTile;
    if (n_tiles > 0 && n_batches_ < sums_.n_sample_tiles) {
        // Varying places; token positions in the micro-batch, so a tile of the codec may start anywhere in the text.
        const bool first = tokens[0].pos == 0;
        const size_t n_choices = first ? n_tiles - 1 : n_tiles;
        if (n_choices > 0) {
            tile_first_ = ((n_batches_ * 3) % n_choices + (first ? 1 : 0)) * kTile;
            tile_slot_ = n_batches_;
        }
    }
    double whole = 0;
    place_ = std::modf(static_cast<double>(++n_begun_) * kGoldenRatio, &whole);
    first_pos_ = tokens[0].pos;
    const auto first_pos = static_cast<size_t>(std::max(0, tokens[0].pos));
    if (first_pos == 0) n_past_ = 0;
    if (tile_slot_ < sums_.n_sample_tiles) {
        const LayerShape& any = sums_.layers[0].shape;  // the same in all
        tile_turn_ = key_turn(any, tile_first_);
        turns_known_ = turns_known_ && tile_turn_ == key_turn(any, tile_first_ + kTile - 1);
    }
    follows_ = first_pos == n_past_;
    for (size_t i = 0; i < tokens.size(); ++i) {
        follows_ = follows_ && tokens[i].seq_ids.size() <= 1 &&
                   (tokens[i].seq_ids.empty() || tokens[i].seq_ids[0] == tokens[0].seq_ids[0]) &&
                   static_cast<size_t>(tokens[i].pos) == n_past_ + i;
    }
    return true;
}

void StatsCollector::follow(const AttentionCall& call, const LayerShape& shape, size_t head, HeadSums& sums) {
    const auto append = [&](const HeadRows<const float16>& x, size_t dim, std::vector<float16>& past) {
        past.resize((n_past_ + call.n_tokens) * dim);
        for (size_t t = 0; t < call.n_tokens; ++t)
            std::copy_n(x.row(t, head), dim, past.begin() + static_cast<std::ptrdiff_t>((n_past_ + t) * dim));
    };
    append(call.k, shape.head_dim_k, sums.past_keys);
    append(call.v, shape.head_dim_v, sums.past_values);
    std::vector<size_t> rows;
    std::vector<size_t> positions;
    for (size_t t = 0; t < call.n_tokens; ++t) {
        if ((n_past_ + t) % kQueryStride != kQueryStride - 1) continue;
        rows.push_back(t);
        positions.push_back(n_past_ + t);
    }
    if (rows.empty()) return;
    const size_t first_head = head * shape.heads_per_kv();
    sums.output.add({.keys = sums.past_keys,
                     .values = sums.past_values,
                     .queries = {.data = call.q.row(0, first_head),
                                 .token_stride = call.q.token_stride,
                                 .head_stride = call.q.head_stride},
                     .query_tokens = rows,
                     .query_positions = positions,
                     .first_head = first_head,
                     .n_heads = shape.n_heads,
                     .rule = call.rule});
}

void StatsCollector::end() noexcept {
    inner_->end();
    sums_.n_tokens += batch_tokens_;
    if (tile_slot_ < sums_.n_sample_tiles) {
        sums_.tile_turns[n_batches_] = tile_turn_;
        ++n_batches_;
    }
    if (follows_) n_past_ += batch_tokens_;
}

int32_t StatsCollector::spread(const LayerShape& shape) const noexcept {
    int32_t positions = n_positions_;
    if (shape.sliding_window > 0 && sums_.key_period > 0)
        positions = std::min(positions, shape.sliding_window + sums_.key_period);
    const int32_t last = positions - static_cast<int32_t>(batch_tokens_);
    return last > 0 ? static_cast<int32_t>(place_ * last) - first_pos_ : 0;
}

int32_t StatsCollector::key_turn(const LayerShape& shape, size_t t) const noexcept {
    constexpr auto kPage = static_cast<int32_t>(kTile);  // pages begin at its multiples
    const int32_t period = sums_.key_period;
    if (period == 0) return spread(shape);
    return -((first_pos_ + static_cast<int32_t>(t)) / kPage * kPage / period * period);
}

void StatsCollector::attend(const AttentionCall& call, Team& team) noexcept {
    inner_->attend(call, team);
    if (!call.append) return;
    const auto index = static_cast<size_t>(layer_index_[static_cast<size_t>(call.layer)]);
    LayerStats& layer = sums_.layers[index];
    const size_t group = layer.shape.heads_per_kv();
    const size_t dim_k = layer.shape.head_dim_k;
    if (team.index() == 0 && call.rope != nullptr && layer.rope.n_dims == 0) layer.rope = *call.rope;
    const int32_t away = spread(layer.shape);
    const auto of_query = [away](size_t) { return away; };
    const auto of_key = [&](size_t t) { return key_turn(layer.shape, t); };
    for (size_t head = team.index(); head < layer.heads.size(); head += team.size()) {
        HeadSums& sums = head_sums_[index][head];
        const auto take = [&](const float16* x, size_t stride, size_t dim, Moments& moments,
                              std::vector<float16>& tiles) {
            moments.add(x, call.n_tokens, stride);
            if (tile_slot_ >= sums_.n_sample_tiles) return;
            for (size_t t = 0; t < kTile; ++t) {
                std::copy_n(x + (tile_first_ + t) * stride, dim, tiles.data() + (tile_slot_ * kTile + t) * dim);
            }
        };
        HeadStats& stats = layer.heads[head];
        sums.cached_keys.add(call.k.row(0, head), call.n_tokens, call.k.token_stride);
        take(turned(call.rope, call.k, head, call.n_tokens, dim_k, of_key).data(), dim_k, dim_k, sums.keys,
             stats.key_tiles);
        take(call.v.row(0, head), call.v.token_stride, layer.shape.head_dim_v, sums.values, stats.value_tiles);
        for (size_t g = 0; g < group; ++g)
            sums.queries.add(turned(call.rope, call.q, head * group + g, call.n_tokens, dim_k, of_query).data(),
                             call.n_tokens, dim_k);
        if (follows_) follow(call, layer.shape, head, sums);
    }
    team.barrier();
}

ModelStats StatsCollector::stats() const {
    ModelStats stats = sums_;
    stats.n_sample_tiles = n_batches_;
    stats.tile_turns.resize(n_batches_);
    if (!turns_known_) stats.tile_turns.clear();
    for (size_t i = 0; i < stats.layers.size(); ++i) {
        LayerStats& layer = stats.layers[i];
        for (size_t h = 0; h < layer.heads.size(); ++h) {
            HeadStats& head = layer.heads[h];
            const HeadSums& sums = head_sums_[i][h];
            head.key_mean = sums.keys.mean();
            head.value_mean = sums.values.mean();
            head.key_second = sums.keys.second_moment();
            head.cached_key_second = sums.cached_keys.second_moment();
            head.value_second = sums.values.second_moment();
            head.query_second = sums.queries.second_moment();  // mean over tokens and heads of the group
            for (double& x : head.query_second) x *= static_cast<double>(layer.shape.heads_per_kv());
            head.key_metric = sums.output.keys();
            head.value_metric = sums.output.values();
            head.key_tiles.resize(n_batches_ * kTile * layer.shape.head_dim_k);
            head.value_tiles.resize(n_batches_ * kTile * layer.shape.head_dim_v);
        }
    }
    return stats;
}

}  // namespace kvaq
