#include "kvaq/report/report_input.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

using Json = nlohmann::json;

constexpr int kSchemaVersion = 1;

struct Kind {
    const char* flag;  ///< of kvaq report
    const char* maker;
};
const std::map<std::string, Kind>& kinds() {
    static const std::map<std::string, Kind> table = {
        {"kvaq.eval", {"--eval or --frontier", "kvaq eval --json, kvaq plan --frontier-out"}},
        {"kvaq.suite", {"--suite", "kvaq eval --task --json"}},
        {"kvaq.analysis", {"--analysis", "kvaq analyze --json"}},
        {"kvaq.speed", {"--speed", "kvaq bench --json"}},
        {"kvaq.estimate", {"", "kvaq estimate --json"}},
        {"kvaq.plan", {"", "kvaq plan --json"}},
    };
    return table;
}

/// The JSON of a file of that kind.
Json open_json(std::string_view text, const std::string& file, const std::string& kind) {
    const char* maker = kinds().at(kind).maker;
    Json json = Json::parse(text, nullptr, false);
    if (json.is_discarded() || !json.is_object()) {
        const bool gguf = text.substr(0, 4) == "GGUF";
        throw Error(ErrorCode::kCorrupt, "'" + file + "' cannot be read", fmt::format("the JSON that {} writes", maker),
                    gguf           ? "a GGUF file"
                    : text.empty() ? "an empty file"
                                   : "no JSON object",
                    gguf ? "Plans go to --plan, statistics to --stats" : "Make it again");
    }
    const std::string found = json.contains("kind") && json["kind"].is_string() ? json["kind"].get<std::string>() : "";
    if (found != kind) {
        const auto known = kinds().find(found);
        const std::string hint =
            known == kinds().end() ? fmt::format("Such a file is written by {}", maker)
            : *known->second.flag == '\0'
                ? "The report reads plans and counts their bytes itself: give the *.plan.gguf with --plan"
                : fmt::format("Give it with {}", known->second.flag);
        throw Error(ErrorCode::kMismatch, "'" + file + "' is another kind of file", "kind " + kind,
                    found.empty() ? "no kind" : "kind " + found, hint);
    }
    const Json version = json.value("schema_version", Json());
    if (version != kSchemaVersion) {
        throw Error(ErrorCode::kMismatch, "'" + file + "' has another schema version", std::to_string(kSchemaVersion),
                    version.dump(), fmt::format("Make it again with this kvaq: {}", maker));
    }
    return json;
}

/// A number, or NaN for null: what a result that is no number is written as.
double number(const Json& json) {
    return json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
}

size_t count(const Json& json) {
    const double value = json.get<double>();
    if (!(value >= 0) || value > 1e15 || value != std::floor(value))
        throw Error(ErrorCode::kCorrupt, "a count", "a whole number", json.dump());
    return static_cast<size_t>(value);
}

int32_t layer_number(const Json& json) {
    return static_cast<int32_t>(std::min<size_t>(count(json), std::numeric_limits<int32_t>::max()));
}

Measured measured(const Json& json) {
    return {.value = number(json.at("value")), .error = number(json.at("standard_error"))};
}

ReportModel model_of(const Json& json) {
    return {.name = json.at("name"), .architecture = json.at("architecture"), .fingerprint = json.at("fingerprint")};
}

/// Runs a parser; whatever it misses is said with the file's name.
template <class F>
void parse(const std::string& file, const std::string& kind, const F& body) {
    try {
        body();
    } catch (const Json::exception& error) {
        std::string what = error.what();
        if (const size_t at = what.find("] "); at != std::string::npos) what = what.substr(at + 2);
        throw Error(ErrorCode::kCorrupt, "'" + file + "' is damaged or incomplete",
                    fmt::format("what {} writes", kinds().at(kind).maker), what, "Make it again");
    } catch (const Error& error) {
        throw Error(ErrorCode::kCorrupt, "'" + file + "' is damaged or incomplete",
                    fmt::format("what {} writes", kinds().at(kind).maker), error.what(), "Make it again");
    }
}

SuiteTable::Metric suite_metric(const Json& json, const std::vector<SuiteTable::Cache>& caches) {
    SuiteTable::Metric out{.name = json.at("name"),
                           .unit = json.at("unit"),
                           .larger_is_better = json.at("larger_is_better"),
                           .groups = {}};
    for (const Json& group : json.at("groups")) {
        SuiteTable::Group one{.name = group.at("group"), .scores = {}};
        one.scores.resize(caches.size());
        for (const Json& score : group.at("caches")) {
            const auto name = score.at("cache").get<std::string>();
            const auto cache =
                std::find_if(caches.begin(), caches.end(), [&](const SuiteTable::Cache& c) { return c.name == name; });
            if (cache == caches.end())
                throw Error(ErrorCode::kCorrupt, "metric " + out.name, "one of the caches", "'" + name + "'");
            SuiteTable::Score read{
                .n = count(score.at("n")), .mean = measured(score.at("mean")), .difference = {}, .p = 1};
            if (score.contains("difference")) {
                read.difference = measured(score.at("difference"));
                read.p = number(score.at("p"));
            }
            one.scores[static_cast<size_t>(cache - caches.begin())] = read;
        }
        out.groups.push_back(std::move(one));
    }
    return out;
}

