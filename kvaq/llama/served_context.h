#pragma once

// PRIVATE header of kvaq/llama: everything we keep beside one llama_context.

#include <llama.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvaq/base/attention_call.h"
#include "kvaq/base/model_shape.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/llama/graph_rope.h"
#include "kvaq/llama/metrics.h"

namespace kvaq {

/// Barrier of llama.cpp's worker threads while they run our node: they all are in it at once, so it spins (and yields when
/// there are more threads than processors).
class SpinBarrier {
  public:
    void wait(uint32_t n_threads) noexcept;

  private:
    std::atomic<uint32_t> arrived_{0};
    std::atomic<uint32_t> generation_{0};
};

/// A token of the batch being decoded.
struct PendingToken {
    int32_t pos = 0;
    std::vector<int32_t> seq_ids;
};

struct ServedContext;

/// A GGML_OP_FLASH_ATTN_EXT node that we turned into GGML_OP_CUSTOM (on a CUDA device: GGML_OP_NONE), with what its op_params were.
struct ServedNode {
    ServedContext* context = nullptr;
    int32_t layer = -1;
    float scale = 1, max_bias = 0, softcap = 0;
    const RopeRule* rope = nullptr;  ///< null: positions of this layer cannot be shifted
    int32_t device = -1;             ///< CUDA's number of the one that holds its keys and values, -1: the host
    bool program_wants = false;      ///< the program's own callback wants to see it
    std::vector<float> sink_logits;  ///< of a node on a device
    bool append = true;              ///< of the micro-batch in progress
    bool skip = false;               ///< its rows are not those of the micro-batch in progress: it is not computed
    bool check_mask = false;         ///< first node with its mask in the micro-batch in progress
};

/// The scheduler's backend of a CUDA device, and an event by which its stream and ours wait for each other.
struct GpuBackend {
    ggml_backend_t backend = nullptr;
    ggml_backend_event_t event = nullptr;
    /// The scheduler need not wait for the nodes before ours: our stream does (ggml_backend_synchronize, interposed).
    bool in_order = false;
};

struct ServedContext {
    ServedContext() = default;
    ServedContext(const ServedContext&) = delete;
    ServedContext& operator=(const ServedContext&) = delete;
    ~ServedContext();

    llama_context* ctx = nullptr;
    ModelShape shape;
    std::unique_ptr<AttentionHandler> handler;
    KvCache* cache = nullptr;                 ///< handler, if it is one
    std::shared_ptr<ContextMetrics> metrics;  ///< of the cache; null without one
    uint32_t n_ctx = 0;                       ///< what the program asked for, as llama.cpp would have rounded it
    uint32_t n_ctx_seq = 0;
    size_t n_seq_max = 1;
    size_t n_ubatch = 1;  ///< tokens of the largest micro-batch
    bool chunked_window = false;
    bool frees_windows = false;          ///< sliding-window layers give up what no later token sees, within n_ctx
    bool on_gpu = false;                 ///< attention of layers whose keys and values lie on a CUDA device stays there
    std::map<int32_t, GpuBackend> gpus;  ///< those devices
    std::map<int32_t, GraphRope> ropes;  ///< of the layers whose attention has been seen
    ggml_backend_sched_eval_callback program_callback = nullptr;
    void* program_callback_data = nullptr;

    // The batch in progress.
    bool decoding = false;
    std::vector<PendingToken> tokens;
    size_t micro_first = 0;  ///< first token of the micro-batch in progress = its first cell in llama.cpp's cache
    size_t micro_end = 0;
    bool micro_open = false;  ///< begin() was called and neither end() nor rollback()
    int32_t first_layer = -1;
    std::set<int32_t> appended;   ///< layers of the micro-batch in progress
    std::set<const void*> masks;  ///< masks already checked in it
    std::atomic<bool> failed{false};
    int32_t fail_code = 0;
    std::string failure;  ///< guarded by failure_mutex
    std::mutex failure_mutex;
    bool non_causal = false;  ///< the program wants attention that is not served (llama_set_causal_attn)
    std::string poisoned;     ///< why no batch may be decoded any more (until clear), empty = fine

    std::unordered_map<const ggml_tensor*, std::unique_ptr<ServedNode>> nodes;
    SpinBarrier barrier;

    void fail(int32_t code, std::string_view why) noexcept;
    /// Whether a node is zeroed instead of computed: the batch is going to be refused.
    [[nodiscard]] bool leaves_out(const ServedNode& node) const noexcept {
        return node.skip || (failed.load(std::memory_order_relaxed) && !micro_open);
    }
    /// Tells the metrics what the cache holds now: after everything that changes it, in the thread that did.
    void publish() noexcept {
        if (metrics != nullptr) metrics->set_use(cache->use());
    }
    /// Why positions cannot be shifted, as far as layers have been seen; empty = they can.
    [[nodiscard]] std::string why_no_shift() const;
};

/// The callback that llama_init_from_model installs; user data is the ServedContext.
bool serve_callback(ggml_tensor* node, bool ask, void* user_data);

/// The N of "cache_k_lN" in the tensor that k is a view of; -1 if it is no cache tensor.
[[nodiscard]] int32_t layer_of(const ggml_tensor* k);
/// A layer of the model; null if it is not in the shape.
[[nodiscard]] const LayerShape* shape_of(const ServedContext& context, int32_t layer);
/// The call of a node, with the tensors' own pointers.
[[nodiscard]] AttentionCall call_of(const ServedContext& context, const ServedNode& served, const ggml_tensor* node);
/// llama.cpp's own mask over the micro-batch's cells must say what our rule says: it proves that the tokens lie in the order
/// we think and that the layer's window is the one we read from the metadata. data: the mask's, in host memory.
void check_mask(ServedContext& context, const ggml_tensor* mask, const void* data, const LayerShape& shape);

/// Notes how the queries of an attention node (GGML_OP_FLASH_ATTN_EXT) are rotated, if its layer's are not known yet. Where the graph is going
/// to be split over devices this must be done before: copies between devices cut the way back to RoPE.
void note_rope(ServedContext& context, const ggml_tensor* node);

/// Which contexts we serve. Thread-safe.
class Registry {
  public:
    [[nodiscard]] static Registry& instance();
    void add(std::unique_ptr<ServedContext> context, llama_memory_t memory);
    [[nodiscard]] ServedContext* find(const llama_context* ctx) const;
    [[nodiscard]] ServedContext* find(llama_memory_t memory) const;
    /// Removes and returns it (null if not ours).
    [[nodiscard]] std::unique_ptr<ServedContext> remove(const llama_context* ctx);

  private:
    mutable std::shared_mutex mutex_;
    std::unordered_map<const llama_context*, std::unique_ptr<ServedContext>> by_context_;
    std::unordered_map<const void*, ServedContext*> by_memory_;
};

/// "kvaq: error: ..." on stderr.
void print_error(const std::string& message);

}  // namespace kvaq
