#include "kvaq/eval/speed.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

using Json = nlohmann::ordered_json;

std::string spread_text(const Spread& spread, int digits) {
    return fmt::format("{:.{}f} ({:.{}f} to {:.{}f})", spread.median, digits, spread.least, digits, spread.most,
                       digits);
}

std::string column_of(const SpeedRuns& runs, size_t cache) {
    return (cache < runs.n_plans ? "kvaq " : "llama.cpp ") + runs.caches[cache];
}

/// With every field that CSV would take apart in quotes.
std::string csv_field(const std::string& text) {
    if (text.find_first_of(",\"\n") == std::string::npos) return text;
    std::string out = "\"";
    for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
    return out + "\"";
}

/// A Markdown table's first two lines: its own columns, then one of ratios per type of llama.cpp.
std::string head_with_ratios(const SpeedRuns& runs, const std::vector<std::string>& columns) {
    std::string head = "|";
    std::string rule = "|";
    const auto add = [&](const std::string& column) {
        head += " " + column + " |";
        rule += "---|";
    };
    for (const std::string& column : columns) add(column);
    for (size_t c = runs.n_plans; c < runs.caches.size(); ++c) add("x " + runs.caches[c]);
    return head + "\n" + rule + "\n";
}

/// The end of a cache's row there; ratio(r): to cache r.
template <typename Ratio>
std::string ratio_cells(const SpeedRuns& runs, size_t cache, Ratio ratio) {
    std::string cells;
    for (size_t r = runs.n_plans; r < runs.caches.size(); ++r)
        cells += cache == r ? " |" : fmt::format(" {} |", spread_text(ratio(r), 2));
    return cells + "\n";
}

Json to_json(const Spread& spread) { return {{"median", spread.median}, {"min", spread.least}, {"max", spread.most}}; }

}  // namespace

std::string SpeedTest::name() const {
    return (n_gen > 0 ? fmt::format("tg{}", n_gen) : fmt::format("pp{}", n_prompt)) +
           (depth > 0 ? fmt::format(" @ d{}", depth) : "");
}

SpeedSample parse_llama_bench(std::string_view output, const std::string& who) {
    Json found;
    while (!output.empty()) {
        const size_t end = output.find('\n');
        const std::string_view line = output.substr(0, end);
        output = end == std::string_view::npos ? "" : output.substr(end + 1);
        if (!line.empty() && line[0] == '{') found = Json::parse(line, nullptr, false);
    }
    if (!found.is_object())
        throw Error(ErrorCode::kCorrupt, who + ": llama-bench printed no result", "a line of JSON", "none");
    SpeedSample sample;
    try {
        sample.test = {.n_prompt = found.at("n_prompt"), .n_gen = found.at("n_gen"), .depth = found.at("n_depth")};
        sample.tokens_per_second = found.at("avg_ts");
        sample.model = found.at("model_type");
        sample.backend = found.at("backends");
        sample.cpu = found.at("cpu_info");
        sample.model_bytes = found.at("model_size");
        sample.model_parameters = found.at("model_n_params");
    } catch (const Json::exception& error) {
        throw Error(ErrorCode::kCorrupt, who + ": llama-bench's result lacks something", "", error.what());
    }
    return sample;
}

Spread spread_of(std::vector<double> values) {
    KVAQ_CHECK(!values.empty());
    std::sort(values.begin(), values.end());
    const size_t middle = values.size() / 2;
    return {.median = values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2,
            .least = values.front(),
            .most = values.back()};
}

Spread SpeedRuns::ratio(size_t test, size_t cache, size_t reference) const {
    std::vector<double> ratios;
    for (size_t i = 0; i < speeds[test][cache].size(); ++i)
        ratios.push_back(speeds[test][cache][i] / speeds[test][reference][i]);
    return spread_of(std::move(ratios));
}

std::optional<std::pair<size_t, size_t>> SpeedRuns::depth_range() const {
    const auto first = std::find_if(tests.begin(), tests.end(), [](const SpeedTest& test) { return test.n_gen > 0; });
    if (first == tests.end()) return std::nullopt;
    std::pair<size_t, size_t> range(first - tests.begin(), first - tests.begin());
    for (size_t t = range.first; t < tests.size(); ++t) {
        if (tests[t].n_gen != first->n_gen) continue;
        if (tests[t].depth < tests[range.first].depth) range.first = t;
        if (tests[t].depth > tests[range.second].depth) range.second = t;
    }
    if (tests[range.first].depth == tests[range.second].depth) return std::nullopt;
    return range;
}

std::vector<double> SpeedRuns::depth_cost(std::pair<size_t, size_t> range, size_t cache) const {
    const auto& [shallow, deep] = range;
    const auto n = static_cast<double>(tests[deep].depth - tests[shallow].depth) / 1024;
    std::vector<double> costs;
    for (size_t i = 0; i < speeds[deep][cache].size(); ++i)
        costs.push_back(1000 * (1 / speeds[deep][cache][i] - 1 / speeds[shallow][cache][i]) / n);
    return costs;
}

