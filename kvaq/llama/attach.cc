#include "kvaq/llama/attach.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>

#include "kvaq/base/error.h"
#include "kvaq/cuda/cuda_cache.h"
#include "kvaq/llama/attachment.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/served_context.h"
#include "kvaq/plan/plan.h"

namespace kvaq {
namespace {

struct LoadedModel {
    std::string path;
    bool measure_only = false;
    std::optional<ModelShape> shape;  ///< read once
};

/// Process-wide, as llama.cpp's models are: guarded by the mutex.
struct State {
    std::mutex mutex;
    bool attached = false;
    bool announce = true;
    HandlerFactory factory;
    std::map<const llama_model*, LoadedModel> models;
};

State& state() {
    static State& state = *new State();  // never destroyed, as Registry
    return state;
}

}  // namespace

void attach(HandlerFactory factory) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.attached = true;
    s.factory = std::move(factory);
}

void announce_plans(bool on) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.announce = on;
}

bool plans_announced() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    return s.announce;
}

HandlerFactory current_factory() {
    State& s = state();
    {
        const std::lock_guard lock(s.mutex);
        if (s.attached) return s.factory;
    }
    const char* plan = std::getenv("KVAQ_PLAN");
    if (plan == nullptr || *plan == '\0') return {};
    return plan_factory(plan);
}

HandlerFactory plan_factory(const std::string& preset_or_file) {
    const auto make = [](const Plan& plan, const KvCacheOptions& options) -> std::unique_ptr<AttentionHandler> {
        return make_kv_cache_for(plan, options);
    };
    if (is_preset(preset_or_file)) {
        const Preset preset = parse_preset(preset_or_file);
        return [=](const ModelShape& shape, const KvCacheOptions& options) {
            return make(make_uniform_plan(preset, shape), options);
        };
    }
    require_plan_file(preset_or_file);
    const Plan plan = read_plan(preset_or_file);
    return [=](const ModelShape& shape, const KvCacheOptions& options) {
        check_plan_fits(plan, shape);
        return make(plan, options);
    };
}

AttentionHandler* handler_of(const llama_context* ctx) noexcept {
    ServedContext* context = Registry::instance().find(ctx);
    return context != nullptr ? context->handler.get() : nullptr;
}

KvCache* cache_of(const llama_context* ctx) noexcept {
    ServedContext* context = Registry::instance().find(ctx);
    return context != nullptr ? context->cache : nullptr;
}

void note_model(const llama_model* model, const char* path, bool measure_only) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.models[model] = {.path = path, .measure_only = measure_only, .shape = {}};
}

void forget_model(const llama_model* model) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.models.erase(model);
}

bool is_measure_only(const llama_model* model) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    const auto found = s.models.find(model);
    return found != s.models.end() && found->second.measure_only;
}

ModelShape model_shape_of(const llama_model* model) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    const auto found = s.models.find(model);
    if (found == s.models.end()) {
        throw Error(ErrorCode::kUnsupported, "the model was not loaded from a file by name, so its shape is unknown",
                    "llama_model_load_from_file", "another way of loading", "Load the model from a GGUF path");
    }
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model) || llama_model_is_diffusion(model) ||
        llama_model_has_encoder(model)) {
        throw Error(ErrorCode::kUnsupported, "recurrent, hybrid, diffusion and encoder models are not served",
                    "a decoder with attention layers only", found->second.path, "Start without a plan");
    }
    if (!found->second.shape) {
        ModelShape shape = read_model_shape(found->second.path);
        if (shape.fingerprint.empty()) shape.fingerprint = model_fingerprint(found->second.path);
        found->second.shape = std::move(shape);
    }
    return *found->second.shape;
}

}  // namespace kvaq
