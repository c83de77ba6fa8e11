#include "kvaq/base/simd_target.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>

namespace kvaq {
namespace {

bool runs(SimdTarget target) noexcept {
    if (target == SimdTarget::kScalar) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    // clang 16 has no name for F16C, nor g++ 12 one for AVX-VNNI.
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    switch (target) {
        case SimdTarget::kAvx2:
            return avx2;
        case SimdTarget::kAvx2Vnni: {
            constexpr unsigned kAvxVnni = 1U << 4;
            return avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
        }
        case SimdTarget::kAvx512:
            return avx512;
        case SimdTarget::kAvx512Vnni:
            return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                   __builtin_cpu_supports("gfni");
        default:
            return false;
    }
#elif defined(__aarch64__)
    return target == SimdTarget::kNeon;
#else
    return false;
#endif
}

constexpr std::array kAll = {SimdTarget::kScalar, SimdTarget::kAvx2,       SimdTarget::kAvx2Vnni,
                             SimdTarget::kAvx512, SimdTarget::kAvx512Vnni, SimdTarget::kNeon};

SimdTarget detect() noexcept {
    SimdTarget best = SimdTarget::kScalar;
    for (const SimdTarget target : kAll) {
        if (runs(target)) best = target;
    }
    return best;
}

std::atomic<SimdTarget>& chosen() noexcept {
    static std::atomic<SimdTarget> target{detect()};
    return target;
}

}  // namespace

std::vector<SimdTarget> supported_simd_targets() {
    std::vector<SimdTarget> targets;
    std::copy_if(kAll.begin(), kAll.end(), std::back_inserter(targets), runs);
    return targets;
}

SimdTarget best_simd_target() noexcept { return chosen().load(std::memory_order_relaxed); }

void force_simd_target(SimdTarget target) noexcept { chosen().store(target, std::memory_order_relaxed); }

std::string to_string(SimdTarget target) {
    switch (target) {
        case SimdTarget::kAvx2:
            return "avx2";
        case SimdTarget::kAvx2Vnni:
            return "avx2vnni";
        case SimdTarget::kAvx512:
            return "avx512";
        case SimdTarget::kAvx512Vnni:
            return "avx512vnni";
        case SimdTarget::kNeon:
            return "neon";
        case SimdTarget::kScalar:
            break;
    }
    return "scalar";
}

}  // namespace kvaq
