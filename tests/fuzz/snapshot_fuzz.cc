// A snapshot of any bytes behind a right magic, plan digest and checksum is refused and changes nothing, or is one that the cache can work
// with: it saves as it was loaded, decodes, is cut and copied.
#include <algorithm>
#include <cstring>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"
#include "tests/fuzz/fuzz_cache.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvaq::fuzz {
namespace {

constexpr size_t kSigned = 40;  // magic and digest of plan and model

std::unique_ptr<KvCache> make(const Plan& plan) {
    return make_kv_cache(plan, {.n_seq_max = kSequences, .n_ctx = kContext, .max_batch_tokens = kBatch});
}

void try_snapshot(Choices choices) {
    const ModelShape model = tiny_model(kSlidingWindows[static_cast<size_t>(choices.below(kSlidingWindows.size()))]);
    const Plan plan = plan_of(kPlans[static_cast<size_t>(choices.below(kPlans.size()))], model);
    const std::unique_ptr<KvCache> cache = make(plan);
    FUZZ_CHECK(!run(*cache, model, text(1, 0, 90)).empty());
    const std::vector<std::byte> other = cache->save_sequence(1);
    std::vector<std::byte> bytes(other.begin(), other.begin() + kSigned);
    const auto body = std::as_bytes(choices.rest());
    bytes.insert(bytes.end(), body.begin(), body.end());
    Sha256 hash;
    hash.update(bytes);
    const auto digest = hash.digest();
    bytes.insert(bytes.end(), reinterpret_cast<const std::byte*>(digest.data()),
                 reinterpret_cast<const std::byte*>(digest.data()) + digest.size());
    const int32_t target = choices.below(2);  // the empty sequence, or instead of the other one
    try {
        cache->load_sequence(target, bytes);
    } catch (const Error& error) {
        FUZZ_CHECK(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kMismatch ||
                   error.code() == ErrorCode::kOutOfMemory);
        FUZZ_CHECK(cache->save_sequence(1) == other && cache->seq_pos_max(0) == -1);
        return;
    }
    if (target == 0) FUZZ_CHECK(cache->save_sequence(1) == other);
    const std::vector<std::byte> again = cache->save_sequence(target);
    FUZZ_CHECK(!again.empty() && again.size() == cache->sequence_bytes(target));
    const std::unique_ptr<KvCache> second = make(plan);
    second->load_sequence(2, again);
    FUZZ_CHECK(second->save_sequence(2) == again);
    for (const int32_t n : {1, 70, 3}) (void)run(*second, model, text(2, second->seq_pos_max(2) + 1, n));
    (void)second->seq_cp(2, 0, -1, -1);
    const int32_t end = second->seq_pos_max(2) + 1;
    (void)second->seq_rm(2, end - 30, -1);
    (void)run(*second, model, text(2, second->seq_pos_max(2) + 1, 2));
    (void)second->seq_rm(2, end / 2, end / 2 + 5);
    (void)second->seq_add(2, end / 2 + 5, -1, -5);
    (void)run(*second, model, text(2, second->seq_pos_max(2) + 1, 1));
    (void)second->use();
    const std::vector<std::byte> whole = second->save_context();
    const std::unique_ptr<KvCache> third = make(plan);
    try {
        third->load_context(whole);
        FUZZ_CHECK(third->save_context() == whole);
    } catch (const Error& error) {  // what was shared would be there twice
        FUZZ_CHECK(error.code() == ErrorCode::kOutOfMemory && third->use().n_tokens == 0);
    }
    second->seq_keep(2);
}

}  // namespace
}  // namespace kvaq::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    kvaq::fuzz::try_snapshot(kvaq::fuzz::Choices({data, size}));
    return 0;
}
