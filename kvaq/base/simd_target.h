#pragma once

#include <string>
#include <vector>

namespace kvaq {

/// Instruction sets that kernels are compiled for; chosen at run time. kAvx2Vnni: AVX2 with AVX-VNNI (Intel without AVX-512 since Alder Lake); kAvx512Vnni:
/// AVX-512 with VNNI, VBMI and GFNI (Ice Lake, Zen 4).
enum class SimdTarget { kScalar, kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni, kNeon };

/// Every target that was compiled in and that this CPU runs, kScalar first, the best one last.
[[nodiscard]] std::vector<SimdTarget> supported_simd_targets();
/// The best supported target, or the one forced by force_simd_target.
[[nodiscard]] SimdTarget best_simd_target() noexcept;
/// For tests and benchmarks: makes best_simd_target() return `target` (not thread-safe).
void force_simd_target(SimdTarget target) noexcept;
/// "scalar", "avx2", "avx2vnni", "avx512", "avx512vnni", "neon".
[[nodiscard]] std::string to_string(SimdTarget target);

}  // namespace kvaq
