#include "kvaq/report/sections.h"

namespace kvaq {

Paragraph made_by(const std::string& command, const std::string& verb, const std::string& same) {
    Paragraph out = {{.text = "Made by "}, {.text = command.empty() ? verb : command, .code = true}, {.text = "."}};
    if (!same.empty()) {
        out.back().text = "; the same numbers: ";
        out.push_back({.text = same, .code = true});
        out.push_back({.text = "."});
    }
    return out;
}

std::optional<Section> sources_section(const ReportInput& input) {
    Section section{.id = "sources", .title = "Where the numbers come from", .blocks = {}};
    Table table{.caption = "Files that this report was made from",
                .columns = {"what", "file", "sha256", "made by"},
                .rows = {},
                .marked = {},
                .folded = false};
    for (const ReportSource& source : input.sources) {
        Cell file(source.file);
        Cell made(source.command.empty() ? source.verb + " (the file does not hold the command)" : source.command);
        file.code = true;
        made.code = !source.command.empty();
        table.rows.push_back({source.what, file, source.sha256.substr(0, 16), made});
    }
    if (!table.rows.empty()) section.blocks.emplace_back(std::move(table));
    if (input.plan && input.stats) {
        section.blocks.push_back(Paragraph{
            {.text = "Calibration: " + std::to_string(input.stats->n_tokens) + " tokens of a text with sha256 " +
                     input.stats->text_sha256.substr(0, 16) + "; " + input.stats->settings}});
    }
    section.blocks.push_back(
        Paragraph{{.text = "This report: "}, {.text = input.command, .code = true}, {.text = "."}});
    if (!input.model.fingerprint.empty())
        section.blocks.push_back(
            Paragraph{{.text = "Model: " + input.model.name + " (" + input.model.architecture + "), fingerprint "},
                      {.text = input.model.fingerprint, .code = true},
                      {.text = "."}});
    return section;
}

}  // namespace kvaq
