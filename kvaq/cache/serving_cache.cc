#include "kvaq/cache/serving_cache.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <memory>
#include <set>
#include <string>

#include "kvaq/base/error.h"
#include "kvaq/plan/budget.h"

namespace kvaq {
namespace {

constexpr size_t kBlockRows = 96;   // query rows that share one decoded tile in prefill: o stays in L2
constexpr size_t kFewRows = 48;     // the same where one KV head is all there is, so that many threads find work
constexpr size_t kSplitTokens = 8;  // blocks up to this many query tokens are split over runs of pages
constexpr size_t kRunPages = 16;    // fixed, so the result does not depend on the number of threads
constexpr size_t kMaxKvHeads = 256;

/// The distinct sliding windows. More than the table has reaches for: the largest ones are then kept whole.
std::vector<int32_t> sliding_windows(const Plan& plan) {
    std::set<int32_t> windows;
    for (const LayerPlan& layer : plan.layers) {
        if (layer.shape.sliding_window > 0) windows.insert(layer.shape.sliding_window);
    }
    while (windows.size() > kMaxReaches - 1) windows.erase(std::prev(windows.end()));
    return {windows.begin(), windows.end()};
}

/// Which of the page table's reaches a layer has: 0 = all tokens, else 1 + the place of its window.
size_t reach_of(const LayerPlan& layer, const std::vector<int32_t>& windows) {
    const auto window = std::find(windows.begin(), windows.end(), layer.shape.sliding_window);
    return window == windows.end() ? 0 : static_cast<size_t>(window - windows.begin()) + 1;
}

PageTableOptions table_options(const Plan& plan, const KvCacheOptions& options) {
    KVAQ_CHECK(options.rewind <= kMaxTokens);
    return {.tile_tokens = plan.tile_tokens,
            .window = plan.window,
            .sinks = plan.sinks,
            .n_seq_max = options.n_seq_max,
            .n_ctx = options.n_ctx,
            .max_batch_tokens = options.max_batch_tokens,
            .sliding_windows = options.keep_sliding ? std::vector<int32_t>{} : sliding_windows(plan),
            .rewind = static_cast<int32_t>(std::max(sliding_rewind(plan), options.rewind)),
            .f16_rewind = static_cast<int32_t>(options.rewind)};
}

}  // namespace

size_t reserved_bytes(const Plan& plan, const KvCacheOptions& options) {
    const PageTable table(table_options(plan, options));
    const std::vector<int32_t>& windows = table.options().sliding_windows;
    size_t bytes = 0;
    size_t largest_open = 0;
    for (const LayerPlan& layer : plan.layers) {
        const size_t open = LayerStore::open_shape(layer, plan.tile_tokens).bytes();
        const size_t sinks = LayerStore::open_shape(layer, static_cast<size_t>(plan.sinks)).bytes();
        bytes += table.n_packed(reach_of(layer, windows)) * LayerStore::packed_page_bytes(layer, plan.tile_tokens) +
                 table.n_open() * open + table.n_sink() * sinks + table_bytes(layer);
        largest_open = std::max(largest_open, open);
    }
    return bytes + table.n_scratch() * largest_open;
}

size_t tokens_within(const Plan& plan, const KvCacheOptions& options, size_t budget) {
    const auto bytes_of = [&](size_t n_ctx) {
        KvCacheOptions other = options;
        other.n_ctx = n_ctx;
        return reserved_bytes(plan, other);
    };
    size_t low = std::min(options.n_ctx, options.max_batch_tokens);
    if (const size_t least = bytes_of(low); least > budget) {
        const auto mebibytes = [](size_t n) { return std::to_string((n + (1U << 20) - 1) >> 20) + " MiB"; };
        throw Error(
            ErrorCode::kBudgetTooSmall,
            "the memory limit does not hold one batch of " + std::to_string(low) + " tokens and the f16 ends of " +
                std::to_string(options.n_seq_max) + " sequences",
            "at least " + mebibytes(least), mebibytes(budget),
            "Raise --kv-budget, or use fewer bits, fewer sequences (-np), a smaller batch (-ub) or --kv-rewind");
    }
    size_t high = options.n_ctx + 1;  // does not fit, or is too many
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        (bytes_of(middle) <= budget ? low : high) = middle;
    }
    return low;
}

