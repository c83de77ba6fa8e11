#include "kvaq/plan/verdict.h"

namespace kvaq {

Verdict verdict_of(double kl, double same_top) noexcept {
    const auto holds = [&](double most_kl, double least_top) {
        return kl <= most_kl && (same_top < 0 || same_top >= least_top);
    };
    if (holds(0.02, 0.93)) return Verdict::kSafe;
    return holds(0.1, 0.85) ? Verdict::kWithCare : Verdict::kNotRecommended;
}

std::string to_string(Verdict verdict) {
    switch (verdict) {
        case Verdict::kSafe:
            return "safe";
        case Verdict::kWithCare:
            return "usable with care";
        case Verdict::kNotRecommended:
            return "not recommended";
    }
    return "?";
}

}  // namespace kvaq
