#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvaq/cache/tile.h"
#include "kvaq/report/heat_map.h"
#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"

namespace kvaq {
namespace {

struct SideBits {
    double sum = 0, least = 1e300, most = -1e300, n = 0;
    int32_t least_layer = 0, most_layer = 0;
    void add(double bits, int32_t layer) {
        sum += bits, n += 1;
        if (bits < least) least = bits, least_layer = layer;
        if (bits > most) most = bits, most_layer = layer;
    }
    [[nodiscard]] double mean() const { return sum / std::max(n, 1.0); }
};

std::string range_words(const char* side, const SideBits& s) {
    if (s.most - s.least < 1e-9) return fmt::format("{} take {} bits everywhere", side, bits_text(s.mean()));
    return fmt::format("{} take {} bits on average, from {} (layer {}) to {} (layer {})", side, bits_text(s.mean()),
                       bits_text(s.least), s.least_layer, bits_text(s.most), s.most_layer);
}

}  // namespace

double stored_bits(const Plan& plan, const LayerPlan& layer, size_t head, Side side) {
    const size_t dim = side == Side::kKey ? layer.shape.head_dim_k : layer.shape.head_dim_v;
    const CodecSpec& spec = side == Side::kKey ? layer.heads[head].key : layer.heads[head].value;
    return 8.0 * static_cast<double>(packed_bytes(spec, side, dim, plan.tile_tokens)) /
           static_cast<double>(dim * plan.tile_tokens);
}

std::optional<Section> bits_section(const ReportInput& input) {
    if (!input.plan) return std::nullopt;
    const Plan& plan = *input.plan;
    HeatMap map{.title = "",
                .unit = "bits",
                .layers = {},
                .groups = {{.name = "K", .values = {}}, {.name = "V", .values = {}}},
                .width = 0,
                .upright = false};
    Table table{.caption = "Bits per number, by layer, side and KV head",
                .columns = {"layer"},
                .rows = {},
                .marked = {},
                .folded = true};
    size_t n_heads = 0;
    for (const LayerPlan& layer : plan.layers) n_heads = std::max(n_heads, layer.heads.size());
    SideBits total[2];
    for (HeatGroup& group : map.groups)
        group.values.assign(n_heads, std::vector<double>(plan.layers.size(), std::numeric_limits<double>::quiet_NaN()));
    for (const Side side : {Side::kKey, Side::kValue}) {
        for (size_t h = 0; h < n_heads; ++h) table.columns.push_back(fmt::format("{} {}", to_string(side), h));
    }
    for (size_t l = 0; l < plan.layers.size(); ++l) {
        const LayerPlan& layer = plan.layers[l];
        map.layers.push_back(std::to_string(layer.shape.layer));
        table.rows.push_back({integer_cell(layer.shape.layer)});
        for (const Side side : {Side::kKey, Side::kValue}) {
            const size_t s = side == Side::kKey ? 0 : 1;
            for (size_t h = 0; h < n_heads; ++h) {
                if (h >= layer.heads.size()) {
                    table.rows.back().emplace_back("");
                    continue;
                }
                const double bits = stored_bits(plan, layer, h, side);
                map.groups[s].values[h][l] = bits;
                total[s].add(bits, layer.shape.layer);
                table.rows.back().push_back(bits_cell(bits));
            }
        }
    }
    const std::string says = fmt::format("{}; {}.", range_words("Keys", total[0]), range_words("values", total[1]));
    map.title = "Heat map of bits by layer and KV head. " + says;
    Section section{.id = "bits", .title = "Where the bits go", .blocks = {}};
    section.blocks.push_back(
        Paragraph{{.text = "Not every part of the cache needs the same care. The plan gives each layer, each side (K, "
                           "the keys; V, the values) and each KV head its own number of bits. "
                           "Counted is what is stored per number: codes, scales and gains."}});
    section.blocks.push_back(
        ChartRow{{two_widths("Bits per number by layer, side and KV head", says, [&](double width) {
            map.width = width;
            map.upright = width < 500;
            return svg_inline(heat_map(map));
        })}});
    section.blocks.emplace_back(std::move(table));
    section.blocks.push_back(made_by("", "kvaq plan", "kvaq inspect PLAN"));
    return section;
}

}  // namespace kvaq