std::unique_ptr<KvCache> make_kv_cache(const Plan& plan, const KvCacheOptions& options) {
    return std::make_unique<ServingCache>(plan, options);
}

ServingCache::ServingCache(const Plan& plan, const KvCacheOptions& options)
    : plan_(plan), table_(table_options(plan, options)) {
    size_t largest_open = 0;
    size_t max_group = 1;
    const std::vector<int32_t>& windows = table_.options().sliding_windows;
    units_.resize(table_.n_reaches());
    std::vector<size_t> first_packed;  // of each layer, in a sealed page of its reach
    for (const LayerPlan& layer : plan_.layers) {
        size_t& packed = units_[reach_of(layer, windows)].packed;
        first_packed.push_back(packed);
        packed += LayerStore::packed_page_bytes(layer, plan_.tile_tokens);
    }
    for (size_t reach = 0; reach < units_.size(); ++reach) {
        packed_.emplace_back(table_.n_packed(reach), units_[reach].packed, "packed tiles", SystemPages::kHuge);
        allocated_bytes_ += packed_.back().bytes();
    }
    layers_.reserve(plan_.layers.size());
    for (const LayerPlan& layer : plan_.layers) {
        const LayerShape& shape = layer.shape;
        KVAQ_CHECK(layer.heads.size() == shape.n_kv_heads && shape.n_kv_heads <= kMaxKvHeads);
        if (layer_index_.size() <= static_cast<size_t>(shape.layer))
            layer_index_.resize(static_cast<size_t>(shape.layer) + 1, -1);
        layer_index_[static_cast<size_t>(shape.layer)] = static_cast<int32_t>(layers_.size());
        const size_t reach = reach_of(layer, windows);
        layers_.emplace_back(layer, table_, reach, packed_[reach], first_packed[layers_.size()], turns_of(layer));
        largest_open = std::max(largest_open, layers_.back().open_shape().bytes());
        largest_.head_dim_k = std::max(largest_.head_dim_k, shape.head_dim_k);
        largest_.head_dim_v = std::max(largest_.head_dim_v, shape.head_dim_v);
        max_group = std::max(max_group, shape.heads_per_kv());
        max_kv_heads_ = std::max(max_kv_heads_, shape.n_kv_heads);
        const LayerStore& store = layers_.back();
        ReachUnits& units = units_[reach];
        units.open += store.open_shape().bytes();
        units.sink += store.sink_bytes();
        units.n_tiles += 2 * shape.n_kv_heads;
        auto row = std::find_if(rows_.begin(), rows_.end(),
                                [&](const WindowRow& r) { return r.window == shape.sliding_window; });
        if (row == rows_.end()) row = rows_.insert(row, {.window = shape.sliding_window});
        row->n_elements += shape.n_kv_heads * (shape.head_dim_k + shape.head_dim_v);
        table_bytes_ += table_bytes(layer);
        allocated_bytes_ += store.allocated_bytes();
    }
    largest_.group = max_group;
    largest_.n_tokens = block_tokens();
    scratch_ = Arena(table_.n_scratch(), largest_open, "prefill scratch");
    const TileAttention::Shape split{.n_tokens = std::min(kSplitTokens, block_tokens()),
                                     .n_heads = 0,
                                     .group = max_group,
                                     .head_dim_k = largest_.head_dim_k,
                                     .head_dim_v = largest_.head_dim_v};
    state_stride_ = (TileAttention::state_floats(split) + 15) / 16 * 16;
    decoded_.resize(plan_.tile_tokens * std::max(largest_.head_dim_k, largest_.head_dim_v));
    make_works(std::max<size_t>(1, options.n_threads));
}

