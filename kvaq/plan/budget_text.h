#pragma once

#include <cstddef>
#include <string>

namespace kvaq {

/// "700B", "64KiB", "512MiB", "4GiB" (also k, M, G, KB, MB, GB: all powers of 1024, as llama.cpp's flags mean them); a number alone from 2^20 bytes on.
/// Throws Error kInvalidArgument with the forms that are allowed.
[[nodiscard]] size_t parse_bytes(const std::string& text);

inline constexpr size_t kMostRewind = size_t{1} << 20;
/// Tokens by which a sequence can be shortened without a trace (KvCacheOptions::rewind): 0 to kMostRewind. Throws Error kInvalidArgument.
[[nodiscard]] size_t parse_rewind(const std::string& text);

/// What may be spent, in one of three units.
struct Budget {
    enum class Unit { kEffectiveBits, kBytesPerToken, kBytes };
    Unit unit = Unit::kEffectiveBits;
    double amount = 0;    ///< bits per element, bytes per token, or bytes
    size_t n_tokens = 0;  ///< kBytes: at this context ("512MiB@32768"); otherwise 0
};

/// "3.25bits", "4500B/token", "512MiB@32768". Throws Error kInvalidArgument.
[[nodiscard]] Budget parse_budget(const std::string& text);

}  // namespace kvaq
