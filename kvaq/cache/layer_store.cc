#include "kvaq/cache/layer_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "kvaq/attention/block_kernels.h"
#include "kvaq/base/error.h"

namespace kvaq {
namespace {

constexpr size_t kMaxTile = 128;
constexpr size_t kMaxTurnedDim = 2 * kMaxRopePairs;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Arena::Arena(size_t n_items, size_t item_bytes, const char* what, SystemPages pages)
    : item_bytes_(item_bytes), bytes_(n_items * item_bytes) {
    if (bytes_ == 0) return;
    const bool huge = pages == SystemPages::kHuge && bytes_ >= kHugePage;
    const size_t mapped = bytes_ + (huge ? kHugePage : 0);  // room to begin with a huge page
    void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        throw Error(ErrorCode::kOutOfMemory, std::string("cannot allocate the K/V cache (") + what + ")",
                    std::to_string(bytes_ / (1024 * 1024)) + " MiB", "the system refused",
                    "Use a smaller context (-c), fewer bits, or fewer sequences (-np)");
    }
    mapping_ = {static_cast<std::byte*>(mapping), Unmapper{mapped}};
    data_ = mapping_.get();
    if (!huge) return;
    data_ += (kHugePage - reinterpret_cast<uintptr_t>(data_) % kHugePage) % kHugePage;
#if defined(MADV_HUGEPAGE)
    madvise(data_, bytes_, MADV_HUGEPAGE);  // refused: small pages, as before
#endif
}

void Unmapper::operator()(std::byte* data) const noexcept { munmap(data, bytes); }

size_t LayerStore::packed_page_bytes(const LayerPlan& plan, size_t tile_tokens) {
    size_t bytes = 0;
    for (const HeadPlan& head : plan.heads) {
        bytes += kvaq::packed_bytes(head.key, Side::kKey, plan.shape.head_dim_k, tile_tokens);
        bytes += kvaq::packed_bytes(head.value, Side::kValue, plan.shape.head_dim_v, tile_tokens);
    }
    return bytes;
}

OpenPageShape LayerStore::open_shape(const LayerPlan& plan, size_t tile_tokens) {
    return {.tile_tokens = tile_tokens,
            .n_kv_heads = plan.shape.n_kv_heads,
            .head_dim_k = plan.shape.head_dim_k,
            .head_dim_v = plan.shape.head_dim_v};
}

LayerStore::LayerStore(const LayerPlan& plan, const PageTable& table, size_t reach, const Arena& packed,
                       size_t first_packed, std::shared_ptr<const TurnTable> key_turns)
    : plan_(&plan),
      table_(&table),
      reach_(reach),
      key_turns_(std::move(key_turns)),
      packed_(&packed),
      first_packed_(first_packed) {
    const size_t tile = table.options().tile_tokens;
    open_shape_ = open_shape(plan, tile);
    KVAQ_CHECK(plan.shape.head_dim_k <= kMaxTurnedDim);
    sink_shape_ = open_shape(plan, static_cast<size_t>(table.options().sinks));
    for (const HeadPlan& head : plan.heads) {
        key_layouts_.push_back(make_tile_layout(head.key, Side::kKey, plan.shape.head_dim_k, tile));
        key_offsets_.push_back(packed_bytes_);
        packed_bytes_ += key_layouts_.back().bytes;
    }
    for (const HeadPlan& head : plan.heads) {
        value_layouts_.push_back(make_tile_layout(head.value, Side::kValue, plan.shape.head_dim_v, tile));
        value_offsets_.push_back(packed_bytes_);
        packed_bytes_ += value_layouts_.back().bytes;
    }
    open_ = Arena(table.n_open(), open_shape_.bytes(), "f16 pages");
    sinks_ = Arena(table.n_sink(), sink_shape_.bytes(), "sink tokens");
}

void LayerStore::write_token(std::byte* page, size_t slot, size_t head, const float16* key, const float16* value,
                             const RopeTurn* turn) const noexcept {
    const OpenPageShape& shape = open_shape_;
    float16* keys = shape.keys(page, head) + slot;
    float16 turned[kMaxTurnedDim];
    if (turn != nullptr) {
        turn->apply(key, turned, shape.head_dim_k);
        key = turned;
    }
    for (size_t c = 0; c < shape.head_dim_k; ++c) keys[c * shape.tile_tokens] = key[c];
    std::memcpy(shape.values(page, head) + slot * shape.head_dim_v, value, shape.head_dim_v * sizeof(float16));
}

void LayerStore::copy_slots(const std::byte* from, std::byte* to, size_t n) const noexcept {
    const OpenPageShape& shape = open_shape_;
    auto* source = const_cast<std::byte*>(from);  // the accessors serve both directions
    for (size_t head = 0; head < shape.n_kv_heads; ++head) {
        const float16* keys = shape.keys(source, head);
        float16* to_keys = shape.keys(to, head);
        for (size_t c = 0; c < shape.head_dim_k; ++c) {
            std::copy_n(keys + c * shape.tile_tokens, n, to_keys + c * shape.tile_tokens);
        }
        std::copy_n(shape.values(source, head), n * shape.head_dim_v, shape.values(to, head));
    }
}

void LayerStore::seal(int32_t page, const std::byte* f16, Side side, size_t head, float* scratch) const noexcept {
    const OpenPageShape& shape = open_shape_;
    auto* source = const_cast<std::byte*>(f16);
    const BlockKernels& kernels = block_kernels(best_simd_target());
    if (side == Side::kKey) {
        const float16* keys = shape.keys(source, head);
        float row[kMaxTile];
        for (size_t c = 0; c < shape.head_dim_k; ++c) {
            kernels.to_float(keys + c * shape.tile_tokens, 0, 1, shape.tile_tokens, row, 0);
            for (size_t t = 0; t < shape.tile_tokens; ++t) scratch[t * shape.head_dim_k + c] = row[t];
        }
        if (key_turns_ != nullptr) key_turns_->back(steps_back(page), scratch, shape.tile_tokens, shape.head_dim_k);
    } else {
        kernels.to_float(shape.values(source, head), 0, 1, shape.tile_tokens * shape.head_dim_v, scratch, 0);
    }
    encode_tile(layout(side, head), scratch, tile(slots(page).packed, side, head));
}

void LayerStore::keep_sinks(const std::byte* f16, int32_t sink) const noexcept {
    auto* source = const_cast<std::byte*>(f16);
    std::byte* target = sinks_.item(sink);
    const size_t n = sink_shape_.tile_tokens;
    for (size_t head = 0; head < open_shape_.n_kv_heads; ++head) {
        const float16* keys = open_shape_.keys(source, head);
        for (size_t c = 0; c < open_shape_.head_dim_k; ++c) {
            std::copy_n(keys + c * open_shape_.tile_tokens, n, sink_shape_.keys(target, head) + c * n);
        }
        std::copy_n(open_shape_.values(source, head), n * open_shape_.head_dim_v, sink_shape_.values(target, head));
    }
}

void LayerStore::unseal(int32_t page, std::byte* f16, size_t n, double* scratch) const {
    const OpenPageShape& shape = open_shape_;
    const int32_t packed = slots(page).packed;
    const int32_t sink = slots(page).sink;
    const size_t n_sinks = sink == kNone ? 0 : std::min(n, sink_shape_.tile_tokens);
    for (size_t head = 0; head < shape.n_kv_heads; ++head) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            decode_tile_reference(layout(side, head), tile(packed, side, head), scratch, true);
            const size_t dim = side == Side::kKey ? shape.head_dim_k : shape.head_dim_v;
            if (side == Side::kKey && key_turns_ != nullptr) key_turns_->forward(steps_back(page), scratch, n, dim);
            for (size_t t = 0; t < n; ++t) {
                for (size_t c = 0; c < dim; ++c) {
                    float16 value = to_float16(static_cast<float>(scratch[t * dim + c]));
                    if (t < n_sinks) {
                        value = side == Side::kKey
                                    ? sink_shape_.keys(sinks_.item(sink), head)[c * sink_shape_.tile_tokens + t]
                                    : sink_shape_.values(sinks_.item(sink), head)[t * dim + c];
                    }
                    if (side == Side::kKey) {
                        shape.keys(f16, head)[c * shape.tile_tokens + t] = value;
                    } else {
                        shape.values(f16, head)[t * dim + c] = value;
                    }
                }
            }
        }
    }
}

}  // namespace kvaq