/// Throws unless both files are of one model, as far as they say.
void check_same(const ReportModel& a, const std::string& file_a, const ReportModel& b, const std::string& file_b) {
    const auto differ = [](const std::string& x, const std::string& y) { return !x.empty() && !y.empty() && x != y; };
    if (!differ(a.fingerprint, b.fingerprint) && !differ(a.architecture, b.architecture)) return;
    const auto say = [](const ReportModel& m, const std::string& file) {
        return fmt::format("{} ({}{}) in '{}'", m.name, m.architecture,
                           m.fingerprint.empty() ? "" : ", fingerprint " + m.fingerprint.substr(0, 16), file);
    };
    throw Error(ErrorCode::kMismatch, "the inputs are of different models", say(a, file_a), say(b, file_b),
                "Make one report per model");
}

void check_shape(const std::vector<LayerShape>& wanted, const std::vector<LayerShape>& found, const std::string& file) {
    if (wanted == found) return;
    throw Error(ErrorCode::kMismatch, "'" + file + "' is of a model of another shape",
                fmt::format("{} layers with the heads of the other inputs", wanted.size()),
                fmt::format("{} layers", found.size()), "Make one report per model");
}

}  // namespace

EvalTable parse_eval(std::string_view text, const std::string& file) {
    const std::string kind = "kvaq.eval";
    const Json json = open_json(text, file, kind);
    EvalTable out;
    out.file = file;
    parse(file, kind, [&] {
        out.command = json.at("command").get<std::string>();
        out.model = model_of(json.at("model"));
        out.text = json.at("text").at("path").get<std::string>();
        out.n_ctx = count(json.at("n_ctx"));
        out.n_chunks = count(json.at("n_chunks"));
        for (const Json& row : json.at("rows")) {
            out.rows.push_back({.name = row.at("name"),
                                .kind = row.at("kind"),
                                .bits = number(row.at("effective_bits")),
                                .bytes = number(row.at("bytes")),
                                .tokens_per_second = number(row.at("tokens_per_second")),
                                .perplexity = measured(row.at("perplexity")),
                                .kl = measured(row.at("mean_kl")),
                                .median_kl = number(row.at("median_kl")),
                                .kl_99 = number(row.at("kl_99")),
                                .same_top = measured(row.at("same_top")),
                                .plan_sha256 = row.value("plan_sha256", ""),
                                .predicted_kl = row.contains("predicted_kl") ? number(row.at("predicted_kl")) : -1});
            out.n_scored = count(row.at("n_tokens"));
        }
        if (out.rows.empty()) throw Error(ErrorCode::kCorrupt, "no rows");
    });
    return out;
}

SuiteTable parse_suite(std::string_view text, const std::string& file) {
    const std::string kind = "kvaq.suite";
    const Json json = open_json(text, file, kind);
    SuiteTable out;
    out.file = file;
    parse(file, kind, [&] {
        out.command = json.at("command").get<std::string>();
        out.model = model_of(json.at("model"));
        for (const Json& cache : json.at("caches")) {
            out.caches.push_back(
                {.name = cache.at("name"), .kind = cache.at("kind"), .plan_sha256 = cache.value("plan_sha256", "")});
        }
        for (const Json& task : json.at("tasks")) {
            SuiteTable::Task one{.name = task.at("name"),
                                 .says = task.at("says"),
                                 .n_items = count(task.at("n_items")),
                                 .n_context = count(task.at("n_context")),
                                 .bits = {},
                                 .metrics = {}};
            for (const Json& bits : task.at("effective_bits")) one.bits.push_back(number(bits));
            if (one.bits.size() != out.caches.size())
                throw Error(ErrorCode::kCorrupt, "effective_bits of task " + one.name,
                            fmt::format("{} numbers", out.caches.size()), std::to_string(one.bits.size()));
            for (const Json& metric : task.at("metrics")) one.metrics.push_back(suite_metric(metric, out.caches));
            out.tasks.push_back(std::move(one));
        }
        if (out.caches.empty() || out.tasks.empty()) throw Error(ErrorCode::kCorrupt, "no caches or no tasks");
    });
    return out;
}

