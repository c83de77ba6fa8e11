// A build without CUDA: the same functions, which say so.
#include "kvaq/base/error.h"
#include "kvaq/cuda/cuda_cache.h"

namespace kvaq {

CudaSupport cuda_support() {
    return {.gpus = {}, .why_none = "kvaq was built without CUDA (-DKVAQ_CUDA=ON needs nvcc)"};
}

std::unique_ptr<KvCache> make_kv_cache_for(const Plan& plan, const KvCacheOptions& options) {
    if (options.on_gpu)
        throw Error(ErrorCode::kUnsupported, "the cache cannot be kept on a GPU", "a build with CUDA",
                    "one without (-DKVAQ_CUDA=OFF, or no nvcc when it was built)", "Use --kv-device cpu");
    return make_kv_cache(plan, options);
}

}  // namespace kvaq
