#include "kvaq/llama/slot_file.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"

namespace kvaq {
namespace {

constexpr std::array<char, 8> kMagic = {'K', 'V', 'A', 'Q', 'S', 'L', 'T', '2'};
constexpr size_t kHeaderBytes = 16;
constexpr size_t kDigestBytes = 32;

/// Of the header, the tokens and the snapshot's own checksum, which ties them together.
std::array<uint8_t, kDigestBytes> digest_of(std::span<const std::byte> before, std::span<const std::byte> snapshot) {
    Sha256 hash;
    hash.update(before);
    hash.update(snapshot.last(std::min(snapshot.size(), kDigestBytes)));
    return hash.digest();
}

}  // namespace

std::vector<std::byte> slot_file(std::span<const llama_token> tokens, std::span<const std::byte> snapshot) {
    const size_t n_before = kHeaderBytes + tokens.size_bytes();
    std::vector<std::byte> file(n_before + kDigestBytes + snapshot.size());
    const uint64_t count = tokens.size();
    std::memcpy(file.data(), kMagic.data(), kMagic.size());
    std::memcpy(file.data() + kMagic.size(), &count, sizeof count);
    if (!tokens.empty()) std::memcpy(file.data() + kHeaderBytes, tokens.data(), tokens.size_bytes());
    const auto digest = digest_of(std::span(file).first(n_before), snapshot);
    std::memcpy(file.data() + n_before, digest.data(), digest.size());
    std::copy(snapshot.begin(), snapshot.end(), file.begin() + static_cast<ptrdiff_t>(n_before + kDigestBytes));
    return file;
}

SlotFile read_slot_file(std::span<const std::byte> bytes, const std::string& path) {
    const auto refuse = [&path](const std::string& expected, const std::string& found) {
        throw Error(ErrorCode::kCorrupt, "cannot restore " + path, expected, found, "The slot is unchanged");
    };
    if (bytes.size() < kHeaderBytes + kDigestBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size() - 1) != 0)
        refuse("a slot file saved under a K/V plan", "another, a truncated or an empty file");
    if (const auto version = static_cast<char>(bytes[kMagic.size() - 1]); version != kMagic.back())
        refuse("a slot file of version 2",
               std::string("version ") + (version == '1' ? "1, of an older kvaq" : "unknown"));
    uint64_t count = 0;
    std::memcpy(&count, bytes.data() + kMagic.size(), sizeof count);
    if (count > (bytes.size() - kHeaderBytes - kDigestBytes) / sizeof(llama_token))
        refuse(std::to_string(count) + " tokens", std::to_string(bytes.size()) + " bytes in all");
    const size_t n_before = kHeaderBytes + count * sizeof(llama_token);
    SlotFile out{.tokens = std::vector<llama_token>(count), .snapshot = bytes.subspan(n_before + kDigestBytes)};
    const auto digest = digest_of(bytes.first(n_before), out.snapshot);
    if (std::memcmp(digest.data(), bytes.data() + n_before, digest.size()) != 0)
        refuse("the sha256 of its tokens", "another: it is damaged or truncated");
    if (count > 0) std::memcpy(out.tokens.data(), bytes.data() + kHeaderBytes, count * sizeof(llama_token));
    return out;
}

}  // namespace kvaq
