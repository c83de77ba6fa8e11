#include "kvaq/report/terminal_table.h"

#include <algorithm>
#include <cctype>
#include <vector>

namespace kvaq {
namespace {

constexpr const char* kBold = "\033[1m";
constexpr const char* kDim = "\033[2m";
constexpr const char* kReset = "\033[0m";

struct Tint {
    std::string_view word;
    const char* code;
};
constexpr Tint kTints[] = {{"not recommended", "\033[31m"}, {"usable with care", "\033[33m"}, {"safe", "\033[32m"}};

/// Letters, not bytes: "±" is one column wide.
size_t width_of(std::string_view text) noexcept {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(),
                                             [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

std::vector<std::string> cells_of(std::string_view line) {
    std::vector<std::string> cells;
    line.remove_prefix(1);
    while (!line.empty()) {
        const size_t end = std::min(line.find('|'), line.size());
        std::string_view cell = line.substr(0, end);
        while (!cell.empty() && cell.front() == ' ') cell.remove_prefix(1);
        while (!cell.empty() && cell.back() == ' ') cell.remove_suffix(1);
        if (end < line.size() || !cell.empty()) cells.emplace_back(cell);
        line.remove_prefix(std::min(end + 1, line.size()));
    }
    return cells;
}

bool is_rule(const std::vector<std::string>& cells) {
    return !cells.empty() && std::all_of(cells.begin(), cells.end(), [](const std::string& c) {
        return !c.empty() && c.find_first_not_of("-:") == std::string::npos;
    });
}

bool is_number(const std::string& cell) {
    const size_t at = cell.find_first_not_of("+-");
    return at != std::string::npos && std::isdigit(static_cast<unsigned char>(cell[at])) != 0;
}

}  // namespace

std::string TerminalTables::feed(std::string_view text) {
    std::string out;
    for (const char c : text) {
        line_ += c;
        if (c != '\n') continue;
        out += take_line(line_);
        line_.clear();
    }
    // A line that is no table's is shown while it is written.
    if (!line_.empty() && line_[0] != '|') {
        out += take_table() + line_;
        line_.clear();
    }
    return out;
}

std::string TerminalTables::finish() {
    std::string out = line_.empty() || line_[0] != '|' ? "" : take_line(line_);
    out += take_table();
    if (!line_.empty() && line_[0] != '|') out += line_;
    line_.clear();
    return out;
}

std::string TerminalTables::take_line(const std::string& line) {
    if (line[0] == '|') {
        table_ += line.back() == '\n' ? line : line + "\n";
        return "";
    }
    std::string shown = line;
    if (line.rfind("verdict: ", 0) == 0) {
        for (const Tint& tint : kTints) {
            if (line.compare(9, tint.word.size(), tint.word) != 0) continue;
            shown = "verdict: " + (kBold + (tint.code + std::string(tint.word))) + kReset +
                    line.substr(9 + tint.word.size());
        }
    }
    return take_table() + shown;
}

std::string TerminalTables::take_table() {
    if (table_.empty()) return "";
    std::vector<std::vector<std::string>> rows;
    for (size_t at = 0; at < table_.size();) {
        const size_t end = table_.find('\n', at);
        rows.push_back(cells_of(std::string_view(table_).substr(at, end - at)));
        at = end + 1;
    }
    std::string plain;
    plain.swap(table_);
    if (rows.size() < 2 || !is_rule(rows[1])) return plain;  // not a table of ours
    std::vector<size_t> widths;
    std::vector<bool> right;
    for (size_t r = 0; r < rows.size(); ++r) {
        if (r == 1) continue;
        for (size_t i = 0; i < rows[r].size(); ++i) {
            if (i == widths.size()) {
                widths.push_back(0);
                right.push_back(false);
            }
            widths[i] = std::max(widths[i], width_of(rows[r][i]));
            right[i] = right[i] || (r > 1 && i > 0 && is_number(rows[r][i]));
        }
    }
    std::string out;
    for (size_t r = 0; r < rows.size(); ++r) {
        std::string line;
        for (size_t i = 0; i < widths.size(); ++i) {
            std::string cell = i < rows[r].size() && r != 1 ? rows[r][i] : "";
            if (r == 1) {
                for (size_t k = 0; k < widths[i]; ++k) cell += "─";
            }
            const std::string pad(widths[i] - std::min(widths[i], width_of(cell)), ' ');
            std::string shown = cell;
            for (const Tint& tint : kTints) {
                if (r > 1 && cell == tint.word) shown = tint.code + cell + kReset;
            }
            line += (i == 0 ? "" : "  ") + (right[i] ? pad + shown : shown + pad);
        }
        while (!line.empty() && line.back() == ' ') line.pop_back();
        out += (r == 0 ? kBold + line + kReset : r == 1 ? kDim + line + kReset : line) + "\n";
    }
    return out;
}

}  // namespace kvaq
