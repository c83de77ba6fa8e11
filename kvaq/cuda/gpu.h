#pragma once

// PRIVATE header of kvaq/cuda: one GPU's part of a cache: arenas with the host's ids, the micro-batch's lists, kernels in order.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvaq/base/attention_call.h"
#include "kvaq/cache/layer_store.h"
#include "kvaq/cuda/device_memory.h"
#include "kvaq/cuda/device_types.h"
#include "kvaq/cuda/work_lists.h"

namespace kvaq::cuda {

/// A layer on a GPU.
struct GpuLayer {
    const LayerStore* store = nullptr;
    size_t lists = 0;  ///< which of the GPU's work lists
    LayerView view;
    DeviceBuffer packed, open, sinks, codecs, tables;
    DeviceBuffer slopes, sink_logits;  ///< [n_heads], made by the first call that needs them
    float max_bias = 0;                ///< of slopes
    size_t n_groups = 0;               ///< of 16 channels, of a query
    size_t rows_place = 0;             ///< in the GPU's pinned rows: those of kDeferredTokens tokens
};

/// Micro-batches of up to so many tokens leave their rows in page-locked memory until end(), unless something is sealed or copied.
inline constexpr size_t kDeferredTokens = 32;

/// Not thread-safe. Functions throw Error.
class Gpu {
  public:
    /// work_bytes: KvCacheOptions::gpu_work_bytes.
    Gpu(int device, const PageTable& table, size_t max_batch_tokens, size_t work_bytes);
    Gpu(const Gpu&) = delete;
    Gpu& operator=(const Gpu&) = delete;

    [[nodiscard]] int device() const noexcept { return device_; }
    /// Allocates the layer's arenas.
    GpuLayer& add(const LayerStore& store);
    /// After the last add(): what all layers share.
    void finish_layers();
    [[nodiscard]] size_t allocated_bytes() const noexcept;

    /// The page table has begun a micro-batch: makes and uploads its lists. deferred: rows stay in each layer's own place.
    void begin(bool deferred);
    /// K and V of a call into the layer's f16 pages and, if wanted, into page-locked memory; the first part's queries made ready for attend().
    void begin_call(GpuLayer& layer, const AttentionCall& call, bool to_host);
    /// Where begin_call() put K and V (valid after wait()): [token][KV head][channel].
    [[nodiscard]] HeadRows<const float16> keys(const GpuLayer& layer) const noexcept;
    [[nodiscard]] HeadRows<const float16> values(const GpuLayer& layer) const noexcept;
    void attend(GpuLayer& layer, const AttentionCall& call);
    void wait() const { stream_.wait(); }
    [[nodiscard]] const Stream& stream() const noexcept { return stream_; }

    // Host bytes to the device, in the stream's order. The ids are of the host's arenas.
    void upload_sealed(GpuLayer& layer, std::span<const int32_t> pages);
    /// f16 rows of pages, slots that hold no token zeroed.
    void upload_f16(GpuLayer& layer, std::span<const int32_t> pages, const Arena& scratch);

  private:
    struct ListView {
        const RowTile* row_tiles = nullptr;
        const RowBlock* blocks = nullptr;
        const Run* runs = nullptr;
        const Visit* visits = nullptr;
        const RowWrite* writes = nullptr;
    };
    /// Row tiles [first_tile, first_tile + n_tiles) and their runs, whose queries and partial results are in memory together.
    struct Part {
        size_t first_tile = 0, n_tiles = 0, first_run = 0, n_runs = 0;
        size_t first_block = 0, n_blocks = 0;
        bool all_in_blocks = false;            ///< no row tile is by itself
        size_t info = 0, sums = 0, norms = 0;  ///< places in work_, behind the fragments
        size_t bytes = 0;
    };
    struct LayerClass {
        size_t reach = 0, group = 0;
        int32_t key_period = 0;
        WorkLists lists;
        std::vector<Part> parts;
        std::vector<RowBlock> blocks;  ///< of the parts
        ListView view;
        size_t n_kv_heads = 0, dim_v = 0, n_groups = 0;  ///< largest of its layers
    };
    struct RopeTable {
        RopeRule rule;  ///< of the call, and below of the layer's packed keys
        RopeRule key_turn;
        RopeRule layout;  ///< whichever of them turns anything: which channels are pairs
        std::vector<QueryTurn> turns;
        size_t lists = 0;
        DeviceBuffer data;  ///< cosines, then sines
    };

    void upload_lists();
    /// Cuts the lists into parts of at most work_bytes_ (or one row tile) and makes room for the largest.
    void make_room();
    static void list_blocks(LayerClass& c, Part& part);
    [[nodiscard]] Part part_of(const LayerClass& c, size_t first_tile, size_t n_tiles) const;
    [[nodiscard]] PrepareArgs prepare_args(const GpuLayer& layer, const AttentionCall& call, const Part& part);
    void attend_part(const GpuLayer& layer, const AttentionCall& call, const Part& part);
    [[nodiscard]] const RopeTable* turned(const GpuLayer& layer, const AttentionCall& call);
    /// items of `bytes` bytes are filled by fill(i, to) and put at target + ids[i] * stride.
    template <typename Fill>
    void scatter(std::span<const int32_t> ids, size_t bytes, std::byte* target, size_t stride, Fill fill);
    [[nodiscard]] size_t row_place(const GpuLayer& layer) const noexcept;

    int device_;
    const PageTable* table_;
    size_t max_batch_tokens_, work_bytes_;
    Stream stream_;
    std::vector<std::unique_ptr<GpuLayer>> layers_;
    std::vector<LayerClass> classes_;
    bool deferred_ = false;
    size_t shared_rows_ = 0;  ///< place of the rows of micro-batches that are not deferred
    DeviceBuffer trellis_, scratch_, lists_, work_;
    PinnedBuffer host_lists_, rows_, items_;
    std::vector<RopeTable> ropes_;  ///< kept while the turns are the same
};

}  // namespace kvaq::cuda
