#pragma once

// PRIVATE header of kvaq/cache.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvaq/cache/serving_cache.h"

namespace kvaq {

/// A sequence's snapshot that has been read and found good.
struct ServingCache::Snapshot {
    PageTable::Saved saved;
    std::vector<uint8_t> kept;            ///< [page] bit r: the layers of reach r have it
    const std::byte* contents = nullptr;  ///< in the bytes that were read
};

}  // namespace kvaq
