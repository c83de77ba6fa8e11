#include "kvaq/eval/choice_score.h"

#include <fmt/format.h>

#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/eval/task_parts.h"

namespace kvaq {
namespace {

constexpr const char* kWanted = "six lines a task: the context, the number of the right ending, four endings";

size_t best_of(const std::array<double, 4>& values) {
    return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

}  // namespace

std::vector<ChoiceItem> read_hellaswag(const std::string& path) {
    const std::vector<std::string> lines = text_lines(path, kWanted);
    if (lines.size() % 6 != 0) {
        throw Error(ErrorCode::kCorrupt, "'" + path + "' is no HellaSwag file", kWanted,
                    fmt::format("{} lines, no multiple of 6", lines.size()));
    }
    std::vector<ChoiceItem> items;
    for (size_t i = 0; i < lines.size(); i += 6) {
        const std::string& gold = lines[i + 1];
        if (gold.size() != 1 || gold[0] < '0' || gold[0] > '3') {
            throw Error(ErrorCode::kCorrupt, fmt::format("line {} of '{}' is no HellaSwag task's", i + 2, path),
                        "the number of the right ending, 0 to 3", "'" + gold.substr(0, 40) + "'");
        }
        ChoiceItem item{.context = lines[i], .endings = {}, .gold = static_cast<size_t>(gold[0] - '0')};
        for (size_t e = 0; e < 4; ++e) {
            item.endings[e] = lines[i + 2 + e];
            if (item.endings[e].empty() || item.context.empty()) {
                throw Error(ErrorCode::kCorrupt, fmt::format("line {} of '{}' is empty", i + 3 + e, path), kWanted,
                            "an empty line");
            }
        }
        items.push_back(std::move(item));
    }
    return items;
}

size_t ChoiceScores::best_per_token() const {
    std::array<double, 4> mean{};
    for (size_t e = 0; e < 4; ++e) mean[e] = own[e] / static_cast<double>(tokens[e]);
    return best_of(mean);
}

size_t ChoiceScores::best_per_character() const {
    std::array<double, 4> mean{};
    for (size_t e = 0; e < 4; ++e) mean[e] = (shared + own[e]) / static_cast<double>(characters[e]);
    return best_of(mean);
}

size_t count_characters(std::string_view text) noexcept {
    return static_cast<size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace kvaq
