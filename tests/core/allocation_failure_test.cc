// Every allocation of the cache path fails once (and once with all after it): the answer is an exception, nothing has changed, and the same
// call works when there is memory again. This program replaces operator new; under ASan (make asan) leaks count too.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <new>

#include "kvaq/attention/reference.h"
#include "kvaq/cache/cache_testing.h"
#include "kvaq/cache/kv_cache.h"

namespace {

thread_local long allocations_left = -1;  // -1: no failure asked for
thread_local bool keep_failing = false;
thread_local bool has_failed = false;

bool must_fail() noexcept {
    if (allocations_left < 0) return false;
    if (allocations_left > 0) {
        --allocations_left;
        return false;
    }
    if (has_failed && !keep_failing) return false;
    has_failed = true;
    return true;
}

void* allocate(size_t n, size_t alignment) {
    if (must_fail()) throw std::bad_alloc();
    void* data = alignment <= alignof(std::max_align_t)
                     ? std::malloc(n == 0 ? 1 : n)
                     : std::aligned_alloc(alignment, (n + alignment - 1) / alignment * alignment);
    if (data == nullptr) throw std::bad_alloc();
    return data;
}

}  // namespace

void* operator new(size_t n) { return allocate(n, 1); }
void* operator new[](size_t n) { return allocate(n, 1); }
void* operator new(size_t n, std::align_val_t a) { return allocate(n, static_cast<size_t>(a)); }
void* operator new[](size_t n, std::align_val_t a) { return allocate(n, static_cast<size_t>(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace kvaq {
namespace {

constexpr int32_t kSequences = 4;

/// One thread, no barrier to wait at.
class SoloTeam final : public Team {
  public:
    [[nodiscard]] size_t index() const noexcept override { return 0; }
    [[nodiscard]] size_t size() const noexcept override { return 1; }
    void barrier() noexcept override {}
};

/// Runs call() with allocation n (0, 1, ...) failing; whether one was asked for that failed.
template <typename Call>
bool fails_at(long n, bool and_all_after, Call call) {
    allocations_left = n;
    keep_failing = and_all_after;
    has_failed = false;
    bool thrown = false;
    try {
        call();
    } catch (const std::exception&) {  // std::bad_alloc, or what a library makes of it
        thrown = true;
    }
    allocations_left = -1;
    EXPECT_EQ(thrown, has_failed) << "allocation " << n << (thrown ? ": an exception without a cause" : ": swallowed");
    return has_failed;
}

/// Everything that a cache tells of itself.
struct Contents {
    std::vector<std::vector<std::byte>> saved;
    std::vector<int32_t> positions;
    std::vector<size_t> use;
    bool operator==(const Contents&) const = default;
};

Contents contents_of(const KvCache& cache) {
    Contents out;
    for (int32_t s = 0; s < kSequences; ++s) {
        out.saved.push_back(cache.save_sequence(s));
        out.positions.push_back(cache.seq_pos_min(s));
        out.positions.push_back(cache.seq_pos_max(s));
    }
    const CacheUse use = cache.use();
    out.use = {use.packed, use.open,     use.sinks,       use.tables, use.allocated,
               use.shared, use.n_tokens, use.n_sequences, use.n_tiles};
    return out;
}

/// A micro-batch whose inputs are made before any allocation may fail.
struct Prepared {
    std::vector<TestToken> tokens;
    std::vector<BatchToken> batch;
    std::vector<Rows> rows;
    RopeRule rope;
    Prepared(const ModelShape& model, std::vector<TestToken> all, size_t rope_dims)
        : tokens(std::move(all)), rope(rope_of(rope_dims)) {
        for (const TestToken& token : tokens) batch.push_back({.pos = token.pos, .seq_ids = token.seq_ids});
        for (const LayerShape& shape : model.layers) {
            rows.push_back(rows_of(shape, tokens));
            rotate(rope, shape, tokens, rows.back());
        }
    }
    Prepared(const Prepared&) = delete;  // batch points into tokens
    Prepared& operator=(const Prepared&) = delete;

    /// begin, attend and end, or rollback; false = no room.
    bool run(AttentionHandler& handler, const ModelShape& model, bool keep = true) {
        if (!handler.begin(batch)) return false;
        SoloTeam team;
        for (size_t i = 0; i < model.layers.size(); ++i) {
            const LayerShape& shape = model.layers[i];
            AttentionCall call;
            call.rope = &rope;
            call.layer = shape.layer;
            call.n_tokens = tokens.size();
            call.q = {rows[i].q.data(), shape.n_heads * shape.head_dim_k, shape.head_dim_k};
            call.k = {rows[i].k.data(), shape.n_kv_heads * shape.head_dim_k, shape.head_dim_k};
            call.v = {rows[i].v.data(), shape.n_kv_heads * shape.head_dim_v, shape.head_dim_v};
            call.out = {rows[i].out.data(), shape.n_heads * shape.head_dim_v, shape.head_dim_v};
            call.rule = {.scale = 0.2F, .sliding_window = shape.sliding_window};
            handler.attend(call, team);
        }
        if (keep) {
            handler.end();
        } else {
            handler.rollback();
        }
        return true;
    }
    [[nodiscard]] std::vector<float> outputs() const {
        std::vector<float> all;
        for (const Rows& r : rows) all.insert(all.end(), r.out.begin(), r.out.end());
        return all;
    }
};

struct Setting {
    const char* plan;
    int32_t sliding;
    bool and_all_after;
};

class AllocationFailure : public testing::TestWithParam<Setting> {
    const ForcedMode forced_{AttentionMode::kWideIntegers};  // its tolerance is narrow

  protected:
    AllocationFailure()
        : model_(small_model(16, 16, GetParam().sliding)),
          plan_(plan_of(GetParam().plan, model_)),
          cache_(make()),
          reference_(make_reference_handler(plan_, kSequences, 100000)) {
        // A sequence with sealed pages, one that shares its beginning, one that was shifted.
        both(text(0, 0, 190));
        copy(0, 1, 150);
        both(text(1, 150, 30, 5));
        both(text(2, 0, 140, 9));
        if (GetParam().sliding == 0) {
            EXPECT_TRUE(cache_->seq_rm(2, 10, 40) && reference_->seq_rm(2, 10, 40));
            EXPECT_TRUE(cache_->seq_add(2, 40, -1, -30) && reference_->seq_add(2, 40, -1, -30));
            both(text(2, 110, 3, 9));
        }
    }
    [[nodiscard]] std::unique_ptr<KvCache> make() const {
        return make_kv_cache(plan_, {.n_seq_max = kSequences, .n_ctx = 2048, .max_batch_tokens = 200});
    }
    void copy(int32_t from, int32_t to, int32_t n) {
        EXPECT_TRUE(cache_->seq_cp(from, to, -1, n) && reference_->seq_cp(from, to, -1, n));
    }
    /// The same tokens into cache and reference; their outputs agree.
    void both(std::vector<TestToken> tokens) {
        Prepared ours(model_, tokens, 16), theirs(model_, std::move(tokens), 16);
        ASSERT_TRUE(ours.run(*cache_, model_));
        ASSERT_TRUE(theirs.run(*reference_, model_));
        ASSERT_LE(max_difference(ours.outputs(), theirs.outputs()), tolerance());
    }
    /// call() with its first allocation failing, with its second, ... until none is left to fail: that last call has been carried out.
    template <typename Call>
    void every_allocation(const char* what, Call call) {
        SCOPED_TRACE(what);
        const Contents before = contents_of(*cache_);
        long n = 0;
        while (fails_at(n, GetParam().and_all_after, call)) {
            EXPECT_TRUE(contents_of(*cache_) == before) << "allocation " << n << " has changed something";
            if (HasFailure() || ++n > 100000) break;
        }
        counts_[what] = n;
    }
    /// The micro-batch under failures; then the reference and the cache agree on it.
    void every_allocation_of_batch(const char* what, std::vector<TestToken> tokens) {
        Prepared ours(model_, tokens, 16), theirs(model_, std::move(tokens), 16);
        every_allocation(what, [&] { ASSERT_TRUE(ours.run(*cache_, model_)); });
        ASSERT_TRUE(theirs.run(*reference_, model_));
        EXPECT_LE(max_difference(ours.outputs(), theirs.outputs()), tolerance()) << what;
    }
    ModelShape model_;
    Plan plan_;
    std::unique_ptr<KvCache> cache_;
    std::unique_ptr<AttentionHandler> reference_;
    std::map<std::string, long> counts_;  ///< allocations of every call
};

TEST_P(AllocationFailure, LeavesEverythingAsItWas) {
    const bool slides = GetParam().sliding > 0;
    every_allocation_of_batch("one token", text(0, 190, 1));
    every_allocation_of_batch("a prompt that seals pages", text(3, 0, 200, 4));
    every_allocation_of_batch("tokens of several sequences", [&] {
        std::vector<TestToken> tokens = text(0, 191, 5);
        const std::vector<TestToken> more = text(1, 180, 7, 5);
        tokens.insert(tokens.end(), more.begin(), more.end());
        return tokens;
    }());
    {
        Prepared lost(model_, text(0, 196, 90, 77), 16);
        const Contents before = contents_of(*cache_);
        every_allocation("a batch that is rolled back", [&] { ASSERT_TRUE(lost.run(*cache_, model_, false)); });
        EXPECT_TRUE(contents_of(*cache_) == before);
        every_allocation("fits", [&] { ASSERT_TRUE(cache_->fits(lost.batch)); });
        EXPECT_TRUE(contents_of(*cache_) == before);
    }
    std::vector<std::byte> saved;
    every_allocation("save_sequence", [&] { saved = cache_->save_sequence(0); });
    {
        std::vector<std::byte> all;
        every_allocation("save_context", [&] { all = cache_->save_context(); });
        every_allocation("load_context", [&] { cache_->load_context(all); });
        for (const int32_t s : {0, 1, 2, 3}) settle_reference(*reference_, s);
        EXPECT_TRUE(cache_->save_context() == all);
    }
    every_allocation("sequence_bytes", [&] { ASSERT_EQ(cache_->sequence_bytes(0), saved.size()); });
    every_allocation("seq_rm of a tail inside a sealed page",
                     [&] { ASSERT_TRUE(cache_->seq_rm(3, slides ? 170 : 100, -1)); });
    ASSERT_TRUE(reference_->seq_rm(3, slides ? 170 : 100, -1));
    every_allocation_of_batch("copy on write", text(3, slides ? 170 : 100, 3, 8));
    if (!slides) {
        every_allocation("seq_rm of a range", [&] { ASSERT_TRUE(cache_->seq_rm(3, 20, 50)); });
        ASSERT_TRUE(reference_->seq_rm(3, 20, 50));
        every_allocation("seq_add", [&] { ASSERT_TRUE(cache_->seq_add(3, 50, -1, -30)); });
        ASSERT_TRUE(reference_->seq_add(3, 50, -1, -30));
        every_allocation_of_batch("after a shift", text(3, 73, 2, 8));
    }
    {  // a second partly used page: the kept tokens are decoded
        const int32_t n = cache_->seq_pos_max(3) + 1;
        every_allocation_of_batch("pages after a cut", text(3, n, 150, 9));
        every_allocation("seq_rm of a tail inside a second sealed page",
                         [&] { ASSERT_TRUE(cache_->seq_rm(3, n + 100, -1)); });
        ASSERT_TRUE(reference_->seq_rm(3, n + 100, -1));
        every_allocation_of_batch("decoded tokens", text(3, n + 100, 3, 8));
    }
    every_allocation("seq_rm of all sequences' tails", [&] { ASSERT_TRUE(cache_->seq_rm(-1, 1000, -1)); });
    ASSERT_TRUE(cache_->seq_rm(2, -1, -1) && reference_->seq_rm(2, -1, -1));
    every_allocation("seq_cp", [&] { ASSERT_TRUE(cache_->seq_cp(0, 2, -1, -1)); });
    ASSERT_TRUE(reference_->seq_cp(0, 2, -1, -1));
    every_allocation_of_batch("a shared page that goes on", text(2, 196, 2, 3));
    every_allocation("load_sequence over another", [&] { cache_->load_sequence(1, saved); });
    EXPECT_TRUE(cache_->save_sequence(1) == saved);
    ASSERT_TRUE(reference_->seq_rm(1, -1, -1) && reference_->seq_cp(0, 1, -1, -1));
    every_allocation_of_batch("after a restore", text(1, 196, 3, 6));
    every_allocation("seq_keep", [&] { cache_->seq_keep(1); });
    reference_->seq_keep(1);
    every_allocation_of_batch("after seq_keep", text(1, 199, 1, 6));
    EXPECT_EQ(counts_["seq_keep"], 0) << "it is noexcept";
    every_allocation("clear", [&] { cache_->clear(); });
    EXPECT_EQ(counts_["clear"], 0) << "it is noexcept";
    reference_->clear();
    every_allocation_of_batch("after clear", text(0, 0, 70));
    std::unique_ptr<KvCache> made;
    every_allocation("make_kv_cache", [&] { made = make(); });
    EXPECT_GT(counts_["make_kv_cache"], 20);
    EXPECT_GT(counts_["a prompt that seals pages"], 5);
    EXPECT_GT(counts_["load_sequence over another"], 5);
    for (const auto& [what, n] : counts_) RecordProperty(what, std::to_string(n));
}

// A team larger than was told works with those threads there is room for, and all of them from the next micro-batch on.
TEST_P(AllocationFailure, AttentionAllocatesNothingInAnyThread) {
    for (int32_t i = 0; i < 3; ++i) {
        Prepared ours(model_, text(0, 190 + i, 1), 16), theirs(model_, text(0, 190 + i, 1), 16);
        ASSERT_TRUE(cache_->begin(ours.batch));
        std::barrier barrier(3);
        for (size_t l = 0; l < model_.layers.size(); ++l) {
            const LayerShape& shape = model_.layers[l];
            AttentionCall call;
            call.rope = &ours.rope;
            call.layer = shape.layer;
            call.n_tokens = 1;
            call.q = {ours.rows[l].q.data(), shape.n_heads * shape.head_dim_k, shape.head_dim_k};
            call.k = {ours.rows[l].k.data(), shape.n_kv_heads * shape.head_dim_k, shape.head_dim_k};
            call.v = {ours.rows[l].v.data(), shape.n_kv_heads * shape.head_dim_v, shape.head_dim_v};
            call.out = {ours.rows[l].out.data(), shape.n_heads * shape.head_dim_v, shape.head_dim_v};
            call.rule = {.scale = 0.2F, .sliding_window = shape.sliding_window};
            std::vector<std::thread> threads;
            for (size_t t = 0; t < 3; ++t) {
                threads.emplace_back([&, t] {
                    ThreadTeam team(t, 3, barrier);
                    allocations_left = 0;  // attend is noexcept: an allocation would end the program
                    keep_failing = true;
                    cache_->attend(call, team);
                    allocations_left = -1;
                });
            }
            for (std::thread& thread : threads) thread.join();
        }
        cache_->end();
        ASSERT_TRUE(theirs.run(*reference_, model_));
        EXPECT_LE(max_difference(ours.outputs(), theirs.outputs()), tolerance());
    }
}

std::string name_of(const testing::TestParamInfo<Setting>& info) {
    return std::to_string(info.index) + (info.param.and_all_after ? "_with_all_after" : "_alone");
}

INSTANTIATE_TEST_SUITE_P(Plans, AllocationFailure,
                         testing::Values(Setting{"k4v2-rot-w20-s4", 0, true}, Setting{"k4v2-rot-w20-s4", 0, false},
                                         Setting{"klt", 0, true}, Setting{"k3v2-tcq-w20", 0, true},
                                         Setting{"k4v4-lm-s4", 70, true}, Setting{"k4v4-lm-s4", 70, false}),
                         name_of);

}  // namespace
}  // namespace kvaq