/// One table for all layers that turn alike.
std::shared_ptr<const TurnTable> ServingCache::turns_of(const LayerPlan& layer) const {
    if (plan_.key_period == 0 || layer.key_turn.n_dims == 0) return nullptr;
    for (const LayerStore& other : layers_) {
        if (other.key_turns() != nullptr && other.key_turns()->rule() == layer.key_turn)
            return other.shared_key_turns();
    }
    constexpr size_t kMostReady = 4096;
    const size_t n = table_.options().n_ctx / static_cast<size_t>(plan_.key_period) + 1;
    return std::make_shared<const TurnTable>(layer.key_turn, plan_.key_period, std::min(n, kMostReady));
}

void ServingCache::make_works(size_t n_threads) {
    while (works_.size() < n_threads) {
        auto work = std::make_unique<TileAttention>();
        work->reserve(largest_, plan_.tile_tokens);
        works_.push_back(std::move(work));
    }
}

size_t ServingCache::block_tokens() const noexcept {
    return std::max<size_t>(1, (max_kv_heads_ > 1 ? kBlockRows : kFewRows) / largest_.group);
}

const LayerStore& ServingCache::store(int32_t layer) const noexcept {
    const int32_t index =
        layer >= 0 && static_cast<size_t>(layer) < layer_index_.size() ? layer_index_[static_cast<size_t>(layer)] : -1;
    KVAQ_CHECK(index >= 0);
    return layers_[static_cast<size_t>(index)];
}

bool ServingCache::begin(std::span<const BatchToken> tokens) {
    make_works(n_threads_.load(std::memory_order_relaxed));
    if (!table_.begin(tokens, block_tokens())) return false;
    try {
        plan_runs();
        place_writes();
    } catch (...) {
        table_.rollback();
        throw;
    }
    return true;
}

void ServingCache::plan_runs() {
    runs_.clear();
    size_t n_split = 0;
    const std::vector<PageTable::QueryBlock>& blocks = table_.work().blocks;
    for (size_t b = 0; b < blocks.size(); ++b) {
        const size_t n_pages = blocks[b].segments.size();
        const bool split = blocks[b].n_tokens <= kSplitTokens && n_pages > kRunPages;
        const size_t run_pages = split ? kRunPages : n_pages;
        const size_t n_runs = (n_pages + run_pages - 1) / run_pages;
        for (size_t first = 0; first < n_pages; first += run_pages) {
            runs_.push_back({.block = b,
                             .first_page = first,
                             .end_page = std::min(n_pages, first + run_pages),
                             .n_runs = n_runs,
                             .state_slot = n_split});
        }
        if (split) n_split += n_runs;
    }
    const size_t floats = n_split * max_kv_heads_ * state_stride_;
    if (states_.size() < floats) states_.resize(floats);
    next_unit_.store(0, std::memory_order_relaxed);
    next_seal_.store(0, std::memory_order_relaxed);
}

void ServingCache::place_writes() {
    const PageTable::Work& work = table_.work();
    writes_in_runs_ = work.writes.size() <= kSplitTokens && work.copies.empty() && work.seals.empty();
    run_of_write_.clear();
    for (size_t i = 0; i < work.writes.size() && writes_in_runs_; ++i) {
        size_t n_readers = 0;
        for (size_t r = 0; r < runs_.size(); ++r) {
            const std::vector<Segment>& segments = work.blocks[runs_[r].block].segments;
            for (size_t p = runs_[r].first_page; p < runs_[r].end_page; ++p) {
                if (segments[p].page != work.writes[i].page) continue;
                if (n_readers++ == 0) run_of_write_.push_back(r);
            }
        }
        writes_in_runs_ = n_readers == 1;
    }
    const size_t n_counters = work.blocks.size() * max_kv_heads_;
    if (n_finished_.size() < n_counters) n_finished_ = std::vector<std::atomic<uint32_t>>(n_counters);
    for (std::atomic<uint32_t>& n : n_finished_) n.store(0, std::memory_order_relaxed);
}