AnalysisInput parse_analysis(std::string_view text, const std::string& file) {
    const std::string kind = "kvaq.analysis";
    const Json json = open_json(text, file, kind);
    AnalysisInput out;
    out.file = file;
    parse(file, kind, [&] {
        out.command = json.at("command").get<std::string>();
        out.model = model_of(json);
        for (const Json& sentence : json.at("says")) out.says.push_back(sentence.get<std::string>());
        if (!json.at("weights").is_null()) {
            for (const Json& l : json.at("weights").at("layers")) {
                out.weights.push_back(
                    {.layer = layer_number(l.at("layer")),
                     .key = number(l.at("w_k_frobenius")) / std::sqrt(number(l.at("w_k_elements"))),
                     .value = number(l.at("w_v_frobenius")) / std::sqrt(number(l.at("w_v_elements")))});
            }
        }
        if (json.at("cache").is_null()) return;
        const Json& cache = json.at("cache");
        std::vector<LayerSpectra> layers;
        for (const Json& l : cache.at("layers")) {
            LayerSpectra layer{.layer = layer_number(l.at("layer")), .heads = {}};
            for (const Json& head : l.at("heads"))
                layer.heads.push_back({.key = head.at("key").at("singular_values").get<std::vector<double>>(),
                                       .value = head.at("value").at("singular_values").get<std::vector<double>>()});
            layers.push_back(std::move(layer));
        }
        out.cache = measures_of_spectra(layers, count(cache.at("n_tokens")));
    });
    return out;
}

SpeedTable parse_speed(std::string_view text, const std::string& file) {
    const std::string kind = "kvaq.speed";
    const Json json = open_json(text, file, kind);
    SpeedTable out;
    out.file = file;
    parse(file, kind, [&] {
        out.command = json.at("command").get<std::string>();
        out.cpu = json.at("cpu").get<std::string>();
        out.flags = json.at("flags").get<std::string>();
        out.note = json.value("note", "");
        out.rounds = count(json.at("rounds"));
        out.columns = json.at("columns").get<std::vector<std::string>>();
        for (const Json& row : json.at("rows")) {
            SpeedTable::Row one{.depth = count(row.at("depth")), .speeds = {}};
            for (const Json& speed : row.at("speeds"))
                one.speeds.push_back({.median = number(speed.at("median")),
                                      .least = number(speed.at("min")),
                                      .most = number(speed.at("max"))});
            if (one.speeds.size() != out.columns.size())
                throw Error(ErrorCode::kCorrupt, fmt::format("depth {}", one.depth),
                            fmt::format("{} speeds", out.columns.size()), std::to_string(one.speeds.size()));
            out.rows.push_back(std::move(one));
        }
        if (out.rows.empty() || out.columns.empty()) throw Error(ErrorCode::kCorrupt, "no rows");
    });
    return out;
}

void settle_model(ReportInput& input) {
    struct Known {
        ReportModel model;
        std::string file;
    };
    std::vector<Known> known;
    const auto layers_of = [](const auto& layers) {
        std::vector<LayerShape> shapes;
        for (const auto& layer : layers) shapes.push_back(layer.shape);
        return shapes;
    };
    if (input.shape)
        known.push_back({{input.shape->name, input.shape->architecture, input.shape->fingerprint}, "the model"});
    if (input.stats)
        known.push_back(
            {{input.stats->model_name, input.stats->architecture, input.stats->fingerprint}, input.stats_file});
    if (input.plan && !input.plan->model_name.empty())
        known.push_back({{input.plan->model_name, input.plan->architecture, input.plan->fingerprint}, input.plan_file});
    for (const EvalTable& eval : input.evals) known.push_back({eval.model, eval.file});
    if (input.frontier) known.push_back({input.frontier->model, input.frontier->file});
    if (input.suite) known.push_back({input.suite->model, input.suite->file});
    if (input.analysis) known.push_back({input.analysis->model, input.analysis->file});
    for (size_t i = 1; i < known.size(); ++i) {
        for (size_t j = 0; j < i; ++j) check_same(known[j].model, known[j].file, known[i].model, known[i].file);
    }
    if (!input.shape && (input.stats || input.plan)) {
        ModelShape shape;
        shape.architecture = known.front().model.architecture;
        shape.name = known.front().model.name;
        shape.layers = input.stats ? layers_of(input.stats->layers) : layers_of(input.plan->layers);
        input.shape = std::move(shape);
    }
    if (input.stats) check_shape(input.shape->layers, layers_of(input.stats->layers), input.stats_file);
    if (input.plan) check_shape(input.shape->layers, layers_of(input.plan->layers), input.plan_file);
    if (!input.plan && !input.stats && input.evals.empty() && !input.frontier && !input.suite && !input.analysis &&
        input.speeds.empty()) {
        throw Error(ErrorCode::kInvalidArgument, "nothing to report on",
                    "at least one of --plan, --stats, --eval, --frontier, --suite, --analysis and --speed", "none");
    }
    for (const Known& one : known) {
        if (input.model.name.empty()) input.model = one.model;
        if (input.model.fingerprint.empty()) input.model.fingerprint = one.model.fingerprint;
    }
}

}  // namespace kvaq
