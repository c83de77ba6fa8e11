#pragma once

// PRIVATE header of kvaq/cuda: the page table's work of a micro-batch as the kernels' lists.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvaq/cache/page_table.h"
#include "kvaq/cuda/device_types.h"

namespace kvaq::cuda {

/// For all layers of one reach and number of query heads per KV head.
struct WorkLists {
    std::vector<RowTile> row_tiles;
    std::vector<Run> runs;
    std::vector<Visit> visits;
    std::vector<RowWrite> writes;
    std::vector<int32_t>
        turns;  ///< positions by which queries are turned; Visit::turn is an index here. The first is 0
};

/// Every page is visited by the query tokens that see it packed, in f16, or partly so (the rule of ServingCache's attention); a row's runs are
/// of one kind and of a length that follows from its own pages alone, so results do not depend on other sequences or on the GPU.
void make_work_lists(const PageTable& table, size_t reach, size_t group, WorkLists& lists);

}  // namespace kvaq::cuda