void ServingCache::write(const AttentionCall& call, const LayerStore& layer, const PageTable::Write& write,
                         size_t first_head, size_t end_head, RopeTurn& turn) noexcept {
    if (write.turn != 0) {
        KVAQ_CHECK(call.rope != nullptr);
        turn.set(*call.rope, -write.turn);
    }
    std::byte* page = layer.f16_page(write.page, scratch_);
    const auto token = static_cast<size_t>(write.token);
    for (size_t head = first_head; head < end_head; ++head) {
        layer.write_token(page, static_cast<size_t>(write.slot), head, call.k.row(token, head), call.v.row(token, head),
                          write.turn != 0 ? &turn : nullptr);
    }
}

void ServingCache::append(const AttentionCall& call, const LayerStore& layer, Team& team) noexcept {
    if (writes_in_runs_) return;
    const PageTable::Work& work = table_.work();
    const size_t n_heads = layer.open_shape().n_kv_heads;
    size_t first = 0;
    RopeTurn turn;  // that of the token before, as a rule
    // A page's new rows of a head are one thread's: keys of neighbouring tokens lie in the same cache lines.
    const auto write_until = [&](size_t end) {
        size_t unit = 0;
        while (first < end) {
            size_t next = first + 1;
            while (next < end && work.writes[next].page == work.writes[first].page) ++next;
            for (size_t head = 0; head < n_heads; ++head, ++unit) {
                if (unit % team.size() != team.index()) continue;
                for (size_t i = first; i < next; ++i) write(call, layer, work.writes[i], head, head + 1, turn);
            }
            first = next;
        }
        team.barrier();
    };
    for (const PageTable::Copy& copy : work.copies) {
        write_until(copy.before_write);
        if (team.index() == 0 && layer.slots(copy.from).live > 0) {  // else the copy took the page over
            layer.copy_slots(layer.f16_page(copy.from, scratch_), layer.f16_page(copy.to, scratch_),
                             static_cast<size_t>(copy.n_tokens));
        }
        team.barrier();
    }
    write_until(work.writes.size());
}

void ServingCache::seal(const LayerStore& layer, Team& team, float* scratch) noexcept {
    const std::vector<int32_t>& seals = table_.work().seals;
    if (seals.empty()) return;
    const size_t n_heads = layer.open_shape().n_kv_heads;
    const size_t n_units = seals.size() * n_heads * 2;
    while (scratch != nullptr) {
        const size_t unit = next_seal_.fetch_add(1);
        if (unit >= n_units) break;
        const int32_t page = seals[unit / (2 * n_heads)];
        const PageSlots& slots = layer.slots(page);
        if (slots.packed == kNone) continue;  // nobody keeps it in this layer
        const std::byte* f16 = layer.f16_page(page, scratch_);
        const Side side = unit % 2 == 0 ? Side::kKey : Side::kValue;
        const size_t head = unit / 2 % n_heads;
        layer.seal(page, f16, side, head, scratch);
        if (head == 0 && side == Side::kKey && slots.sink != kNone) layer.keep_sinks(f16, slots.sink);
    }
    team.barrier();
}

void ServingCache::load_f16(const OpenPageShape& shape, std::byte* page, size_t head, size_t n,
                            TileAttention& work) const noexcept {
    const BlockKernels& kernels = block_kernels(best_simd_target());
    kernels.to_float(shape.keys(page, head), shape.tile_tokens, shape.head_dim_k, n, work.keys(), plan_.tile_tokens);
    const size_t dim = shape.head_dim_v;
    const size_t padded = (dim + 15) / 16 * 16;
    kernels.to_float(shape.values(page, head), dim, n, dim, work.values(), padded);
    for (size_t t = 0; t < n && padded > dim; ++t)
        std::fill(work.values() + t * padded + dim, work.values() + (t + 1) * padded, 0.0F);
}

namespace {
/// Tiles for one TileAttention::add_packed.
struct PackedTiles {
    std::array<TileAttention::PackedTile, TileAttention::kSeveralTiles> tiles;
    size_t n = 0;
    void add(const LayerStore& layer, const PageSlots& slots, size_t kv_head) noexcept {
        tiles[n++] = {layer.tile(slots.packed, Side::kKey, kv_head), layer.tile(slots.packed, Side::kValue, kv_head)};
    }
    [[nodiscard]] std::span<const TileAttention::PackedTile> all() const noexcept { return {tiles.data(), n}; }
};
}  // namespace

