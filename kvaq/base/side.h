#pragma once

namespace kvaq {

/// Which half of the cache: keys or values.
enum class Side { kKey, kValue };

[[nodiscard]] constexpr const char* to_string(Side side) noexcept { return side == Side::kKey ? "K" : "V"; }

}  // namespace kvaq
