#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace kvaq {

/// One HellaSwag task.
struct ChoiceItem {
    std::string context;
    std::array<std::string, 4> endings;
    size_t gold = 0;
};

/// A file as llama-perplexity --hellaswag reads it: six lines a task: the context ("activity: scene"), the number of the right ending (0 to 3), four endings.
/// Throws Error: missing, packed or no text, lines that are no multiple of 6, a number that is none (with the line).
[[nodiscard]] std::vector<ChoiceItem> read_hellaswag(const std::string& path);

/// Log probabilities of four endings behind one context.
struct ChoiceScores {
    double shared = 0;                   ///< of the tokens that all endings begin with
    std::array<double, 4> own{};         ///< of the others
    std::array<size_t, 4> tokens{};      ///< of own
    std::array<size_t, 4> characters{};  ///< of the whole ending

    /// argmax of own / tokens: llama-perplexity's acc_norm. The first of equal ones.
    [[nodiscard]] size_t best_per_token() const;
    /// argmax of (shared + own) / characters: lm-evaluation-harness's acc_norm.
    [[nodiscard]] size_t best_per_character() const;
};

/// Unicode code points of UTF-8 text.
[[nodiscard]] size_t count_characters(std::string_view text) noexcept;

}  // namespace kvaq
