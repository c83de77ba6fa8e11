#include "kvaq/llama/estimate.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kvaq/cache/kv_cache.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"

namespace kvaq {
namespace {

/// Largest n with bytes_at(n) <= bytes; 0 if none. bytes_at never falls.
template <typename BytesAt>
size_t largest_within(size_t bytes, BytesAt bytes_at) {
    size_t low = 0;
    size_t high = 1;
    while (high < (size_t{1} << 40) && bytes_at(high) <= bytes) high *= 2;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        (bytes_at(middle) <= bytes ? low : high) = middle;
    }
    return low;
}

/// What llama.cpp makes of -c.
size_t context_of(size_t n_ctx) noexcept { return (n_ctx + 255) / 256 * 256; }

/// As the drop-in makes it for one sequence of n_ctx tokens (kvaq/llama/interpose_context.cc).
size_t process_bytes(const EstimateRequest& request, const Plan& plan, const ModelShape& shape, size_t n_ctx) {
    n_ctx = context_of(n_ctx);
    const size_t n_batch = std::min(n_ctx, request.n_batch);
    const bool frees_windows =
        !request.swa_full && std::any_of(shape.layers.begin(), shape.layers.end(), [&](const LayerShape& layer) {
            return layer.sliding_window > 0 && static_cast<size_t>(layer.sliding_window) < n_ctx;
        });
    // Its own cache keeps a batch, in one place for all layers with a window and one for all without (interpose_buffers.cc).
    size_t own[2] = {};
    for (const LayerShape& layer : shape.layers) {
        size_t& bytes = own[layer.sliding_window > 0 ? 1 : 0];
        const size_t row = layer.n_kv_heads * (layer.head_dim_k + layer.head_dim_v) * 2;
        bytes = shape.shares_layers ? bytes + row : std::max(bytes, row);
    }
    return reserved_bytes(plan, {.n_seq_max = 1,
                                 .n_ctx = n_ctx,
                                 .max_batch_tokens = std::min(n_batch, request.n_ubatch),
                                 .keep_sliding = !frees_windows,
                                 .rewind = std::min(request.rewind, n_ctx)}) +
           (own[0] + own[1]) * context_of(n_batch);
}

}  // namespace

Plan plan_for(const std::string& preset_or_file, const ModelShape& shape) {
    if (is_preset(preset_or_file)) return make_uniform_plan(parse_preset(preset_or_file), shape);
    require_plan_file(preset_or_file);
    Plan plan = read_plan(preset_or_file);
    check_plan_fits(plan, shape);
    return plan;
}

Estimate estimate(const EstimateRequest& request) {
    Estimate out;
    out.shape = read_model_shape(request.model);
    out.shape.fingerprint = model_fingerprint(request.model);
    out.n_ctx = context_of(request.n_ctx > 0 ? request.n_ctx : static_cast<size_t>(out.shape.n_ctx_train));
    for (const std::string& name : request.plans) {
        Estimate::Row row{.plan = plan_for(name, out.shape), .bytes = {}};
        row.bytes = cache_bytes(row.plan, out.n_ctx, request.swa_full);
        const auto process = [&](size_t n) { return process_bytes(request, row.plan, out.shape, n); };
        row.process = process(out.n_ctx);
        if (request.memory > 0) row.largest_context = largest_within(request.memory, process);
        out.plans.push_back(std::move(row));
    }
    const auto elements =
        static_cast<double>(cache_bytes(make_uniform_plan(parse_preset("f16"), out.shape), out.n_ctx).elements);
    ModelShape kept = out.shape;  // what llama.cpp keeps of every layer
    for (LayerShape& layer : kept.layers) layer.sliding_window = request.swa_full ? 0 : layer.sliding_window;
    for (const char* type : {"f16", "q8_0", "q5_1", "q4_0"}) {
        const size_t bytes = llama_cache_bytes(kept, type, out.n_ctx);
        out.llama.push_back(
            {.type = type,
             .bytes = bytes,
             .effective_bits = 8.0 * static_cast<double>(bytes) / elements,
             .largest_context =
                 request.memory > 0
                     ? largest_within(request.memory, [&](size_t n) { return llama_cache_bytes(kept, type, n); })
                     : 0});
    }
    return out;
}

nlohmann::ordered_json estimate_json(const EstimateRequest& request, const Estimate& found) {
    nlohmann::ordered_json json = {{"schema_version", 1},        {"kind", "kvaq.estimate"},
                                   {"model", request.model},     {"n_ctx", found.n_ctx},
                                   {"n_batch", request.n_batch}, {"n_ubatch", request.n_ubatch},
                                   {"n_rewind", request.rewind}};
    if (request.memory > 0) json["memory"] = request.memory;
    json["plans"] = nlohmann::ordered_json::array();
    for (const Estimate::Row& plan : found.plans) {
        nlohmann::ordered_json row = {{"name", plan.plan.name},
                                      {"bytes", plan.bytes.total},
                                      {"effective_bits", plan.bytes.effective_bits},
                                      {"process_bytes", plan.process},
                                      {"bytes_per_token", bytes_per_token(plan.plan)}};
        if (request.memory > 0) row["largest_context"] = plan.largest_context;
        for (const LayerBytes& layer : plan.bytes.layers) {
            row["layers"].push_back({{"layer", layer.layer},
                                     {"packed_key", layer.packed_key},
                                     {"packed_value", layer.packed_value},
                                     {"open", layer.open},
                                     {"sinks", layer.sinks},
                                     {"tables", layer.tables}});
        }
        json["plans"].push_back(row);
    }
    for (const Estimate::LlamaRow& llama : found.llama) {
        nlohmann::ordered_json row = {
            {"type", llama.type}, {"bytes", llama.bytes}, {"effective_bits", llama.effective_bits}};
        if (request.memory > 0) row["largest_context"] = llama.largest_context;
        json["llama.cpp"].push_back(row);
    }
    return json;
}

}  // namespace kvaq
