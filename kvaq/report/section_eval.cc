#include <fmt/format.h>

#include <cmath>

#include "kvaq/plan/verdict.h"
#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"

namespace kvaq {

std::optional<Section> eval_section(const ReportInput& input, size_t index) {
    if (index >= input.evals.size()) return std::nullopt;
    const EvalTable& table = input.evals[index];
    const EvalRow* ours = row_of_plan(table, input);
    Section section{
        .id = index == 0 ? "eval" : fmt::format("eval-{}", index + 1),
        .title = input.evals.size() == 1 ? "Measured quality" : fmt::format("Measured quality {}", index + 1),
        .blocks = {}};
    section.blocks.push_back(Paragraph{
        {.text = fmt::format(
             "Every cache read {} ({} x {} tokens, second halves scored: {} tokens) and is compared with plain "
             "llama.cpp and its f16 cache. Small KL and a high share of same top tokens mean that little changed; "
             "perplexity says how well the text was predicted. ± is the standard error.{}",
             table.text, table.n_chunks, table.n_ctx, table.n_scored,
             ours != nullptr ? " The marked row is the plan of this report." : "")}});
    Table out{.caption = fmt::format("Caches compared at {} tokens", table.n_ctx),
              .columns = {"cache", "bits per number", "bytes", "mean KL (nats)", "99 % KL", "same top token",
                          "perplexity", "verdict"},
              .rows = {},
              .marked = {},
              .folded = false};
    bool predicted = false;
    for (const EvalRow& row : table.rows) predicted = predicted || row.predicted_kl >= 0;
    if (predicted) out.columns.emplace_back("predicted KL");
    for (const EvalRow& row : table.rows) {
        const bool reference = row.kind == "reference";
        if (&row == ours) out.marked.push_back(out.rows.size());
        const bool judged = !reference && row.kind != "control";
        out.rows.push_back(
            {row.name, bits_cell(row.bits), bytes_cell(row.bytes),
             reference ? Cell("reference") : kl_cell(row.kl.value, row.kl.error),
             reference ? Cell("") : kl_cell(row.kl_99),
             reference ? Cell("") : percent_cell(row.same_top.value, row.same_top.error),
             std::isfinite(row.perplexity.value)
                 ? Cell(fmt::format("{:.2f} ± {:.2f}", row.perplexity.value, row.perplexity.error),
                        row.perplexity.value)
                 : Cell("no number"),
             judged ? Cell(to_string(std::isnan(row.kl.value) ? Verdict::kNotRecommended
                                                              : verdict_of(row.kl.value, row.same_top.value)))
                    : Cell(row.kind == "control" ? "rounding alone" : "")});
        if (predicted) out.rows.back().push_back(row.predicted_kl >= 0 ? kl_cell(row.predicted_kl) : Cell(""));
    }
    if (!input.frontier && table.rows.size() > 3)
        section.blocks.push_back(ChartRow{{quality_chart(table, "Mean KL against effective bits")}});
    section.blocks.emplace_back(std::move(out));
    section.blocks.push_back(made_by(table.command, "kvaq eval --json"));
    return section;
}

}  // namespace kvaq
