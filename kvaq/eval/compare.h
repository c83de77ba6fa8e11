#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "kvaq/base/model_shape.h"
#include "kvaq/eval/divergence.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// What `kvaq eval` is asked: rows on one text, all against one f16 reference of plain llama.cpp.
struct CompareRequest {
    std::string model;
    std::string text;
    std::vector<std::string> plans;  ///< presets or *.plan.gguf files
    std::vector<Plan> made;          ///< plans that are no file, after those
    std::vector<std::string> types;  ///< llama.cpp cache types
    size_t n_ctx = 4096;
    size_t n_chunks = 4;
    size_t n_batch = 512;
    size_t max_reference_bytes = size_t{2}
                                 << 30;  ///< of reference log-probabilities held at a time; a chunk is scored in slices
    int32_t n_threads = 2;
    bool control = true;  ///< also f16 against itself with micro-batches of 3 tokens: the floor of any comparison
    bool perturbed =
        false;  ///< also f16 with keys and values off by 2^-12 (kvaq/eval/perturbed_cache.h): another view of the floor
    std::string partial;  ///< what is measured is kept in this file and not measured again; empty: nowhere
};

struct CompareRow {
    std::string name;
    std::string kind;           ///< "reference", "control", "plan", "llama.cpp"
    double effective_bits = 0;  ///< 8 * bytes / elements at n_ctx, everything counted
    size_t bytes = 0;           ///< of the cache at n_ctx
    double seconds = 0;  ///< llama.cpp's decode of all chunks, scoring not counted (for information: rows run in turn)
    std::vector<std::vector<TokenScore>> chunks;  ///< scored: the second half of each chunk
    ScoreSummary summary;
    std::string plan_sha256;   ///< of a plan's canonical text (kvaq/plan/plan_json.h): which plan the row measured
    double predicted_kl = -1;  ///< of a plan, by whoever made it; negative: not predicted
};

struct CompareResult {
    ModelShape shape;
    size_t n_text_tokens = 0;
    std::string text_sha256;
    std::vector<CompareRow> rows;  ///< the reference first
};

/// progress(done, total, what) is called after every decoded chunk. Throws Error: bad model, text or plan, or a text with fewer
/// tokens than n_ctx * n_chunks, kIo where `partial` cannot be written. A `partial` of other settings is replaced.
[[nodiscard]] CompareResult compare(const CompareRequest& request,
                                    const std::function<void(size_t, size_t, const std::string&)>& progress);

/// To be called when the results are written. An empty path: nothing.
void remove_partial(const std::string& partial) noexcept;

/// Markdown table of the rows, with units and standard errors.
[[nodiscard]] std::string to_markdown(const CompareRequest& request, const CompareResult& result);
/// JSON of everything, schema_version 1. `command` is how to make it again.
[[nodiscard]] std::string to_json(const CompareRequest& request, const CompareResult& result,
                                  const std::string& command);

}  // namespace kvaq
