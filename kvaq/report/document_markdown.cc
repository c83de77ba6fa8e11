#include <fmt/format.h>

#include "kvaq/report/document.h"
#include "kvaq/report/markup.h"

namespace kvaq {
namespace {

std::string markdown(const Paragraph& paragraph) {
    std::string out;
    for (const Run& run : paragraph) {
        if (run.text.empty()) continue;
        out += run.code     ? markdown_code(run.text)
               : run.strong ? "**" + escape_markdown(run.text) + "**"
                            : escape_markdown(run.text);
    }
    return out + "\n\n";
}

std::string markdown(const Table& table) {
    std::string out = table.folded ? "<details><summary>" + escape_markup(table.caption) + "</summary>\n\n"
                                   : "*" + escape_markdown(table.caption) + "*\n\n";
    std::string rule = "|";
    out += "|";
    for (size_t i = 0; i < table.columns.size(); ++i) {
        out += " " + escape_markdown(table.columns[i]) + " |";
        bool number = false;
        for (const auto& row : table.rows) number = number || (i < row.size() && row[i].value.has_value());
        rule += number ? "---:|" : "---|";
    }
    out += "\n" + rule + "\n";
    for (size_t r = 0; r < table.rows.size(); ++r) {
        bool marked = false;
        for (const size_t m : table.marked) marked = marked || m == r;
        out += "|";
        for (size_t i = 0; i < table.rows[r].size(); ++i) {
            const Cell& cell = table.rows[r][i];
            const std::string text = cell.code ? markdown_code(cell.text, true) : escape_markdown(cell.text);
            out += " " + (marked && i == 0 ? "**" + text + "**" : text) + " |";
        }
        out += "\n";
    }
    return out + (table.folded ? "\n</details>\n\n" : "\n");
}

}  // namespace

std::string to_markdown(const Document& document) {
    std::string out = "# " + escape_markdown(document.title) + "\n\n" + escape_markdown(document.subtitle) + "\n\n";
    for (const Section& section : document.sections) {
        out += "## " + escape_markdown(section.title) + "\n\n";
        for (const Block& block : section.blocks) {
            if (const auto* paragraph = std::get_if<Paragraph>(&block)) {
                out += markdown(*paragraph);
            } else if (const auto* table = std::get_if<Table>(&block)) {
                out += markdown(*table);
            } else if (const auto* charts = std::get_if<ChartRow>(&block)) {
                for (const Chart& chart : charts->charts)
                    out += "- " + escape_markdown(chart.title) + ": " + escape_markdown(chart.says) + "\n";
                out += "\n";
            } else {
                for (const KeyFigure& f : std::get<KeyFigures>(block).figures)
                    out += fmt::format("- {}: **{}** {}\n", escape_markdown(f.label), escape_markdown(f.shown),
                                       escape_markdown(f.note));
                out += "\n";
            }
        }
    }
    return out + "---\n\n" + markdown(document.footer);
}

}  // namespace kvaq
