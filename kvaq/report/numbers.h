#pragma once

#include <cstddef>
#include <string>

#include "kvaq/report/document.h"

namespace kvaq {

// Numbers as the report writes them. A NaN is "no number", never a figure.

[[nodiscard]] std::string bits_text(double bits);                      ///< 3.13
[[nodiscard]] std::string kl_text(double nats);                        ///< 0.0323, 0.00042, 4.88
[[nodiscard]] std::string bytes_text(double bytes);                    ///< 17.6 MiB, 1.2 GiB
[[nodiscard]] std::string percent_text(double share, int digits = 1);  ///< 94.0 %
[[nodiscard]] std::string context_text(size_t n_tokens);               ///< 4096 -> 4k
/// The error in the digits of its value.
[[nodiscard]] std::string kl_text(double nats, double error);
/// Three significant digits.
[[nodiscard]] std::string short_text(double value);

[[nodiscard]] Cell bits_cell(double bits);
[[nodiscard]] Cell kl_cell(double nats);
[[nodiscard]] Cell kl_cell(double nats, double error);
[[nodiscard]] Cell bytes_cell(double bytes);
[[nodiscard]] Cell percent_cell(double share, double error);
[[nodiscard]] Cell short_cell(double value);
[[nodiscard]] Cell integer_cell(double value);

/// "layer", "layers 3, 4 and 9": a list in words, at most `most` of them.
[[nodiscard]] std::string list_text(const std::vector<std::string>& items, size_t most = 6);

}  // namespace kvaq
