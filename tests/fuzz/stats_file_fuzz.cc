// Any file is refused as statistics, or read. (Built without the check of its checksum.)
#include "kvaq/base/error.h"
#include "kvaq/llama/stats_file.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvaq;
    fuzz::silence_ggml();
    const fuzz::MemoryFile file({data, size});
    try {
        const ModelStats stats = read_stats(file.path());
        FUZZ_CHECK(!stats.layers.empty());
    } catch (const Error& error) {
        FUZZ_CHECK(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kMismatch);
    }
    return 0;
}
