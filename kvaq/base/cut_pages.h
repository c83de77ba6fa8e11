#pragma once

// A rule that the cache and its oracle (attention/reference.cc) share.

#include <cstddef>

namespace kvaq {

/// Partly used pages that cuts inside sealed pages may leave to a sequence (PageTable::keeps_cut_page); every arena has room for as many.
inline constexpr size_t kCutPages = 2;
/// The same where a page holds tokens that are quantized a second time already and no layer's window slides. What there is no room for then is the end
/// of the context.
inline constexpr size_t kMostCutPages = 4;

}  // namespace kvaq
