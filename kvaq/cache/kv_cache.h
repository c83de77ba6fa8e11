#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvaq/base/attention_call.h"
#include "kvaq/base/error.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// Bytes the cache holds now, by kind.
struct CacheUse {
    size_t packed = 0;  ///< sealed tiles in use
    size_t open = 0;    ///< f16 pages in use
    size_t sinks = 0;
    size_t tables = 0;     ///< bases and codebooks of transform codecs
    size_t allocated = 0;  ///< arenas in all, used or free, plus scratch
    size_t device = 0;     ///< not part of held(): memory of GPUs, where layers on them are kept once more
    size_t shared = 0;     ///< not part of held(): what more would be held if no sequence shared pages with another
    size_t n_tokens = 0;   ///< over all sequences, shared ones once
    size_t n_sequences = 0;
    size_t n_elements =
        0;  ///< K and V numbers of the tokens cached (sliding-window layers: of their window at most), shared ones once
    // Tiles: 64 (or 128) tokens of one layer, side and KV head.
    size_t n_tiles = 0;            ///< sealed ones held now
    uint64_t n_tiles_sealed = 0;   ///< sealed or restored since the cache was made
    uint64_t n_tiles_evicted = 0;  ///< of them those given up because a sliding window had passed them
    [[nodiscard]] size_t held() const noexcept { return packed + open + sinks + tables; }
    /// 8 * held() / n_elements; 0 while nothing is cached.
    [[nodiscard]] double effective_bits() const noexcept {
        return n_elements == 0 ? 0 : 8.0 * static_cast<double>(held()) / static_cast<double>(n_elements);
    }
};

struct KvCacheOptions {
    size_t n_seq_max = 1;
    size_t n_ctx = 0;  ///< tokens over all sequences (shared ones once), as llama.cpp's unified cache counts cells
    size_t max_batch_tokens = 512;  ///< largest micro-batch
    bool keep_sliding = false;      ///< keep tiles of sliding-window layers that no later token can see
    size_t rewind =
        0;  ///< tokens by which a sequence can be shortened, from the longest it has been, and goes on with the bits as if they had never been
    ///< added: their f16 rows are kept meanwhile (unless a micro-batch finds no room). 0: as many as the latest micro-batch brought, if less than a tile
    size_t n_threads =
        1;  ///< of the largest team expected. Threads beyond it work from the second micro-batch on, when begin() has made room.
    bool on_gpu =
        false;  ///< make_kv_cache_for (kvaq/cuda/cuda_cache.h): a cache whose layers can be placed on CUDA devices
    size_t gpu_work_bytes =
        size_t{256} << 20;  ///< on each GPU, for queries made ready and partial results: a call that needs more
                            ///< is done in parts of 16 query rows or more
};

/// A layer whose calls bring pointers into the memory of a CUDA device.
struct LayerPlace {
    int32_t layer = 0;
    int32_t device = 0;  ///< CUDA's number of it
};

/// The serving cache: packed tiles, sequences that share pages (copy on write), attention over them. One per llama_context.
/// What throws, std::bad_alloc included, has changed nothing.
/// Thread-safety: none but attend(), which all threads of one team call together.
/// Throws Error kOutOfMemory from make_kv_cache when the planned bytes cannot be had.
class KvCache : public AttentionHandler {
  public:
    [[nodiscard]] virtual const Plan& plan() const noexcept = 0;
    [[nodiscard]] virtual CacheUse use() const noexcept = 0;
    /// Whether begin() would find room for all these tokens, in as many micro-batches of max_batch_tokens as they need. Changes nothing.
    /// Throws like begin().
    [[nodiscard]] virtual bool fits(std::span<const BatchToken> tokens) = 0;
    /// Only for caches made with KvCacheOptions::on_gpu, once, before the first micro-batch: these layers get their memory on their devices, and
    /// AttentionCall::device must name it. Throws Error kOutOfMemory when a device has no room.
    virtual void place_layers(std::span<const LayerPlace> /*places*/) {
        throw Error(ErrorCode::kUnsupported, "this cache cannot keep layers on a GPU");
    }
    /// Until the device has done all that attend() has given it: before then a call's `out` on that device must not be read.
    virtual void wait(int32_t /*device*/) noexcept {}
    /// The same for another stream of that device: event (a cudaEvent_t) happens when it has.
    virtual void signal(int32_t /*device*/, void* /*event*/) noexcept {}
    /// What attend() is given from now on begins after an event (a cudaEvent_t) that another stream of that device has recorded.
    virtual void begin_after(int32_t /*device*/, void* /*event*/) noexcept {}
    /// Why a device failed; empty = none did. What was computed since is worthless, and begin() throws it.
    [[nodiscard]] virtual std::string fault() const { return ""; }
    /// One line per distinct path: layers served, bits, bytes per token, kernel.
    [[nodiscard]] virtual std::vector<std::string> describe() const = 0;

    /// Bytes of save_sequence's result; 0 for an empty sequence.
    [[nodiscard]] virtual size_t sequence_bytes(int32_t seq) const = 0;
    /// Everything of one sequence, self-describing and checksummed (docs/formats.md).
    [[nodiscard]] virtual std::vector<std::byte> save_sequence(int32_t seq) const = 0;
    /// Replaces seq by what was saved. Throws Error kCorrupt or kMismatch, or kOutOfMemory when there is no room; seq is then unchanged.
    virtual void load_sequence(int32_t seq, std::span<const std::byte> bytes) = 0;

    /// The same of all sequences. What they share is in it once for each of them and is not shared any more once it has been loaded.
    [[nodiscard]] virtual size_t context_bytes() const = 0;
    [[nodiscard]] virtual std::vector<std::byte> save_context() const = 0;
    /// Replaces everything by what was saved. Throws as load_sequence; nothing has changed then.
    virtual void load_context(std::span<const std::byte> bytes) = 0;
};

/// Bytes that make_kv_cache reserves, CacheUse::allocated of every such cache: room for n_ctx tokens in tiles, f16 pages for the open
/// ends and windows of n_seq_max sequences, one micro-batch of scratch, tables.
[[nodiscard]] size_t reserved_bytes(const Plan& plan, const KvCacheOptions& options);

/// The largest n_ctx, at most options.n_ctx, whose cache reserves at most `budget` bytes. Throws Error kBudgetTooSmall when not even one
/// micro-batch (or options.n_ctx, if that is less) fits, with the least budget that would do.
[[nodiscard]] size_t tokens_within(const Plan& plan, const KvCacheOptions& options, size_t budget);

[[nodiscard]] std::unique_ptr<KvCache> make_kv_cache(const Plan& plan, const KvCacheOptions& options);

}  // namespace kvaq
