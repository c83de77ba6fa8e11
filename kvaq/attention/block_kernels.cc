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
namespace block_avx2vnni {
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
        case SimdTarget::kAvx2Vnni:
            return block_avx2vnni::table();
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

namespace {
size_t pair_order(size_t i) noexcept { return i / 4 * 4 + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4); }
}  // namespace

int32_t coef_at(const BlockKernels& kernels, const int16_t* coef, size_t i) noexcept {
    if (!kernels.byte_digits) return coef[pair_order(i)];
    const auto* digits = reinterpret_cast<const int8_t*>(coef + i / 4 * 4);
    return digits[4 + i % 4] * 256 + digits[i % 4];
}

void set_coef(const BlockKernels& kernels, int16_t* coef, size_t i, int32_t value) noexcept {
    if (!kernels.byte_digits) {
        coef[pair_order(i)] = static_cast<int16_t>(value);
        return;
    }
    auto* digits = reinterpret_cast<int8_t*>(coef + i / 4 * 4);
    digits[i % 4] = static_cast<int8_t>(value);
    digits[4 + i % 4] = static_cast<int8_t>((value + 128) >> 8);
}

}  // namespace kvaq
