#pragma once

#include <memory>
#include <string>

#include "kvaq/llama/metrics.h"

namespace kvaq {

/// Serves the metrics of this process' contexts at the address that KVAQ_METRICS names (see parse_metrics_address), from now to the end
/// of the process; the first call starts it, later ones do nothing. Empty without KVAQ_METRICS or when it is served already, else the URL.
/// Throws Error: a bad address, one in use, or a build without metrics.
[[nodiscard]] std::string start_metrics_server();

/// Contexts that are told of. Thread-safe.
void list_metrics(std::shared_ptr<const ContextMetrics> metrics);
void unlist_metrics(const ContextMetrics* metrics);

}  // namespace kvaq
