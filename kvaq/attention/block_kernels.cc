#include "kvaq/attention/block_kernels.h"

#include "kvaq/base/error.h"

namespace kvaq {

namespace block_scalar {
const BlockKernels& table() noexcept;
}
#if defined(__x86_64__)
namespace block_avx2 {
const BlockKernels& table() noexcept;
}
namespace block_avx512 {
const BlockKernels& table() noexcept;
}
namespace block_avx512vnni {
const BlockKernels& table() noexcept;
}
#elif defined(__aarch64__)
namespace block_neon {
const BlockKernels& table() noexcept;
}
#endif

const BlockKernels& block_kernels(SimdTarget target) noexcept {
    switch (target) {
        case SimdTarget::kScalar:
            return block_scalar::table();
#if defined(__x86_64__)
        case SimdTarget::kAvx2:
            return block_avx2::table();
        case SimdTarget::kAvx512:
            return block_avx512::table();
        case SimdTarget::kAvx512Vnni:
            return block_avx512vnni::table();
#elif defined(__aarch64__)
        case SimdTarget::kNeon:
            return block_neon::table();
#endif
        default:
            break;
    }
    KVAQ_CHECK(!"SIMD target not compiled in");
    return block_scalar::table();
}

}  // namespace kvaq
