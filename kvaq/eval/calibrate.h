#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "kvaq/stats/model_stats.h"

namespace kvaq {

struct CalibrateRequest {
    std::string model;
    std::string text;
    size_t n_ctx = 2048;        ///< tokens per chunk of the statistics
    size_t n_chunks = 8;        ///< at most this many; fewer if the text ends
    size_t n_sample_tiles = 24;  ///< per head
    size_t probe_ctx = 512;     ///< tokens per chunk of a probe; its second half is scored
    size_t probe_chunks = 2;
    bool probes = true;
    int32_t n_threads = 2;
};

/// Collects moments and sample tiles of K, V and Q over the text, then measures the damage of every layer and side alone: the
/// mean KL against the f16 plan of the same engine when only that side of that layer is quantized by its fitted
/// transform codec at 2 bits (four sink tokens in f16). progress(done, total, what) after every chunk or probe. Throws Error: bad model or text, a
/// text of less than one chunk.
[[nodiscard]] ModelStats calibrate(const CalibrateRequest& request, const std::function<void(size_t, size_t, const std::string&)>& progress);

}  // namespace kvaq
