#include "kvaq/cuda/gpu.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvaq/base/alibi.h"
#include "kvaq/base/error.h"
#include "kvaq/cuda/kernels.h"
#include "kvaq/cuda/tile_codec.h"

namespace kvaq::cuda {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kMostItemBytes = size_t{16} << 20;  // page-locked memory for uploads: one item is always possible

size_t aligned(size_t n) noexcept { return (n + kAlign - 1) / kAlign * kAlign; }

/// At least `bytes`, with some room to grow; what it held is lost.
void grow(DeviceBuffer& buffer, int device, size_t bytes, const char* what) {
    if (buffer.bytes() >= bytes) return;
    buffer = DeviceBuffer();  // first, so that both are never there
    buffer = DeviceBuffer(device, bytes + bytes / 4, what);
}
void grow(PinnedBuffer& buffer, int device, size_t bytes) {
    if (buffer.bytes() >= bytes) return;
    buffer = PinnedBuffer();
    buffer = PinnedBuffer(device, bytes + bytes / 4);
}

size_t row_bytes(const LayerShape& shape) noexcept {
    return shape.n_kv_heads * (shape.head_dim_k + shape.head_dim_v) * sizeof(float16);
}

template <typename T>
DeviceRows<const uint16_t> half_rows(const HeadRows<T>& rows) noexcept {
    return {reinterpret_cast<const uint16_t*>(rows.data), rows.token_stride, rows.head_stride};
}

}  // namespace

Gpu::Gpu(int device, const PageTable& table, size_t max_batch_tokens, size_t work_bytes)
    : device_(device), table_(&table), max_batch_tokens_(max_batch_tokens), work_bytes_(work_bytes), stream_(device) {
    const std::vector<int8_t> outputs = trellis_table();
    trellis_ = DeviceBuffer(device, outputs.size(), "tables");
    copy_to_device(trellis_.as(), outputs.data(), outputs.size());
}

GpuLayer& Gpu::add(const LayerStore& store) {
    auto layer = std::make_unique<GpuLayer>();
    const LayerShape& shape = store.plan().shape;
    layer->store = &store;
    const OpenPageShape& open = store.open_shape();
    const size_t sink_slots = (store.sink_shape().tile_tokens + 15) / 16 * 16;
    layer->packed = DeviceBuffer(device_, table_->n_packed(store.reach()) * store.packed_bytes(), "packed tiles");
    layer->open = DeviceBuffer(device_, table_->n_open() * open.bytes(), "f16 pages");
    const size_t sink_size = shape.n_kv_heads * sink_slots * (shape.head_dim_k + shape.head_dim_v);
    layer->sinks = DeviceBuffer(device_, table_->n_sink() * sink_size * sizeof(float16), "sink tokens");

    // Codecs of both sides, their tables behind each other.
    std::vector<TileCodec> codecs;
    std::vector<CodecTables> tables;
    size_t table_bytes = 0;
    for (const Side side : {Side::kKey, Side::kValue}) {
        for (size_t head = 0; head < shape.n_kv_heads; ++head) {
            const TileLayout& layout = store.layout(side, head);
            const auto place = static_cast<size_t>(store.tile(0, side, head) - store.packed_page(0));
            codecs.push_back(tile_codec_of(layout, place));
            tables.push_back(codec_tables_of(layout.spec));
            table_bytes += tables.back().bytes.size();
            const size_t dim = side == Side::kKey ? shape.head_dim_k : 0;
            layer->n_groups = std::max(layer->n_groups, side == Side::kKey ? query_groups(codecs.back(), dim) : 0);
        }
    }
    layer->tables = DeviceBuffer(device_, table_bytes, "tables");
    size_t at = 0;
    for (size_t i = 0; i < codecs.size(); ++i) {
        const CodecTables& t = tables[i];
        if (t.bytes.empty()) continue;
        copy_to_device(layer->tables.as(at), t.bytes.data(), t.bytes.size());
        codecs[i].channel_scale = layer->tables.as<const float>(at);
        codecs[i].channel_offset = layer->tables.as<const float>(at + t.channel_offset);
        codecs[i].row_scale = layer->tables.as<const float>(at + t.row_scale);
        codecs[i].matrix = layer->tables.as<const int8_t>(at + t.matrix);
        codecs[i].levels = layer->tables.as<const int8_t>(at + t.levels);
        at += t.bytes.size();
    }
    layer->codecs = DeviceBuffer(device_, codecs.size() * sizeof(TileCodec), "codecs");
    copy_to_device(layer->codecs.as(), codecs.data(), codecs.size() * sizeof(TileCodec));

    layer->view = {.keys = layer->codecs.as<const TileCodec>(),
                   .values = layer->codecs.as<const TileCodec>() + shape.n_kv_heads,
                   .packed = layer->packed.as<uint8_t>(),
                   .open = layer->open.as<uint16_t>(),
                   .sinks = layer->sinks.as<uint16_t>(),
                   .packed_bytes = store.packed_bytes(),
                   .open_size = open.bytes() / sizeof(float16),
                   .sink_size = sink_size,
                   .tile_tokens = static_cast<int32_t>(open.tile_tokens),
                   .sink_slots = static_cast<int32_t>(sink_slots),
                   .n_kv_heads = static_cast<int32_t>(shape.n_kv_heads),
                   .group = static_cast<int32_t>(shape.heads_per_kv()),
                   .dim_k = static_cast<int32_t>(shape.head_dim_k),
                   .dim_v = static_cast<int32_t>(shape.head_dim_v)};
    auto found = std::find_if(classes_.begin(), classes_.end(), [&](const LayerClass& c) {
        return c.reach == store.reach() && c.group == shape.heads_per_kv();
    });
    if (found == classes_.end()) {
        found = classes_.emplace(classes_.end());
        found->reach = store.reach();
        found->group = shape.heads_per_kv();
    }
    layer->lists = static_cast<size_t>(found - classes_.begin());
    if (store.key_turns() != nullptr) found->key_period = store.key_turns()->step();
    found->n_kv_heads = std::max(found->n_kv_heads, shape.n_kv_heads);
    found->dim_v = std::max(found->dim_v, shape.head_dim_v);
    found->n_groups = std::max(found->n_groups, layer->n_groups);
    layers_.push_back(std::move(layer));
    return *layers_.back();
}

