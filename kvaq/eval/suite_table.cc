#include <fmt/format.h>

#include <cmath>

#include "kvaq/base/sha256.h"
#include "kvaq/eval/suite.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

using Json = nlohmann::ordered_json;

bool is_reference(size_t row) { return row == 0; }

const char* unit_of(Scale scale) {
    switch (scale) {
        case Scale::kShare:
            return " (%)";
        case Scale::kNats:
            return " (nats)";
        case Scale::kTokens:
            return " (tokens)";
        case Scale::kPerplexity:
            break;
    }
    return "";
}

/// A mean as it is shown: percent, or exp with its error by the delta method.
Estimate shown(Scale scale, const Estimate& e) {
    if (scale == Scale::kShare) return {100 * e.value, 100 * e.error};
    if (scale == Scale::kPerplexity) return {std::exp(e.value), std::exp(e.value) * e.error};
    return e;
}

/// A paired difference as it is shown: of perplexities in percent, 100 (exp(d) - 1).
Estimate shown_difference(Scale scale, const Estimate& e) {
    if (scale == Scale::kPerplexity) return {100 * (std::exp(e.value) - 1), 100 * std::exp(e.value) * e.error};
    return shown(scale, e);
}

int digits_of(Scale scale) {
    switch (scale) {
        case Scale::kShare:
        case Scale::kTokens:
            return 1;
        case Scale::kPerplexity:
            return 2;
        case Scale::kNats:
            break;
    }
    return 4;
}

std::string number(double value, int digits, bool sign) {
    if (!std::isfinite(value)) return "no number";
    return sign ? fmt::format("{:+.{}f}", value, digits) : fmt::format("{:.{}f}", value, digits);
}

std::string cell(const Metric& metric, const std::vector<Sample>& row, const std::vector<Sample>& reference,
                 bool of_reference) {
    if (row.empty()) return "";
    const int digits = digits_of(metric.scale);
    const Estimate value = shown(metric.scale, clustered_mean(row));
    if (of_reference && metric.of_difference) return "reference";
    const auto with_error = [&](const Estimate& e, bool sign) {  // one observation has no error
        return number(e.value, digits, sign) + (row.size() > 1 ? " ± " + number(e.error, digits, false) : "");
    };
    std::string text = with_error(value, false);
    if (of_reference || metric.of_difference) return text;
    const PairedDifference paired = paired_difference(row, reference);
    const Estimate d = shown_difference(metric.scale, paired.difference);
    text += " (" + with_error(d, true) + (metric.scale == Scale::kPerplexity ? " %" : "");
    if (row.size() > 1) text += paired.p < 0.001 ? ", p < .001" : fmt::format(", p {:.3f}", paired.p);
    text += ")";
    return text;
}

std::string main_table(const SuiteResult& result, const TaskScores& task) {
    const std::vector<std::string> groups = groups_of(task);
    const bool grouped = groups.size() > 1;
    std::string text = fmt::format("| cache | bits/element at {} |", task.n_context);
    std::string line = "|---|---|";
    if (grouped) {
        text += " at |";
        line += "---|";
    }
    for (const Metric& metric : task.metrics) {
        text += " " + metric.name + unit_of(metric.scale) + " |";
        line += "---|";
    }
    text += "\n" + line + "\n";
    for (const std::string& group : groups) {
        for (size_t row = 0; row < result.rows.size(); ++row) {
            text += fmt::format("| {} | {:.2f} |", result.rows[row].name,
                                result.rows[row].effective_bits(result.shape, task.n_context));
            if (grouped) text += " " + group + " |";
            for (size_t m = 0; m < task.metrics.size(); ++m) {
                text += " " +
                        cell(task.metrics[m], samples_of(task, row, m, &group), samples_of(task, 0, m, &group),
                             is_reference(row)) +
                        " |";
            }
            text += "\n";
        }
    }
    return text;
}

std::string curve_table(const SuiteResult& result, const TaskScores& task) {
    const std::vector<size_t> places = places_of(task);
    const Metric& metric = task.metrics.at(task.curve_metric);
    if (task.curve_over.empty() || places.size() < 2) return "";
    std::string text = fmt::format("\n{}{} over {}:\n\n| cache |", metric.name, unit_of(metric.scale), task.curve_over);
    std::string line = "|---|";
    for (const size_t at : places) {
        text += fmt::format(" {} |", at);
        line += "---|";
    }
    text += "\n" + line + "\n";
    for (size_t row = 0; row < result.rows.size(); ++row) {
        if (is_reference(row) && metric.of_difference) continue;
        text += "| " + result.rows[row].name + " |";
        for (const size_t at : places) {
            const std::vector<Sample> samples = samples_of(task, row, task.curve_metric, nullptr, &at);
            const Estimate value = samples.empty() ? Estimate{} : shown(metric.scale, clustered_mean(samples));
            text += " " + (samples.empty() ? "" : number(value.value, digits_of(metric.scale), false)) + " |";
        }
        text += "\n";
    }
    return text;
}