/// First query token of a block, from the one that sees the page on, that reads the page packed; n_tokens: none.
size_t ServingCache::first_packed(const PageTable::QueryBlock& block, const Segment& segment) const noexcept {
    const auto n_tokens = static_cast<int32_t>(block.n_tokens);
    const int32_t begin = std::clamp(segment.first() - block.first_pos, 0, n_tokens);
    if (!table_.page(segment.page).sealed) return block.n_tokens;
    if (segment.dropped) return static_cast<size_t>(begin);
    const int32_t old = segment.base + static_cast<int32_t>(plan_.tile_tokens) - 1 + table_.options().window;
    return static_cast<size_t>(std::clamp(old - block.first_pos, begin, n_tokens));
}

/// Pages from `first` on that are read together by the query tokens that read all of them packed, or 1. Which ones follows from the sequence alone, so that
/// a token's sums do not depend on who else is in its block.
size_t ServingCache::group_at(const LayerStore& layer, const PageTable::QueryBlock& block, size_t first, size_t end,
                              size_t most) const noexcept {
    const Segment& a = block.segments[first];
    const auto tile = static_cast<int32_t>(plan_.tile_tokens);
    end = std::min(end, (first / kRunPages + 1) * kRunPages);  // as where a block is split over runs
    if (most == 1 || first + most > end || first % most != 0) return 1;
    for (size_t i = first; i < first + most; ++i) {
        const Segment& b = block.segments[i];
        const bool joins = b.base == a.base + tile * static_cast<int32_t>(i - first) && (i == first || b.begin == 0) &&
                           b.end == tile && (i == first || layer.slots(b.page).sink == kNone) &&
                           table_.page(b.page).frame - b.base == table_.page(a.page).frame - a.base &&
                           layer.steps_back(b.page) == layer.steps_back(a.page) && layer.slots(b.page).live > 0 &&
                           layer.slots(b.page).packed != kNone && first_packed(block, b) < block.n_tokens;
        if (!joins) return 1;
    }
    return most;
}

