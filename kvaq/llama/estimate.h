#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "kvaq/base/model_shape.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

struct EstimateRequest {
    std::string model;               ///< GGUF file; only its header is read
    std::vector<std::string> plans;  ///< presets or *.plan.gguf
    size_t n_ctx = 0;                ///< tokens of one sequence; 0 = the model's training context
    size_t memory = 0;               ///< bytes for which the largest context is asked; 0 = not asked
    size_t n_batch = 2048;           ///< llama.cpp's -b: its own cache of one batch stays beside ours
    size_t n_ubatch = 512;           ///< llama.cpp's -ub: f16 rows of one micro-batch stay too
    size_t rewind = 0;               ///< --kv-rewind: f16 rows of as many more tokens stay
    bool swa_full = false;           ///< sliding-window layers keep everything
};

/// What caches of one sequence of n_ctx tokens take (cache_bytes), and llama.cpp's own beside them.
struct Estimate {
    struct Row {
        Plan plan;
        CacheBytes bytes;
        size_t process =
            0;  ///< what the process reserves for attention: reserved_bytes(), and llama.cpp's own cache of one batch
        size_t largest_context = 0;  ///< whose `process` fits; 0 also where it was not asked
    };
    struct LlamaRow {
        std::string type;  ///< f16, q8_0, q5_1, q4_0
        size_t bytes = 0;
        double effective_bits = 0;
        size_t largest_context = 0;
    };
    ModelShape shape;
    size_t n_ctx = 0;  ///< as llama.cpp rounds it up: a multiple of 256
    std::vector<Row> plans;
    std::vector<LlamaRow> llama;
};

/// The plan of a name for a model: a preset, or a *.plan.gguf that fits it. Throws Error.
[[nodiscard]] Plan plan_for(const std::string& preset_or_file, const ModelShape& shape);

/// Throws Error kNotFound, kCorrupt, kUnsupported (model), kInvalidArgument (preset), kMismatch (plan of another model).
[[nodiscard]] Estimate estimate(const EstimateRequest& request);

/// kind "kvaq.estimate" of docs/formats.md.
[[nodiscard]] nlohmann::ordered_json estimate_json(const EstimateRequest& request, const Estimate& found);

}  // namespace kvaq
