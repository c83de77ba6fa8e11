// One sequence as bytes (docs/formats.md, "Sequence snapshot"). Little-endian:
//   SnapshotHeader | SnapshotSegment [n_segments] | per layer, per segment it keeps: tiles, sink rows, f16 rows | sha256 of all before
#include <algorithm>
#include <array>
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
constexpr int32_t kMaxPosition = 1 << 30;

struct SnapshotHeader {
    std::array<char, 8> magic = kMagic;
    std::array<uint8_t, 32> plan_digest = {};
    uint32_t n_segments = 0;
    uint32_t n_reaches = 0;
};
static_assert(sizeof(SnapshotHeader) == 48);

struct SnapshotSegment {
    int32_t base = 0, begin = 0, end = 0, frame = 0;
    uint8_t flags = 0;
    uint8_t kept = 0;
    uint16_t zero = 0;
};
static_assert(sizeof(SnapshotSegment) == 20);

std::array<uint8_t, 32> digest_of(std::span<const std::byte> bytes) {
    Sha256 hash;
    hash.update(bytes);
    return hash.digest();
}

std::array<uint8_t, 32> plan_digest(const Plan& plan) {
    std::string text = plan.fingerprint + "|" + std::to_string(plan.tile_tokens) + "|" + std::to_string(plan.window) + "|" +
                       std::to_string(plan.sinks);
    for (const LayerPlan& layer : plan.layers) {
        text += "|" + std::to_string(layer.shape.layer) + ":" + std::to_string(layer.shape.head_dim_k) + ":" +
                std::to_string(layer.shape.head_dim_v);
        for (const HeadPlan& head : layer.heads) text += "," + to_string(head.key) + "/" + to_string(head.value);
    }
    return digest_of(std::as_bytes(std::span(text)));
}

/// What of a sequence is to be written: the f16 rows only where the sequence itself still reads them.
std::vector<SnapshotSegment> segments_of(const PageTable& table, int32_t seq) {
    std::vector<SnapshotSegment> out;
    const auto mask = static_cast<uint8_t>((1U << table.n_reaches()) - 1);
    for (const Segment& segment : table.segments(seq)) {
        const Page& page = table.page(segment.page);
        const bool f16 = !segment.dropped || !page.sealed;
        out.push_back({.base = segment.base,
                       .begin = segment.begin,
                       .end = segment.end,
                       .frame = page.frame,
                       .flags = static_cast<uint8_t>((page.sealed ? kSealed : 0) | (f16 ? kF16 : 0)),
                       .kept = static_cast<uint8_t>(segment.kept & mask)});
    }
    return out;
}

bool keeps(const SnapshotSegment& segment, size_t reach) { return ((segment.kept >> reach) & 1) != 0; }

size_t layer_bytes(const LayerStore& layer, const SnapshotSegment& segment) {
    if (!keeps(segment, layer.reach())) return 0;
    size_t bytes = 0;
    if ((segment.flags & kSealed) != 0) bytes += layer.packed_bytes() + (segment.frame == 0 ? layer.sink_bytes() : 0);
    if ((segment.flags & kF16) != 0) bytes += layer.open_shape().bytes();
    return bytes;
}

/// Whether a table could have come to hold these segments: the reader trusts nothing, a checksum is no signature.
bool sane(std::span<const SnapshotSegment> segments, const PageTableOptions& options, size_t n_reaches) {
    const auto tile = static_cast<int32_t>(options.tile_tokens);
    int32_t next = 0;
    for (size_t i = 0; i < segments.size(); ++i) {
        const SnapshotSegment& s = segments[i];
        const bool last = i + 1 == segments.size();
        if (s.begin < 0 || s.end <= s.begin || s.end > tile || s.base < -tile || s.base > kMaxPosition || s.frame < 0 || s.frame > kMaxPosition) return false;
        if (s.base + s.begin < next || (s.flags & ~(kSealed | kF16)) != 0 || s.flags == 0 || (s.kept >> n_reaches) != 0 || s.zero != 0) return false;
        if (!keeps(s, 0) || (last && s.end < tile && (s.flags & kF16) == 0)) return false;
        if (i > 0 && (segments[i - 1].kept & ~s.kept) != 0) return false;  // what is given up is given up from the front
        if (last && s.kept != (1U << n_reaches) - 1) return false;
        next = s.base + s.end;
    }
    for (const SnapshotSegment& s : segments) {
        for (size_t r = 1; r < n_reaches; ++r) {
            if (s.base + s.end - 1 > next - std::max(options.sliding_windows[r - 1], 2) && !keeps(s, r)) return false;
        }
    }
    return true;
}

}  // namespace