void Gpu::finish_layers() {
    size_t largest_open = 0;
    size_t largest_row = 0;
    size_t place = 0;
    for (const auto& layer : layers_) {
        const LayerShape& shape = layer->store->plan().shape;
        largest_open = std::max(largest_open, layer->store->open_shape().bytes());
        largest_row = std::max(largest_row, row_bytes(shape));
        layer->rows_place = place;
        place += aligned(kDeferredTokens * row_bytes(shape));
    }
    shared_rows_ = place;
    rows_ = PinnedBuffer(device_, place + max_batch_tokens_ * largest_row);
    scratch_ = DeviceBuffer(device_, table_->n_scratch() * largest_open, "prefill scratch");
    for (const auto& layer : layers_) layer->view.scratch = scratch_.as<uint16_t>();
}

size_t Gpu::allocated_bytes() const noexcept {
    size_t bytes = trellis_.bytes() + scratch_.bytes() + lists_.bytes() + work_.bytes();
    for (const auto& layer : layers_) {
        for (const DeviceBuffer* buffer : {&layer->packed, &layer->open, &layer->sinks, &layer->codecs, &layer->tables})
            bytes += buffer->bytes();
    }
    return bytes;
}

void Gpu::begin(bool deferred) {
    deferred_ = deferred;
    for (LayerClass& c : classes_) make_work_lists(*table_, c.reach, c.group, c.key_period, c.lists);
    make_room();
    upload_lists();
}

Gpu::Part Gpu::part_of(const LayerClass& c, size_t first_tile, size_t n_tiles) const {
    const RowTile& first = c.lists.row_tiles[first_tile];
    const RowTile& last = c.lists.row_tiles[first_tile + n_tiles - 1];
    Part part{.first_tile = first_tile,
              .n_tiles = n_tiles,
              .first_run = static_cast<size_t>(first.first_run),
              .n_runs = static_cast<size_t>(last.first_run + last.n_runs - first.first_run)};
    const size_t queries = n_tiles * c.lists.turns.size() * c.n_kv_heads * 2;
    const size_t states = part.n_runs * c.n_kv_heads * kTileRows;
    part.info = aligned(queries * c.n_groups * 64 * sizeof(uint4));
    part.sums = part.info + aligned(queries * kTileRows * sizeof(float2));
    part.norms = part.sums + aligned(states * ((c.dim_v + 15) / 16 * 16) * sizeof(float));
    part.bytes = part.norms + aligned(states * sizeof(float2));
    return part;
}

