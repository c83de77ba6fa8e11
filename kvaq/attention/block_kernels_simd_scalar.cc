// Compiled with the flags of its target (cmake/kvaq.cmake); reached only through block_kernels().
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kvaq/attention/block_kernels.h"

#define KVAQ_LANES 4

namespace kvaq::block_scalar {
#include "kvaq/attention/block_kernels-inl.h"
#include "kvaq/attention/level_kernels-inl.h"

const BlockKernels& table() noexcept { return kTable; }

}  // namespace kvaq::block_scalar
