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
#include "kvaq/base/cut_pages.h"
#include "kvaq/base/error.h"
#include "kvaq/cache/tile.h"

namespace kvaq {
namespace {

/// Tokens that are sealed together, in one layer.
struct LayerTile {
    std::vector<std::vector<float>> k, v;  // [slot] [kv head][channel] as stored
    std::vector<double> k_sealed,
        v_sealed;  // [kv head][slot][channel] decoded to the original basis; empty = not sealed
};

struct Tile {
    int32_t frame = 0;  // the key in slot j is rotated for position frame + j
    size_t n_filled = 0;
    bool sealed = false;
    bool requantized = false;  // has tokens that were decoded from another tile
    std::vector<LayerTile> layers;
};

struct Token {
    int32_t pos = 0;
    size_t tile = 0;
    size_t slot = 0;
    bool dropped = false;  // a longer past made the sequence give up the f16 rows
    [[nodiscard]] int32_t base() const noexcept { return pos - static_cast<int32_t>(slot); }
};

struct Sequence {
    std::vector<Tile> tiles;
    std::vector<Token> tokens;
    size_t n_written = 0;    // tokens of the latest micro-batch
    bool unsettled = false;  // may hold f16 rows that the newest token reads packed
    [[nodiscard]] int32_t next() const noexcept { return tokens.empty() ? 0 : tokens.back().pos + 1; }
};

class ReferenceHandler final : public AttentionHandler {
  public:
    ReferenceHandler(const Plan& plan, size_t n_seq_max, size_t n_ctx, size_t rewind)
        : plan_(plan), n_ctx_(n_ctx), rewind_(static_cast<int32_t>(rewind)), sequences_(n_seq_max) {
        for (size_t i = 0; i < plan_.layers.size(); ++i) index_[plan_.layers[i].shape.layer] = i;
    }

    bool begin(std::span<const BatchToken> tokens) override {
        size_t stored = 0;
        for (const Sequence& s : sequences_) stored += s.tokens.size();
        if (stored + tokens.size() > n_ctx_) return false;
        saved_ = sequences_;
        for (Sequence& s : sequences_) s.n_written = 0;
        for (const BatchToken& token : tokens) {
            for (const int32_t s : token.seq_ids) {
                if (at(s).unsettled) settle(at(s), rewind_);
            }
        }
        seq_ids_.clear();
        positions_.clear();
        touched_.clear();
        for (const BatchToken& token : tokens) {
            seq_ids_.emplace_back(token.seq_ids.begin(), token.seq_ids.end());
            positions_.push_back(token.pos);
            for (const int32_t s : token.seq_ids) {
                if (at(s).next() != token.pos) {
                    sequences_ = saved_;
                    throw Error(ErrorCode::kInvalidArgument, "the tokens do not continue what is cached");
                }
                append(at(s), token.pos);
                touched_.insert(s);
            }
        }
        for (const int32_t s : touched_) {
            for (const Token& token : at(s).tokens) {
                Tile& tile = at(s).tiles[token.tile];
                if (tile.n_filled == plan_.tile_tokens && !wants_f16(token, at(s).next() - 1)) tile.sealed = true;
            }
        }
        return true;
    }

    void attend(const AttentionCall& call, Team& team) noexcept override {
        if (team.index() == 0) run(call);
        team.barrier();
    }

    void end() noexcept override {
        for (const int32_t s : touched_) {
            // What brought less than a tile may be cut off again before the next micro-batch.
            at(s).unsettled = at(s).n_written < plan_.tile_tokens;
            if (!at(s).unsettled) settle(at(s), rewind_);
        }
    }
    void rollback() noexcept override {
        sequences_ = saved_;
        settle_one_or_all(-1);
    }
    void settle_one_or_all(int32_t seq) noexcept {
        if (seq >= 0) settle(at(seq), 0);
        for (Sequence& s : sequences_) {
            if (seq < 0 && s.unsettled) settle(s, rewind_);
        }
    }
    void clear() noexcept override { sequences_.assign(sequences_.size(), Sequence{}); }

