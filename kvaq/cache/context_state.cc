// All sequences of a context as bytes (docs/formats.md, "State of a whole context"). Little-endian:
//   ContextHeader | ContextEntry [n_sequences] | sha256 of these and of the snapshots' own | snapshots, one after the other
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"
#include "kvaq/cache/serving_cache.h"
#include "kvaq/cache/snapshot.h"

namespace kvaq {
namespace {

constexpr size_t kDigestBytes = 32;
constexpr std::array<char, 8> kContextMagic = {'K', 'V', 'A', 'Q', 'C', 'T', 'X', '1'};
constexpr const char* kContextUnchanged = "The context is unchanged";

struct ContextHeader {
    std::array<char, 8> magic = kContextMagic;
    uint64_t n_bytes = 0;  ///< of everything
    uint32_t n_sequences = 0;
    uint32_t zero = 0;
};
static_assert(sizeof(ContextHeader) == 24);

struct ContextEntry {
    int32_t seq = 0;
    uint32_t zero = 0;
    uint64_t n_bytes = 0;
};
static_assert(sizeof(ContextEntry) == 16);

size_t entries_end(size_t n_sequences) { return sizeof(ContextHeader) + n_sequences * sizeof(ContextEntry); }

std::array<uint8_t, kDigestBytes> context_digest(std::span<const std::byte> head,
                                                 const std::vector<std::span<const std::byte>>& snapshots) {
    Sha256 hash;
    hash.update(head);
    for (const auto& snapshot : snapshots) hash.update(snapshot.last(kDigestBytes));
    return hash.digest();
}

/// Which bytes are whose snapshot. Throws Error kCorrupt.
std::vector<std::pair<int32_t, std::span<const std::byte>>> snapshots_of(std::span<const std::byte> bytes,
                                                                         size_t n_seq_max) {
    const auto refuse = [](const std::string& wanted, const std::string& found) {
        throw Error(ErrorCode::kCorrupt, "not a whole state of this context", wanted, found, kContextUnchanged);
    };
    ContextHeader header;
    if (bytes.size() < sizeof header + kDigestBytes) {
        refuse("at least " + std::to_string(sizeof header + kDigestBytes) + " bytes", std::to_string(bytes.size()));
        return {};
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.magic != kContextMagic) refuse("a state saved under a K/V plan (magic KVAQCTX1)", "other bytes");
    if (header.n_bytes > bytes.size() || header.n_bytes < sizeof header + kDigestBytes)
        refuse(std::to_string(header.n_bytes) + " bytes", std::to_string(bytes.size()) + ": it is truncated");
    bytes = bytes.first(header.n_bytes);  // a buffer may be larger, as llama.cpp allows
    if (header.zero != 0 || header.n_sequences > n_seq_max ||
        entries_end(header.n_sequences) + kDigestBytes > bytes.size())
        refuse("at most " + std::to_string(n_seq_max) + " sequences", std::to_string(header.n_sequences));
    std::vector<std::pair<int32_t, std::span<const std::byte>>> out;
    std::vector<std::span<const std::byte>> all;
    size_t at = entries_end(header.n_sequences) + kDigestBytes;
    int32_t last = -1;
    for (size_t i = 0; i < header.n_sequences; ++i) {
        ContextEntry entry;
        std::memcpy(&entry, bytes.data() + entries_end(i), sizeof entry);
        if (entry.seq <= last || static_cast<size_t>(entry.seq) >= n_seq_max || entry.zero != 0 ||
            entry.n_bytes < kDigestBytes || entry.n_bytes > bytes.size() - at)
            refuse("sequences in their order, each within the state", "sequence " + std::to_string(entry.seq));
        last = entry.seq;
        all.push_back(bytes.subspan(at, entry.n_bytes));
        out.emplace_back(entry.seq, all.back());
        at += entry.n_bytes;
    }
    const size_t n_head = entries_end(header.n_sequences);
    const auto digest = context_digest(bytes.first(n_head), all);
    if (at != bytes.size() || std::memcmp(digest.data(), bytes.data() + n_head, digest.size()) != 0)
        refuse("its sha256", "another: it is damaged");
    return out;
}

}  // namespace

size_t ServingCache::context_bytes() const {
    size_t n_sequences = 0;
    size_t bytes = 0;
    for (size_t s = 0; s < table_.options().n_seq_max; ++s) {
        const size_t n = sequence_bytes(static_cast<int32_t>(s));
        n_sequences += n > 0 ? 1 : 0;
        bytes += n;
    }
    return entries_end(n_sequences) + kDigestBytes + bytes;
}

std::vector<std::byte> ServingCache::save_context() const {
    std::vector<ContextEntry> entries;
    std::vector<std::vector<std::byte>> snapshots;
    for (size_t s = 0; s < table_.options().n_seq_max; ++s) {
        std::vector<std::byte> snapshot = save_sequence(static_cast<int32_t>(s));
        if (snapshot.empty()) continue;
        entries.push_back({.seq = static_cast<int32_t>(s), .n_bytes = snapshot.size()});
        snapshots.push_back(std::move(snapshot));
    }
    ContextHeader header;
    header.n_sequences = static_cast<uint32_t>(entries.size());
    header.n_bytes = entries_end(entries.size()) + kDigestBytes;
    for (const ContextEntry& entry : entries) header.n_bytes += entry.n_bytes;
    std::vector<std::byte> out(header.n_bytes);
    size_t at = 0;
    const auto put = [&](const void* data, size_t n) {
        if (n > 0) std::memcpy(&out[at], data, n);
        at += n;
    };
    put(&header, sizeof header);
    put(entries.data(), entries.size() * sizeof(ContextEntry));
    const auto digest = context_digest(std::span(out).first(at), {snapshots.begin(), snapshots.end()});
    put(digest.data(), digest.size());
    for (const auto& snapshot : snapshots) put(snapshot.data(), snapshot.size());
    return out;
}

void ServingCache::load_context(std::span<const std::byte> bytes) {
    std::vector<Snapshot> snapshots;
    std::vector<PageTable::SavedSequence> saved;
    for (const auto& [seq, snapshot] : snapshots_of(bytes, table_.options().n_seq_max)) {
        snapshots.push_back(read_snapshot(snapshot));
        saved.push_back({.seq = seq, .saved = snapshots.back().saved});
    }
    if (!table_.replace_all(saved)) {
        throw Error(ErrorCode::kOutOfMemory, "no room for the state of the whole context",
                    std::to_string(saved.size()) + " sequences, nothing shared", "fewer free pages",
                    std::string("Use a larger context (-c). ") + kContextUnchanged);
    }
    for (size_t i = 0; i < saved.size(); ++i) fill(saved[i].seq, snapshots[i]);
}

}  // namespace kvaq
