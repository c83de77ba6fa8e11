#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvaq/base/float16.h"
#include "kvaq/base/rope.h"
#include "kvaq/cache/page_table.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// Deleter of an anonymous mapping.
struct Unmapper {
    size_t bytes = 0;
    void operator()(std::byte* data) const noexcept;
};

enum class SystemPages : uint8_t { kAsSet, kHuge };

/// Zeroed anonymous memory that the system hands out page by page as it is touched: resident bytes follow use, by 2 MiB at a time where pages are huge.
class Arena {
  public:
    Arena() = default;
    /// kHuge: asks the system for huge pages, which it may not have. Throws Error kOutOfMemory naming `what`.
    Arena(size_t n_items, size_t item_bytes, const char* what, SystemPages pages = SystemPages::kAsSet);
    [[nodiscard]] std::byte* item(int32_t id) const noexcept { return data_ + static_cast<size_t>(id) * item_bytes_; }
    [[nodiscard]] size_t item_bytes() const noexcept { return item_bytes_; }
    [[nodiscard]] size_t bytes() const noexcept { return bytes_; }

  private:
    std::unique_ptr<std::byte, Unmapper> mapping_;
    std::byte* data_ = nullptr;
    size_t item_bytes_ = 0;
    size_t bytes_ = 0;
};

/// Where the heads of one f16 page lie. Keys [kv_head][channel][slot] (as scores read them), then values
/// [kv_head][slot][channel].
struct OpenPageShape {
    size_t tile_tokens = 0, n_kv_heads = 0, head_dim_k = 0, head_dim_v = 0;
    [[nodiscard]] size_t bytes() const noexcept {
        return n_kv_heads * tile_tokens * (head_dim_k + head_dim_v) * sizeof(float16);
    }
    [[nodiscard]] float16* keys(std::byte* page, size_t head) const noexcept {
        return reinterpret_cast<float16*>(page) + head * tile_tokens * head_dim_k;
    }
    [[nodiscard]] float16* values(std::byte* page, size_t head) const noexcept {
        return reinterpret_cast<float16*>(page) + tile_tokens * (n_kv_heads * head_dim_k + head * head_dim_v);
    }
};

/// K and V of one layer: packed tiles, f16 pages and sink rows in arenas indexed by the page table's ids. Plan, table and the arena of packed tiles must
/// outlive it.
class LayerStore {
  public:
    /// reach: which of the table's slots the layer uses. packed: an item holds the layer's part of a sealed page from byte first_packed on, beside those of other
    /// layers. key_turns: how packed keys are turned back (Plan::key_period), or null.
    LayerStore(const LayerPlan& plan, const PageTable& table, size_t reach, const Arena& packed, size_t first_packed,
               std::shared_ptr<const TurnTable> key_turns);

    /// What a layer holds per sealed page: the sum of packed_bytes over sides and heads.
    [[nodiscard]] static size_t packed_page_bytes(const LayerPlan& plan, size_t tile_tokens);
    [[nodiscard]] static OpenPageShape open_shape(const LayerPlan& plan, size_t tile_tokens);

    [[nodiscard]] const LayerPlan& plan() const noexcept { return *plan_; }
    [[nodiscard]] size_t reach() const noexcept { return reach_; }
    [[nodiscard]] const PageSlots& slots(int32_t page) const noexcept { return table_->slots(page, reach_); }
    [[nodiscard]] const TileLayout& layout(Side side, size_t head) const noexcept {
        return side == Side::kKey ? key_layouts_[head] : value_layouts_[head];
    }
    [[nodiscard]] const OpenPageShape& open_shape() const noexcept { return open_shape_; }
    [[nodiscard]] const TurnTable* key_turns() const noexcept { return key_turns_.get(); }
    [[nodiscard]] const std::shared_ptr<const TurnTable>& shared_key_turns() const noexcept { return key_turns_; }
    /// By how many steps of key_turns() the packed keys of a page are turned back.
    [[nodiscard]] int32_t steps_back(int32_t page) const noexcept {
        return key_turns_ != nullptr ? table_->page(page).frame / key_turns_->step() : 0;
    }
    [[nodiscard]] std::byte* tile(int32_t packed, Side side, size_t head) const noexcept {
        return packed_page(packed) + (side == Side::kKey ? key_offsets_[head] : value_offsets_[head]);
    }
    [[nodiscard]] std::byte* packed_page(int32_t packed) const noexcept {
        return packed_->item(packed) + first_packed_;
    }
    [[nodiscard]] std::byte* sink_page(int32_t sink) const noexcept { return sinks_.item(sink); }
    /// The f16 page of a page, in this layer's arena or in the scratch shared by all layers.
    [[nodiscard]] std::byte* f16_page(int32_t page, const Arena& scratch) const noexcept {
        const int32_t open = slots(page).open;
        return open != kNone ? open_.item(open) : scratch.item(table_->page(page).scratch);
    }
    [[nodiscard]] size_t packed_bytes() const noexcept { return packed_bytes_; }
    [[nodiscard]] size_t sink_bytes() const noexcept { return sinks_.item_bytes(); }
    /// Shape of a sink page: as an f16 page of `sinks` slots.
    [[nodiscard]] const OpenPageShape& sink_shape() const noexcept { return sink_shape_; }
    /// Without packed tiles.
    [[nodiscard]] size_t allocated_bytes() const noexcept { return open_.bytes() + sinks_.bytes(); }

    /// Writes one token's key and value of one head into an f16 page. turn: of the key, or null.
    void write_token(std::byte* page, size_t slot, size_t head, const float16* key, const float16* value,
                     const RopeTurn* turn) const noexcept;
    /// Copies the first n slots of every head.
    void copy_slots(const std::byte* from, std::byte* to, size_t n) const noexcept;
    /// Quantizes one head and side of a full f16 page. scratch: tile_tokens * head_dim floats.
    void seal(int32_t page, const std::byte* f16, Side side, size_t head, float* scratch) const noexcept;
    /// Copies the sink slots of a full f16 page 0.
    void keep_sinks(const std::byte* f16, int32_t sink) const noexcept;
    /// Decodes the first n tokens of a sealed page into an f16 page of the same frame; sink slots come from their f16 copy. scratch: tile_tokens * the
    /// larger head_dim.
    void unseal(int32_t page, std::byte* f16, size_t n, double* scratch) const;

  private:
    const LayerPlan* plan_;
    const PageTable* table_;
    size_t reach_ = 0;
    OpenPageShape open_shape_;
    OpenPageShape sink_shape_;
    std::vector<TileLayout> key_layouts_, value_layouts_;
    std::vector<size_t> key_offsets_, value_offsets_;
    std::shared_ptr<const TurnTable> key_turns_;
    const Arena* packed_;
    size_t first_packed_, packed_bytes_ = 0;
    Arena open_, sinks_;
};

}  // namespace kvaq