namespace {

/// What depth costs a token, beside llama.cpp's types; empty without two depths.
std::string depth_markdown(const SpeedRuns& runs) {
    const auto range = runs.depth_range();
    if (!range) return "";
    std::string out =
        fmt::format("\nWhat 1024 tokens more in the cache add to a token's time, from depth {} to {}:\n\n",
                    runs.tests[range->first].depth, runs.tests[range->second].depth);
    out += head_with_ratios(runs, {"cache", "ms"});
    for (size_t c = 0; c < runs.caches.size(); ++c) {
        const std::vector<double> costs = runs.depth_cost(*range, c);
        out += fmt::format("| {} | {} |", column_of(runs, c), spread_text(spread_of(costs), 3));
        out += ratio_cells(runs, c, [&](size_t r) {
            std::vector<double> ratios = runs.depth_cost(*range, r);
            for (size_t i = 0; i < costs.size(); ++i) ratios[i] = costs[i] / ratios[i];
            return spread_of(std::move(ratios));
        });
    }
    return out;
}

}  // namespace

std::string speed_markdown(const SpeedRuns& runs) {
    std::string out =
        fmt::format("{}, {} rounds, the caches in turn; medians (least to most), ratios within each round. `{}`\n\n",
                    runs.about.cpu, runs.speeds[0][0].size(), runs.command);
    out += head_with_ratios(runs, {"model", "size", "params", "backend", "threads", "cache", "test", "t/s"});
    for (size_t t = 0; t < runs.tests.size(); ++t) {
        for (size_t c = 0; c < runs.caches.size(); ++c) {
            out += fmt::format("| {} | {:.2f} MiB | {:.2f} M | {} | {} | {} | {} | {} |", runs.about.model,
                               runs.about.model_bytes / (1 << 20), runs.about.model_parameters / 1e6,
                               runs.about.backend, runs.n_threads, column_of(runs, c), runs.tests[t].name(),
                               spread_text(spread_of(runs.speeds[t][c]), 1));
            out += ratio_cells(runs, c, [&](size_t r) { return runs.ratio(t, c, r); });
        }
    }
    return out + depth_markdown(runs);
}

std::string speed_csv(const SpeedRuns& runs) {
    std::string out =
        "model,model_bytes,model_parameters,backend,cpu,threads,cache,n_prompt,n_gen,n_depth,round,tokens_per_second\n";
    for (size_t t = 0; t < runs.tests.size(); ++t) {
        for (size_t c = 0; c < runs.caches.size(); ++c) {
            for (size_t i = 0; i < runs.speeds[t][c].size(); ++i) {
                const SpeedTest& test = runs.tests[t];
                out += fmt::format("{},{:.0f},{:.0f},{},{},{},{},{},{},{},{},{:.4f}\n", csv_field(runs.about.model),
                                   runs.about.model_bytes, runs.about.model_parameters, csv_field(runs.about.backend),
                                   csv_field(runs.about.cpu), runs.n_threads, csv_field(column_of(runs, c)),
                                   test.n_prompt, test.n_gen, test.depth, i + 1, runs.speeds[t][c][i]);
            }
        }
    }
    return out;
}

std::string speed_json(const SpeedRuns& runs) {
    Json json = {{"schema_version", 1},     {"kind", "kvaq.speed"},
                 {"command", runs.command}, {"model", runs.about.model},
                 {"cpu", runs.about.cpu},   {"threads", runs.n_threads},
                 {"flags", runs.flags},     {"rounds", runs.speeds[0][0].size()},
                 {"unit", "tokens/s"},      {"columns", Json::array()},
                 {"rows", Json::array()},   {"prefill", Json::array()}};
    for (size_t c = 0; c < runs.caches.size(); ++c) json["columns"].push_back(column_of(runs, c));
    for (size_t t = 0; t < runs.tests.size(); ++t) {
        const SpeedTest& test = runs.tests[t];
        Json row = {{"depth", test.depth},
                    {test.n_gen > 0 ? "tokens" : "prompt", test.n_gen > 0 ? test.n_gen : test.n_prompt},
                    {"speeds", Json::array()}};
        for (size_t c = 0; c < runs.caches.size(); ++c) {
            Json speed = to_json(spread_of(runs.speeds[t][c]));
            speed["rounds"] = runs.speeds[t][c];
            speed["ratios"] = Json::object();
            for (size_t r = runs.n_plans; r < runs.caches.size(); ++r) {
                if (c != r) speed["ratios"][runs.caches[r]] = to_json(runs.ratio(t, c, r));
            }
            row["speeds"].push_back(std::move(speed));
        }
        json[test.n_gen > 0 ? "rows" : "prefill"].push_back(std::move(row));
    }
    if (const auto range = runs.depth_range()) {
        Json cost = {{"unit", "ms a token for 1024 more in the cache"},
                     {"from", runs.tests[range->first].depth},
                     {"to", runs.tests[range->second].depth},
                     {"columns", Json::array()}};
        for (size_t c = 0; c < runs.caches.size(); ++c)
            cost["columns"].push_back(to_json(spread_of(runs.depth_cost(*range, c))));
        json["depth_cost"] = std::move(cost);
    }
    return json.dump(1) + "\n";
}

}  // namespace kvaq