/// The part's row tiles that are in blocks, side by side as far as they are of one query block.
void Gpu::list_blocks(LayerClass& c, Part& part) {
    part.first_block = c.blocks.size();
    part.all_in_blocks = true;
    const size_t end = part.first_tile + part.n_tiles;
    for (size_t first = part.first_tile; first < end;) {
        const RowTile& tile = c.lists.row_tiles[first];
        part.all_in_blocks = part.all_in_blocks && tile.in_block;
        size_t n = 1;
        while (tile.in_block && first + n < end && c.lists.row_tiles[first + n].first_token == tile.first_token) ++n;
        if (tile.in_block) {
            const size_t n_blocks = (n + kBlockTiles - 1) / kBlockTiles;
            for (size_t b = 0; b < n_blocks; ++b) {
                const auto begin = static_cast<int32_t>(first + n * b / n_blocks);
                const auto stop = static_cast<int32_t>(first + n * (b + 1) / n_blocks);
                for (int32_t run = 0; run < tile.n_runs; ++run)
                    c.blocks.push_back({.first_row_tile = begin, .n_row_tiles = stop - begin, .run = run});
            }
        }
        first += n;
    }
    part.n_blocks = c.blocks.size() - part.first_block;
}

void Gpu::make_room() {
    size_t most = 0;
    for (LayerClass& c : classes_) {
        c.parts.clear();
        c.blocks.clear();
        const size_t n_tiles = c.lists.row_tiles.size();
        for (size_t first = 0; first < n_tiles;) {
            Part part = part_of(c, first, 1);
            while (first + part.n_tiles < n_tiles) {
                const Part longer = part_of(c, first, part.n_tiles + 1);
                if (longer.bytes > work_bytes_) break;
                part = longer;
            }
            list_blocks(c, part);
            c.parts.push_back(part);
            most = std::max(most, part.bytes);
            first += part.n_tiles;
        }
    }
    // Room to grow, but within the limit.
    if (work_.bytes() < most) {
        work_ = DeviceBuffer();
        work_ = DeviceBuffer(device_, std::max(most, std::min(most + most / 4, work_bytes_)),
                             "queries and partial results");
    }
}

void Gpu::upload_lists() {
    size_t bytes = 0;
    for (const LayerClass& c : classes_) {
        bytes += aligned(c.lists.row_tiles.size() * sizeof(RowTile)) + aligned(c.lists.runs.size() * sizeof(Run)) +
                 aligned(c.lists.visits.size() * sizeof(Visit)) + aligned(c.lists.writes.size() * sizeof(RowWrite)) +
                 aligned(c.blocks.size() * sizeof(RowBlock));
    }
    grow(lists_, device_, bytes, "lists");
    grow(host_lists_, device_, bytes);
    size_t at = 0;
    const auto put = [&]<typename T>(const std::vector<T>& list) {
        if (!list.empty()) std::memcpy(host_lists_.as(at), list.data(), list.size() * sizeof(T));
        const T* on_device = lists_.as<const T>(at);
        at += aligned(list.size() * sizeof(T));
        return on_device;
    };
    for (LayerClass& c : classes_) {
        c.view.row_tiles = put(c.lists.row_tiles);
        c.view.blocks = put(c.blocks);
        c.view.runs = put(c.lists.runs);
        c.view.visits = put(c.lists.visits);
        c.view.writes = put(c.lists.writes);
    }
    const OnDevice on(device_);
    check(cudaMemcpyAsync(lists_.as(), host_lists_.as(), at, cudaMemcpyHostToDevice,
                          static_cast<cudaStream_t>(stream_.get())),
          "cannot copy lists");
}

size_t Gpu::row_place(const GpuLayer& layer) const noexcept { return deferred_ ? layer.rows_place : shared_rows_; }

HeadRows<const float16> Gpu::keys(const GpuLayer& layer) const noexcept {
    const LayerShape& shape = layer.store->plan().shape;
    return {rows_.as<const float16>(row_place(layer)), shape.n_kv_heads * shape.head_dim_k, shape.head_dim_k};
}

