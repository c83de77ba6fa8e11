#pragma once

#include "kvaq/llama/attach.h"

namespace kvaq {

/// The relative size of the disturbance below: a quarter to half a step of float16.
inline constexpr double kPerturbation = 1.0 / 4096;

/// Our own f16 plan over keys and values that are off by +-2^-12 of themselves before they are rounded to float16: what a difference
/// too small for the cache's type does to a model. Deterministic by (layer, position, KV head, channel). A number whose exact value
/// lay anywhere within half a step of the stored one moves to the neighbour with the probability that |x| 2^-12 is of that step.
[[nodiscard]] HandlerFactory serve_perturbed_f16();

/// x, or its neighbour in the direction and with the probability that `hash` (uniform) says; see above. Never past the largest number.
[[nodiscard]] float16 perturbed(float16 x, uint64_t hash) noexcept;

}  // namespace kvaq
