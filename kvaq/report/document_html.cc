#include <fmt/format.h>

#include "kvaq/report/document.h"
#include "kvaq/report/markup.h"
#include "kvaq/report/style.h"

namespace kvaq {
namespace {

std::string html(const Paragraph& paragraph) {
    std::string out;
    for (const Run& run : paragraph) {
        const std::string text = escape_markup(run.text);
        out += run.code ? "<code>" + text + "</code>" : run.strong ? "<strong>" + text + "</strong>" : text;
    }
    return out;
}

std::string html(const Cell& cell) {
    const std::string text = cell.code ? "<code>" + escape_markup(cell.text) + "</code>" : escape_markup(cell.text);
    return cell.value ? fmt::format("<data value=\"{}\">{}</data>", *cell.value, text) : text;
}

std::string html(const Table& table, const std::string& id) {
    const std::string caption = escape_markup(table.caption);
    std::string out = table.folded ? "<details><summary>" + caption + "</summary>\n" : "";
    // The region can be scrolled by keyboard; it is named by the caption.
    out += fmt::format(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-labelledby=\"{0}\"><table><caption "
        "id=\"{0}\"{1}>{2}</caption>\n<thead><tr>",
        id, table.folded ? " class=\"unseen\"" : "", caption);
    std::vector<bool> numbers(table.columns.size(), false);
    for (const auto& row : table.rows) {
        for (size_t i = 0; i < row.size() && i < numbers.size(); ++i)
            numbers[i] = numbers[i] || row[i].value.has_value();
    }
    for (size_t i = 0; i < table.columns.size(); ++i)
        out += fmt::format("<th scope=\"col\"{}>{}</th>", numbers[i] ? " class=\"n\"" : "",
                           escape_markup(table.columns[i]));
    out += "</tr></thead>\n<tbody>\n";
    for (size_t r = 0; r < table.rows.size(); ++r) {
        bool marked = false;
        for (const size_t m : table.marked) marked = marked || m == r;
        out += marked ? "<tr class=\"this\">" : "<tr>";
        for (size_t i = 0; i < table.rows[r].size(); ++i) {
            const char* tag = i == 0 ? "th" : "td";
            out += fmt::format(
                "<{}{}{}>{}{}</{}>", tag, i == 0 ? " scope=\"row\"" : "", numbers[i] ? " class=\"n\"" : "",
                i == 0 && marked ? "<span aria-hidden=\"true\">&#9654; </span>" : "", html(table.rows[r][i]), tag);
        }
        out += "</tr>\n";
    }
    return out + "</tbody></table></div>\n" + (table.folded ? "</details>\n" : "");
}

std::string html(const ChartRow& row) {
    if (row.charts.empty()) return "";
    std::string out = fmt::format("<div class=\"charts{}\">\n", row.charts.size() > 1          ? " many"
                                                                : row.charts[0].narrow.empty() ? " half"
                                                                                               : "");
    for (const Chart& chart : row.charts) {
        out += "<figure><figcaption>" + escape_markup(chart.title) + "</figcaption>\n";
        out += chart.narrow.empty()
                   ? chart.wide
                   : "<div class=\"wide\">" + chart.wide + "</div><div class=\"narrow\">" + chart.narrow + "</div>\n";
        out += "<p class=\"says\">" + escape_markup(chart.says) + "</p></figure>\n";
    }
    return out + "</div>\n";
}

std::string html(const KeyFigures& key) {
    std::string out = "<dl class=\"key\">\n";
    for (const KeyFigure& f : key.figures) {
        out +=
            fmt::format("<div><dt>{}</dt><dd><data value=\"{}\">{}</data><span class=\"note\">{}</span></dd></div>\n",
                        escape_markup(f.label), f.value, escape_markup(f.shown), escape_markup(f.note));
    }
    return out + "</dl>\n";
}

}  // namespace

std::string to_html(const Document& document) {
    std::string out = fmt::format(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\" />\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n"
        "<meta name=\"color-scheme\" content=\"light dark\" />\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\" />\n"
        "<title>{}</title>\n<style>\n{}{}</style></head>\n<body>\n"
        "<a class=\"skip\" href=\"#main\">Skip to the report</a>\n<header><h1>{}</h1><p>{}</p>\n",
        escape_markup(document.title), page_style(), chart_style(), escape_markup(document.title),
        escape_markup(document.subtitle));
    out += "<nav aria-label=\"Sections\"><ul>\n";
    for (const Section& section : document.sections)
        out += fmt::format("<li><a href=\"#{}\">{}</a></li>\n", section.id, escape_markup(section.title));
    out += "</ul></nav></header>\n<main id=\"main\">\n";
    for (const Section& section : document.sections) {
        out += fmt::format("<section id=\"{0}\" aria-labelledby=\"{0}-title\"><h2 id=\"{0}-title\">{1}</h2>\n",
                           section.id, escape_markup(section.title));
        size_t n_tables = 0;
        for (const Block& block : section.blocks) {
            if (const auto* paragraph = std::get_if<Paragraph>(&block)) {
                out += "<p>" + html(*paragraph) + "</p>\n";
            } else if (const auto* table = std::get_if<Table>(&block)) {
                out += html(*table, fmt::format("{}-table-{}", section.id, ++n_tables));
            } else if (const auto* charts = std::get_if<ChartRow>(&block)) {
                out += html(*charts);
            } else {
                out += html(std::get<KeyFigures>(block));
            }
        }
        out += "</section>\n";
    }
    return out + "</main>\n<footer><p>" + html(document.footer) + "</p></footer>\n</body></html>\n";
}

}  // namespace kvaq