size_t ServingCache::sequence_bytes(int32_t seq) const {
    if (seq < 0 || static_cast<size_t>(seq) >= table_.options().n_seq_max) return 0;
    const std::vector<SnapshotSegment> segments = segments_of(table_, seq);
    if (segments.empty()) return 0;
    size_t bytes = sizeof(SnapshotHeader) + segments.size() * sizeof(SnapshotSegment) + 32;
    for (const SnapshotSegment& segment : segments) {
        for (const LayerStore& layer : layers_) bytes += layer_bytes(layer, segment);
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
    const std::vector<SnapshotSegment> segments = segments_of(table_, seq);
    SnapshotHeader header;
    header.plan_digest = plan_digest(plan_);
    header.n_segments = static_cast<uint32_t>(segments.size());
    header.n_reaches = static_cast<uint32_t>(table_.n_reaches());
    put(&header, sizeof header);
    put(segments.data(), segments.size() * sizeof(SnapshotSegment));
    const auto pages = table_.segments(seq);
    for (const LayerStore& layer : layers_) {
        std::vector<std::byte> rows(layer.open_shape().bytes());
        for (size_t i = 0; i < segments.size(); ++i) {
            if (!keeps(segments[i], layer.reach())) continue;
            const PageSlots& slots = layer.slots(pages[i].page);
            if (slots.packed != kNone) put(layer.packed_page(slots.packed), layer.packed_bytes());
            if (slots.sink != kNone) put(layer.sink_page(slots.sink), layer.sink_bytes());
            if ((segments[i].flags & kF16) == 0) continue;
            std::fill(rows.begin(), rows.end(), std::byte{0});  // slots not in use hold whatever was there before
            layer.copy_slots(layer.f16_page(pages[i].page, scratch_), rows.data(), static_cast<size_t>(segments[i].end));
            put(rows.data(), rows.size());
        }
    }
    const auto digest = digest_of(out);
    put(digest.data(), digest.size());
    return out;
}

void ServingCache::load_sequence(int32_t seq, std::span<const std::byte> bytes) {
    const std::string unchanged = "The sequence is unchanged";
    if (seq < 0 || static_cast<size_t>(seq) >= table_.options().n_seq_max) {
        throw Error(ErrorCode::kInvalidArgument, "invalid sequence id", "0.." + std::to_string(table_.options().n_seq_max - 1), std::to_string(seq), unchanged);
    }
    SnapshotHeader header;
    if (bytes.size() < sizeof header + 32) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot is truncated", "at least " + std::to_string(sizeof header + 32) + " bytes",
                    std::to_string(bytes.size()), unchanged);
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.magic != kMagic) {
        throw Error(ErrorCode::kCorrupt, "not a kvaq sequence snapshot", "magic KVAQSEQ2", "other bytes", unchanged);
    }
    const auto body = bytes.first(bytes.size() - 32);
    const auto digest = digest_of(body);
    if (std::memcmp(digest.data(), bytes.data() + body.size(), digest.size()) != 0) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot is damaged or truncated", "its sha256", "another", unchanged);
    }
    if (header.plan_digest != plan_digest(plan_)) {
        throw Error(ErrorCode::kMismatch, "the sequence snapshot was made with another plan or model", "plan '" + plan_.name + "'",
                    "another digest", "Restore it with the plan it was saved with. " + unchanged);
    }
    if (header.n_reaches != table_.n_reaches()) {
        throw Error(ErrorCode::kMismatch, "the sequence snapshot was made with another treatment of sliding windows", "the same --swa-full",
                    "another", unchanged);
    }
    const size_t n = header.n_segments;
    if (n == 0 || n > (body.size() - sizeof header) / sizeof(SnapshotSegment)) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot's counts do not agree", "", "", unchanged);
    }
    std::vector<SnapshotSegment> segments(n);
    std::memcpy(segments.data(), body.data() + sizeof header, n * sizeof(SnapshotSegment));
    if (!sane(segments, table_.options(), table_.n_reaches())) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot describes a sequence that cannot be", "", "", unchanged);
    }
    size_t expected = sizeof header + n * sizeof(SnapshotSegment);
    std::vector<PageTable::Saved> saved;
    for (const SnapshotSegment& s : segments) {
        for (const LayerStore& layer : layers_) expected += layer_bytes(layer, s);
        saved.push_back({.segment = {.base = s.base, .begin = s.begin, .end = s.end, .kept = s.kept, .dropped = (s.flags & kF16) == 0},
                         .frame = s.frame,
                         .sealed = (s.flags & kSealed) != 0,
                         .f16 = (s.flags & kF16) != 0});
    }
    if (expected != body.size()) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot has the wrong size", std::to_string(expected + 32) + " bytes",
                    std::to_string(bytes.size()), unchanged);
    }
    if (!table_.replace(seq, saved)) {
        throw Error(ErrorCode::kOutOfMemory, "no room for the sequence snapshot", std::to_string(segments.back().base + segments.back().end) + " tokens",
                    "fewer free", unchanged);
    }
    const auto pages = table_.segments(seq);
    const std::byte* from = body.data() + sizeof header + n * sizeof(SnapshotSegment);
    const auto get = [&from](std::byte* to, size_t n_bytes) {
        std::memcpy(to, from, n_bytes);
        from += n_bytes;
    };
    for (const LayerStore& layer : layers_) {
        for (size_t i = 0; i < n; ++i) {
            if (!keeps(segments[i], layer.reach())) continue;
            const PageSlots& slots = layer.slots(pages[i].page);
            if (slots.packed != kNone) get(layer.packed_page(slots.packed), layer.packed_bytes());
            if (slots.sink != kNone) get(layer.sink_page(slots.sink), layer.sink_bytes());
            if (saved[i].f16) get(layer.f16_page(pages[i].page, scratch_), layer.open_shape().bytes());
        }
    }
}

}  // namespace kvaq
