// One sequence as bytes (docs/formats.md, "Sequence snapshot"). Little-endian:
//   SnapshotHeader | SnapshotPage [n_pages] | SnapshotSegment [n_segments] | per layer, per page it keeps: tiles, sink rows, f16 rows |
//   sha256 of all before
#include "kvaq/cache/snapshot.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"
#include "kvaq/cache/serving_cache.h"

namespace kvaq {
namespace {

constexpr std::array<char, 8> kMagic = {'K', 'V', 'A', 'Q', 'S', 'E', 'Q', '2'};
constexpr uint8_t kSealed = 1;
constexpr uint8_t kF16 = 2;
constexpr uint8_t kRequantized = 4;
constexpr int32_t kMaxPosition = 1 << 30;
constexpr const char* kUnchanged = "The sequence is unchanged";

struct SnapshotHeader {
    std::array<char, 8> magic = kMagic;
    std::array<uint8_t, 32> plan_digest = {};
    uint32_t n_pages = 0;
    uint32_t n_segments = 0;
    uint32_t n_reaches = 0;
    uint32_t zero = 0;
};
static_assert(sizeof(SnapshotHeader) == 56);

struct SnapshotPage {
    int32_t frame = 0;
    int32_t n_filled = 0;
    uint8_t flags = 0;
    uint8_t kept = 0;  ///< bit r: the layers of reach r have it
    uint16_t zero = 0;
};
static_assert(sizeof(SnapshotPage) == 12);

struct SnapshotSegment {
    uint32_t page = 0;
    int32_t base = 0;
    int16_t begin = 0, end = 0;
    uint8_t kept = 0;
    uint8_t dropped = 0;
    uint16_t zero = 0;
};
static_assert(sizeof(SnapshotSegment) == 16);

struct Contents {
    std::vector<SnapshotPage> pages;
    std::vector<SnapshotSegment> segments;
    std::vector<int32_t> ids;  ///< the table's, of the pages
    [[nodiscard]] size_t bytes() const noexcept {
        return pages.size() * sizeof(SnapshotPage) + segments.size() * sizeof(SnapshotSegment);
    }
};

std::array<uint8_t, 32> digest_of(std::span<const std::byte> bytes) {
    Sha256 hash;
    hash.update(bytes);
    return hash.digest();
}

std::array<uint8_t, 32> plan_digest(const Plan& plan) {
    std::string text = plan.fingerprint + "|" + std::to_string(plan.tile_tokens) + "|" + std::to_string(plan.window) +
                       "|" + std::to_string(plan.sinks);
    for (const LayerPlan& layer : plan.layers) {
        text += "|" + std::to_string(layer.shape.layer) + ":" + std::to_string(layer.shape.head_dim_k) + ":" +
                std::to_string(layer.shape.head_dim_v);
        if (plan.key_period > 0) {
            text += ":" + std::to_string(plan.key_period) + (layer.key_turn.interleaved ? "i" : "n") +
                    std::to_string(layer.key_turn.first_channel);
            for (const double f : layer.key_turn.frequencies) text += ":" + std::to_string(std::bit_cast<uint64_t>(f));
        }
        for (const HeadPlan& head : layer.heads) text += "," + to_string(head.key) + "/" + to_string(head.value);
    }
    return digest_of(std::as_bytes(std::span(text)));
}

/// What of a sequence is to be written: f16 rows only where the sequence itself still reads them, and of an open last page only its own
/// tokens (others that share the page, or drafts cut off since, may have sealed it). Of sliding-window layers what a cache without KvCacheOptions::rewind keeps.
Contents contents_of(const PageTable& table, int32_t seq) {
    Contents out;
    const auto all = table.segments(seq);
    const auto mask = static_cast<uint8_t>((1U << table.n_reaches()) - 1);
    const auto tile = static_cast<int32_t>(table.options().tile_tokens);
    const bool open_end = !all.empty() && all.back().end < tile && !all.back().dropped;
    for (const Segment& segment : all) {
        const auto found = std::find(out.ids.begin(), out.ids.end(), segment.page);
        const auto index = static_cast<size_t>(found - out.ids.begin());
        const Page& page = table.page(segment.page);
        const bool last = open_end && segment.page == all.back().page;
        if (found == out.ids.end()) {
            out.ids.push_back(segment.page);
            out.pages.push_back({.frame = page.frame, .n_filled = last ? all.back().end : page.n_filled});
        }
        const bool dropped = segment.dropped || !table.wants_f16(segment, all.back().last());
        const bool sealed = page.sealed && !last && dropped;
        SnapshotPage& saved = out.pages[index];
        if (sealed) saved.flags |= kSealed;
        if (!sealed) saved.flags |= kF16;
        if (page.requantized) saved.flags |= kRequantized;
        auto kept = static_cast<uint8_t>(segment.kept & mask);
        for (size_t r = 1; r < table.n_reaches(); ++r) {
            if (segment.last() < table.needed_from(r, all.back().last() + 1, tile))
                kept = static_cast<uint8_t>(kept & ~(1U << r));
        }
        saved.kept = static_cast<uint8_t>(saved.kept | kept);
        out.segments.push_back({.page = static_cast<uint32_t>(index),
                                .base = segment.base,
                                .begin = static_cast<int16_t>(segment.begin),
                                .end = static_cast<int16_t>(segment.end),
                                .kept = kept,
                                .dropped = static_cast<uint8_t>(sealed ? 1 : 0)});
    }
    return out;
}

bool keeps(const SnapshotPage& page, size_t reach) { return ((page.kept >> reach) & 1) != 0; }

size_t layer_bytes(const LayerStore& layer, const SnapshotPage& page) {
    if (!keeps(page, layer.reach())) return 0;
    size_t bytes = 0;
    if ((page.flags & kSealed) != 0) bytes += layer.packed_bytes() + (page.frame == 0 ? layer.sink_bytes() : 0);
    if ((page.flags & kF16) != 0) bytes += layer.open_shape().bytes();
    return bytes;
}

/// Whether a table could have come to hold this: the reader trusts nothing, a checksum is no signature.
bool sane(const Contents& c, const PageTableOptions& options, size_t n_reaches) {
    const auto tile = static_cast<int32_t>(options.tile_tokens);
    const uint32_t all_reaches = (1U << n_reaches) - 1;
    for (const SnapshotPage& page : c.pages) {
        if (page.frame < 0 || page.frame > kMaxPosition || page.n_filled <= 0 || page.n_filled > tile ||
            (page.flags & (kSealed | kF16)) == 0 || (page.flags & ~(kSealed | kF16 | kRequantized)) != 0 ||
            (page.kept & ~all_reaches) != 0 || page.zero != 0 || ((page.flags & kSealed) != 0 && page.n_filled < tile))
            return false;
    }
    std::vector<uint32_t> kept(c.pages.size(), 0);
    size_t n_named = 0;  // pages are numbered in the order of the segments that name them first
    int32_t next = 0;
    for (size_t i = 0; i < c.segments.size(); ++i) {
        const SnapshotSegment& s = c.segments[i];
        if (s.page > n_named || s.page >= c.pages.size()) return false;
        if (s.page == n_named) ++n_named;
        const SnapshotPage& page = c.pages[s.page];
        if (s.begin < 0 || s.end <= s.begin || s.end > page.n_filled || s.base < -tile || s.base > kMaxPosition ||
            s.base + s.begin < next || s.dropped > 1 || s.zero != 0 || (s.kept & 1) == 0)
            return false;
        if ((page.flags & (s.dropped != 0 ? kSealed : kF16)) == 0) return false;
        if (i > 0 && (c.segments[i - 1].kept & ~s.kept) != 0) return false;  // given up from the front
        kept[s.page] |= s.kept;
        next = s.base + s.end;
    }
    if (n_named != c.pages.size() || c.segments.back().kept != all_reaches) return false;
    const SnapshotSegment& last = c.segments.back();
    for (size_t i = 0; i < c.pages.size(); ++i) {
        if (kept[i] != c.pages[i].kept) return false;
        if (i != last.page && c.pages[i].n_filled < tile) return false;  // only the last page may go on
    }
    const bool open_end = last.end < tile && last.dropped == 0;
    if (open_end && (c.pages[last.page].n_filled != last.end || (c.pages[last.page].flags & kSealed) != 0))
        return false;
    if (!open_end && c.pages[last.page].n_filled < tile) return false;
    for (const SnapshotSegment& s : c.segments) {
        for (size_t r = 1; r < n_reaches; ++r) {
            const bool needed = s.base + s.end - 1 > next - std::max(options.sliding_windows[r - 1], 2);
            if (needed && ((s.kept >> r) & 1) == 0) return false;
        }
    }
    return true;
}

/// Checks everything that can be checked without the table. Throws Error.
SnapshotHeader checked_header(std::span<const std::byte> bytes, const Plan& plan, size_t n_reaches) {
    SnapshotHeader header;
    if (bytes.size() < sizeof header + 32) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot is truncated",
                    "at least " + std::to_string(sizeof header + 32) + " bytes", std::to_string(bytes.size()),
                    kUnchanged);
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.magic != kMagic) {
        const bool older = std::equal(kMagic.begin(), kMagic.end() - 1, header.magic.begin());
        throw Error(ErrorCode::kCorrupt, "not a sequence snapshot of this version", "magic KVAQSEQ2",
                    older ? std::string("KVAQSEQ") + header.magic.back() : "other bytes", kUnchanged);
    }
    const auto body = bytes.first(bytes.size() - 32);
    const auto digest = digest_of(body);
    if (std::memcmp(digest.data(), bytes.data() + body.size(), digest.size()) != 0) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot is damaged or truncated", "its sha256", "another",
                    kUnchanged);
    }
    if (header.plan_digest != plan_digest(plan)) {
        throw Error(ErrorCode::kMismatch, "the sequence snapshot was made with another plan or model",
                    "plan '" + plan.name + "'", "another digest",
                    std::string("Restore it with the plan it was saved with. ") + kUnchanged);
    }
    if (header.n_reaches != n_reaches) {
        const auto windows = [](bool whole) {
            return whole ? "sliding windows kept whole (--swa-full, or a context no longer than the window)"
                         : "sliding windows that free older tiles";
        };
        throw Error(ErrorCode::kMismatch, "the sequence snapshot was made with other flags", windows(n_reaches == 1),
                    windows(header.n_reaches == 1), kUnchanged);
    }
    const size_t n_described = header.n_pages * sizeof(SnapshotPage) + header.n_segments * sizeof(SnapshotSegment);
    if (header.n_pages == 0 || header.n_segments < header.n_pages || header.zero != 0 ||
        header.n_segments > kMaxPosition || n_described > body.size() - sizeof header) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot's counts do not agree", "", "", kUnchanged);
    }
    return header;
}

}  // namespace

