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

/// What the numbers mean for the reader; the section's title is the verdict.
void add_verdict(const Quality& quality, Section& section) {
    section.title = "Verdict: not recommended";
    if (std::isnan(quality.kl)) {
        section.blocks.push_back(
            Paragraph{{.text = "With this plan the model gives probabilities that are no numbers."}});
    } else if (quality.kl < 0) {
        section.title = "No verdict yet";
        section.blocks.push_back(Paragraph{{.text = "This plan was neither predicted nor measured. Measure it with "},
                                           {.text = "kvaq eval --plan PLAN --json E.json", .code = true},
                                           {.text = " and give E.json with --eval."}});
    } else {
        const Verdict verdict = verdict_of(quality.kl, quality.same_top);
        section.title = "Verdict: " + to_string(verdict);
        section.blocks.push_back(Paragraph{{.text = verdict_words(verdict), .code = false, .strong = true}});
    }
}

/// Measured and predicted KL in words.
void add_quality(const Quality& quality, const Plan& plan, Section& section) {
    if (quality.row != nullptr) {
        std::string text = fmt::format(
            "Measured on {} tokens of {}, in pieces of {}: mean KL {} nats per token, and the most likely next token "
            "is the same in {}.",
            quality.table->n_scored, quality.table->text, quality.table->n_ctx,
            kl_text(quality.row->kl.value, quality.row->kl.error), percent_text(quality.row->same_top.value));
        std::vector<std::string> others;
        for (const char* type : {"q8_0", "q5_1", "q4_0"}) {
            if (const EvalRow* row = row_named(*quality.table, std::string(type) + " (llama.cpp)"))
                others.push_back(fmt::format("{} at {} bits {}", type, bits_text(row->bits), kl_text(row->kl.value)));
        }
        if (!others.empty()) text += fmt::format(" llama.cpp's own types there: {}.", list_text(others));
        if (quality.row->plan_sha256.empty())
            text +=
                " (That file does not say which plan it measured; it is taken to be this one by its name and exact "
                "size.)";
        section.blocks.push_back(Paragraph{{.text = text}});
    }
    if (plan.predicted_kl >= 0) {
        const bool measured = plan.measured_how.rfind("measured", 0) == 0;
        std::string text = fmt::format("{} when the plan was made: KL {} ({}).", measured ? "Measured" : "Predicted",
                                       kl_text(plan.predicted_kl), plan.measured_how);
        if (quality.row == nullptr && !measured)
            text += " Nothing was measured since, so the verdict rests on the prediction.";
        if (quality.row != nullptr && plan.predicted_kl > 0)
            text += fmt::format(" What was measured here is {} times that.",
                                short_text(quality.row->kl.value / plan.predicted_kl));
        section.blocks.push_back(Paragraph{{.text = text}});
    }
    if (quality.row != nullptr || plan.predicted_kl >= 0)
        section.blocks.push_back(Paragraph{{.text = "KL says how far the probabilities of the next token move away "
                                                    "from those with the f16 cache, in nats; 0 is no change."}});
}

void add_plan(const ReportInput& input, Section& section) {
    const Plan& plan = *input.plan;
    KeyFigures key;
    for (const size_t n : kContexts) {
        const CacheBytes bytes = cache_bytes(plan, n);
        const auto f16 = static_cast<double>(llama_cache_bytes(*input.shape, "f16", n));
        const auto own = static_cast<double>(bytes.total);
        if (key.figures.empty())
            key.figures.push_back({.label = "bits per number",
                                   .shown = bits_text(bytes.effective_bits),
                                   .value = bytes.effective_bits,
                                   .note = fmt::format("at {} tokens, all counted; f16 has {:.4g}", n,
                                                       8 * f16 / static_cast<double>(bytes.elements))});
        key.figures.push_back(
            {.label = fmt::format("memory at {} tokens", n),
             .shown = bytes_text(own),
             .value = own,
             .note = fmt::format("f16: {}, {} times as much", bytes_text(f16), short_text(f16 / own))});
    }
    std::vector<std::string> kept;
    if (plan.sinks > 0) kept.push_back(fmt::format("the first {}", plan.sinks));
    if (plan.window > 0) kept.push_back(fmt::format("the newest {}", plan.window));
    const std::string f16_tokens = kept.empty() ? ""
                                                : fmt::format(
                                                      " Of each sequence, {} tokens stay in f16 and are counted, which "
                                                      "is why short contexts take more bits per number.",
                                                      list_text(kept));
    section.blocks.emplace_back(std::move(key));
    section.blocks.push_back(
        Paragraph{{.text = "While it writes, a language model keeps keys and values of every token so far: the KV "
                           "cache. llama.cpp stores them with 16 bits per number (f16). The plan "},
                  {.text = plan.name, .code = true},
                  {.text = fmt::format(" stores those of {} in fewer: {} bytes per further token.{}", input.model.name,
                                       short_text(bytes_per_token(plan)), f16_tokens)}});
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
    Section section{.id = "summary", .title = "Summary", .blocks = {}};
    if (input.plan) {
        const Quality quality = quality_of(input);
        add_verdict(quality, section);
        add_plan(input, section);
        add_quality(quality, *input.plan, section);
        section.blocks.push_back(made_by("", "kvaq plan", "kvaq estimate -m MODEL --plan PLAN -c TOKENS"));
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
