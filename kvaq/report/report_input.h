#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvaq/base/model_shape.h"
#include "kvaq/plan/plan.h"
#include "kvaq/report/cache_measures.h"
#include "kvaq/stats/model_stats.h"

namespace kvaq {

/// A number with its standard error. NaN where the file holds null (a perplexity of a cache that broke the model may be no number).
struct Measured {
    double value = 0;
    double error = 0;
};

/// Which model a file is about.
struct ReportModel {
    std::string name;
    std::string architecture;
    std::string fingerprint;  ///< empty: not known
};

/// One cache that was compared.
struct EvalRow {
    std::string name;
    std::string kind;  ///< "reference", "control", "plan", "llama.cpp"
    double bits = 0;   ///< effective, at EvalTable::n_ctx
    double bytes = 0;
    double tokens_per_second = 0;
    Measured perplexity;
    Measured kl;  ///< nats
    double median_kl = 0;
    double kl_99 = 0;
    Measured same_top;         ///< share
    std::string plan_sha256;   ///< of the plan's canonical text; empty in files of before
    double predicted_kl = -1;  ///< of the plan, before it was measured; negative: not known
};

/// What `kvaq eval --json` and `kvaq plan --frontier` write.
struct EvalTable {
    std::string file;
    std::string command;
    ReportModel model;
    std::string text;  ///< file
    size_t n_ctx = 0;
    size_t n_chunks = 0;
    size_t n_scored = 0;  ///< tokens
    std::vector<EvalRow> rows;
};

/// What `kvaq eval --task --json` writes, as far as the report shows it.
struct SuiteTable {
    struct Cache {
        std::string name;
        std::string kind;         ///< as of EvalRow
        std::string plan_sha256;  ///< of a plan's canonical text
    };
    /// What one cache reached; nothing where a metric says how far a cache is from f16 and this is f16.
    struct Score {
        size_t n = 0;  ///< observations
        Measured mean;
        std::optional<Measured> difference;  ///< paired, to f16 on the same items
        double p = 1;                        ///< of that difference
    };
    struct Group {
        std::string name;                          ///< a length, say; empty where there is one only
        std::vector<std::optional<Score>> scores;  ///< [caches]
    };
    struct Metric {
        std::string name;
        std::string unit;  ///< "share", "tokens", "nats per token", "nats per token; perplexity = exp(mean)"
        bool larger_is_better = true;
        std::vector<Group> groups;
    };
    struct Task {
        std::string name;
        std::string says;
        size_t n_items = 0;
        size_t n_context = 0;
        std::vector<double> bits;  ///< [caches] effective, at n_context
        std::vector<Metric> metrics;
    };
    std::string file;
    std::string command;
    ReportModel model;
    std::vector<Cache> caches;
    std::vector<Task> tasks;
};

/// What `kvaq analyze --json` writes, as far as the report shows it.
struct AnalysisInput {
    std::string file;
    std::string command;
    ReportModel model;
    std::vector<std::string> says;
    std::optional<CacheMeasures> cache;
    std::vector<LayerNumbers> weights;  ///< Frobenius norms of W_K and W_V per sqrt(element); empty: not read
};

/// What `kvaq bench --json` writes.
struct SpeedTable {
    struct Speed {
        double median = 0;  ///< tokens/s
        double least = 0;
        double most = 0;
    };
    struct Row {
        size_t depth = 0;           ///< tokens already in the cache
        std::vector<Speed> speeds;  ///< one per column
    };
    std::string file;
    std::string command;
    std::string cpu;
    std::string flags;
    std::string note;
    size_t rounds = 0;
    std::vector<std::string> columns;
    std::vector<Row> rows;
};

/// Parsers of files that other verbs wrote; `file` names the input in messages. Throw Error: kMismatch (another kind of file, with what to do
/// with it; another schema version), kCorrupt (no JSON; something missing or of the wrong type, by name).
[[nodiscard]] EvalTable parse_eval(std::string_view json, const std::string& file);
[[nodiscard]] SuiteTable parse_suite(std::string_view json, const std::string& file);
[[nodiscard]] AnalysisInput parse_analysis(std::string_view json, const std::string& file);
[[nodiscard]] SpeedTable parse_speed(std::string_view json, const std::string& file);

/// One file that the report was made from.
struct ReportSource {
    std::string what;  ///< "plan", "statistics", ...
    std::string file;
    std::string sha256;   ///< of the file
    std::string command;  ///< that made it; empty: the file does not say
    std::string verb;     ///< that makes such files
};

/// Everything a report may be made of. At least one of plan, stats, evals, frontier, suite, analysis, speed.
struct ReportInput {
    std::string version;  ///< of kvaq
    std::string command;  ///< that makes this report
    ReportModel model;
    std::optional<ModelShape> shape;  ///< from the model, the plan or the statistics
    std::optional<Plan> plan;
    std::string plan_file;
    std::optional<ModelStats> stats;
    std::string stats_file;
    std::vector<EvalTable> evals;
    std::optional<EvalTable> frontier;
    std::optional<SuiteTable> suite;
    std::optional<AnalysisInput> analysis;
    std::vector<SpeedTable> speeds;
    std::vector<ReportSource> sources;
};

/// Fills model and shape from the inputs. Throws Error kMismatch, with both files named, when two of them are of different models (fingerprints
/// where both are known, else architecture and shape), kInvalidArgument when there is nothing to report on.
void settle_model(ReportInput& input);

}  // namespace kvaq