size_t ServingCache::sequence_bytes(int32_t seq) const {
    if (seq < 0 || static_cast<size_t>(seq) >= table_.options().n_seq_max) return 0;
    const Contents contents = contents_of(table_, seq);
    if (contents.segments.empty()) return 0;
    size_t bytes = sizeof(SnapshotHeader) + contents.bytes() + 32;
    for (const SnapshotPage& page : contents.pages) {
        for (const LayerStore& layer : layers_) bytes += layer_bytes(layer, page);
    }
    return bytes;
}

std::vector<std::byte> ServingCache::save_sequence(int32_t seq) const {
    std::vector<std::byte> out;
    const size_t n_bytes = sequence_bytes(seq);
    if (n_bytes == 0) return out;
    out.reserve(n_bytes);
    const auto put = [&out](const void* data, size_t n) {
        const auto* bytes = static_cast<const std::byte*>(data);
        out.insert(out.end(), bytes, bytes + n);
    };
    const Contents contents = contents_of(table_, seq);
    SnapshotHeader header;
    header.plan_digest = plan_digest(plan_);
    header.n_pages = static_cast<uint32_t>(contents.pages.size());
    header.n_segments = static_cast<uint32_t>(contents.segments.size());
    header.n_reaches = static_cast<uint32_t>(table_.n_reaches());
    put(&header, sizeof header);
    put(contents.pages.data(), contents.pages.size() * sizeof(SnapshotPage));
    put(contents.segments.data(), contents.segments.size() * sizeof(SnapshotSegment));
    for (const LayerStore& layer : layers_) {
        std::vector<std::byte> rows(layer.open_shape().bytes());
        for (size_t i = 0; i < contents.pages.size(); ++i) {
            const SnapshotPage& page = contents.pages[i];
            if (!keeps(page, layer.reach())) continue;
            const PageSlots& slots = layer.slots(contents.ids[i]);
            if ((page.flags & kSealed) != 0) {
                put(layer.packed_page(slots.packed), layer.packed_bytes());
                if (slots.sink != kNone) put(layer.sink_page(slots.sink), layer.sink_bytes());
            }
            if ((page.flags & kF16) == 0) continue;
            std::fill(rows.begin(), rows.end(), std::byte{0});  // slots not in use hold whatever was there before
            layer.copy_slots(layer.f16_page(contents.ids[i], scratch_), rows.data(),
                             static_cast<size_t>(page.n_filled));
            put(rows.data(), rows.size());
        }
    }
    const auto digest = digest_of(out);
    put(digest.data(), digest.size());
    return out;
}

