#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kvaq/stats/model_stats.h"

namespace kvaq {

struct FrontierRequest {
    std::string model;
    std::string text;
    std::string out;  ///< prefix of the files
    const ModelStats& stats;
    std::string stats_path;  ///< where they are from
    size_t n_ctx = 2048;
    size_t n_chunks = 1;
    int32_t window = -1;  ///< negative: each plan's best
    int32_t sinks = 4;
    int32_t n_threads = 2;
};

/// `kvaq plan --frontier`: measured KL against effective bits for measured plans of 8 budgets, uniform presets, the authors' allocators and llama.cpp's
/// types, in one run. Prints the table, writes <out>.md, <out>.json and <out>.svg;
/// interrupted, it goes on from <out>.partial. Throws Error.
void run_frontier(const FrontierRequest& request);

}  // namespace kvaq
