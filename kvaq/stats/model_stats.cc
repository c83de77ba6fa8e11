#include "kvaq/stats/model_stats.h"

#include "kvaq/stats/spectrum.h"

namespace kvaq {

double HeadStats::key_norm() const noexcept { return frobenius_norm(key_second, key_mean.size(), 1); }
double HeadStats::value_norm() const noexcept { return frobenius_norm(value_second, value_mean.size(), 1); }

}  // namespace kvaq
