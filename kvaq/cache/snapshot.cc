// One sequence as bytes (docs/formats.md, "Sequence snapshot"). Little-endian:
//   SnapshotHeader | flags [n_pages] (1 = sealed, 2 = f16) | per layer, per page: tiles, sink rows, f16 rows | sha256 of all before
#include <algorithm>
#include <array>
#include <cstring>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"
#include "kvaq/cache/serving_cache.h"

namespace kvaq {
namespace {

constexpr std::array<char, 8> kMagic = {'K', 'V', 'A', 'Q', 'S', 'E', 'Q', '1'};
constexpr uint8_t kSealed = 1;
constexpr uint8_t kF16 = 2;

struct SnapshotHeader {
    std::array<char, 8> magic = kMagic;
    std::array<uint8_t, 32> plan_digest = {};
    int32_t n_tokens = 0;
    uint32_t n_pages = 0;
};
static_assert(sizeof(SnapshotHeader) == 48);

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
        for (const HeadPlan& head : layer.heads) text += "," + to_string(head.key) + "/" + to_string(head.value);
    }
    return digest_of(std::as_bytes(std::span(text)));
}

}  // namespace

size_t ServingCache::sequence_bytes(int32_t seq) const {
    const auto pages = table_.pages(seq);
    if (pages.empty()) return 0;
    size_t bytes = sizeof(SnapshotHeader) + pages.size() + 32;
    for (size_t i = 0; i < pages.size(); ++i) {
        const Page& page = table_.page(pages[i]);
        const bool f16 = static_cast<int32_t>(i) >= table_.f16_from(seq) || page.packed == kNone;
        for (const LayerStore& layer : layers_) {
            if (page.packed != kNone) bytes += layer.packed_bytes();
            if (page.sink != kNone) bytes += layer.sink_bytes();
            if (f16) bytes += layer.open_shape().bytes();
        }
    }
    return bytes;
}

std::vector<std::byte> ServingCache::save_sequence(int32_t seq) const {
    std::vector<std::byte> out;
    const auto pages = table_.pages(seq);
    if (pages.empty()) return out;
    out.reserve(sequence_bytes(seq));
    const auto put = [&out](const void* data, size_t n) {
        const auto* bytes = static_cast<const std::byte*>(data);
        out.insert(out.end(), bytes, bytes + n);
    };
    SnapshotHeader header;
    header.plan_digest = plan_digest(plan_);
    header.n_tokens = table_.n_tokens(seq);
    header.n_pages = static_cast<uint32_t>(pages.size());
    put(&header, sizeof header);
    std::vector<uint8_t> flags;
    for (size_t i = 0; i < pages.size(); ++i) {
        const Page& page = table_.page(pages[i]);
        const bool f16 = static_cast<int32_t>(i) >= table_.f16_from(seq) || page.packed == kNone;
        flags.push_back(static_cast<uint8_t>((page.packed != kNone ? kSealed : 0) | (f16 ? kF16 : 0)));
    }
    put(flags.data(), flags.size());
    for (const LayerStore& layer : layers_) {
        std::vector<std::byte> rows(layer.open_shape().bytes());
        for (size_t i = 0; i < pages.size(); ++i) {
            const Page& page = table_.page(pages[i]);
            if (page.packed != kNone) put(layer.packed_page(page.packed), layer.packed_bytes());
            if (page.sink != kNone) put(layer.sink_page(page.sink), layer.sink_bytes());
            if ((flags[i] & kF16) == 0) continue;
            const size_t used =
                std::min(plan_.tile_tokens, static_cast<size_t>(header.n_tokens) - i * plan_.tile_tokens);
            std::fill(rows.begin(), rows.end(), std::byte{0});  // slots not in use hold whatever was there before
            layer.copy_slots(layer.f16_page(page, scratch_), rows.data(), used);
            put(rows.data(), rows.size());
        }
    }
    const auto digest = digest_of(out);
    put(digest.data(), digest.size());
    return out;
}

void ServingCache::load_sequence(int32_t seq, std::span<const std::byte> bytes) {
    SnapshotHeader header;
    if (bytes.size() < sizeof header + 32) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot is truncated",
                    "at least " + std::to_string(sizeof header + 32) + " bytes", std::to_string(bytes.size()),
                    "The sequence is unchanged");
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.magic != kMagic) {
        throw Error(ErrorCode::kCorrupt, "not a kvaq sequence snapshot", "magic KVAQSEQ1", "other bytes",
                    "The sequence is unchanged");
    }
    const auto body = bytes.first(bytes.size() - 32);
    const auto digest = digest_of(body);
    if (std::memcmp(digest.data(), bytes.data() + body.size(), digest.size()) != 0) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot is damaged or truncated", "its sha256", "another",
                    "The sequence is unchanged");
    }
    if (header.plan_digest != plan_digest(plan_)) {
        throw Error(ErrorCode::kMismatch, "the sequence snapshot was made with another plan or model",
                    "plan '" + plan_.name + "'", "another digest",
                    "Restore it with the plan it was saved with. The sequence is unchanged");
    }
    const size_t n_pages = header.n_pages;
    const size_t tile = plan_.tile_tokens;
    const bool sane = header.n_tokens > 0 && n_pages == (static_cast<size_t>(header.n_tokens) + tile - 1) / tile &&
                      body.size() >= sizeof header + n_pages;
    if (!sane)
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot's counts do not agree", "", "",
                    "The sequence is unchanged");
    std::vector<uint8_t> sealed(n_pages), f16(n_pages);
    size_t expected = sizeof header + n_pages;
    for (size_t i = 0; i < n_pages; ++i) {
        const auto flag = static_cast<uint8_t>(body[sizeof header + i]);
        sealed[i] = flag & kSealed;
        f16[i] = (flag & kF16) != 0 ? 1 : 0;
        if ((sealed[i] | f16[i]) == 0 || (sealed[i] != 0 && (i + 1) * tile > static_cast<size_t>(header.n_tokens))) {
            throw Error(ErrorCode::kCorrupt, "the sequence snapshot has a page without contents", "", "",
                        "The sequence is unchanged");
        }
        for (const LayerStore& layer : layers_) {
            if (sealed[i] != 0) expected += layer.packed_bytes() + (i == 0 ? layer.sink_bytes() : 0);
            if (f16[i] != 0) expected += layer.open_shape().bytes();
        }
    }
    if (expected != body.size()) {
        throw Error(ErrorCode::kCorrupt, "the sequence snapshot has the wrong size",
                    std::to_string(expected + 32) + " bytes", std::to_string(bytes.size()),
                    "The sequence is unchanged");
    }
    if (!table_.replace(seq, header.n_tokens, sealed, f16)) {
        throw Error(ErrorCode::kOutOfMemory, "no room for the sequence snapshot",
                    std::to_string(header.n_tokens) + " tokens", "fewer free", "The sequence is unchanged");
    }
    const auto pages = table_.pages(seq);
    const std::byte* from = body.data() + sizeof header + n_pages;
    const auto get = [&from](std::byte* to, size_t n) {
        std::memcpy(to, from, n);
        from += n;
    };
    for (const LayerStore& layer : layers_) {
        for (size_t i = 0; i < n_pages; ++i) {
            const Page& page = table_.page(pages[i]);
            if (page.packed != kNone) get(layer.packed_page(page.packed), layer.packed_bytes());
            if (page.sink != kNone) get(layer.sink_page(page.sink), layer.sink_bytes());
            if (f16[i] != 0) get(layer.f16_page(page, scratch_), layer.open_shape().bytes());
        }
    }
}

}  // namespace kvaq
