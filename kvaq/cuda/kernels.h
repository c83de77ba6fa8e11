#pragma once

// PRIVATE header of kvaq/cuda: the kernels, as functions that put them on a stream (a cudaStream_t). They return a CUDA error code, 0 = none.

#include "kvaq/cuda/device_types.h"

namespace kvaq::cuda {

/// Writes the micro-batch's K and V into f16 pages, and into host memory. Makes the queries: turned, scaled, in the model's and in the key codec's
/// basis, as fragments of the matrix instruction.
[[nodiscard]] int begin_layer(const AppendArgs& append, const PrepareArgs& prepare, void* stream) noexcept;
/// Partial attention of every run: of row tiles by themselves, and of those in blocks.
[[nodiscard]] int attend_tiles(const AttendArgs& args, void* stream) noexcept;
[[nodiscard]] int attend_blocks(const AttendArgs& args, void* stream) noexcept;
/// Joins a row's runs in their order, back in the model's basis.
[[nodiscard]] int merge_runs(const MergeArgs& args, void* stream) noexcept;
[[nodiscard]] int scatter_items(const ScatterArgs& args, void* stream) noexcept;

}  // namespace kvaq::cuda
