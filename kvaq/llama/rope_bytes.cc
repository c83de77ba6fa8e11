#include "kvaq/llama/rope_bytes.h"

#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

constexpr double kMostFrequency = 1e6;  ///< radians a position; times positions and periods it stays finite

using Head = std::array<uint32_t, 4>;

[[noreturn]] void corrupt(const std::string& wanted, const std::string& found) {
    throw Error(ErrorCode::kCorrupt, "a layer's rotation of keys", wanted, found, "Make the file again");
}

}  // namespace

std::vector<std::byte> rope_rule_bytes(const RopeRule& rule) {
    KVAQ_CHECK(rule.frequencies.size() == rule.n_dims / 2);
    if (rule.n_dims == 0) return std::vector<std::byte>(sizeof(Head));
    const Head head = {rule.interleaved ? 1U : 0U, static_cast<uint32_t>(rule.first_channel),
                       static_cast<uint32_t>(rule.n_dims), 0};
    std::vector<std::byte> bytes(sizeof head + rule.frequencies.size() * sizeof(double));
    std::memcpy(bytes.data(), head.data(), sizeof head);
    std::memcpy(bytes.data() + sizeof head, rule.frequencies.data(), rule.frequencies.size() * sizeof(double));
    return bytes;
}

RopeRule parse_rope_rule(std::span<const std::byte> bytes, size_t head_dim) {
    Head head = {};
    if (bytes.size() < sizeof head) corrupt("16 bytes and more", std::to_string(bytes.size()));
    std::memcpy(head.data(), bytes.data(), sizeof head);
    const size_t n_dims = head[2];
    if (n_dims == 0 && head != Head{}) corrupt("nothing where nothing is turned", "something");
    if (head[0] > 1 || head[3] != 0 || n_dims % 2 != 0 || n_dims > 2 * kMaxRopePairs ||
        size_t{head[1]} + n_dims > head_dim)
        corrupt("channels of a head of " + std::to_string(head_dim), "others");
    RopeRule rule{.interleaved = head[0] == 1, .first_channel = head[1], .n_dims = n_dims, .frequencies = {}};
    if (bytes.size() != sizeof head + n_dims / 2 * sizeof(double))
        corrupt(std::to_string(n_dims / 2) + " frequencies", std::to_string(bytes.size()) + " bytes");
    rule.frequencies.resize(n_dims / 2);
    if (n_dims > 0) std::memcpy(rule.frequencies.data(), bytes.data() + sizeof head, n_dims / 2 * sizeof(double));
    for (const double x : rule.frequencies) {
        if (!(std::abs(x) <= kMostFrequency)) corrupt("frequencies of at most 10^6", "one that is not");
    }
    return rule;
}

}  // namespace kvaq