ServingCache::Snapshot ServingCache::read_snapshot(std::span<const std::byte> bytes) const {
    const SnapshotHeader header = checked_header(bytes, plan_, table_.n_reaches());
    Snapshot snapshot;
    Contents contents;
    contents.pages.resize(header.n_pages);
    contents.segments.resize(header.n_segments);
    const std::byte* from = bytes.data() + sizeof header;
    const auto get = [&from](void* to, size_t n_bytes) {
        std::memcpy(to, from, n_bytes);
        from += n_bytes;
    };
    get(contents.pages.data(), contents.pages.size() * sizeof(SnapshotPage));
    get(contents.segments.data(), contents.segments.size() * sizeof(SnapshotSegment));
    if (!sane(contents, table_.options(), table_.n_reaches())) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot describes a sequence that cannot be", "", "",
                    kUnchanged);
    }
    size_t expected = sizeof header + contents.bytes() + 32;
    for (const SnapshotPage& page : contents.pages) {
        for (const LayerStore& layer : layers_) expected += layer_bytes(layer, page);
        snapshot.saved.pages.push_back({.frame = page.frame,
                                        .n_filled = page.n_filled,
                                        .sealed = (page.flags & kSealed) != 0,
                                        .f16 = (page.flags & kF16) != 0,
                                        .requantized = (page.flags & kRequantized) != 0});
        snapshot.kept.push_back(page.kept);
    }
    for (const SnapshotSegment& s : contents.segments) {
        snapshot.saved.segments.push_back({.page = static_cast<int32_t>(s.page),
                                           .base = s.base,
                                           .begin = s.begin,
                                           .end = s.end,
                                           .kept = s.kept,
                                           .dropped = s.dropped != 0});
    }
    if (expected != bytes.size()) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot has the wrong size",
                    std::to_string(expected) + " bytes", std::to_string(bytes.size()), kUnchanged);
    }
    snapshot.contents = from;
    return snapshot;
}

