#include "kvaq/cuda/cuda_cache.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/cache/serving_cache.h"
#include "kvaq/cuda/gpu.h"
#include "kvaq/cuda/host_team.h"

namespace kvaq {
namespace {

constexpr int kLeastMajor = 8;  // matrix instructions m16n8k16 (compute capability 8.0)

/// The host's cache, with copies of the placed layers' bytes on GPUs. In a micro-batch that seals or copies something, a layer's new rows go to the host
/// first, which does its work and sends back what changed; in others (decode) the GPU writes them itself, and the host takes its copy in end().
class CudaCache final : public ServingCache {
  public:
    CudaCache(const Plan& plan, const KvCacheOptions& options)
        : ServingCache(plan, options),
          max_batch_tokens_(options.max_batch_tokens),
          gpu_work_bytes_(options.gpu_work_bytes),
          n_threads_(std::max<size_t>(1, options.n_threads)),
          gpu_layers_(layers_.size(), nullptr) {}

    void place_layers(std::span<const LayerPlace> places) override {
        team_ = std::make_unique<cuda::HostTeam>(n_threads_);
        for (const LayerPlace& place : places) {
            auto gpu =
                std::find_if(gpus_.begin(), gpus_.end(), [&](const auto& g) { return g->device() == place.device; });
            if (gpu == gpus_.end()) {
                gpus_.push_back(std::make_unique<cuda::Gpu>(place.device, table_, max_batch_tokens_, gpu_work_bytes_));
                gpu = gpus_.end() - 1;
            }
            const size_t index = index_of(place.layer);
            gpu_layers_[index] = &(*gpu)->add(layers_[index]);
            gpu_of_.resize(layers_.size(), nullptr);
            gpu_of_[index] = gpu->get();
        }
        for (const auto& gpu : gpus_) gpu->finish_layers();
        for (const CudaGpu& gpu : cuda_support().gpus) names_.push_back({gpu.device, gpu.name});
    }

    bool begin(std::span<const BatchToken> tokens) override {
        if (!fault_.empty()) throw Error(ErrorCode::kIo, fault_);
        if (!ServingCache::begin(tokens)) return false;
        const PageTable::Work& work = table_.work();
        turned_ = std::any_of(work.writes.begin(), work.writes.end(), [](const auto& w) { return w.turn != 0; });
        deferred_ = tokens.size() <= cuda::kDeferredTokens && work.seals.empty() && work.copies.empty() && !turned_;
        waiting_.clear();
        waiting_.reserve(layers_.size());
        try {
            for (const auto& gpu : gpus_) gpu->begin(deferred_);
        } catch (...) {
            ServingCache::rollback();
            throw;
        }
        return true;
    }

    void attend(const AttentionCall& call, Team& team) noexcept override {
        if (call.device < 0) return ServingCache::attend(call, team);
        if (team.index() != 0 || !fault_.empty()) return;
        guarded([&] { attend_on_gpu(call); });
    }

    void end() noexcept override {
        guarded([&] { take_rows(); });
        ServingCache::end();
    }

    void rollback() noexcept override {
        guarded([&] {
            for (const auto& gpu : gpus_) gpu->wait();
        });
        ServingCache::rollback();
    }

    void wait(int32_t device) noexcept override {
        guarded([&] {
            for (const auto& gpu : gpus_) {
                if (gpu->device() == device) gpu->wait();
            }
        });
    }
    void signal(int32_t device, void* event) noexcept override {
        guarded([&] {
            for (const auto& gpu : gpus_) {
                if (gpu->device() == device) gpu->stream().record(event);
            }
        });
    }
    void begin_after(int32_t device, void* event) noexcept override {
        guarded([&] {
            for (const auto& gpu : gpus_) {
                if (gpu->device() == device) gpu->stream().begin_after(event);
            }
        });
    }
    [[nodiscard]] std::string fault() const override { return fault_; }

    [[nodiscard]] CacheUse use() const noexcept override {
        CacheUse use = ServingCache::use();
        for (const auto& gpu : gpus_) use.device += gpu->allocated_bytes();
        return use;
    }

  private:
    void unseal(const std::vector<PageTable::Unseal>& unseals) noexcept override {
        ServingCache::unseal(unseals);
        guarded([&] {
            std::vector<int32_t> pages;
            for (const PageTable::Unseal& unseal : unseals) pages.push_back(unseal.to);
            upload(pages, false);
        });
    }

    void restored(int32_t seq) noexcept override {
        guarded([&] {
            std::vector<int32_t> pages;
            for (const Segment& segment : table_.segments(seq)) pages.push_back(segment.page);
            upload(pages, true);
        });
    }

    [[nodiscard]] std::string path_of(int32_t layer) const override {
        const size_t index = index_of(layer);
        if (gpu_layers_[index] == nullptr) return ServingCache::path_of(layer);
        const int device = gpu_of_[index]->device();
        const auto name = std::find_if(names_.begin(), names_.end(), [&](const auto& n) { return n.first == device; });
        return "cuda" + std::to_string(device) + (name != names_.end() ? " (" + name->second + ")" : "");
    }

    [[nodiscard]] size_t index_of(int32_t layer) const noexcept {
        return static_cast<size_t>(&store(layer) - layers_.data());
    }

    /// What fails is kept: whatever the GPU holds from then on is not to be trusted.
    template <typename Work>
    void guarded(Work work) noexcept {
        try {
            work();
        } catch (const std::exception& error) {
            try {
                if (fault_.empty()) fault_ = error.what();
            } catch (const std::exception&) {
                fault_ = "no memory";  // fits in the string itself
            }
        }
    }

