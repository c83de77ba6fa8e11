#include "kvaq/plan/budget.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "kvaq/base/error.h"
#include "kvaq/quant/transform.h"

namespace kvaq {

namespace {

/// Bytes of a layer's units, computed once per plan.
struct LayerUnits {
    int32_t layer = 0;
    size_t tile_key = 0;  ///< one sealed tile, all KV heads
    size_t tile_value = 0;
    size_t page = 0;   ///< one f16 page
    size_t sinks = 0;  ///< the f16 sink rows
    size_t tables = 0;
    size_t row = 0;      ///< elements of K and V per token
    size_t sliding = 0;  ///< positions kept: sliding window and rewind, 0 = all
    size_t visible = 0;  ///< sliding window, 0 = none
};

std::vector<LayerUnits> layer_units(const Plan& plan) {
    std::vector<LayerUnits> units;
    units.reserve(plan.layers.size());
    for (const LayerPlan& layer : plan.layers) {
        const LayerShape& s = layer.shape;
        LayerUnits u;
        u.layer = s.layer;
        for (const HeadPlan& head : layer.heads) {
            u.tile_key += packed_bytes(head.key, Side::kKey, s.head_dim_k, plan.tile_tokens);
            u.tile_value += packed_bytes(head.value, Side::kValue, s.head_dim_v, plan.tile_tokens);
        }
        u.tables = table_bytes(layer);
        u.row = s.n_kv_heads * (s.head_dim_k + s.head_dim_v);
        u.page = plan.tile_tokens * u.row * sizeof(float16);
        u.sinks = static_cast<size_t>(plan.sinks) * u.row * sizeof(float16);
        u.sliding =
            s.sliding_window > 0 ? static_cast<size_t>(std::max(s.sliding_window, 2)) + sliding_rewind(plan) : 0;
        u.visible = static_cast<size_t>(s.sliding_window);
        units.push_back(u);
    }
    return units;
}

struct Rule {
    size_t tile_tokens = 0;
    size_t window = 0;
    bool keep_sliding = true;
};

LayerBytes bytes_of(const LayerUnits& u, const Rule& rule, size_t n_tokens) {
    const size_t n_sealed = n_tokens > rule.window ? (n_tokens - rule.window) / rule.tile_tokens : 0;
    const size_t n_pages = (n_tokens + rule.tile_tokens - 1) / rule.tile_tokens;
    // A later token (position n_tokens or more) sees position p if n_tokens - p < sliding: pages before that one are dead.
    size_t first = 0;
    if (!rule.keep_sliding && u.sliding > 0 && n_tokens + 1 > u.sliding) {
        first = std::min((n_tokens + 1 - u.sliding) / rule.tile_tokens, n_pages);
    }
    const size_t sealed = n_sealed > first ? n_sealed - first : 0;
    const size_t open = n_pages - std::max(n_sealed, first);
    return {.layer = u.layer,
            .packed_key = sealed * u.tile_key,
            .packed_value = sealed * u.tile_value,
            .open = open * u.page,
            .sinks = n_sealed > 0 && first == 0 ? u.sinks : 0,
            .tables = u.tables};
}

size_t total_of(const std::vector<LayerUnits>& units, const Rule& rule, size_t n_tokens) {
    size_t total = 0;
    for (const LayerUnits& u : units) total += bytes_of(u, rule, n_tokens).total();
    return total;
}

Rule rule_of(const Plan& plan, bool keep_sliding) {
    return {.tile_tokens = plan.tile_tokens, .window = static_cast<size_t>(plan.window), .keep_sliding = keep_sliding};
}

size_t pad(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

CacheBytes cache_bytes(const Plan& plan, size_t n_tokens, bool keep_sliding) {
    const Rule rule = rule_of(plan, keep_sliding);
    CacheBytes out;
    for (const LayerUnits& u : layer_units(plan)) {
        out.layers.push_back(bytes_of(u, rule, n_tokens));
        out.total += out.layers.back().total();
        out.elements += u.row * (u.visible > 0 ? std::min(n_tokens, u.visible) : n_tokens);
    }
    if (out.elements > 0) out.effective_bits = 8.0 * static_cast<double>(out.total) / static_cast<double>(out.elements);
    return out;
}

double bytes_per_token(const Plan& plan) {
    size_t tile = 0;
    for (const LayerUnits& u : layer_units(plan)) {
        if (u.sliding == 0) tile += u.tile_key + u.tile_value;
    }
    return static_cast<double>(tile) / static_cast<double>(plan.tile_tokens);
}

size_t largest_context(const Plan& plan, size_t bytes, bool keep_sliding) {
    const std::vector<LayerUnits> units = layer_units(plan);
    const Rule rule = rule_of(plan, keep_sliding);
    // For a fixed phase n % tile_tokens the total never falls with n: one page is added, and pages only change from open
    // to sealed. The one exception, sinks that go with tile 0 of a sliding layer, cuts the search into segments.
    size_t best = 0;
    for (size_t phase = 0; phase < rule.tile_tokens; ++phase) {
        const auto fits = [&](size_t tiles) {
            return total_of(units, rule, tiles * rule.tile_tokens + phase) <= bytes;
        };
        std::vector<size_t> starts = {0, kMaxTokens / rule.tile_tokens};
        for (const LayerUnits& u : units) {
            if (rule.keep_sliding || u.sliding == 0 || u.sliding >= kMaxTokens) continue;
            starts.push_back((rule.tile_tokens + u.sliding - 1 + rule.tile_tokens - 1 - phase) / rule.tile_tokens);
        }
        std::sort(starts.begin(), starts.end());
        for (size_t i = starts.size() - 1; i-- > 0;) {
            size_t low = starts[i];
            size_t high = starts[i + 1] - (starts[i + 1] > low ? 1 : 0);
            if (!fits(low)) continue;
            while (low < high) {
                const size_t middle = low + (high - low + 1) / 2;
                if (fits(middle)) {
                    low = middle;
                } else {
                    high = middle - 1;
                }
            }
            best = std::max(best, low * rule.tile_tokens + phase);
            break;
        }
    }
    return best;
}

size_t llama_cache_bytes(const ModelShape& shape, const std::string& type, size_t n_tokens, size_t n_ubatch) {
    struct Type {
        std::string_view name;
        size_t block;
        size_t bytes;
    };
    constexpr std::array<Type, 9> types = {{{"f32", 1, 4},
                                            {"f16", 1, 2},
                                            {"bf16", 1, 2},
                                            {"q8_0", 32, 34},
                                            {"q5_1", 32, 24},
                                            {"q5_0", 32, 22},
                                            {"q4_1", 32, 20},
                                            {"q4_0", 32, 18},
                                            {"iq4_nl", 32, 18}}};
    const auto found = std::find_if(types.begin(), types.end(), [&](const Type& t) { return t.name == type; });
    if (found == types.end()) {
        throw Error(ErrorCode::kInvalidArgument, "llama.cpp cache type",
                    "f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl", "'" + type + "'");
    }
    const size_t base = pad(n_tokens, 256);
    size_t total = 0;
    for (const LayerShape& s : shape.layers) {
        const size_t window = static_cast<size_t>(s.sliding_window);
        const size_t n_cells = window == 0 ? base : pad(std::min(base, window + n_ubatch), 256);
        for (const size_t row : {s.n_kv_heads * s.head_dim_k, s.n_kv_heads * s.head_dim_v}) {
            if (row % found->block != 0) {
                throw Error(ErrorCode::kUnsupported,
                            "llama.cpp cannot store layer " + std::to_string(s.layer) + " as " + type,
                            "rows of a multiple of " + std::to_string(found->block) + " elements", std::to_string(row));
            }
            total += n_cells * (row / found->block) * found->bytes;
        }
    }
    return total;
}

}  // namespace kvaq