    bool seq_rm(int32_t seq, int32_t p0, int32_t p1) override {
        for (size_t s = 0; s < sequences_.size(); ++s) {
            if (seq < 0 || static_cast<size_t>(seq) == s) remove(sequences_[s], std::max(p0, 0), end_of(p1));
        }
        return true;
    }

    bool seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1) override {
        if (src == dst || std::min(end_of(p1), at(src).next()) <= std::max(p0, 0)) return true;
        if (!at(dst).tokens.empty()) return false;
        at(dst) = at(src);
        if (p0 > 0) remove(at(dst), 0, p0);
        remove(at(dst), end_of(p1), end_of(-1));
        return true;
    }

    bool seq_add(int32_t seq, int32_t p0, int32_t p1, int32_t delta) override {
        std::vector<Token> shifted = at(seq).tokens;
        int32_t last = -1;
        for (Token& token : shifted) {
            if (token.pos >= p0 && token.pos < end_of(p1)) token.pos += delta;
            if (token.pos <= last) return false;
            last = token.pos;
        }
        at(seq).tokens = shifted;
        return true;
    }

    void seq_keep(int32_t seq) noexcept override {
        for (size_t s = 0; s < sequences_.size(); ++s) {
            if (static_cast<int32_t>(s) != seq) sequences_[s] = Sequence{};
        }
    }
    [[nodiscard]] int32_t seq_pos_min(int32_t seq) const noexcept override {
        const Sequence& s = sequences_[static_cast<size_t>(seq)];
        return s.tokens.empty() ? -1 : s.tokens.front().pos;
    }
    [[nodiscard]] int32_t seq_pos_max(int32_t seq) const noexcept override {
        return sequences_[static_cast<size_t>(seq)].next() - 1;
    }

  private:
    [[nodiscard]] static int32_t end_of(int32_t p1) noexcept {
        return p1 < 0 ? std::numeric_limits<int32_t>::max() : p1;
    }
    [[nodiscard]] Sequence& at(int32_t seq) noexcept { return sequences_[static_cast<size_t>(seq)]; }
    [[nodiscard]] bool wants_f16(const Token& token, int32_t pos) const noexcept {
        return token.base() + static_cast<int32_t>(plan_.tile_tokens) - 1 + plan_.window > pos;
    }
    [[nodiscard]] bool is_sink(const Tile& tile, size_t slot) const noexcept {
        return tile.frame == 0 && static_cast<int32_t>(slot) < plan_.sinks;
    }

    // By the newest token, as sealing: also where other tokens of the tile, shifted, had it sealed earlier.
    void settle(Sequence& s, int32_t rewind) const noexcept {
        for (Token& token : s.tokens) {
            if (s.tiles[token.tile].sealed && !wants_f16(token, s.next() - 1 - rewind)) token.dropped = true;
        }
        s.unsettled = false;
    }

    void append(Sequence& s, int32_t pos) {
        ++s.n_written;
        if (s.tokens.empty() || s.tokens.back().slot + 1 == plan_.tile_tokens || s.tokens.back().dropped) {
            s.tiles.push_back({.frame = pos, .layers = std::vector<LayerTile>(plan_.layers.size())});
            s.tokens.push_back({.pos = pos, .tile = s.tiles.size() - 1});
        } else {
            s.tokens.push_back({.pos = pos, .tile = s.tokens.back().tile, .slot = s.tokens.back().slot + 1});
        }
        s.tiles[s.tokens.back().tile].n_filled = s.tokens.back().slot + 1;
    }

