#include "kvaq/plan/planner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include "kvaq/base/error.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/solve.h"

namespace kvaq {
namespace {

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", value);
    return text;
}

/// A budget as bytes of sealed tiles.
struct Room {
    size_t n_ctx = 0;
    double bytes = 0;             ///< the budget, in bytes at n_ctx tokens
    double fixed = 0;             ///< spent whatever the codecs are: pages in f16, sinks
    std::vector<size_t> n_tiles;  ///< sealed, by layer (sliding-window layers hold fewer)
    double elements = 0;
    /// What is left for tiles and tables, in kBlock.
    [[nodiscard]] size_t blocks() const {
        return bytes > fixed ? static_cast<size_t>((bytes - fixed) / static_cast<double>(kBlock)) : 0;
    }
    static constexpr size_t kBlock = 64;  ///< tiles are whole blocks; tables are rounded up to them
    [[nodiscard]] size_t blocks_of(const DamageSlot& slot, size_t codec) const {
        return slot.bytes[codec] / kBlock * n_tiles[slot.layer] + (slot.table_bytes[codec] + kBlock - 1) / kBlock;
    }
};

Room room_of(const PlanRequest& request, const Plan& plan) {
    Room room;
    room.n_ctx = request.budget.n_tokens > 0 ? request.budget.n_tokens : request.n_ctx;
    const CacheBytes all = cache_bytes(plan, room.n_ctx);
    for (size_t l = 0; l < plan.layers.size(); ++l) {
        const LayerPlan& layer = plan.layers[l];
        room.fixed += static_cast<double>(all.layers[l].open + all.layers[l].sinks);
        size_t tile = 0;
        for (const HeadPlan& head : layer.heads)
            tile += packed_bytes(head.key, Side::kKey, layer.shape.head_dim_k, plan.tile_tokens);
        room.n_tiles.push_back(all.layers[l].packed_key / tile);
    }
    room.elements = static_cast<double>(all.elements);
    room.bytes = request.budget.amount;
    if (request.budget.unit == Budget::Unit::kEffectiveBits) room.bytes = request.budget.amount * room.elements / 8;
    if (request.budget.unit == Budget::Unit::kBytesPerToken)
        room.bytes = request.budget.amount * static_cast<double>(room.n_ctx);
    return room;
}

Plan empty_plan(const ModelStats& stats, const char* preset, int32_t window, int32_t sinks) {
    if (sinks < 0 || static_cast<size_t>(sinks) > kDefaultTileTokens)
        throw Error(ErrorCode::kInvalidArgument, "sink tokens", "0 to " + std::to_string(kDefaultTileTokens),
                    std::to_string(sinks));
    Plan plan = make_uniform_plan(parse_preset(preset), shape_of(stats));
    plan.fingerprint = stats.fingerprint;
    plan.tile_tokens = kDefaultTileTokens;
    plan.window = window;
    plan.sinks = sinks;
    plan.key_period = stats.key_period;
    for (size_t i = 0; i < plan.layers.size() && plan.key_period > 0; ++i)
        plan.layers[i].key_turn = stats.layers[i].rope;
    return plan;
}

}  // namespace

ModelShape shape_of(const ModelStats& stats) {
    ModelShape shape;
    shape.architecture = stats.architecture;
    shape.name = stats.model_name;
    shape.fingerprint = stats.fingerprint;
    for (const LayerStats& layer : stats.layers) shape.layers.push_back(layer.shape);
    return shape;
}

Plan uniform_transform_plan(const ModelStats& stats, const std::vector<FittedTransform>& fits, double key_bits,
                            double value_bits, int32_t window, int32_t sinks, TransformCodes codes) {
    Plan plan = empty_plan(stats, "f16", window, sinks);
    char name[64];
    std::snprintf(name, sizeof name, "transform k%.4gv%.4g", key_bits, value_bits);
    plan.name = name;
    size_t next = 0;
    for (LayerPlan& layer : plan.layers) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const double bits = side == Side::kKey ? key_bits : value_bits;
            for (HeadPlan& head : layer.heads) {
                const FittedTransform& fitted = fits[next++];
                if (bits < 16)
                    (side == Side::kKey ? head.key : head.value).transform =
                        fitted_codec(fitted, rung_at(fitted, bits, codes).unit_bits, codes);
            }
        }
    }
    return plan;
}