Json estimate_json(const Estimate& e) { return {{"value", e.value}, {"standard_error", e.error}}; }

const char* scale_name(Scale scale) {
    switch (scale) {
        case Scale::kShare:
            return "share";
        case Scale::kNats:
            return "nats per token";
        case Scale::kPerplexity:
            return "nats per token; perplexity = exp(mean)";
        case Scale::kTokens:
            break;
    }
    return "tokens";
}

Json metric_json(const SuiteResult& result, const TaskScores& task, size_t m) {
    const Metric& metric = task.metrics[m];
    Json out = {{"name", metric.name},
                {"unit", scale_name(metric.scale)},
                {"larger_is_better", metric.larger_is_better},
                {"groups", Json::array()}};
    for (const std::string& group : groups_of(task)) {
        const std::vector<Sample> reference = samples_of(task, 0, m, &group);
        Json caches = Json::array();
        for (size_t row = 0; row < result.rows.size(); ++row) {
            const std::vector<Sample> samples = samples_of(task, row, m, &group);
            if (samples.empty() || (is_reference(row) && metric.of_difference)) continue;
            Json one = {{"cache", result.rows[row].name},
                        {"n", samples.size()},
                        {"mean", estimate_json(clustered_mean(samples))}};
            if (!is_reference(row) && !metric.of_difference) {
                const PairedDifference paired = paired_difference(samples, reference);
                one["difference"] = estimate_json(paired.difference);
                one["p"] = paired.p;
                one["test"] = paired.test;
                one["gained"] = paired.gained;
                one["lost"] = paired.lost;
            }
            if (!task.curve_over.empty()) {
                for (const size_t at : places_of(task)) {
                    const std::vector<Sample> here = samples_of(task, row, m, &group, &at);
                    if (here.empty()) continue;
                    one["curve"].push_back(
                        {{"at", at}, {"n", here.size()}, {"mean", estimate_json(clustered_mean(here))}});
                }
            }
            caches.push_back(std::move(one));
        }
        out["groups"].push_back({{"group", group}, {"caches", std::move(caches)}});
    }
    return out;
}

}  // namespace

std::string suite_markdown(const SuiteResult& result, const std::string& command) {
    std::string text = fmt::format("{}. `{}`\n", result.shape.name, command);
    text +=
        "\n± is the standard error (over items, robust to what one item's observations have in common). In brackets "
        "the "
        "paired difference to f16 on the same items, its standard error, and p: McNemar's exact test for right or "
        "wrong "
        "with one answer an item, else the sign-flip test over items (over observations, neighbours as independent, "
        "where there is one item: p is too small then). Bits count everything that is held.\n";
    for (const TaskScores& task : result.tasks) {
        text += fmt::format("\n### {}\n\n{} {} items{}.\n\n", task.name, task.says, task.by_item.size(),
                            task.by_item.size() < task.n_items ? fmt::format(" of {}", task.n_items) : "");
        text += main_table(result, task) + curve_table(result, task);
    }
    return text;
}

std::string suite_json(const SuiteResult& result, const std::string& command) {
    Json json = {{"schema_version", 1},
                 {"kind", "kvaq.suite"},
                 {"command", command},
                 {"model",
                  {{"name", result.shape.name},
                   {"architecture", result.shape.architecture},
                   {"fingerprint", result.shape.fingerprint}}},
                 {"standard_error", "sqrt(J/(J-1) sum_j (S_j - m n_j)^2) / N over the J items"},
                 {"caches", Json::array()},
                 {"tasks", Json::array()}};
    for (const CacheRow& row : result.rows) {
        Json one = {{"name", row.name}, {"kind", row.kind}};
        if (row.plan) one["plan_sha256"] = sha256_hex(canonical_text(*row.plan));
        json["caches"].push_back(std::move(one));
    }
    for (const TaskScores& task : result.tasks) {
        Json out = {{"name", task.name},           {"says", task.says},
                    {"settings", task.settings},   {"n_items", task.by_item.size()},
                    {"n_context", task.n_context}, {"curve_over", task.curve_over}};
        for (const CacheRow& row : result.rows)
            out["effective_bits"].push_back(row.effective_bits(result.shape, task.n_context));
        for (size_t m = 0; m < task.metrics.size(); ++m) out["metrics"].push_back(metric_json(result, task, m));
        json["tasks"].push_back(std::move(out));
    }
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace kvaq