    void remove(Sequence& s, int32_t from, int32_t to) {
        const bool suffix = to >= s.next() && from < s.next();
        std::erase_if(s.tokens, [&](const Token& token) { return token.pos >= from && token.pos < to; });
        if (s.tokens.empty()) {
            s.tiles.clear();
        } else if (suffix && s.tokens.back().slot + 1 < plan_.tile_tokens) {
            reopen(s);
        }
    }

    // PageTable::keeps_cut_page: the sealed tile stays, the next token begins another one.
    [[nodiscard]] bool keeps_cut_tile(const Sequence& s) const {
        const Token& last = s.tokens.back();
        if (is_sink(s.tiles[last.tile], last.slot)) return false;
        size_t n_partly_used = 0;
        for (size_t i = 0; i + 1 < s.tokens.size(); ++i)
            n_partly_used += s.tokens[i].tile != s.tokens[i + 1].tile && s.tokens[i].slot + 1 < plan_.tile_tokens;
        const bool slides = std::any_of(plan_.layers.begin(), plan_.layers.end(),
                                        [](const LayerPlan& layer) { return layer.shape.sliding_window > 0; });
        return n_partly_used < (!s.tiles[last.tile].requantized ? kCutPages - 1 : slides ? kCutPages : kMostCutPages);
    }

    // The last tile goes on with new tokens: as it was while its f16 rows are there, else with what its sealed bits decode to, as f16.
    void reopen(Sequence& s) {
        const Token last = s.tokens.back();
        const size_t n = last.slot + 1;
        if (last.dropped && keeps_cut_tile(s)) return;
        if (last.dropped) {
            s.tiles.push_back(s.tiles[last.tile]);
            if (!is_sink(s.tiles[last.tile], last.slot)) s.tiles.back().requantized = true;
            for (size_t i = 0; i < plan_.layers.size(); ++i) decode_rows(s.tiles.back(), i, n);
            for (size_t i = s.tokens.size(), slot = last.slot; i-- > 0; --slot) {
                Token& token = s.tokens[i];
                if (token.tile != last.tile || token.slot != slot || token.base() != last.base()) break;
                token.tile = s.tiles.size() - 1;
                token.dropped = false;
                if (slot == 0) break;
            }
        }
        for (Token& token : s.tokens) token.dropped = token.dropped && token.tile != s.tokens.back().tile;
        Tile& tile = s.tiles[s.tokens.back().tile];
        tile.sealed = false;
        tile.n_filled = n;
        for (LayerTile& layer : tile.layers) {
            layer.k.resize(n);
            layer.v.resize(n);
            layer.k_sealed.clear();
            layer.v_sealed.clear();
        }
    }

    void decode_rows(Tile& tile, size_t layer, size_t n) const {
        const LayerShape& shape = plan_.layers[layer].shape;
        LayerTile& rows = tile.layers[layer];
        for (size_t slot = 0; slot < n; ++slot) {
            if (is_sink(tile, slot)) continue;
            for (size_t j = 0; j < shape.n_kv_heads * shape.head_dim_k; ++j)
                rows.k[slot][j] = from_tile(rows.k_sealed, slot, j, shape.head_dim_k);
            for (size_t j = 0; j < shape.n_kv_heads * shape.head_dim_v; ++j)
                rows.v[slot][j] = from_tile(rows.v_sealed, slot, j, shape.head_dim_v);
        }
    }

    [[nodiscard]] float from_tile(const std::vector<double>& tile, size_t slot, size_t j, size_t dim) const {
        return static_cast<float>(
            to_float16(static_cast<float>(tile[((j / dim) * plan_.tile_tokens + slot) * dim + j % dim])));
    }

