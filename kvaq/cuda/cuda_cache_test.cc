// Caches with layers on a GPU against the double reference and against the host's cache. Skipped, with the reason, where there is no GPU.
#include "kvaq/cuda/cuda_cache.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "kvaq/attention/reference.h"
#include "kvaq/base/error.h"
#include "kvaq/cache/cache_testing.h"

#ifdef KVAQ_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace kvaq {
namespace {

TEST(CudaSupport, WithoutAGpuTheCacheIsRefusedWithTheReason) {
    const CudaSupport support = cuda_support();
    if (!support.gpus.empty()) GTEST_SKIP() << "there is a GPU: " << support.gpus[0].name;
    ASSERT_FALSE(support.why_none.empty());
    const Plan plan = plan_of("k4v4", small_model());
    try {
        (void)make_kv_cache_for(plan, {.n_seq_max = 1, .n_ctx = 64, .on_gpu = true});
        FAIL() << "wanted an error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
        EXPECT_NE(std::string(error.what()).find("the cache cannot be kept on a GPU"), std::string::npos)
            << error.what();
        EXPECT_NE(std::string(error.what()).find("--kv-device cpu"), std::string::npos) << error.what();
    }
    EXPECT_NE(make_kv_cache_for(plan, {.n_seq_max = 1, .n_ctx = 64}), nullptr);
}

#ifdef KVAQ_WITH_CUDA

// q and p are exact to 2^-22 and 2^-11, quantized keys and values rounded to binary16: relative errors of at most 2^-11, uniform. A score of 32
// channels moves by .2 * sqrt(32) * 1.5 * 4 * 2^-12 / sqrt(3) = 1e-3 sd, thus p by as much in proportion and the output by 1e-3 |v| at most where one
// token holds all the weight; six of them for the largest of 1e5 outputs.
constexpr double kGpuTolerance = 6e-3;

/// A vector in device memory while it lives.
template <typename T>
class OnDevice {
  public:
    explicit OnDevice(const std::vector<T>& values) : n_(values.size()) {
        void* data = nullptr;
        EXPECT_EQ(cudaMalloc(&data, n_ * sizeof(T) + 16), cudaSuccess);
        data_ = static_cast<T*>(data);
        EXPECT_EQ(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
        EXPECT_EQ(cudaStreamSynchronize(cudaStreamLegacy), cudaSuccess);  // the copy has arrived
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() { (void)cudaFree(data_); }
    [[nodiscard]] T* data() const noexcept { return data_; }
    void read(T* to) const { EXPECT_EQ(cudaMemcpy(to, data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess); }

  private:
    T* data_ = nullptr;
    size_t n_;
};

/// As step(), with the layers in `on_gpu` given as device memory.
std::vector<float> gpu_step(KvCache& cache, const ModelShape& model, const std::vector<TestToken>& tokens,
                            const ScoreRule& rule = {.scale = 0.2F}, const RopeRule* rope = nullptr,
                            const std::vector<int32_t>& on_gpu = {0, 3}) {
    const auto attend = [&](const AttentionCall& call) {
        if (std::find(on_gpu.begin(), on_gpu.end(), call.layer) == on_gpu.end()) return run_team(cache, call, 2);
        const LayerShape& shape = *std::find_if(model.layers.begin(), model.layers.end(),
                                                [&](const auto& l) { return l.layer == call.layer; });
        const auto copy = [&](const auto* from, size_t n_heads, size_t dim) {
            return std::vector(from, from + tokens.size() * n_heads * dim);
        };
        const OnDevice<float> q(copy(call.q.data, shape.n_heads, shape.head_dim_k));
        const OnDevice<float16> k(copy(call.k.data, shape.n_kv_heads, shape.head_dim_k));
        const OnDevice<float16> v(copy(call.v.data, shape.n_kv_heads, shape.head_dim_v));
        const OnDevice<float> out(copy(call.out.data, shape.n_heads, shape.head_dim_v));
        AttentionCall device = call;
        device.device = 0;
        device.q.data = q.data();
        device.k.data = k.data();
        device.v.data = v.data();
        device.out.data = out.data();
        run_team(cache, device, 1);
        cache.wait(0);
        EXPECT_EQ(cache.fault(), "");
        out.read(call.out.data);
    };
    std::optional<std::vector<float>> all = outputs_of(cache, model, tokens, rule, rope, attend);
    if (!all) return {};
    cache.end();
    EXPECT_EQ(cache.fault(), "");
    return std::move(*all);
}

class CudaCache : public testing::Test {
  protected:
    void SetUp() override {
        const CudaSupport support = cuda_support();
        if (support.gpus.empty()) GTEST_SKIP() << support.why_none;
    }
    static std::unique_ptr<KvCache> make(const Plan& plan, KvCacheOptions options,
                                         const std::vector<int32_t>& layers = {0, 3}) {
        options.on_gpu = true;
        options.n_threads = 3;
        auto cache = make_kv_cache_for(plan, options);
        std::vector<LayerPlace> places;
        for (const int32_t layer : layers) places.push_back({.layer = layer, .device = 0});
        cache->place_layers(places);
        return cache;
    }
};

class CudaCachePreset : public CudaCache, public testing::WithParamInterface<const char*> {};

TEST_P(CudaCachePreset, EqualsTheReferenceInPrefillAndDecodeAndHoldsTheHostsBytes) {
    const ModelShape model = small_model();
    const Plan plan = plan_of(GetParam(), model);
    const KvCacheOptions options{.n_seq_max = 2, .n_ctx = 2048, .max_batch_tokens = 256};
    const auto cache = make(plan, options);
    const auto host = make_kv_cache(plan, options);
    const auto reference = make_reference_handler(plan, 2, 2048);
    int32_t pos = 0;
    for (const int32_t n : {1, 70, 1, 130, 1, 1, 9, 64, 1, 256, 250, 1, 256, 40, 1, 3}) {
        const std::vector<TestToken> tokens = text(0, pos, n);
        EXPECT_LE(max_difference(gpu_step(*cache, model, tokens), step(*reference, model, tokens)), kGpuTolerance)
            << GetParam() << " at " << pos;
        ASSERT_FALSE(step(*host, model, tokens).empty());
        pos += n;
    }
    EXPECT_TRUE(cache->save_sequence(0) == host->save_sequence(0)) << GetParam();
}

INSTANTIATE_TEST_SUITE_P(Plans, CudaCachePreset,
                         testing::Values("f16", "k4v2", "k8v8-g32", "k4v4-rot-w64-s4", "k3v2-kchan-g32-w70",
                                         "k5v6-rotk-s8", "k2v1.58-g32", "k1.58v1-g32", "k6v3-sym-w5",
                                         "k4v4-kchan-g128-w32", "q4_0", "k4v3-lm-s4", "k3v2-tcq-s4", "k1v6-tcq",
                                         "k5v4-tcq", "klt", "klt-w40-s4", "turned:klt-w40-s4"));

TEST_F(CudaCache, MatchesTheReferenceWithWindowsSoftcapSinkLogitsAndAlibi) {
    const std::vector<ScoreRule> rules = bent_rules();
    const ModelShape model = small_model(40, 24, 50);
    const Plan plan = make_uniform_plan(parse_preset("k4v4-rot-w20-s3"), model);
    for (size_t i = 0; i < rules.size(); ++i) {
        const auto cache =
            make(plan, {.n_seq_max = 1, .n_ctx = 512, .max_batch_tokens = 256, .gpu_work_bytes = size_t{1} << 15});
        const auto reference = make_reference_handler(plan, 1, 512);
        int32_t pos = 0;
        for (const int32_t n : {100, 1, 120, 1, 3}) {
            const std::vector<TestToken> tokens = text(0, pos, n);
            EXPECT_LE(
                max_difference(gpu_step(*cache, model, tokens, rules[i]), step(*reference, model, tokens, rules[i])),
                kGpuTolerance)
                << "rule " << i << " at " << pos;
            pos += n;
        }
    }
}

TEST_F(CudaCache, EveryHeadSizeFrom32To512MatchesTheReference) {
    for (const char* preset : {"k4v3-rot-g32", "klt", "f16"}) {
        for (size_t dim = 32; dim <= 512; dim += dim < 256 ? 8 : 128) {
            const ModelShape model = small_model(dim, dim);
            const Plan plan = plan_of(preset, model);
            const auto cache = make(plan, {.n_seq_max = 1, .n_ctx = 128, .max_batch_tokens = 100});
            const auto reference = make_reference_handler(plan, 1, 128);
            const ScoreRule rule{.scale = 1.0F / static_cast<float>(dim)};
            for (const std::vector<TestToken>& tokens : {text(0, 0, 70), text(0, 70, 1)})
                EXPECT_LE(max_difference(gpu_step(*cache, model, tokens, rule), step(*reference, model, tokens, rule)),
                          kGpuTolerance)
                    << preset << " " << dim;
        }
    }
}

TEST_F(CudaCache, AnyNumberOfQueryHeadsPerKvHeadMatchesTheReference) {
    for (const size_t group : {1U, 2U, 7U, 16U, 17U, 60U}) {
        ModelShape model = small_model(32, 48);
        for (LayerShape& layer : model.layers) layer.n_heads = group * layer.n_kv_heads;
        model.layers[1].n_heads = 3 * model.layers[1].n_kv_heads;  // two kinds of work lists
        const Plan plan = plan_of("k4v4-rot-s4", model);
        const auto cache = make(plan, {.n_seq_max = 1, .n_ctx = 512, .max_batch_tokens = 200});
        const auto reference = make_reference_handler(plan, 1, 512);
        int32_t pos = 0;
        for (const int32_t n : {200, 1, 5, 1}) {
            const std::vector<TestToken> tokens = text(0, pos, n);
            EXPECT_LE(max_difference(gpu_step(*cache, model, tokens), step(*reference, model, tokens)), kGpuTolerance)
                << group << " at " << pos;
            pos += n;
        }
    }
}

TEST_F(CudaCache, LayersOnTheHostAndOnTheGpuServeOneModel) {
    const ModelShape model = small_model();
    const Plan plan = plan_of("k4v4-rot-s4", model);
    const ForcedMode wide(AttentionMode::kWideIntegers);  // of the host, within kGpuTolerance
    const auto cache = make(plan, {.n_seq_max = 1, .n_ctx = 512, .max_batch_tokens = 200}, {3});
    const auto reference = make_reference_handler(plan, 1, 512);
    int32_t pos = 0;
    for (const int32_t n : {100, 1, 120, 1, 1, 40}) {
        const std::vector<TestToken> tokens = text(0, pos, n);
        EXPECT_LE(max_difference(gpu_step(*cache, model, tokens, {.scale = 0.2F}, nullptr, {3}),
                                 step(*reference, model, tokens)),
                  kGpuTolerance)
            << pos;
        pos += n;
    }
    const std::vector<std::string> lines = cache->describe();
    ASSERT_EQ(lines.size(), 2U);
    EXPECT_NE(lines[0].find("attention cpu-"), std::string::npos) << lines[0];
    EXPECT_NE(lines[1].find("attention cuda0 ("), std::string::npos) << lines[1];
    EXPECT_GT(cache->use().device, 0U);
}

TEST_F(CudaCache, TheSameInputGivesTheSameBitsAlsoBesideOtherSequencesAndInParts) {
    const ModelShape model = small_model();
    const Plan plan = plan_of("turned:klt-w40-s4", model);
    const auto run = [&](bool neighbour, size_t work_bytes) {
        const auto cache =
            make(plan, {.n_seq_max = 2, .n_ctx = 6000, .max_batch_tokens = 400, .gpu_work_bytes = work_bytes});
        std::vector<float> all;
        int32_t pos = 0;
        for (const int32_t n : {200, 200, 1, 200, 5, 1, 200, 200, 200, 1}) {
            if (neighbour) {
                EXPECT_FALSE(gpu_step(*cache, model, text(1, pos, n, 5)).empty());
            }
            const std::vector<float> out = gpu_step(*cache, model, text(0, pos, n));
            all.insert(all.end(), out.begin(), out.end());
            pos += n;
        }
        return std::pair(all, cache->use().device);
    };
    const size_t plenty = size_t{1} << 30;
    const auto [all, device] = run(false, plenty);
    EXPECT_TRUE(run(false, plenty).first == all);
    EXPECT_TRUE(run(true, plenty).first == all);
    const auto [in_parts, less] = run(false, 1);  // a row tile at a time
    EXPECT_TRUE(in_parts == all);
    EXPECT_LT(less, device);
}

// Random traffic of four sequences, as for the host's cache: appends alone and together, removals anywhere, forks, shifts, rollbacks, snapshots.
TEST_F(CudaCache, RandomOperationsMatchTheReference) {
    const RopeRule rope = rope_of(16);
    for (const std::string preset :
         {"f16", "k4v2-w20-s4", "k2v2-kchan-g32-w64", "klt-w20-s4", "k4v4-w150", "keys turned"}) {
        for (const int32_t sliding : {0, 50}) {
            std::mt19937 random(20261126);
            const ModelShape model = small_model(16, 16, sliding);
            Plan plan = plan_of(preset == "keys turned" ? "klt-w20-s4" : preset, model);
            if (preset == "keys turned") {
                plan.key_period = 96;
                for (LayerPlan& layer : plan.layers) layer.key_turn = rope;
            }
            const size_t rewind = (preset.size() + (sliding > 0 ? 1 : 0)) % 2 * 100;
            KvCacheOptions options{.n_seq_max = 4, .n_ctx = 4096, .max_batch_tokens = 200, .rewind = rewind};
            if (sliding > 0) options.gpu_work_bytes = size_t{1} << 16;  // parts of a few row tiles
            const auto cache = make(plan, options);
            const auto reference = make_reference_handler(plan, 4, 100000, rewind);
            const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
            for (int op = 0; op < 150; ++op) {
                const std::string where = preset + " sliding " + std::to_string(sliding) + " op " + std::to_string(op);
                const int32_t seq = below(4);
                const int32_t n = cache->seq_pos_max(seq) + 1;
                ASSERT_EQ(n, reference->seq_pos_max(seq) + 1) << where;
                switch (below(9)) {
                    case 0: {
                        const int32_t from = below(3) == 0 || n < 60 ? below(n + 1) : n - below(60);
                        if (cache->seq_rm(seq, from, -1)) {
                            ASSERT_TRUE(reference->seq_rm(seq, from, -1)) << where;
                        }
                        break;
                    }
                    case 1: {
                        const int32_t dst = below(4);
                        if (dst == seq) break;
                        ASSERT_TRUE(cache->seq_rm(dst, -1, -1) && reference->seq_rm(dst, -1, -1));
                        if (cache->seq_cp(seq, dst, -1, -1)) {
                            ASSERT_TRUE(reference->seq_cp(seq, dst, -1, -1)) << where;
                        }
                        break;
                    }
                    case 2: {  // save, lose, restore
                        const auto bytes = cache->save_sequence(seq);
                        if (bytes.empty()) break;
                        ASSERT_TRUE(cache->seq_rm(seq, below(2) == 0 ? 0 : n - 1, -1)) << where;
                        cache->load_sequence(seq, bytes);
                        settle_reference(*reference, seq);
                        ASSERT_TRUE(bytes == cache->save_sequence(seq)) << where;
                        break;
                    }
                    case 3: {  // a context shift
                        if (n < 8) break;
                        const int32_t keep = below(2) == 0 ? 0 : below(n / 4 + 1);
                        const int32_t discard = 1 + below((n - keep) / 2);
                        ASSERT_TRUE(cache->seq_rm(seq, keep, keep + discard) &&
                                    reference->seq_rm(seq, keep, keep + discard))
                            << where;
                        if (cache->seq_add(seq, keep + discard, n, -discard)) {
                            ASSERT_TRUE(reference->seq_add(seq, keep + discard, n, -discard)) << where;
                        }
                        break;
                    }
                    default: {
                        std::vector<TestToken> tokens =
                            text(seq, n, below(3) == 0 ? 1 + below(150) : 1 + below(3), static_cast<uint32_t>(op));
                        if (const int32_t other = below(4); other != seq) {
                            const std::vector<TestToken> more = text(other, cache->seq_pos_max(other) + 1,
                                                                     1 + below(40), static_cast<uint32_t>(op) + 7);
                            tokens.insert(tokens.end(), more.begin(), more.end());
                        }
                        const auto got = gpu_step(*cache, model, tokens, {.scale = 0.2F}, &rope);
                        if (got.empty()) {
                            cache->clear();
                            reference->clear();
                            break;
                        }
                        ASSERT_LE(max_difference(got, step(*reference, model, tokens, {.scale = 0.2F}, 1, &rope)),
                                  kGpuTolerance)
                            << where;
                    }
                }
            }
        }
    }
}

TEST_F(CudaCache, ADeviceWithoutRoomIsOneClearError) {
    ModelShape model = small_model(256, 256);
    const Plan plan = plan_of("f16", model);
    const CudaSupport support = cuda_support();
    const size_t token_bytes = size_t{2} * 2 * 2 * 256 * 2;  // layers, sides, KV heads, channels, bytes
    try {
        (void)make(
            plan,
            {.n_seq_max = 1, .n_ctx = support.gpus[0].total_bytes / token_bytes + (1U << 20), .max_batch_tokens = 64});
        FAIL() << "wanted an error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory) << error.what();
        EXPECT_NE(std::string(error.what()).find("MiB"), std::string::npos) << error.what();
    }
}

#endif

}  // namespace
}  // namespace kvaq