HeadRows<const float16> Gpu::values(const GpuLayer& layer) const noexcept {
    const LayerShape& shape = layer.store->plan().shape;
    const size_t n_tokens = deferred_ ? kDeferredTokens : max_batch_tokens_;
    const size_t keys = n_tokens * shape.n_kv_heads * shape.head_dim_k;
    return {rows_.as<const float16>(row_place(layer)) + keys, shape.n_kv_heads * shape.head_dim_v, shape.head_dim_v};
}

const Gpu::RopeTable* Gpu::turned(const GpuLayer& layer, const AttentionCall& call) {
    const std::vector<QueryTurn>& turns = classes_[layer.lists].lists.turns;
    const bool shifted = std::any_of(turns.begin(), turns.end(), [](const QueryTurn& turn) { return turn.delta != 0; });
    KVAQ_CHECK(!shifted || call.rope != nullptr);
    const RopeRule none;
    const RopeRule& rule = shifted ? *call.rope : none;
    const RopeRule& key_turn = layer.store->key_turns() != nullptr ? layer.store->key_turns()->rule() : none;
    if (turns.size() == 1 || (rule.n_dims == 0 && key_turn.n_dims == 0)) return nullptr;
    for (const RopeTable& table : ropes_) {
        if (table.lists == layer.lists && table.rule == rule && table.key_turn == key_turn && table.turns == turns)
            return &table;
    }
    std::erase_if(ropes_, [&](const RopeTable& table) { return table.lists == layer.lists && table.turns != turns; });
    const RopeRule& layout = rule.n_dims > 0 ? rule : key_turn;
    const size_t n = layout.n_dims / 2;
    for (const RopeRule* one : {&rule, &key_turn}) {  // both are the model's own RoPE
        if (one->n_dims == 0 || (one->n_dims == layout.n_dims && one->interleaved == layout.interleaved &&
                                 one->first_channel == layout.first_channel))
            continue;
        throw Error(ErrorCode::kMismatch, "the plan turns keys by other channels than the model's RoPE", "", "",
                    "Make the plan for this model, or use --kv-device cpu");
    }
    std::vector<double> values(2 * turns.size() * n);
    for (size_t turn = 0; turn < turns.size(); ++turn) {
        for (size_t i = 0; i < n; ++i) {
            const double angle = (rule.n_dims > 0 ? rule.frequencies[i] * turns[turn].delta : 0.0) -
                                 (key_turn.n_dims > 0 ? key_turn.frequencies[i] * turns[turn].back : 0.0);
            values[turn * n + i] = std::cos(angle);
            values[(turns.size() + turn) * n + i] = std::sin(angle);
        }
    }
    RopeTable table{.rule = rule,
                    .key_turn = key_turn,
                    .layout = layout,
                    .turns = turns,
                    .lists = layer.lists,
                    .data = DeviceBuffer(device_, values.size() * sizeof(double), "turns")};
    copy_to_device(table.data.as(), values.data(), values.size() * sizeof(double));
    ropes_.push_back(std::move(table));
    return &ropes_.back();
}

PrepareArgs Gpu::prepare_args(const GpuLayer& layer, const AttentionCall& call, const Part& part) {
    const LayerClass& c = classes_[layer.lists];
    const ScoreRule& rule = call.rule;
    PrepareArgs prepare{.layer = layer.view,
                        .row_tiles = c.view.row_tiles + part.first_tile,
                        .n_row_tiles = static_cast<int32_t>(part.n_tiles),
                        .n_turns = static_cast<int32_t>(c.lists.turns.size()),
                        .q = {call.q.data, call.q.token_stride, call.q.head_stride},
                        .scale = rule.softcap > 0.0F ? rule.scale / rule.softcap : rule.scale,
                        .fragments = work_.as<uint4>(),
                        .row_info = work_.as<float2>(part.info),
                        .n_groups = static_cast<int32_t>(layer.n_groups)};
    if (const RopeTable* table = turned(layer, call); table != nullptr) {
        const size_t n = table->layout.n_dims / 2;
        prepare.cosines = table->data.as<const double>();
        prepare.sines = prepare.cosines + c.lists.turns.size() * n;
        prepare.n_pairs = static_cast<int32_t>(n);
        prepare.first_channel = static_cast<int32_t>(table->layout.first_channel);
        prepare.interleaved = table->layout.interleaved;
    }
    return prepare;
}

