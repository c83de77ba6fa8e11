#pragma once

// PRIVATE header of kvaq/llama: what attach() set, and what we know of loaded models.

#include <llama.h>

#include "kvaq/llama/attach.h"

namespace kvaq {

/// What attach() set, else the factory of KVAQ_PLAN, else empty. Throws Error if KVAQ_PLAN names no plan.
[[nodiscard]] HandlerFactory current_factory();

[[nodiscard]] bool plans_announced();

void note_model(const llama_model* model, const char* path, bool measure_only);
void forget_model(const llama_model* model);
/// True for the models that llama.cpp's fitting pass loads without weights (llama_model_params.no_alloc).
[[nodiscard]] bool is_measure_only(const llama_model* model);

}  // namespace kvaq