void ServingCache::attend_run(const AttentionCall& call, const LayerStore& layer, const Run& run, size_t kv_head,
                              const Unit& next, TileAttention& work) noexcept {
    const PageTable::QueryBlock& block = table_.work().blocks[run.block];
    const LayerShape& shape = layer.plan().shape;
    const TileAttention::Shape rows{.n_tokens = block.n_tokens,
                                    .n_heads = shape.n_heads,
                                    .group = shape.heads_per_kv(),
                                    .head_dim_k = shape.head_dim_k,
                                    .head_dim_v = shape.head_dim_v};
    const TileLayout& key_layout = layer.layout(Side::kKey, kv_head);
    const TileLayout& value_layout = layer.layout(Side::kValue, kv_head);
    if (writes_in_runs_) {
        for (size_t i = 0; i < run_of_write_.size(); ++i) {
            if (&runs_[run_of_write_[i]] != &run) continue;
            RopeTurn turn;
            write(call, layer, table_.work().writes[i], kv_head, kv_head + 1, turn);
        }
    }
    work.start(call, block.first_token, block.first_pos, kv_head, rows, key_layout, layer.key_turns());
    // Where a window slides, which pages a token sees begins anywhere: one by one, so that no token's sums depend on its block.
    const bool slides = call.rule.sliding_window > 0;
    const size_t most = slides ? 1 : work.most_tiles(key_layout, value_layout);
    size_t group_begin = 0;
    size_t group_end = 0;  // pages [group_begin, group_end) are read together by the query tokens from group_split on
    size_t group_split = block.n_tokens;
    for (size_t i = run.first_page; i < run.end_page; ++i) {
        const Segment& segment = block.segments[i];
        if (segment.last() < work.first_visible(0)) continue;
        const Page& page = table_.page(segment.page);
        const PageSlots& slots = layer.slots(segment.page);
        KVAQ_CHECK(slots.live > 0);  // else a query would see what its layer has given up
        if (i >= group_end) {
            const size_t n = group_at(layer, block, i, run.end_page, most);
            group_begin = i;
            group_end = i + n;
            group_split = n == 1 ? block.n_tokens : 0;
            for (size_t j = i; n > 1 && j < group_end; ++j)
                group_split = std::max(group_split, first_packed(block, block.segments[j]));
        }
        // Query tokens [begin, split) read the page in f16, [split, n_tokens) packed; those before begin do not see it.
        const auto begin =
            static_cast<size_t>(std::clamp(segment.first() - block.first_pos, 0, static_cast<int32_t>(block.n_tokens)));
        const size_t split = first_packed(block, segment);
        if (split > begin) {
            work.turn(page.frame - segment.base);
            const int32_t newest = block.first_pos + static_cast<int32_t>(split) - 1;
            const TileAttention::Keys keys{
                .first_pos = segment.base,
                .begin = static_cast<size_t>(segment.begin),
                .end = static_cast<size_t>(std::min(segment.end, newest - segment.base + 1))};
            load_f16(layer.open_shape(), layer.f16_page(segment.page, scratch_), kv_head, keys.end, work);
            work.add_f16(keys, plan_.tile_tokens, begin, split);
        }
        const auto add_packed = [&](size_t first, size_t end, size_t token_begin, size_t token_end) {
            const Segment& head = block.segments[first];
            const PageSlots& head_slots = layer.slots(head.page);
            const int32_t delta = table_.page(head.page).frame - head.base;
            TileAttention::Keys keys{
                .first_pos = head.base,
                .begin = static_cast<size_t>(head.begin),
                .end = (end - first - 1) * plan_.tile_tokens + static_cast<size_t>(block.segments[end - 1].end)};
            const size_t sinks = head_slots.sink != kNone ? std::min(layer.sink_shape().tile_tokens, keys.end) : 0;
            if (sinks > keys.begin) {
                work.turn(delta);
                load_f16(layer.sink_shape(), layer.sink_page(head_slots.sink), kv_head, sinks, work);
                work.add_f16({.first_pos = head.base, .begin = keys.begin, .end = sinks}, plan_.tile_tokens,
                             token_begin, token_end);
                keys.begin = sinks;
            }
            work.turn(delta, layer.steps_back(head.page));
            PackedTiles tiles;
            for (size_t j = first; j < end; ++j) tiles.add(layer, layer.slots(block.segments[j].page), kv_head);
            PackedTiles soon;
            const auto ask = [&](const PageTable::QueryBlock& of, size_t j, size_t end_page, size_t head_there) {
                for (; j < end_page && soon.n < tiles.n; ++j) {
                    const PageSlots& there = layer.slots(of.segments[j].page);
                    if (there.packed != kNone) soon.add(layer, there, head_there);
                }
            };
            ask(block, end, run.end_page, kv_head);
            if (soon.n == 0 && next.run != nullptr)
                ask(table_.work().blocks[next.run->block], next.run->first_page, next.run->end_page, next.kv_head);
            work.add_packed(key_layout, value_layout, tiles.all(), keys, token_begin, token_end, soon.all());
        };
        if (split < group_split) add_packed(i, i + 1, split, group_split);
        if (i + 1 == group_end && group_split < block.n_tokens)
            add_packed(group_begin, group_end, group_split, block.n_tokens);
    }
    if (run.n_runs == 1) {
        work.write(call, value_layout);
        return;
    }
    float* states = &states_[(run.state_slot * max_kv_heads_ + kv_head * run.n_runs) * state_stride_];
    work.save(states + run.first_page / kRunPages * state_stride_);
    // The last of a block's runs to finish merges them all, in their order.
    std::atomic<uint32_t>& n_finished = n_finished_[run.block * max_kv_heads_ + kv_head];
    if (n_finished.fetch_add(1, std::memory_order_acq_rel) + 1 < run.n_runs) return;
    n_finished.store(0, std::memory_order_relaxed);
    work.merge(call, rows, block.first_token, kv_head, states, run.n_runs, state_stride_);
    work.write(call, value_layout);
}