namespace {

/// With a window that is given.
Plan solve_with_window(const DamageModel& model, const PlanRequest& request) {
    const ModelStats& stats = model.stats();
    Plan plan = empty_plan(stats, "k2v2", request.window, request.sinks);
    const Room room = room_of(request, plan);
    std::vector<std::vector<Choice>> choices;
    for (const DamageSlot& slot : model.slots()) {
        std::vector<Choice>& own = choices.emplace_back();
        for (size_t i = 0; i < slot.codecs.size(); ++i)
            own.push_back({.bytes = room.blocks_of(slot, i), .damage = model.damage(slot, i)});
    }
    const std::vector<size_t> picked = solve_budget(choices, room.blocks());
    if (picked.empty()) {
        const double floor_bytes = room.fixed + static_cast<double>(Room::kBlock * smallest_bytes(choices));
        const auto in_units = [&](double bytes, auto rounded) {
            return number(rounded(8 * bytes / room.elements)) + "bits (" +
                   number(rounded(bytes / static_cast<double>(room.n_ctx))) + " B/token, " +
                   number(rounded(bytes / (1024 * 1024))) + " MiB)";
        };
        const auto up = [](double x) { return std::ceil(100 * x) / 100; };  // what is said to be enough is
        throw Error(ErrorCode::kBudgetTooSmall,
                    "the budget is below this model's floor at " + std::to_string(room.n_ctx) + " tokens",
                    "at least " + in_units(floor_bytes, up), in_units(room.bytes, std::identity()),
                    "The smallest plan keeps a window of " + std::to_string(request.window) +
                        " tokens in f16, and no head gets fewer bits than were measured (1); a longer context" +
                        (request.window > 0 ? " or --window 0" : "") + " lowers the floor");
    }
    double damage = 0;
    for (size_t i = 0; i < picked.size(); ++i) {
        const DamageSlot& slot = model.slots()[i];
        HeadPlan& head = plan.layers[slot.layer].heads[slot.head];
        (slot.side == Side::kKey ? head.key : head.value) = slot.codecs[picked[i]];
        damage += choices[i][picked[i]].damage;
    }
    plan.name =
        "measured " + number(cache_bytes(plan, room.n_ctx).effective_bits) + "bits@" + std::to_string(room.n_ctx);
    const size_t predict_ctx = request.predict_ctx > 0 ? request.predict_ctx : room.n_ctx;
    plan.predicted_kl = model.predict(damage, plan.window, predict_ctx);
    plan.measured_how = "KL probes of every layer and side (" + number(stats.base_bits) + " to " +
                        number(stats.probe_bits) + " bits) and " + std::to_string(stats.joint.size()) +
                        " joint probes, by query-weighted noise; for chunks of " + std::to_string(predict_ctx) +
                        " tokens; " + std::to_string(stats.n_tokens) + " calibration tokens, text sha256 " +
                        stats.text_sha256.substr(0, 16);
    return plan;
}

}  // namespace

Plan solve_plan(const DamageModel& model, const PlanRequest& request) {
    if (request.window >= 0) return solve_with_window(model, request);
    PlanRequest with = request;
    with.window = 0;
    Plan best = solve_with_window(model, with);
    for (const int32_t window : model.windows()) {
        if (window == 0) continue;
        with.window = window;
        try {
            Plan plan = solve_with_window(model, with);
            if (plan.predicted_kl < best.predicted_kl) best = std::move(plan);
        } catch (const Error& error) {
            if (error.code() != ErrorCode::kBudgetTooSmall) throw;
            break;  // a larger window does not fit either
        }
    }
    return best;
}

std::vector<double> damage_by_layer(const DamageModel& model, const Plan& plan) {
    std::vector<double> sums(2 * plan.layers.size(), 0.0);
    for (const DamageSlot& slot : model.slots()) {
        const HeadPlan& head = plan.layers[slot.layer].heads[slot.head];
        const CodecSpec& codec = slot.side == Side::kKey ? head.key : head.value;
        const auto at = std::find(slot.codecs.begin(), slot.codecs.end(), codec);
        KVAQ_CHECK(at != slot.codecs.end());
        sums[2 * slot.layer + (slot.side == Side::kKey ? 0 : 1)] +=
            model.damage(slot, static_cast<size_t>(at - slot.codecs.begin()));
    }
    return sums;
}

}  // namespace kvaq
