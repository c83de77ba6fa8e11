// Any file is refused as a plan, or is one that budgets, texts and a small cache can be made of. (Built without the check of its checksum.)
#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan_json.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvaq;
    fuzz::silence_ggml();
    const fuzz::MemoryFile file({data, size});
    try {
        const Plan plan = read_plan(file.path());
        FUZZ_CHECK(!canonical_text(plan).empty());
        (void)cache_bytes(plan, 1000);
        const KvCacheOptions options{.n_seq_max = 1, .n_ctx = 128, .max_batch_tokens = 64};
        const bool small = std::all_of(plan.layers.begin(), plan.layers.end(),
                                       [](const LayerPlan& layer) { return layer.shape.n_kv_heads <= 8; });
        if (small && plan.window <= 256 && plan.layers.size() < 20) (void)make_kv_cache(plan, options)->describe();
    } catch (const Error& error) {
        FUZZ_CHECK(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kMismatch ||
                   error.code() == ErrorCode::kInvalidArgument);
    }
    return 0;
}