    void seal(Sequence& sequence, size_t layer) {
        const LayerPlan& plan = plan_.layers[layer];
        for (Tile& tile : sequence.tiles) {
            LayerTile& rows = tile.layers[layer];
            if (!tile.sealed || !rows.k_sealed.empty()) continue;
            const int32_t back = plan_.key_period > 0 ? tile.frame / plan_.key_period * plan_.key_period : 0;
            for (size_t head = 0; head < plan.heads.size(); ++head) {
                seal_side(rows.k, head,
                          make_tile_layout(plan.heads[head].key, Side::kKey, plan.shape.head_dim_k, plan_.tile_tokens),
                          plan.key_turn, plan_.key_period, back, rows.k_sealed);
                seal_side(
                    rows.v, head,
                    make_tile_layout(plan.heads[head].value, Side::kValue, plan.shape.head_dim_v, plan_.tile_tokens),
                    {}, 0, 0, rows.v_sealed);
            }
        }
    }

    // What is coded is turned by `back` positions less, as the cache turns it (TurnTable: one rounding more or less would now and then
    // give a number beside the border of two codes the other one); what is decoded is turned forward again.
    static void seal_side(const std::vector<std::vector<float>>& rows, size_t head, const TileLayout& layout,
                          const RopeRule& rule, int32_t period, int32_t back, std::vector<double>& out) {
        std::vector<float> x(layout.tile_tokens * layout.head_dim);
        for (size_t i = 0; i < layout.tile_tokens; ++i) {
            for (size_t c = 0; c < layout.head_dim; ++c)
                x[i * layout.head_dim + c] = rows[i][head * layout.head_dim + c];
        }
        if (back > 0) TurnTable(rule, period, 0).back(back / period, x.data(), layout.tile_tokens, layout.head_dim);
        std::vector<std::byte> packed(layout.bytes);
        encode_tile(layout, x.data(), packed.data());
        std::vector<double> decoded(x.size());
        decode_tile_reference(layout, packed.data(), decoded.data(), true);
        RopeTurn turn;
        turn.set(rule, back);
        for (size_t i = 0; i < layout.tile_tokens; ++i)
            turn.apply(&decoded[i * layout.head_dim], &decoded[i * layout.head_dim], layout.head_dim);
        out.insert(out.end(), decoded.begin(), decoded.end());
    }

    void run(const AttentionCall& call) {
        const size_t layer = index_.at(call.layer);
        const LayerShape& shape = plan_.layers[layer].shape;
        for (size_t i = 0; i < positions_.size() && call.append; ++i) {
            for (const int32_t s : seq_ids_[i]) {
                const auto token = std::find_if(at(s).tokens.begin(), at(s).tokens.end(),
                                                [&](const Token& t) { return t.pos == positions_[i]; });
                Tile& tile = at(s).tiles[token->tile];
                RopeTurn turn;
                if (token->base() != tile.frame) turn.set(*call.rope, tile.frame - token->base());
                std::vector<float> k, v;
                for (size_t h = 0; h < shape.n_kv_heads; ++h) {
                    std::vector<float16> row(call.k.row(i, h), call.k.row(i, h) + shape.head_dim_k);
                    if (token->base() != tile.frame) turn.apply(call.k.row(i, h), row.data(), shape.head_dim_k);
                    for (const float16 x : row) k.push_back(static_cast<float>(x));
                    for (size_t c = 0; c < shape.head_dim_v; ++c) v.push_back(static_cast<float>(call.v.row(i, h)[c]));
                }
                tile.layers[layer].k.push_back(k);
                tile.layers[layer].v.push_back(v);
            }
        }
        for (const int32_t s : touched_) seal(at(s), layer);
        for (size_t i = 0; i < positions_.size(); ++i) {
            for (size_t h = 0; h < shape.n_heads; ++h) attend_one(call, i, h, shape, layer);
        }
    }

