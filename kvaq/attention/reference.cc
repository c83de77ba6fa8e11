#include "kvaq/attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kvaq/attention/tile_attention.h"
#include "kvaq/base/alibi.h"
#include "kvaq/base/error.h"
#include "kvaq/cache/tile.h"

namespace kvaq {
namespace {

/// One sequence in one layer: [token][kv head][channel] as appended, and sealed tiles decoded back to the original basis.
struct LayerTokens {
    std::vector<std::vector<float>> k, v;  // [token]
    std::vector<std::vector<double>> k_tile,
        v_tile;  // [sealed tile] [kv head][tile token][channel]; empty = not sealed
};

struct Sequence {
    int32_t n_tokens = 0;
    std::vector<bool> sealed;       // [tile]
    std::vector<bool> dropped_f16;  // [tile] a longer past made the sequence give up the f16 rows of this tile
    std::vector<LayerTokens> layers;
};

class ReferenceHandler final : public AttentionHandler {
  public:
    ReferenceHandler(const Plan& plan, size_t n_seq_max, size_t n_ctx)
        : plan_(plan), n_ctx_(n_ctx), sequences_(n_seq_max) {
        for (size_t i = 0; i < plan_.layers.size(); ++i) index_[plan_.layers[i].shape.layer] = i;
        clear();
    }

    bool begin(std::span<const BatchToken> tokens) override {
        size_t stored = 0;
        for (const Sequence& s : sequences_) stored += static_cast<size_t>(s.n_tokens);
        if (stored + tokens.size() > n_ctx_) return false;
        saved_ = sequences_;
        tokens_.assign(tokens.begin(), tokens.end());
        seq_ids_.clear();
        for (const BatchToken& token : tokens) seq_ids_.emplace_back(token.seq_ids.begin(), token.seq_ids.end());
        for (size_t i = 0; i < tokens.size(); ++i) {
            for (const int32_t s : seq_ids_[i]) {
                Sequence& sequence = at(s);
                if (sequence.n_tokens != tokens[i].pos) {
                    sequences_ = saved_;
                    throw Error(ErrorCode::kInvalidArgument, "the tokens do not continue what is cached");
                }
                ++sequence.n_tokens;
            }
        }
        const int32_t tile = tile_tokens();
        for (Sequence& s : sequences_) {
            s.sealed.resize(static_cast<size_t>((s.n_tokens + tile - 1) / tile), false);
            s.dropped_f16.resize(s.sealed.size(), false);
            for (size_t t = 0; t < s.sealed.size(); ++t) {
                if (!wants_f16(t, s.n_tokens - 1)) s.sealed[t] = true;
            }
        }
        return true;
    }

    void attend(const AttentionCall& call, Team& team) noexcept override {
        if (team.index() == 0) run(call);
        team.barrier();
    }

    void end() noexcept override {
        for (Sequence& s : sequences_) {
            for (size_t t = 0; t < s.sealed.size(); ++t) {
                if (s.sealed[t] && !wants_f16(t, s.n_tokens)) s.dropped_f16[t] = true;
            }
        }
    }
    void rollback() noexcept override { sequences_ = saved_; }
    void clear() noexcept override {
        for (Sequence& s : sequences_) {
            s = Sequence{};
            s.layers.resize(plan_.layers.size());
        }
    }

    bool seq_rm(int32_t seq, int32_t p0, int32_t p1) override {
        bool done = true;
        for (size_t s = 0; s < sequences_.size(); ++s) {
            if (seq >= 0 && static_cast<size_t>(seq) != s) continue;
            Sequence& sequence = sequences_[s];
            const int32_t from = std::max(p0, 0);
            const int32_t to = p1 < 0 ? std::numeric_limits<int32_t>::max() : p1;
            if (from >= sequence.n_tokens || to <= from) continue;
            if (to < sequence.n_tokens) {
                done = false;
            } else {
                truncate(sequence, from);
            }
        }
        return done;
    }

    bool seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1) override {
        if (src == dst) return true;
        const int32_t to = p1 < 0 ? at(src).n_tokens : std::min(p1, at(src).n_tokens);
        if (to <= std::max(p0, 0)) return true;
        if (p0 > 0 || at(dst).n_tokens != 0) return false;
        at(dst) = at(src);
        truncate(at(dst), to);
        return true;
    }

    void seq_keep(int32_t seq) noexcept override {
        for (size_t s = 0; s < sequences_.size(); ++s) {
            if (static_cast<int32_t>(s) == seq) continue;
            sequences_[s] = Sequence{};
            sequences_[s].layers.resize(plan_.layers.size());
        }
    }
    [[nodiscard]] int32_t seq_pos_min(int32_t seq) const noexcept override {
        return sequences_[static_cast<size_t>(seq)].n_tokens > 0 ? 0 : -1;
    }
    [[nodiscard]] int32_t seq_pos_max(int32_t seq) const noexcept override {
        return sequences_[static_cast<size_t>(seq)].n_tokens - 1;
    }

