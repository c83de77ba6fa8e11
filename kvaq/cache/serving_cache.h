#pragma once

// PRIVATE header of kvaq/cache and kvaq/cuda: the implementation behind make_kv_cache(). Include kvaq/cache/kv_cache.h instead.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kvaq/attention/tile_attention.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/cache/layer_store.h"
#include "kvaq/cache/page_table.h"

namespace kvaq {

class ServingCache : public KvCache {
  public:
    ServingCache(const Plan& plan, const KvCacheOptions& options);

    ServingCache(const ServingCache&) = delete;  // layers_ refer to plan_ and table_
    ServingCache& operator=(const ServingCache&) = delete;

    bool begin(std::span<const BatchToken> tokens) override;
    bool fits(std::span<const BatchToken> tokens) override { return table_.fits(tokens); }
    void attend(const AttentionCall& call, Team& team) noexcept override;
    void end() noexcept override { table_.end(); }
    void rollback() noexcept override { table_.rollback(); }

    void clear() noexcept override { table_.clear(); }
    bool seq_rm(int32_t seq, int32_t p0, int32_t p1) override;
    bool seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1) override;
    bool seq_add(int32_t seq, int32_t p0, int32_t p1, int32_t delta) override;
    void seq_keep(int32_t seq) noexcept override { table_.seq_keep(seq); }
    [[nodiscard]] int32_t seq_pos_min(int32_t seq) const noexcept override;
    [[nodiscard]] int32_t seq_pos_max(int32_t seq) const noexcept override;

    [[nodiscard]] const Plan& plan() const noexcept override { return plan_; }
    [[nodiscard]] CacheUse use() const noexcept override;
    [[nodiscard]] std::vector<std::string> describe() const override;

    [[nodiscard]] size_t sequence_bytes(int32_t seq) const override;
    [[nodiscard]] std::vector<std::byte> save_sequence(int32_t seq) const override;
    void load_sequence(int32_t seq, std::span<const std::byte> bytes) override;
    [[nodiscard]] size_t context_bytes() const override;
    [[nodiscard]] std::vector<std::byte> save_context() const override;
    void load_context(std::span<const std::byte> bytes) override;

  protected:  // kvaq/cuda keeps layers on a GPU beside this cache
    /// What one id of a reach stands for, over all its layers.
    struct ReachUnits {
        size_t packed = 0, open = 0, sink = 0;  ///< bytes
        size_t n_tiles = 0;                     ///< sealed ones of a page
    };
    /// K and V numbers of one token, over the layers that see `window` tokens back (0 = all).
    struct WindowRow {
        int32_t window = 0;
        size_t n_elements = 0;
    };
    /// A query block and a run of its pages: one unit of attention work per KV head.
    struct Run {
        size_t block = 0;
        size_t first_page = 0;
        size_t end_page = 0;
        size_t n_runs = 1;      ///< runs of the block; > 1: partial states are merged afterwards
        size_t state_slot = 0;  ///< of the block's first run, in runs
    };
    /// A thread's unit of work; null: none.
    struct Unit {
        const Run* run = nullptr;
        size_t kv_head = 0;
    };

    [[nodiscard]] size_t block_tokens() const noexcept;
    [[nodiscard]] const LayerStore& store(int32_t layer) const noexcept;
    /// Decides whether the runs that read the micro-batch's own tokens write them too (no thread then waits for another).
    void place_writes();
    /// turn: kept from one token to the next, which mostly have the same.
    void write(const AttentionCall& call, const LayerStore& layer, const PageTable::Write& write, size_t first_head,
               size_t end_head, RopeTurn& turn) noexcept;
    void append(const AttentionCall& call, const LayerStore& layer, Team& team) noexcept;
    /// scratch null: this thread seals nothing.
    void seal(const LayerStore& layer, Team& team, float* scratch) noexcept;
    [[nodiscard]] size_t first_packed(const PageTable::QueryBlock& block, const Segment& segment) const noexcept;
    [[nodiscard]] size_t group_at(const LayerStore& layer, const PageTable::QueryBlock& block, size_t first, size_t end,
                                  size_t most) const noexcept;
    /// next: whose tiles are asked from memory at the end.
    void attend_run(const AttentionCall& call, const LayerStore& layer, const Run& run, size_t kv_head,
                    const Unit& next, TileAttention& work) noexcept;
    void load_f16(const OpenPageShape& shape, std::byte* page, size_t head, size_t n,
                  TileAttention& work) const noexcept;
    /// Carries out what a removal asks for, then releases the pages.
    virtual void unseal(const std::vector<PageTable::Unseal>& unseals) noexcept;
    /// A sequence's snapshot, checked. Throws Error.
    struct Snapshot;
    [[nodiscard]] Snapshot read_snapshot(std::span<const std::byte> bytes) const;
    /// Copies what the snapshot holds into the pages that the table has given the sequence.
    void fill(int32_t seq, const Snapshot& snapshot) noexcept;
    /// A sequence has been filled.
    virtual void restored(int32_t /*seq*/) noexcept {}
    /// Where a layer's attention runs, for describe().
    [[nodiscard]] virtual std::string path_of(int32_t layer) const;
    [[nodiscard]] std::shared_ptr<const TurnTable> turns_of(const LayerPlan& layer) const;
    void plan_runs();
    void make_works(size_t n_threads);

    Plan plan_;
    PageTable table_;
    std::vector<Arena> packed_;  ///< of each reach: a sealed page of all its layers lies together
    std::vector<LayerStore> layers_;
    std::vector<int32_t> layer_index_;  ///< model layer -> index in layers_, -1
    std::vector<ReachUnits> units_;     ///< of each reach
    std::vector<WindowRow> rows_;
    size_t table_bytes_ = 0, allocated_bytes_ = 0;
    Arena scratch_;
    TileAttention::Shape largest_;
    size_t state_stride_ = 0;  ///< floats of the largest partial state
    size_t max_kv_heads_ = 0;
    std::vector<Run> runs_;
    std::vector<float> states_;  ///< [n split runs][kv head][state_stride_]
    std::atomic<size_t> next_unit_{0};
    std::atomic<size_t> next_seal_{0};
    std::atomic<size_t> n_left_{0};                      ///< threads that have finished the call
    std::vector<std::unique_ptr<TileAttention>> works_;  ///< one per thread of a team
    std::atomic<size_t> n_threads_{1};                   ///< of the largest team seen
    std::vector<double> decoded_;                        ///< scratch of unseal()
    bool writes_in_runs_ = false;
    std::vector<size_t> run_of_write_;               ///< by write
    std::vector<std::atomic<uint32_t>> n_finished_;  ///< [block][KV head] runs finished
};

}  // namespace kvaq
