#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"

namespace kvaq {
namespace {

/// A type of llama.cpp beside the measured plans.
struct Rival {
    const EvalRow* type = nullptr;
    const EvalRow* within = nullptr;   ///< the largest plan that takes no more bits
    const EvalRow* as_good = nullptr;  ///< the smallest plan whose KL is no larger
};

std::vector<Rival> rivals_of(const EvalTable& table) {
    std::vector<Rival> out;
    for (const EvalRow& type : table.rows) {
        if (family_of(type) != RowFamily::kLlama) continue;
        Rival rival{.type = &type};
        for (const EvalRow& row : table.rows) {
            if (family_of(row) != RowFamily::kMeasured) continue;
            if (row.bits <= type.bits + 1e-9 && (rival.within == nullptr || row.bits > rival.within->bits))
                rival.within = &row;
            if (row.kl.value <= type.kl.value && (rival.as_good == nullptr || row.bits < rival.as_good->bits))
                rival.as_good = &row;
        }
        out.push_back(rival);
    }
    return out;
}

/// The type of fewest bits in words.
std::string rival_words(const std::vector<Rival>& rivals) {
    const Rival* smallest = nullptr;
    for (const Rival& rival : rivals) {
        if (rival.within != nullptr && (smallest == nullptr || rival.type->bits < smallest->type->bits))
            smallest = &rival;
    }
    if (smallest == nullptr) return "";
    std::string out = fmt::format("{} has KL {} at {} bits; a measured plan has {} at {} bits.", smallest->type->name,
                                  kl_text(smallest->type->kl.value), bits_text(smallest->type->bits),
                                  kl_text(smallest->within->kl.value), bits_text(smallest->within->bits));
    return smallest->as_good == nullptr
               ? out
               : out + fmt::format(" {} bits are enough to be as good.", bits_text(smallest->as_good->bits));
}

Table rival_table(const std::vector<Rival>& rivals) {
    Table out{.caption = "Measured plans beside llama.cpp's types",
              .columns = {"llama.cpp's type", "its bits", "its KL", "KL of a plan of no more bits", "its bits",
                          "bits of a plan as good"},
              .rows = {},
              .marked = {},
              .folded = false};
    for (const Rival& r : rivals) {
        out.rows.push_back(
            {r.type->name, bits_cell(r.type->bits), kl_cell(r.type->kl.value, r.type->kl.error),
             r.within == nullptr ? Cell("none measured") : kl_cell(r.within->kl.value, r.within->kl.error),
             r.within == nullptr ? Cell("") : bits_cell(r.within->bits),
             r.as_good == nullptr ? Cell("none measured") : bits_cell(r.as_good->bits)});
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
    const std::vector<Rival> rivals = rivals_of(table);
    if (const std::string words = rival_words(rivals); !words.empty())
        section.blocks.push_back(Paragraph{{.text = words, .code = false, .strong = true}});
    section.blocks.push_back(ChartRow{{quality_chart(table, "Mean KL against effective bits")}});
    if (!rivals.empty()) section.blocks.emplace_back(rival_table(rivals));
    section.blocks.emplace_back(all_rows(table));
    section.blocks.push_back(made_by(table.command, "kvaq plan --frontier"));
    return section;
}

}  // namespace kvaq