  private:
    [[nodiscard]] int32_t tile_tokens() const noexcept { return static_cast<int32_t>(plan_.tile_tokens); }
    [[nodiscard]] Sequence& at(int32_t seq) noexcept { return sequences_[static_cast<size_t>(seq)]; }
    [[nodiscard]] bool wants_f16(size_t tile, int32_t pos) const noexcept {
        return (static_cast<int32_t>(tile) + 1) * tile_tokens() - 1 + plan_.window > pos;
    }

    // The cut tile keeps what its sealed bits decode to (as f16); everything later is gone.
    void truncate(Sequence& sequence, int32_t n) {
        const auto tile = static_cast<size_t>(tile_tokens());
        const size_t n_tiles = (static_cast<size_t>(n) + tile - 1) / tile;
        const bool cut = n % tile_tokens() != 0 && n < sequence.n_tokens;
        for (size_t i = 0; i < plan_.layers.size(); ++i) {
            LayerTokens& tokens = sequence.layers[i];
            const LayerShape& shape = plan_.layers[i].shape;
            if (cut && sequence.dropped_f16[n_tiles - 1]) {
                for (size_t t = (n_tiles - 1) * tile; t < static_cast<size_t>(n); ++t) {
                    if (static_cast<int32_t>(t) < plan_.sinks) continue;
                    for (size_t j = 0; j < shape.n_kv_heads * shape.head_dim_k; ++j) {
                        tokens.k[t][j] = from_tile(tokens.k_tile[n_tiles - 1], t % tile, j, shape.head_dim_k);
                    }
                    for (size_t j = 0; j < shape.n_kv_heads * shape.head_dim_v; ++j) {
                        tokens.v[t][j] = from_tile(tokens.v_tile[n_tiles - 1], t % tile, j, shape.head_dim_v);
                    }
                }
            }
            tokens.k.resize(std::min(tokens.k.size(), static_cast<size_t>(n)));
            tokens.v.resize(tokens.k.size());
            const size_t kept = cut ? n_tiles - 1 : n_tiles;
            if (tokens.k_tile.size() > kept) {
                tokens.k_tile.resize(kept);
                tokens.v_tile.resize(kept);
            }
        }
        sequence.sealed.resize(n_tiles);
        sequence.dropped_f16.resize(n_tiles);
        if (cut) {
            sequence.sealed[n_tiles - 1] = false;
            sequence.dropped_f16[n_tiles - 1] = false;
        }
        sequence.n_tokens = n;
    }

    [[nodiscard]] float from_tile(const std::vector<double>& tile, size_t token, size_t j, size_t dim) const {
        const size_t head = j / dim;
        return static_cast<float>(
            to_float16(static_cast<float>(tile[(head * plan_.tile_tokens + token) * dim + j % dim])));
    }

    void seal(Sequence& sequence, size_t layer) {
        const LayerPlan& plan = plan_.layers[layer];
        LayerTokens& tokens = sequence.layers[layer];
        const size_t tile = plan_.tile_tokens;
        tokens.k_tile.resize(sequence.sealed.size());
        tokens.v_tile.resize(sequence.sealed.size());
        for (size_t t = 0; t < sequence.sealed.size(); ++t) {
            if (!sequence.sealed[t] || !tokens.k_tile[t].empty()) continue;
            for (size_t head = 0; head < plan.heads.size(); ++head) {
                seal_side(tokens.k, t, head,
                          make_tile_layout(plan.heads[head].key, Side::kKey, plan.shape.head_dim_k, tile),
                          tokens.k_tile[t]);
                seal_side(tokens.v, t, head,
                          make_tile_layout(plan.heads[head].value, Side::kValue, plan.shape.head_dim_v, tile),
                          tokens.v_tile[t]);
            }
        }
    }

    static void seal_side(const std::vector<std::vector<float>>& rows, size_t t, size_t head, const TileLayout& layout,
                          std::vector<double>& out) {
        std::vector<float> x(layout.tile_tokens * layout.head_dim);
        for (size_t i = 0; i < layout.tile_tokens; ++i) {
            for (size_t c = 0; c < layout.head_dim; ++c) {
                x[i * layout.head_dim + c] = rows[t * layout.tile_tokens + i][head * layout.head_dim + c];
            }
        }
        std::vector<std::byte> packed(layout.bytes);
        encode_tile(layout, x.data(), packed.data());
        std::vector<double> decoded(x.size());
        decode_tile_reference(layout, packed.data(), decoded.data(), true);
        out.insert(out.end(), decoded.begin(), decoded.end());
    }

