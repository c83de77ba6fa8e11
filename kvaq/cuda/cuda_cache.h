#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kvaq/cache/kv_cache.h"

namespace kvaq {

/// A GPU that kernels of this build run on.
struct CudaGpu {
    int device = 0;
    std::string name;
    size_t total_bytes = 0;
};

/// What there is. why_none: in words, when gpus is empty (built without CUDA, no driver, no GPU, all too old).
struct CudaSupport {
    std::vector<CudaGpu> gpus;
    std::string why_none;
};
[[nodiscard]] CudaSupport cuda_support();

/// As make_kv_cache; with options.on_gpu, one whose layers can be placed on CUDA devices (KvCache::place_layers). Pages, tiles, sequences and snapshots stay
/// with the host, which seals as ever: a placed layer's bytes are mirrored on the device, where attention reads them. Throws Error kUnsupported with
/// on_gpu where cuda_support() has no GPU.
[[nodiscard]] std::unique_ptr<KvCache> make_kv_cache_for(const Plan& plan, const KvCacheOptions& options);

}  // namespace kvaq
