#pragma once

#include <cstddef>

#include "kvaq/llama/attach.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// What a plan would compute if in every tile of a (layer, side, KV head) the `kept` tokens whose quantizing costs most were in f16, for measuring what that is worth:
/// our f16 cache over keys and values that went through the plan's tiles and back, but for the plan's sinks and the tokens that escape. A page goes through
/// once the next one begins, as it would in the packed cache. What a token's quantizing costs is what the codec weighs: the squared error in its basis, in
/// steps of each channel, times 4^bits. A page's last token still reads it in f16, where the packed cache reads it packed.
/// For single sequences from position 0 in micro-batches of one page (the last may be shorter) and plans without a window only.
[[nodiscard]] HandlerFactory serve_escaping(const Plan& plan, size_t kept);

/// Bits an element that `kept` tokens a tile take: their f16 rows and one byte each that says which they are.
[[nodiscard]] constexpr double escape_bits(size_t kept, size_t head_dim, size_t tile_tokens) noexcept {
    return static_cast<double>(kept) * (16.0 + 8.0 / static_cast<double>(head_dim)) / static_cast<double>(tile_tokens);
}

}  // namespace kvaq
