#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"

namespace kvaq {
namespace {

/// For each of llama.cpp's types: the measured plan that takes no more bits, and the smallest one that is as good.
Table rivals(const EvalTable& table) {
    Table out{.caption = "Measured plans beside llama.cpp's types",
              .columns = {"llama.cpp's type", "its bits", "its KL", "KL of a plan of no more bits", "its bits",
                          "bits of a plan as good"},
              .rows = {},
              .marked = {},
              .folded = false};
    for (const EvalRow& type : table.rows) {
        if (family_of(type) != RowFamily::kLlama) continue;
        const EvalRow* within = nullptr;
        const EvalRow* as_good = nullptr;
        for (const EvalRow& row : table.rows) {
            if (family_of(row) != RowFamily::kMeasured) continue;
            if (row.bits <= type.bits + 1e-9 && (within == nullptr || row.bits > within->bits)) within = &row;
            if (row.kl.value <= type.kl.value && (as_good == nullptr || row.bits < as_good->bits)) as_good = &row;
        }
        out.rows.push_back({type.name, bits_cell(type.bits), kl_cell(type.kl.value, type.kl.error),
                            within == nullptr ? Cell("none measured") : kl_cell(within->kl.value, within->kl.error),
                            within == nullptr ? Cell("") : bits_cell(within->bits),
                            as_good == nullptr ? Cell("none measured") : bits_cell(as_good->bits)});
    }
    return out;
}

Table all_rows(const EvalTable& table) {
    std::vector<const EvalRow*> rows;
    bool predicted = false;
    for (const EvalRow& row : table.rows) {
        rows.push_back(&row);
        predicted = predicted || row.predicted_kl >= 0;
    }
    std::stable_sort(rows.begin(), rows.end(), [](const EvalRow* a, const EvalRow* b) { return a->bits < b->bits; });
    Table out{.caption = "All caches of the frontier, fewest bits first",
              .columns = {"cache", "bits per number", "mean KL (nats)", "same top token"},
              .rows = {},
              .marked = {},
              .folded = true};
    if (predicted) out.columns.emplace_back("predicted KL");
    for (const EvalRow* row : rows) {
        const bool reference = row->kind == "reference";
        out.rows.push_back({row->name, bits_cell(row->bits),
                            reference ? Cell("reference") : kl_cell(row->kl.value, row->kl.error),
                            reference ? Cell("") : percent_cell(row->same_top.value, row->same_top.error)});
        if (predicted) out.rows.back().push_back(row->predicted_kl >= 0 ? kl_cell(row->predicted_kl) : Cell(""));
    }
    return out;
}

}  // namespace

std::optional<Section> frontier_section(const ReportInput& input) {
    if (!input.frontier) return std::nullopt;
    const EvalTable& table = *input.frontier;
    Section section{.id = "frontier", .title = "The frontier: quality against bits", .blocks = {}};
    section.blocks.push_back(Paragraph{
        {.text = fmt::format(
             "Plans of several budgets, presets, the paper's allocators and llama.cpp's own cache types on one text "
             "({}, {} x {} tokens, second halves scored), all against one f16 reference, all bytes counted.",
             table.text, table.n_chunks, table.n_ctx)}});
    section.blocks.push_back(ChartRow{{quality_chart(table, "Mean KL against effective bits")}});
    if (Table beside = rivals(table); !beside.rows.empty()) section.blocks.emplace_back(std::move(beside));
    section.blocks.emplace_back(all_rows(table));
    section.blocks.push_back(made_by(table.command, "kvaq plan --frontier"));
    return section;
}

}  // namespace kvaq
