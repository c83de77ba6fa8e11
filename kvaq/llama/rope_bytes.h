#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvaq/base/rope.h"

namespace kvaq {

// Limits of plan and statistics files.
inline constexpr int32_t kMaxKeyPeriod = 1 << 20;  ///< of Plan::key_period
inline constexpr uint64_t kMaxRopeRuleBytes = 1 << 12;

/// A RoPE rule in files, little-endian: u32 interleaved (0, 1), u32 first_channel, u32 n_dims, u32 0, f64 frequencies[n_dims / 2].
[[nodiscard]] std::vector<std::byte> rope_rule_bytes(const RopeRule& rule);
/// Throws Error kCorrupt where the bytes are no rule for heads of head_dim channels.
[[nodiscard]] RopeRule parse_rope_rule(std::span<const std::byte> bytes, size_t head_dim);

}  // namespace kvaq
