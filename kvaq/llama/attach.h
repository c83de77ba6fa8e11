#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kvaq/base/attention_call.h"
#include "kvaq/base/model_shape.h"
#include "kvaq/cache/kv_cache.h"

struct llama_context;
struct llama_model;

namespace kvaq {

/// Makes the handler of a new llama_context. Throws Error (the program then sees llama_init_from_model fail, with the message
/// on stderr).
using HandlerFactory = std::function<std::unique_ptr<AttentionHandler>(const ModelShape&, const KvCacheOptions&)>;

/// Contexts created from now on in this process are served by the factory's handlers; an empty factory means plain llama.cpp.
/// Overrides the environment (KVAQ_PLAN). Not thread-safe against concurrent llama_init_from_model.
void attach(HandlerFactory factory);

/// The factory of a plan: a preset text or a *.plan.gguf path. Throws Error on a bad name or file.
[[nodiscard]] HandlerFactory plan_factory(const std::string& preset_or_file);

/// The handler serving a context, or null when it is plain llama.cpp.
[[nodiscard]] AttentionHandler* handler_of(const llama_context* ctx) noexcept;
/// The same as a KvCache, or null when it is another handler.
[[nodiscard]] KvCache* cache_of(const llama_context* ctx) noexcept;

/// Whether new contexts say on stderr what serves them (the default; the drop-in always should). Tools that make dozens of
/// contexts turn it off.
void announce_plans(bool on);

/// Shape and fingerprint of a loaded model (the adapter notes the path of every llama_model_load_from_file).
/// Throws Error kUnsupported, by name, for MLA, recurrent, hybrid, encoder and diffusion models.
[[nodiscard]] ModelShape model_shape_of(const llama_model* model);

}  // namespace kvaq