void ServingCache::fill(int32_t seq, const Snapshot& snapshot) noexcept {
    const std::vector<PageTable::SavedPage>& pages = snapshot.saved.pages;
    const auto segments = table_.segments(seq);
    const std::byte* from = snapshot.contents;
    const auto get = [&from](void* to, size_t n_bytes) {
        std::memcpy(to, from, n_bytes);
        from += n_bytes;
    };
    for (const LayerStore& layer : layers_) {
        size_t segment = 0;  // pages are numbered in the order of the segments that name them first
        for (size_t i = 0; i < pages.size(); ++i) {
            while (snapshot.saved.segments[segment].page < static_cast<int32_t>(i)) ++segment;
            const int32_t id = segments[segment].page;
            if (((snapshot.kept[i] >> layer.reach()) & 1) == 0) continue;
            const PageSlots& slots = layer.slots(id);
            if (pages[i].sealed) {
                get(layer.packed_page(slots.packed), layer.packed_bytes());
                if (slots.sink != kNone) get(layer.sink_page(slots.sink), layer.sink_bytes());
            }
            if (pages[i].f16) get(layer.f16_page(id, scratch_), layer.open_shape().bytes());
        }
    }
    restored(seq);
}

void ServingCache::load_sequence(int32_t seq, std::span<const std::byte> bytes) {
    if (seq < 0 || static_cast<size_t>(seq) >= table_.options().n_seq_max) {
        throw Error(ErrorCode::kInvalidArgument, "invalid sequence id",
                    "0.." + std::to_string(table_.options().n_seq_max - 1), std::to_string(seq), kUnchanged);
    }
    const Snapshot snapshot = read_snapshot(bytes);
    if (!table_.replace(seq, snapshot.saved)) {  // nothing throws any more once it has happened
        throw Error(ErrorCode::kOutOfMemory, "no room for the sequence snapshot",
                    std::to_string(snapshot.saved.segments.size()) + " runs of tokens", "fewer free pages", kUnchanged);
    }
    fill(seq, snapshot);
}

}  // namespace kvaq
