#pragma once

#include <cstdint>
#include <memory>

#include "kvaq/base/attention_call.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// The oracle: the same protocol and semantics as the serving cache, every sequence with its own plain vectors, every sum in
/// double, tiles through encode_tile and decode_tile_reference. Slow on purpose. Only team member 0 works.
/// rewind: KvCacheOptions::rewind.
[[nodiscard]] std::unique_ptr<AttentionHandler> make_reference_handler(const Plan& plan, size_t n_seq_max, size_t n_ctx,
                                                                       size_t rewind = 0);

/// What the serving cache does to a sequence that it restores from a snapshot (f16 rows that the newest token reads packed are not in it), and to all
/// (seq < 0) when a micro-batch is rolled back: f16 rows that are kept no longer are given up. reference: of make_reference_handler.
void settle_reference(AttentionHandler& reference, int32_t seq);

}  // namespace kvaq