    void attend_on_gpu(const AttentionCall& call) {
        const size_t index = index_of(call.layer);
        KVAQ_CHECK(gpu_layers_[index] != nullptr && gpu_of_[index]->device() == call.device);
        cuda::GpuLayer& layer = *gpu_layers_[index];
        cuda::Gpu& gpu = *gpu_of_[index];
        gpu.begin_call(layer, call, call.append);
        if (call.append && deferred_) waiting_.push_back(index);
        if (call.append && !deferred_) {
            gpu.wait();
            seal_on_host(index, host_call(index, call));
        }
        gpu.attend(layer, call);
    }

    /// The call with its K and V where begin_call() has put them.
    [[nodiscard]] AttentionCall host_call(size_t index, const AttentionCall& call) const noexcept {
        AttentionCall host = call;
        host.device = -1;
        host.k = gpu_of_[index]->keys(*gpu_layers_[index]);
        host.v = gpu_of_[index]->values(*gpu_layers_[index]);
        return host;
    }

    void seal_on_host(size_t index, const AttentionCall& call) {
        const LayerStore& layer = layers_[index];
        const PageTable::Work& work = table_.work();
        const size_t n_heads = layer.open_shape().n_kv_heads;
        team_->run([&](Team& team) {
            if (writes_in_runs_ && team.index() == 0) {
                RopeTurn turn;
                for (const PageTable::Write& w : work.writes) write(call, layer, w, 0, n_heads, turn);
            }
            append(call, layer, team);
            seal(layer, team, team.index() < works_.size() ? works_[team.index()]->keys() : nullptr);
        });
        next_seal_.store(0);
        if (!work.copies.empty() || turned_) {  // the host's f16 rows are not what the GPU has written
            std::vector<int32_t> pages;
            for (const PageTable::Write& w : work.writes) pages.push_back(w.page);
            for (const PageTable::Copy& copy : work.copies) pages.push_back(copy.to);
            std::sort(pages.begin(), pages.end());
            pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
            gpu_of_[index]->upload_f16(*gpu_layers_[index], pages, scratch_);
        }
        gpu_of_[index]->upload_sealed(*gpu_layers_[index], work.seals);
    }

    /// The rows that layers left in page-locked memory.
    void take_rows() {
        for (const auto& gpu : gpus_) gpu->wait();
        for (const size_t index : waiting_) {
            const AttentionCall call = host_call(index, {});
            const LayerStore& layer = layers_[index];
            RopeTurn turn;
            for (const PageTable::Write& w : table_.work().writes)
                write(call, layer, w, 0, layer.open_shape().n_kv_heads, turn);
        }
    }

    void upload(const std::vector<int32_t>& pages, bool sealed) {
        for (size_t index = 0; index < layers_.size(); ++index) {
            if (gpu_layers_[index] == nullptr) continue;
            std::vector<int32_t> f16;
            std::vector<int32_t> packed;
            for (const int32_t page : pages) {
                if (layers_[index].slots(page).open != kNone) f16.push_back(page);
                if (sealed && layers_[index].slots(page).packed != kNone) packed.push_back(page);
            }
            gpu_of_[index]->upload_f16(*gpu_layers_[index], f16, scratch_);
            gpu_of_[index]->upload_sealed(*gpu_layers_[index], packed);
        }
        for (const auto& gpu : gpus_) gpu->wait();
    }

    size_t max_batch_tokens_, gpu_work_bytes_;
    size_t n_threads_;
    std::unique_ptr<cuda::HostTeam> team_;  ///< once a layer is on a GPU
    std::vector<std::unique_ptr<cuda::Gpu>> gpus_;
    std::vector<cuda::GpuLayer*> gpu_layers_;  ///< by index in layers_, null: on the host
    std::vector<cuda::Gpu*> gpu_of_;
    std::vector<std::pair<int, std::string>> names_;
    bool deferred_ = false, turned_ = false;
    std::vector<size_t> waiting_;  ///< layers whose rows end() takes
    std::string fault_;
};

}  // namespace

CudaSupport cuda_support() {
    CudaSupport support;
    int n = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&n); error != cudaSuccess || n == 0) {
        (void)cudaGetLastError();
        support.why_none = std::string("no CUDA GPU: ") + (error == cudaErrorInsufficientDriver
                                                               ? "no NVIDIA driver, or one older than this build's CUDA"
                                                           : error != cudaSuccess ? cudaGetErrorString(error)
                                                                                  : "none found");
        return support;
    }
    for (int device = 0; device < n; ++device) {
        cudaDeviceProp properties;
        if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
        if (properties.major < kLeastMajor) {
            support.why_none = std::string("the GPU ") + properties.name + " has compute capability " +
                               std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                               ", wanted 8.0 or newer";
            continue;
        }
        support.gpus.push_back({.device = device, .name = properties.name, .total_bytes = properties.totalGlobalMem});
    }
    if (!support.gpus.empty()) support.why_none.clear();
    return support;
}

std::unique_ptr<KvCache> make_kv_cache_for(const Plan& plan, const KvCacheOptions& options) {
    if (!options.on_gpu) return make_kv_cache(plan, options);
    if (const CudaSupport support = cuda_support(); support.gpus.empty())
        throw Error(ErrorCode::kUnsupported, "the cache cannot be kept on a GPU", "a CUDA GPU", support.why_none,
                    "Use --kv-device cpu");
    return std::make_unique<CudaCache>(plan, options);
}

}  // namespace kvaq
