#pragma once

// PRIVATE header of kvaq/cuda: the page table's work of a micro-batch as the kernels' lists.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvaq/cache/page_table.h"
#include "kvaq/cuda/device_types.h"

namespace kvaq::cuda {

/// How a query is turned before it meets a page's keys: by `delta` positions of the model's RoPE (context shift), then back by `back` positions of
/// LayerPlan::key_turn (packed keys).
struct QueryTurn {
    int32_t delta = 0;
    int32_t back = 0;
    bool operator==(const QueryTurn&) const = default;
};

/// For all layers of one reach and number of query heads per KV head.
struct WorkLists {
    std::vector<RowTile> row_tiles;
    std::vector<Run> runs;
    std::vector<Visit> visits;
    std::vector<RowWrite> writes;
    std::vector<QueryTurn> turns;  ///< Visit::turn is an index here. The first is none
};

/// Every page is visited by the query tokens that see it packed, in f16, or partly so (the rule of ServingCache's attention); a row's runs are
/// of one kind and of a length that follows from its own sequence's pages and tokens side by side, so results do not depend on other sequences or on the GPU.
/// key_period: Plan::key_period.
void make_work_lists(const PageTable& table, size_t reach, size_t group, int32_t key_period, WorkLists& lists);

}  // namespace kvaq::cuda
