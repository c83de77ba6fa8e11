#include "kvaq/base/simd_target.h"

#include <atomic>

namespace kvaq {
namespace {

SimdTarget detect() noexcept {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        const bool integers = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                              __builtin_cpu_supports("gfni");
        return integers ? SimdTarget::kAvx512Vnni : SimdTarget::kAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        return SimdTarget::kAvx2;
    }
    return SimdTarget::kScalar;
#elif defined(__aarch64__)
    return SimdTarget::kNeon;
#else
    return SimdTarget::kScalar;
#endif
}

std::atomic<SimdTarget>& chosen() noexcept {
    static std::atomic<SimdTarget> target{detect()};
    return target;
}

}  // namespace

std::vector<SimdTarget> supported_simd_targets() {
    std::vector<SimdTarget> targets{SimdTarget::kScalar};
    const SimdTarget best = detect();
    if (best == SimdTarget::kNeon) targets.push_back(SimdTarget::kNeon);
    for (const SimdTarget target :
         {SimdTarget::kAvx2, SimdTarget::kAvx512, SimdTarget::kAvx512Vnni}) {  // each has all of those before it
        if (best != SimdTarget::kNeon && target <= best) targets.push_back(target);
    }
    return targets;
}

SimdTarget best_simd_target() noexcept { return chosen().load(std::memory_order_relaxed); }

void force_simd_target(SimdTarget target) noexcept { chosen().store(target, std::memory_order_relaxed); }

std::string to_string(SimdTarget target) {
    switch (target) {
        case SimdTarget::kAvx2:
            return "avx2";
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
