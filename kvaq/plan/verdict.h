#pragma once

#include <string>

namespace kvaq {

/// What to think of a plan, in one word.
enum class Verdict { kSafe, kWithCare, kNotRecommended };

/// By mean KL against the f16 cache, in nats per token: safe up to 0.02 (llama.cpp's q5_1 and q8_0 are there on models that quantize well), with care up to
/// 0.1 (about twice what q4_0 does there), above that not recommended. Agreement with f16's top token, where it was measured (negative: not), must be at
/// least 93 % for safe and 85 % for with care.
[[nodiscard]] Verdict verdict_of(double kl, double same_top = -1) noexcept;

/// "safe", "usable with care", "not recommended".
[[nodiscard]] std::string to_string(Verdict verdict);

}  // namespace kvaq
