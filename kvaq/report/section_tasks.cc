#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/base/sha256.h"
#include "kvaq/plan/plan_json.h"
#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"

namespace kvaq {
namespace {

/// Differences with a p below it are said in words.
constexpr double kSignificant = 0.05;

/// How a metric's numbers are shown: value and error in the unit of the column.
struct Shown {
    const char* unit;
    int digits;
    double factor;
    bool perplexity;
};
Shown shown_of(const std::string& unit) {
    if (unit == "share") return {" (%)", 1, 100, false};
    if (unit == "tokens") return {" (tokens)", 1, 1, false};
    if (unit.find("perplexity") != std::string::npos) return {"", 2, 1, true};
    return {" (nats)", 4, 1, false};
}

std::string with_error(double value, double error, int digits, size_t n) {
    if (!std::isfinite(value)) return "no number";
    const std::string text = fmt::format("{:.{}f}", value, digits);
    return n > 1 ? text + fmt::format(" ± {:.{}f}", error, digits) : text;  // one observation has no error
}

Cell score_cell(const SuiteTable::Metric& metric, const std::optional<SuiteTable::Score>& score, bool reference) {
    if (!score) return reference ? Cell("reference") : Cell("");
    const Shown how = shown_of(metric.unit);
    double value = score->mean.value * how.factor;
    double error = score->mean.error * how.factor;
    if (how.perplexity) {
        value = std::exp(score->mean.value);
        error = value * score->mean.error;  // the delta method
    }
    std::string text = with_error(value, error, how.digits, score->n);
    if (!std::isfinite(value)) return {text};
    if (score->difference && std::isfinite(score->difference->value)) {
        const double d = score->difference->value;
        text += how.perplexity ? fmt::format(" ({:+.2f} %", 100 * (std::exp(d) - 1))
                               : fmt::format(" ({:+.{}f}", d * how.factor, how.digits);
        if (score->n > 1) text += score->p < 0.001 ? ", p < .001" : fmt::format(", p {:.3f}", score->p);
        text += ")";
    }
    return {text, value};
}

/// Markdown's `names` as code.
Paragraph with_code(const std::string& text) {
    Paragraph out;
    bool code = false;
    for (size_t at = 0; at <= text.size();) {
        const size_t end = std::min(text.find('`', at), text.size());
        if (end > at) out.push_back({.text = text.substr(at, end - at), .code = code, .strong = false});
        code = !code;
        at = end + 1;
    }
    return out;
}

/// Is the cache worse than f16 in this group, beyond what chance gives once in twenty?
bool clearly_worse(const SuiteTable::Metric& metric, const std::optional<SuiteTable::Score>& score) {
    if (!score || !score->difference) return false;
    if (!std::isfinite(score->mean.value)) return true;  // f16 has a number, or there were no difference to speak of
    if (!(score->p < kSignificant)) return false;
    return metric.larger_is_better ? score->difference->value < 0 : score->difference->value > 0;
}

Paragraph in_words(const SuiteTable& suite) {
    size_t n_tests = 0;
    std::vector<std::string> worse;
    for (size_t c = 0; c < suite.caches.size(); ++c) {
        std::vector<std::string> tasks;
        for (const SuiteTable::Task& task : suite.tasks) {
            bool here = false;
            for (const SuiteTable::Metric& metric : task.metrics) {
                for (const SuiteTable::Group& group : metric.groups) {
                    n_tests += group.scores[c] && group.scores[c]->difference ? 1 : 0;
                    here = here || clearly_worse(metric, group.scores[c]);
                }
            }
            if (here) tasks.push_back(task.name);
        }
        if (!tasks.empty()) worse.push_back(fmt::format("{} ({})", suite.caches[c].name, list_text(tasks)));
    }
    const std::string chance =
        fmt::format(" Of {} comparisons with f16 chance alone makes about {:.0f} look like that.", n_tests,
                    std::ceil(kSignificant / 2 * static_cast<double>(n_tests)));
    if (worse.empty()) return {{.text = "In no task is a cache worse than f16 beyond chance (p < .05)." + chance}};
    return {{.text = "Worse than f16 in some number of a task (p < .05): "},
            {.text = list_text(worse, worse.size()), .strong = true},
            {.text = "." + chance}};
}

Table task_table(const SuiteTable& suite, const SuiteTable::Task& task, const std::string& plan_sha256) {
    Table out{
        .caption = fmt::format("{}: {} items, up to {} tokens in the cache", task.name, task.n_items, task.n_context),
        .columns = {"cache", "bits per number"},
        .rows = {},
        .marked = {},
        .folded = false};
    size_t n_groups = 1;
    for (const SuiteTable::Metric& metric : task.metrics) n_groups = std::max(n_groups, metric.groups.size());
    if (n_groups > 1) out.columns.emplace_back("at");
    for (const SuiteTable::Metric& metric : task.metrics)
        out.columns.push_back(metric.name + shown_of(metric.unit).unit);
    for (size_t g = 0; g < n_groups; ++g) {
        for (size_t c = 0; c < suite.caches.size(); ++c) {
            const SuiteTable::Cache& cache = suite.caches[c];
            std::vector<Cell> row = {cache.name, bits_cell(task.bits[c])};
            if (n_groups > 1)
                row.emplace_back(g < task.metrics.front().groups.size() ? task.metrics.front().groups[g].name : "");
            for (const SuiteTable::Metric& metric : task.metrics) {
                row.push_back(g < metric.groups.size()
                                  ? score_cell(metric, metric.groups[g].scores[c], cache.kind == "reference")
                                  : Cell(""));
            }
            if (!plan_sha256.empty() && cache.plan_sha256 == plan_sha256) out.marked.push_back(out.rows.size());
            out.rows.push_back(std::move(row));
        }
    }
    return out;
}

}  // namespace

std::optional<Section> tasks_section(const ReportInput& input) {
    if (!input.suite) return std::nullopt;
    const SuiteTable& suite = *input.suite;
    const std::string plan_sha256 = input.plan ? sha256_hex(canonical_text(*input.plan)) : "";
    Section section{.id = "tasks", .title = "Tasks", .blocks = {}};
    section.blocks.push_back(Paragraph{
        {.text = "Every cache did the same items. ± is the standard error over items; in brackets the paired "
                 "difference to llama.cpp's f16 cache and how likely chance alone makes one as large. A model that "
                 "cannot do a task with f16 cannot show there what a cache costs."}});
    section.blocks.push_back(in_words(suite));
    for (const SuiteTable::Task& task : suite.tasks) {
        Paragraph what = with_code(task.says);
        what.insert(what.begin(), {.text = task.name + ". ", .strong = true});
        section.blocks.push_back(std::move(what));
        section.blocks.emplace_back(task_table(suite, task, plan_sha256));
    }
    section.blocks.push_back(made_by(suite.command, "kvaq eval --task --json"));
    return section;
}

}  // namespace kvaq
