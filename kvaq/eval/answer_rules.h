#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvaq {

/// GSM8K's two rules of lm-evaluation-harness (tasks/gsm8k/gsm8k.yaml), which the paper's tables use:
///   strict    the number behind the first "#### ": #### (\-?[0-9\.\,]+)
///   flexible  the last match of (-?[$0-9.,]{2,})|(-?[0-9]+)
/// both cleaned like the gold answer: commas and dollar signs removed, one full stop at the end removed. Nothing where nothing matches.
[[nodiscard]] std::optional<std::string> strict_number(std::string_view answer);
[[nodiscard]] std::optional<std::string> flexible_number(std::string_view answer);
/// The number behind "#### " of a solved problem. Throws Error kCorrupt when there is none.
[[nodiscard]] std::string gold_number(std::string_view solution);

/// What a generated tool call is worth.
struct CallScore {
    bool valid = false;   ///< the text is one JSON object (nlohmann's parser), with nothing behind it
    bool shaped = false;  ///< it has exactly "tool", a string, and "arguments", an object
    bool right = false;   ///< it equals the wanted call
};
/// wanted: JSON.
[[nodiscard]] CallScore score_call(std::string_view text, std::string_view wanted);

/// Whether `needle` stands in `text` as whole words, whatever the case.
[[nodiscard]] bool mentions(std::string_view text, std::string_view needle);

/// Share of a text's runs of n words that it has already had; 0 with fewer than n + 1 words. A text that repeats one sentence comes near 1.
[[nodiscard]] double repetition(std::string_view text, size_t n = 4);

}  // namespace kvaq