void Gpu::begin_call(GpuLayer& layer, const AttentionCall& call, bool to_host) {
    const LayerClass& c = classes_[layer.lists];
    const OnDevice on(device_);
    AppendArgs append{.layer = layer.view,
                      .writes = c.view.writes,
                      .n_writes = static_cast<int32_t>(c.lists.writes.size()),
                      .k = half_rows(call.k),
                      .v = half_rows(call.v)};
    if (to_host) {  // page-locked memory has the same address on the device
        append.host_k = const_cast<uint16_t*>(reinterpret_cast<const uint16_t*>(keys(layer).data));
        append.host_v = const_cast<uint16_t*>(reinterpret_cast<const uint16_t*>(values(layer).data));
    }
    KVAQ_CHECK(!c.parts.empty());
    check(begin_layer(append, prepare_args(layer, call, c.parts.front()), stream_.get()), "cannot start a kernel");
}

void Gpu::attend(GpuLayer& layer, const AttentionCall& call) {
    const LayerClass& c = classes_[layer.lists];
    const ScoreRule& rule = call.rule;
    const OnDevice on(device_);
    const size_t n_heads = layer.store->plan().shape.n_heads;
    if (rule.alibi_max_bias > 0 && layer.max_bias != rule.alibi_max_bias) {
        std::vector<float> slopes(n_heads);
        for (size_t head = 0; head < n_heads; ++head) slopes[head] = alibi_slope(rule.alibi_max_bias, head, n_heads);
        layer.slopes = DeviceBuffer(device_, n_heads * sizeof(float), "slopes");
        copy_to_device(layer.slopes.as(), slopes.data(), n_heads * sizeof(float));
        layer.max_bias = rule.alibi_max_bias;
    }
    if (rule.sink_logits != nullptr && layer.sink_logits.bytes() == 0) {  // weights: they do not change
        layer.sink_logits = DeviceBuffer(device_, n_heads * sizeof(float), "sink logits");
        copy_to_device(layer.sink_logits.as(), rule.sink_logits, n_heads * sizeof(float));
    }
    AppendArgs no_rows;
    no_rows.layer = layer.view;
    for (const Part& part : c.parts) {
        if (&part != c.parts.data())  // begin_call() has made the first one's queries
            check(begin_layer(no_rows, prepare_args(layer, call, part), stream_.get()), "cannot start a kernel");
        attend_part(layer, call, part);
    }
}

void Gpu::attend_part(const GpuLayer& layer, const AttentionCall& call, const Part& part) {
    const LayerClass& c = classes_[layer.lists];
    const ScoreRule& rule = call.rule;
    const auto n_row_tiles = static_cast<int32_t>(part.n_tiles);
    const auto n_runs = static_cast<int32_t>(part.n_runs);
    const AttendArgs attend{.layer = layer.view,
                            .row_tiles = c.view.row_tiles,
                            .blocks = c.view.blocks + part.first_block,
                            .runs = c.view.runs + part.first_run,
                            .visits = c.view.visits,
                            .first_row_tile = static_cast<int32_t>(part.first_tile),
                            .first_run = static_cast<int32_t>(part.first_run),
                            .n_row_tiles = n_row_tiles,
                            .n_runs = n_runs,
                            .n_groups = static_cast<int32_t>(layer.n_groups),
                            .n_blocks = static_cast<int32_t>(part.n_blocks),
                            .all_in_blocks = part.all_in_blocks,
                            .fragments = work_.as<const uint4>(),
                            .row_info = work_.as<const float2>(part.info),
                            .trellis = trellis_.as<const int8_t>(),
                            .softcap = rule.softcap,
                            .slopes = rule.alibi_max_bias > 0 ? layer.slopes.as<const float>() : nullptr,
                            .sliding_window = rule.sliding_window,
                            .chunked_window = rule.chunked_window,
                            .sums = work_.as<float>(part.sums),
                            .norms = work_.as<float2>(part.norms)};
    check(attend_tiles(attend, stream_.get()), "cannot start a kernel");
    check(attend_blocks(attend, stream_.get()), "cannot start a kernel");
    const MergeArgs merge{.layer = layer.view,
                          .row_tiles = c.view.row_tiles + part.first_tile,
                          .n_row_tiles = n_row_tiles,
                          .n_runs = n_runs,
                          .first_run = static_cast<int32_t>(part.first_run),
                          .sums = attend.sums,
                          .norms = attend.norms,
                          .sink_logits = rule.sink_logits != nullptr ? layer.sink_logits.as<const float>() : nullptr,
                          .out = {call.out.data, call.out.token_stride, call.out.head_stride}};
    check(merge_runs(merge, stream_.get()), "cannot start a kernel");
}

