#include <fmt/format.h>

#include <cmath>

#include "kvaq/plan/budget.h"
#include "kvaq/plan/verdict.h"
#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"

namespace kvaq {
namespace {

constexpr size_t kContexts[] = {4096, 8192, 32768};

/// What is known of what the plan does to the model.
struct Quality {
    double kl = -1;
    double same_top = -1;
    const EvalTable* table = nullptr;  ///< where it was measured; null: the plan's own prediction
    const EvalRow* row = nullptr;
};

Quality quality_of(const ReportInput& input) {
    Quality quality{.kl = input.plan ? input.plan->predicted_kl : -1};
    for (const EvalTable& table : input.evals) {
        const EvalRow* row = row_of_plan(table, input);
        // The longest context counts: damage grows with it.
        if (row == nullptr || (quality.table != nullptr && quality.table->n_ctx >= table.n_ctx)) continue;
        quality = {.kl = row->kl.value, .same_top = row->same_top.value, .table = &table, .row = row};
    }
    return quality;
}

std::string verdict_words(Verdict verdict) {
    switch (verdict) {
        case Verdict::kSafe:
            return "Answers will differ so little from those with the full f16 cache that nobody is likely to notice.";
        case Verdict::kWithCare:
            return "Most answers stay as they are, but now and then another word is chosen. Try it on your own task "
                   "before you rely on it.";
        case Verdict::kNotRecommended:
            return "The model answers noticeably differently from itself with the full f16 cache. Give the plan more "
                   "bits.";
    }
    return "";
}

void add_verdict(const ReportInput& input, Section& section) {
    const Quality quality = quality_of(input);
    if (std::isnan(quality.kl)) {
        section.blocks.push_back(Paragraph{{.text = "Verdict: not recommended.", .code = false, .strong = true},
                                           {.text = " With this plan the model gave numbers that are none."}});
        return;
    }
    if (quality.kl < 0) {
        section.blocks.push_back(Paragraph{{.text = "No verdict: ", .code = false, .strong = true},
                                           {.text = "this plan was neither predicted nor measured. Measure it with "},
                                           {.text = "kvaq eval --plan PLAN --json E.json", .code = true},
                                           {.text = " and give E.json with --eval."}});
        return;
    }
    const Verdict verdict = verdict_of(quality.kl, quality.same_top);
    section.blocks.push_back(
        Paragraph{{.text = fmt::format("Verdict: {}. ", to_string(verdict)), .code = false, .strong = true},
                  {.text = verdict_words(verdict)}});
    std::string measured =
        "The change was not measured on a text of its own; the verdict rests on the plan's prediction.";
    if (quality.row != nullptr) {
        measured = fmt::format(
            "Measured on {} tokens of {}, in pieces of {}: mean KL {} nats per token, and the most likely next token "
            "is the same in {}.",
            quality.table->n_scored, quality.table->text, quality.table->n_ctx,
            plus_minus(kl_text(quality.row->kl.value), kl_text(quality.row->kl.error)),
            percent_text(quality.row->same_top.value));
        for (const char* type : {"q8_0", "q4_0"}) {
            if (const EvalRow* row = row_named(*quality.table, std::string(type) + " (llama.cpp)"))
                measured += fmt::format(" llama.cpp's {} ({} bits) has {} there.", type, bits_text(row->bits),
                                        kl_text(row->kl.value));
        }
    }
    section.blocks.push_back(Paragraph{{.text = measured + " KL says how far the probabilities of the next token move "
                                                           "away from those with the f16 cache; 0 is no change."}});
    if (input.plan->predicted_kl >= 0)
        section.blocks.push_back(
            Paragraph{{.text = fmt::format("The plan itself says KL {}: {}.", kl_text(input.plan->predicted_kl),
                                           input.plan->measured_how)}});
}

void add_plan(const ReportInput& input, Section& section) {
    const Plan& plan = *input.plan;
    const ModelShape& shape = *input.shape;
    KeyFigures key;
    Table table{.caption = "Bytes of the cache of one sequence, everything counted",
                .columns = {"context (tokens)", "llama.cpp f16", "this plan", "times smaller", "bits per number"},
                .rows = {},
                .marked = {},
                .folded = false};
    for (const size_t n : kContexts) {
        const CacheBytes bytes = cache_bytes(plan, n);
        const auto f16 = static_cast<double>(llama_cache_bytes(shape, "f16", n));
        const auto own = static_cast<double>(bytes.total);
        table.rows.push_back({integer_cell(static_cast<double>(n)), bytes_cell(f16), bytes_cell(own),
                              short_cell(f16 / own), bits_cell(bytes.effective_bits)});
        key.figures.push_back(
            {.label = fmt::format("at {} tokens", n),
             .shown = bytes_text(own),
             .value = own,
             .note = fmt::format("f16: {}, {} times as much", bytes_text(f16), short_text(f16 / own))});
    }
    const CacheBytes at_8k = cache_bytes(plan, 8192);
    key.figures.insert(key.figures.begin(), {.label = "effective bits per number",
                                             .shown = bits_text(at_8k.effective_bits),
                                             .value = at_8k.effective_bits,
                                             .note = "at 8192 tokens, instead of 16"});
    std::string f16_tokens;
    if (plan.window > 0 || plan.sinks > 0)
        f16_tokens = fmt::format(
            " The first {} and the newest {} tokens stay in f16 and are counted, which is why short contexts take more "
            "bits per number.",
            plan.sinks, plan.window);
    section.blocks.push_back(Paragraph{
        {.text = "While it writes, a language model keeps keys and values of every token so far: the KV cache. "
                 "llama.cpp stores them with 16 bits per number (f16). The plan "},
        {.text = plan.name, .code = true},
        {.text = fmt::format(
             " stores those of {} with {} bits per number at 8192 tokens, {} bytes per further token.{}",
             input.model.name, bits_text(at_8k.effective_bits), short_text(bytes_per_token(plan)), f16_tokens)}});
    section.blocks.emplace_back(std::move(key));
    section.blocks.emplace_back(std::move(table));
}

/// Without a plan: what the comparison says, cheapest good cache first.
void add_best_rows(const EvalTable& table, Section& section) {
    const EvalRow* safe = nullptr;
    for (const EvalRow& row : table.rows) {
        if (row.kind == "reference" || row.kind == "control" || std::isnan(row.kl.value)) continue;
        if (verdict_of(row.kl.value, row.same_top.value) == Verdict::kSafe &&
            (safe == nullptr || row.bits < safe->bits))
            safe = &row;
    }
    if (safe == nullptr) {
        section.blocks.push_back(
            Paragraph{{.text = fmt::format("None of the caches compared on {} is safe by kvaq's measure (mean KL up to "
                                           "0.02 nats, same top token in at least 93 %).",
                                           table.text)}});
        return;
    }
    section.blocks.push_back(Paragraph{
        {.text = fmt::format("Of the caches compared on {}, the smallest that is safe by kvaq's measure (mean KL up to "
                             "0.02 nats, same top token in at least 93 %) is ",
                             table.text)},
        {.text = safe->name, .code = true},
        {.text = fmt::format(": {} bits per number, KL {}.", bits_text(safe->bits), kl_text(safe->kl.value))}});
}

}  // namespace

std::optional<Section> summary_section(const ReportInput& input) {
    Section section{.id = "summary", .title = input.plan ? "Verdict" : "Summary", .blocks = {}};
    if (input.plan) {
        add_verdict(input, section);
        add_plan(input, section);
        section.blocks.push_back(made_by("", "kvaq plan"));
        return section;
    }
    if (!input.model.name.empty())
        section.blocks.push_back(Paragraph{
            {.text = fmt::format(
                 "Measurements of the KV cache of {} ({}): what the model keeps of the text so far, and what storing "
                 "it in fewer bits does to its answers. No plan was given, so there is no verdict on one.",
                 input.model.name, input.model.architecture)}});
    for (const EvalTable& table : input.evals) add_best_rows(table, section);
    if (input.evals.empty() && input.frontier) add_best_rows(*input.frontier, section);
    if (section.blocks.empty()) return std::nullopt;
    return section;
}

}  // namespace kvaq