    void attend_one(const AttentionCall& call, size_t token, size_t head, const LayerShape& shape, size_t layer) {
        const Sequence& sequence = at(seq_ids_[token][0]);
        const ScoreRule& rule = call.rule;
        const int32_t pos = positions_[token];
        const size_t kv_head = head / shape.heads_per_kv();
        const size_t n = plan_.tile_tokens;
        std::vector<double> scores;
        std::vector<const Token*> keys;
        std::vector<double> q(shape.head_dim_k);
        int32_t turned = std::numeric_limits<int32_t>::min();
        for (const Token& key : sequence.tokens) {
            if (key.pos > pos) break;
            if (rule.sliding_window > 0) {
                if (!rule.chunked_window && pos - key.pos >= rule.sliding_window) continue;
                if (rule.chunked_window && key.pos < pos / rule.sliding_window * rule.sliding_window) continue;
            }
            const Tile& tile = sequence.tiles[key.tile];
            const LayerTile& rows = tile.layers[layer];
            if (tile.frame - key.base() != turned) {
                turned = tile.frame - key.base();
                std::copy_n(call.q.row(token, head), q.size(), q.begin());
                RopeTurn turn;
                if (turned != 0) {
                    turn.set(*call.rope, turned);
                    turn.apply(q.data(), q.data(), q.size());
                }
            }
            double dot = 0;
            for (size_t c = 0; c < shape.head_dim_k; ++c) {
                dot += q[c] * (packed(sequence, key, pos)
                                   ? rows.k_sealed[(kv_head * n + key.slot) * shape.head_dim_k + c]
                                   : static_cast<double>(rows.k[key.slot][kv_head * shape.head_dim_k + c]));
            }
            dot *= static_cast<double>(rule.scale);
            if (rule.softcap > 0)
                dot = static_cast<double>(rule.softcap) * std::tanh(dot / static_cast<double>(rule.softcap));
            dot += static_cast<double>(alibi_slope(rule.alibi_max_bias, head, shape.n_heads)) * (key.pos - pos);
            scores.push_back(dot);
            keys.push_back(&key);
        }
        double top = rule.sink_logits != nullptr ? static_cast<double>(rule.sink_logits[head]) : scores[0];
        for (const double s : scores) top = std::max(top, s);
        double sum = rule.sink_logits != nullptr ? std::exp(static_cast<double>(rule.sink_logits[head]) - top) : 0;
        std::vector<double> out(shape.head_dim_v, 0.0);
        for (size_t i = 0; i < keys.size(); ++i) {
            const double p = std::exp(scores[i] - top);
            const LayerTile& rows = sequence.tiles[keys[i]->tile].layers[layer];
            sum += p;
            for (size_t d = 0; d < shape.head_dim_v; ++d) {
                out[d] += p * (packed(sequence, *keys[i], pos)
                                   ? rows.v_sealed[(kv_head * n + keys[i]->slot) * shape.head_dim_v + d]
                                   : static_cast<double>(rows.v[keys[i]->slot][kv_head * shape.head_dim_v + d]));
            }
        }
        for (size_t d = 0; d < shape.head_dim_v; ++d) call.out.row(token, head)[d] = static_cast<float>(out[d] / sum);
    }

    [[nodiscard]] bool packed(const Sequence& sequence, const Token& key, int32_t pos) const {
        const Tile& tile = sequence.tiles[key.tile];
        return tile.sealed && !is_sink(tile, key.slot) && (key.dropped || !wants_f16(key, pos));
    }

    Plan plan_;
    size_t n_ctx_;
    int32_t rewind_;
    std::vector<Sequence> sequences_, saved_;
    std::map<int32_t, size_t> index_;
    std::vector<int32_t> positions_;  // of the micro-batch's tokens
    std::vector<std::vector<int32_t>> seq_ids_;
    std::set<int32_t> touched_;
};

}  // namespace

void settle_reference(AttentionHandler& reference, int32_t seq) {
    static_cast<ReferenceHandler&>(reference).settle_one_or_all(seq);
}

std::unique_ptr<AttentionHandler> make_reference_handler(const Plan& plan, size_t n_seq_max, size_t n_ctx,
                                                         size_t rewind) {
    return std::make_unique<ReferenceHandler>(plan, n_seq_max, n_ctx, rewind);
}

}  // namespace kvaq