template <typename Fill>
void Gpu::scatter(std::span<const int32_t> ids, size_t bytes, std::byte* target, size_t stride, Fill fill) {
    if (ids.empty() || bytes == 0) return;
    const OnDevice on(device_);
    const size_t padded = aligned(bytes);
    const size_t most = std::max<size_t>(1, kMostItemBytes / padded);
    for (size_t first = 0; first < ids.size(); first += most) {
        const size_t n = std::min(most, ids.size() - first);
        const size_t id_bytes = aligned(n * sizeof(int32_t));
        stream_.wait();  // items_ may be in use
        grow(items_, device_, id_bytes + n * bytes);
        std::memcpy(items_.as(), ids.data() + first, n * sizeof(int32_t));
        for (size_t i = 0; i < n; ++i) fill(first + i, items_.as(id_bytes + i * bytes));
        const ScatterArgs args{.from = items_.as<const uint4>(id_bytes),
                               .ids = items_.as<const int32_t>(),
                               .target = reinterpret_cast<uint8_t*>(target),
                               .bytes = bytes,
                               .stride = stride,
                               .n = static_cast<int32_t>(n)};
        check(scatter_items(args, stream_.get()), "cannot start a kernel");
    }
}

void Gpu::upload_sealed(GpuLayer& layer, std::span<const int32_t> pages) {
    std::vector<int32_t> packed;
    std::vector<int32_t> sinks;
    for (const int32_t page : pages) {
        const PageSlots& slots = layer.store->slots(page);
        if (slots.packed != kNone) packed.push_back(slots.packed);
        if (slots.sink != kNone) sinks.push_back(slots.sink);
    }
    const LayerStore& store = *layer.store;
    scatter(packed, store.packed_bytes(), layer.packed.as<std::byte>(), store.packed_bytes(),
            [&](size_t i, std::byte* to) { std::memcpy(to, store.packed_page(packed[i]), store.packed_bytes()); });
    // Sink rows get room for a multiple of 16 slots.
    const OpenPageShape& from = store.sink_shape();
    OpenPageShape wide = from;
    wide.tile_tokens = static_cast<size_t>(layer.view.sink_slots);
    scatter(sinks, wide.bytes(), layer.sinks.as<std::byte>(), wide.bytes(), [&](size_t i, std::byte* to) {
        std::memset(to, 0, wide.bytes());
        std::byte* rows = store.sink_page(sinks[i]);
        for (size_t head = 0; head < from.n_kv_heads; ++head) {
            for (size_t c = 0; c < from.head_dim_k; ++c)
                std::copy_n(from.keys(rows, head) + c * from.tile_tokens, from.tile_tokens,
                            wide.keys(to, head) + c * wide.tile_tokens);
            std::copy_n(from.values(rows, head), from.tile_tokens * from.head_dim_v, wide.values(to, head));
        }
    });
}

void Gpu::upload_f16(GpuLayer& layer, std::span<const int32_t> pages, const Arena& scratch) {
    const LayerStore& store = *layer.store;
    const OpenPageShape& shape = store.open_shape();
    for (const bool to_scratch : {false, true}) {
        std::vector<int32_t> from;
        std::vector<int32_t> ids;
        for (const int32_t page : pages) {
            const int32_t open = store.slots(page).open;
            const int32_t other = table_->page(page).scratch;
            if ((open == kNone) != to_scratch || (to_scratch && other == kNone)) continue;
            from.push_back(page);
            ids.push_back(to_scratch ? other : open);
        }
        std::byte* target = to_scratch ? scratch_.as<std::byte>() : layer.open.as<std::byte>();
        scatter(ids, shape.bytes(), target, shape.bytes(), [&](size_t i, std::byte* to) {
            std::memset(to, 0, shape.bytes());
            store.copy_slots(store.f16_page(from[i], scratch), to, static_cast<size_t>(table_->page(from[i]).n_filled));
        });
    }
}

}  // namespace kvaq::cuda