void ServingCache::attend(const AttentionCall& call, Team& team) noexcept {
    const LayerStore& layer = store(call.layer);
    const size_t n_heads = layer.open_shape().n_kv_heads;
    // Nothing is allocated here: a thread for which begin() has made no room only writes its share of the tokens.
    TileAttention* work = team.index() < works_.size() ? works_[team.index()].get() : nullptr;
    if (team.index() == 0 && team.size() > n_threads_.load(std::memory_order_relaxed))
        n_threads_.store(team.size(), std::memory_order_relaxed);
    if (work != nullptr) work->begin_call();
    // A layer that shares another one's cache writes the same rows again: the scratch pages are shared by all layers and
    // hold another layer's rows by now.
    append(call, layer, team);
    if (call.append) seal(layer, team, work != nullptr ? work->keys() : nullptr);
    const size_t n_units = runs_.size() * n_heads;
    while (work != nullptr) {
        const size_t unit = next_unit_.fetch_add(1);
        if (unit >= n_units) break;
        // Late blocks of a prefill see most pages: take them first, so that the threads end together. Runs of one block: head by head,
        // so that a thread turns and rounds a head's queries once.
        const bool one_block = runs_.size() > 1 && runs_[0].n_runs == runs_.size();
        const auto of_unit = [&](size_t u) {
            const size_t run = one_block ? u % runs_.size() : u / n_heads;
            return Unit{&runs_[runs_.size() - 1 - run], one_block ? u / runs_.size() : u % n_heads};
        };
        const Unit now = of_unit(unit);
        const size_t later = unit + team.size();  // most likely this thread's next one
        attend_run(call, layer, *now.run, now.kv_head, later < n_units ? of_unit(later) : Unit{}, *work);
    }
    // The last thread to leave makes the counters ready: the others are not back before it has left (AttentionHandler::attend).
    if (n_left_.fetch_add(1, std::memory_order_acq_rel) + 1 < team.size()) return;
    n_left_.store(0, std::memory_order_relaxed);
    next_unit_.store(0, std::memory_order_relaxed);
    next_seal_.store(0, std::memory_order_relaxed);
}

int32_t ServingCache::seq_pos_min(int32_t seq) const noexcept {
    if (seq < 0 || static_cast<size_t>(seq) >= table_.options().n_seq_max) return -1;
    return table_.pos_min(seq);
}

int32_t ServingCache::seq_pos_max(int32_t seq) const noexcept {
    if (seq < 0 || static_cast<size_t>(seq) >= table_.options().n_seq_max) return -1;
    return table_.next_pos(seq) - 1;
}

void ServingCache::unseal(const std::vector<PageTable::Unseal>& unseals) noexcept {
    for (const PageTable::Unseal& unseal : unseals) {
        for (const LayerStore& layer : layers_) {
            if (layer.slots(unseal.to).open == kNone) continue;  // given up: no later token sees it
            layer.unseal(unseal.from, layer.f16_page(unseal.to, scratch_), static_cast<size_t>(unseal.n_tokens),
                         decoded_.data());
        }
    }
    table_.release();
}

bool ServingCache::seq_rm(int32_t seq, int32_t p0, int32_t p1) {
    const auto n_seq = static_cast<int32_t>(table_.options().n_seq_max);
    if (seq >= n_seq) return true;
    std::vector<PageTable::Unseal> unseals;
    const bool done = table_.seq_rm(seq, p0, p1, unseals);
    unseal(unseals);
    return done;
}

bool ServingCache::seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1) {
    const auto n_seq = static_cast<int32_t>(table_.options().n_seq_max);
    if (src < 0 || dst < 0 || src >= n_seq || dst >= n_seq) return false;
    std::vector<PageTable::Unseal> unseals;
    const bool done = table_.seq_cp(src, dst, p0, p1, unseals);
    unseal(unseals);
    return done;
}

bool ServingCache::seq_add(int32_t seq, int32_t p0, int32_t p1, int32_t delta) {
    const auto n_seq = static_cast<int32_t>(table_.options().n_seq_max);
    if (seq >= n_seq) return true;
    return table_.seq_add(seq, p0, p1, delta);
}