    void run(const AttentionCall& call) {
        const size_t layer = index_.at(call.layer);
        const LayerShape& shape = plan_.layers[layer].shape;
        std::set<int32_t> touched;
        for (size_t i = 0; i < tokens_.size(); ++i) {
            std::vector<float> k, v;
            for (size_t h = 0; h < shape.n_kv_heads; ++h) {
                for (size_t c = 0; c < shape.head_dim_k; ++c) k.push_back(static_cast<float>(call.k.row(i, h)[c]));
                for (size_t c = 0; c < shape.head_dim_v; ++c) v.push_back(static_cast<float>(call.v.row(i, h)[c]));
            }
            for (const int32_t s : seq_ids_[i]) {
                touched.insert(s);
                if (!call.append) continue;
                at(s).layers[layer].k.push_back(k);
                at(s).layers[layer].v.push_back(v);
            }
        }
        for (const int32_t s : touched) seal(at(s), layer);
        for (size_t i = 0; i < tokens_.size(); ++i) {
            for (size_t h = 0; h < shape.n_heads; ++h) attend_one(call, i, h, shape, layer);
        }
    }

    void attend_one(const AttentionCall& call, size_t token, size_t head, const LayerShape& shape, size_t layer) {
        const Sequence& sequence = at(seq_ids_[token][0]);
        const LayerTokens& cached = sequence.layers[layer];
        const ScoreRule& rule = call.rule;
        const int32_t pos = tokens_[token].pos;
        const size_t kv_head = head / shape.heads_per_kv();
        const size_t tile = plan_.tile_tokens;
        std::vector<double> scores;
        std::vector<int32_t> keys;
        for (int32_t j = 0; j <= pos; ++j) {
            if (rule.sliding_window > 0) {
                if (!rule.chunked_window && pos - j >= rule.sliding_window) continue;
                if (rule.chunked_window && j < pos / rule.sliding_window * rule.sliding_window) continue;
            }
            double dot = 0;
            for (size_t c = 0; c < shape.head_dim_k; ++c) {
                dot += static_cast<double>(call.q.row(token, head)[c]) *
                       (packed(sequence, j, pos)
                            ? cached.k_tile[static_cast<size_t>(j) / tile]
                                           [(kv_head * tile + static_cast<size_t>(j) % tile) * shape.head_dim_k + c]
                            : static_cast<double>(cached.k[static_cast<size_t>(j)][kv_head * shape.head_dim_k + c]));
            }
            dot *= static_cast<double>(rule.scale);
            if (rule.softcap > 0)
                dot = static_cast<double>(rule.softcap) * std::tanh(dot / static_cast<double>(rule.softcap));
            dot += static_cast<double>(alibi_slope(rule.alibi_max_bias, head, shape.n_heads)) * (j - pos);
            scores.push_back(dot);
            keys.push_back(j);
        }
        double top = rule.sink_logits != nullptr ? static_cast<double>(rule.sink_logits[head]) : scores[0];
        for (const double s : scores) top = std::max(top, s);
        double sum = rule.sink_logits != nullptr ? std::exp(static_cast<double>(rule.sink_logits[head]) - top) : 0;
        std::vector<double> out(shape.head_dim_v, 0.0);
        for (size_t i = 0; i < keys.size(); ++i) {
            const double p = std::exp(scores[i] - top);
            const auto j = static_cast<size_t>(keys[i]);
            sum += p;
            for (size_t d = 0; d < shape.head_dim_v; ++d) {
                out[d] += p * (packed(sequence, keys[i], pos)
                                   ? cached.v_tile[j / tile][(kv_head * tile + j % tile) * shape.head_dim_v + d]
                                   : static_cast<double>(cached.v[j][kv_head * shape.head_dim_v + d]));
            }
        }
        for (size_t d = 0; d < shape.head_dim_v; ++d) call.out.row(token, head)[d] = static_cast<float>(out[d] / sum);
    }

    [[nodiscard]] bool packed(const Sequence& sequence, int32_t key, int32_t pos) const {
        const size_t t = static_cast<size_t>(key) / plan_.tile_tokens;
        return key >= plan_.sinks && sequence.sealed[t] && (sequence.dropped_f16[t] || !wants_f16(t, pos));
    }

    Plan plan_;
    size_t n_ctx_;
    std::vector<Sequence> sequences_, saved_;
    std::map<int32_t, size_t> index_;
    std::vector<BatchToken> tokens_;
    std::vector<std::vector<int32_t>> seq_ids_;
};

}  // namespace

std::unique_ptr<AttentionHandler> make_reference_handler(const Plan& plan, size_t n_seq_max, size_t n_ctx) {
    return std::make_unique<ReferenceHandler>(plan, n_seq_max, n_ctx);
}

}  // namespace kvaq
