#include "kvaq/eval/answer_rules.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }

/// Commas and dollar signs removed, then one full stop at the end.
std::string cleaned(std::string_view number) {
    std::string out;
    for (const char c : number) {
        if (c != ',' && c != '$') out += c;
    }
    if (!out.empty() && out.back() == '.') out.pop_back();
    return out;
}

}  // namespace

std::optional<std::string> strict_number(std::string_view answer) {
    constexpr std::string_view kMark = "#### ";
    for (size_t at = answer.find(kMark); at != std::string_view::npos; at = answer.find(kMark, at + 1)) {
        const size_t begin = at + kMark.size();
        size_t end = begin;
        if (end < answer.size() && answer[end] == '-') ++end;
        const size_t digits = end;
        while (end < answer.size() && (is_digit(answer[end]) || answer[end] == '.' || answer[end] == ',')) ++end;
        if (end > digits) return cleaned(answer.substr(begin, end - begin));
    }
    return std::nullopt;
}

std::optional<std::string> flexible_number(std::string_view answer) {
    const auto wide = [](char c) { return is_digit(c) || c == '$' || c == '.' || c == ','; };
    std::optional<std::string> last;
    for (size_t at = 0; at < answer.size();) {
        const size_t first = at + (answer[at] == '-' ? 1 : 0);
        size_t end = first;
        while (end < answer.size() && wide(answer[end])) ++end;
        if (end - first < 2) {  // then one or more digits
            end = first;
            while (end < answer.size() && is_digit(answer[end])) ++end;
        }
        if (end == first) {
            ++at;
            continue;
        }
        last = cleaned(answer.substr(at, end - at));
        at = end;
    }
    return last;
}

std::string gold_number(std::string_view solution) {
    const std::optional<std::string> number = strict_number(solution);
    if (!number) {
        throw Error(ErrorCode::kCorrupt, "a GSM8K answer has no result", "'#### ' and a number",
                    "'" + std::string(solution.substr(solution.size() - std::min<size_t>(solution.size(), 40))) + "'");
    }
    return *number;
}

CallScore score_call(std::string_view text, std::string_view wanted) {
    CallScore score;
    const nlohmann::json call = nlohmann::json::parse(text, nullptr, false);
    score.valid = call.is_object();  // a discarded value is no object
    if (!score.valid) return score;
    score.shaped = call.size() == 2 && call.contains("tool") && call["tool"].is_string() &&
                   call.contains("arguments") && call["arguments"].is_object();
    score.right = call == nlohmann::json::parse(wanted);
    return score;
}

bool mentions(std::string_view text, std::string_view needle) {
    if (needle.empty()) return false;
    const auto lower = [](std::string_view part) {
        std::string out(part);
        for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        return out;
    };
    const std::string hay = lower(text);
    const std::string word = lower(needle);
    for (size_t at = hay.find(word); at != std::string::npos; at = hay.find(word, at + 1)) {
        const bool starts = at == 0 || !is_word(hay[at - 1]);
        const bool ends = at + word.size() == hay.size() || !is_word(hay[at + word.size()]);
        if (starts && ends) return true;
    }
    return false;
}

double repetition(std::string_view text, size_t n) {
    std::vector<std::string> words;
    std::istringstream stream{std::string(text)};
    for (std::string word; stream >> word;) words.push_back(word);
    if (words.size() < n + 1) return 0;
    std::set<std::vector<std::string>> seen;
    size_t again = 0;
    const size_t n_runs = words.size() - n + 1;
    for (size_t i = 0; i < n_runs; ++i) {
        const auto begin = words.begin() + static_cast<std::ptrdiff_t>(i);
        again += seen.insert({begin, begin + static_cast<std::ptrdiff_t>(n)}).second ? 0 : 1;
    }
    return static_cast<double>(again) / static_cast<double>(n_runs);
}

}  // namespace kvaq