CacheUse ServingCache::use() const noexcept {
    CacheUse use;
    for (size_t r = 0; r < units_.size(); ++r) {
        const ReachUnits& units = units_[r];
        const PageTable::SlotCount shared = table_.shared(r);
        use.packed += table_.used_packed(r) * units.packed;
        use.open += table_.used_open(r) * units.open;
        use.sinks += table_.used_sink(r) * units.sink;
        use.shared += shared.packed * units.packed + shared.open * units.open + shared.sink * units.sink;
        use.n_tiles += table_.used_packed(r) * units.n_tiles;
        use.n_tiles_sealed += table_.n_pages_sealed(r) * units.n_tiles;
        use.n_tiles_evicted += table_.n_pages_evicted(r) * units.n_tiles;
    }
    use.tables = table_bytes_;
    use.allocated = allocated_bytes_ + table_bytes_ + scratch_.bytes();
    use.n_tokens = table_.used_tokens();
    use.n_sequences = table_.n_sequences();
    for (const WindowRow& row : rows_) {
        size_t n = 0;
        for (size_t s = 0; s < table_.options().n_seq_max && row.window > 0; ++s) {
            size_t length = 0;
            for (const Segment& segment : table_.segments(static_cast<int32_t>(s)))
                length += static_cast<size_t>(segment.end - segment.begin);
            n += std::min(length, static_cast<size_t>(row.window));
        }
        use.n_elements += row.n_elements * (row.window > 0 ? std::min(n, use.n_tokens) : use.n_tokens);
    }
    return use;
}

std::string ServingCache::path_of(int32_t /*layer*/) const { return "cpu-" + to_string(best_simd_target()); }

std::vector<std::string> ServingCache::describe() const {
    struct Group {
        std::string what;
        std::string path;
        std::vector<int32_t> layers;
        size_t bytes_per_tile = 0;
    };
    std::vector<Group> groups;
    for (const LayerStore& layer : layers_) {
        std::string what = "K";
        const std::vector<HeadPlan>& heads = layer.plan().heads;
        const auto list = [&](auto member) {
            std::string text;
            std::string last;
            for (const HeadPlan& head : heads) {
                const std::string codec = to_string(head.*member);
                if (codec != last) text += (text.empty() ? " " : "/") + codec;
                last = codec;
            }
            return text;
        };
        what += list(&HeadPlan::key) + ", V" + list(&HeadPlan::value);
        if (layer.plan().shape.sliding_window > 0) {
            what += ", sliding window " + std::to_string(layer.plan().shape.sliding_window) +
                    (layer.reach() > 0 ? " (older tiles are freed)" : "");
        }
        const std::string path = path_of(layer.plan().shape.layer);
        auto group = std::find_if(groups.begin(), groups.end(),
                                  [&](const Group& g) { return g.what == what && g.path == path; });
        if (group == groups.end()) {
            groups.push_back({.what = what, .path = path, .layers = {}, .bytes_per_tile = layer.packed_bytes()});
            group = groups.end() - 1;
        }
        group->layers.push_back(layer.plan().shape.layer);
    }
    std::vector<std::string> lines;
    for (const Group& group : groups) {
        std::string layers;
        for (size_t i = 0; i < group.layers.size();) {
            size_t j = i;
            while (j + 1 < group.layers.size() && group.layers[j + 1] == group.layers[j] + 1) ++j;
            layers += (layers.empty() ? "" : ",") + std::to_string(group.layers[i]);
            if (j > i) layers += "-" + std::to_string(group.layers[j]);
            i = j + 1;
        }
        const double per_token = static_cast<double>(group.bytes_per_tile) / static_cast<double>(plan_.tile_tokens);
        char number[32];
        std::snprintf(number, sizeof number, "%.1f", per_token);
        lines.push_back("layers " + layers + ": " + group.what + "; " + number + " bytes/token per layer; attention " +
                        group.path);
    }
    return lines;
}

}  // namespace kvaq
