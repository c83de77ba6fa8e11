// Compiled with the flags of its target (cmake/kvaq.cmake); reached only through decode_kernels().
#include <cstddef>
#include <cstdint>

#include "kvaq/cache/tile_decode.h"
#include "kvaq/quant/transform.h"

#define KVAQ_LANES 4

namespace kvaq::tile_decode_scalar {
#include "kvaq/cache/tile_decode-inl.h"

const DecodeKernels& table() noexcept { return kTable; }

}  // namespace kvaq::tile_decode_scalar
