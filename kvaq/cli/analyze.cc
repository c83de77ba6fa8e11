#include <fmt/format.h>

#include <memory>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/progress.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/analysis_report.h"
#include "kvaq/eval/calibrate.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/stats_file.h"

namespace kvaq {
namespace {

struct AnalyzeFlags {
    CalibrateRequest request;
    std::string stats;
    std::string json;
    std::string norms;
    std::string score = "F";
    size_t max_tiles = 8;
    bool verbose = false;
};

/// Statistics from the file or from a pass over the text; nothing if neither was asked for.
std::optional<ModelStats> find_stats(const AnalyzeFlags& flags, const std::string& fingerprint) {
    if (!flags.stats.empty())
        return read_stats_of(flags.stats, flags.request.model, fingerprint, "Calibrate this model, or give -f TEXT");
    if (flags.request.text.empty()) return std::nullopt;
    CalibrateRequest request = flags.request;
    request.probes = false;
    quiet_llama(flags.verbose);
    announce_plans(flags.verbose);
    Progress progress("analyze");
    return calibrate(request,
                     [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
}

void run_analyze(const AnalyzeFlags& flags) {
    if (!flags.stats.empty() && !flags.request.text.empty())
        throw Error(ErrorCode::kInvalidArgument, "two sources of statistics", "-f TEXT or --stats FILE", "both");
    if (flags.score != "F" && flags.score != "S")
        throw Error(ErrorCode::kInvalidArgument, "--score", "F (Frobenius) or S (spectral)", "'" + flags.score + "'");
    require_outputs({json_file(flags.json), flags.norms}, {flags.request.model, flags.stats, flags.request.text});
    const ModelShape shape = read_model_shape(flags.request.model);
    ModelAnalysis analysis{.model = flags.request.model,
                           .name = shape.name,
                           .architecture = shape.architecture,
                           .fingerprint = shape.fingerprint,
                           .source = flags.stats.empty() ? flags.request.text : flags.stats,
                           .qk_norm = has_qk_norm(flags.request.model),
                           .weights = {},
                           .weights_missing = "",
                           .cache = {}};
    const std::optional<ModelStats> stats = find_stats(flags, shape.fingerprint);
    try {
        Progress progress("weight norms");
        analysis.weights =
            read_weight_norms(flags.request.model, [&](size_t done) { progress.update(done, shape.layers.size()); });
    } catch (const Error& error) {
        if (error.code() != ErrorCode::kUnsupported || !stats || !flags.norms.empty()) throw;
        analysis.weights_missing = error.what();  // the cache can be analysed all the same
    }
    if (stats) {
        Progress progress("errors");
        analysis.cache = analyze_cache(*stats, flags.max_tiles, static_cast<size_t>(flags.request.n_threads),
                                       [&](size_t done) { progress.update(done, stats->layers.size()); });
    }
    std::string command = "kvaq analyze -m " + flags.request.model;
    if (!flags.stats.empty()) command += " --stats " + flags.stats;
    if (!flags.request.text.empty())
        command +=
            fmt::format(" -f {} -c {} --chunks {}", flags.request.text, flags.request.n_ctx, flags.request.n_chunks);
    command += fmt::format(" --tiles {}", flags.max_tiles);
    if (!is_stdout(flags.json)) {
        fmt::print("{} ({}), {} layers with a K/V cache\n\n{}\n", shape.name, shape.architecture, shape.layers.size(),
                   analysis_tables(analysis));
        for (const std::string& sentence : describe(analysis)) fmt::print("- {}\n", sentence);
    }
    if (!flags.json.empty()) write_json(flags.json, analysis_json(analysis, command));
    if (!flags.norms.empty())
        atomic_write_text(flags.norms, norms_to_json(analysis.weights->of(flags.score == "F" ? NormScore::kFrobenius
                                                                                             : NormScore::kSpectral)));
}

}  // namespace

void add_analyze(CLI::App& app) {
    auto flags = std::make_shared<AnalyzeFlags>();
    CalibrateRequest& request = flags->request;
    request.n_threads = default_threads();
    CLI::App* verb = app.add_subcommand(
        "analyze", "norms, spectra and quantization errors of K and V, and what the paper's theorems say of them");
    verb->add_option("-m,--model", request.model, "GGUF model")->required();
    verb->add_option("-f,--file", request.text, "text to measure the cache on (a pass over it; no damage probes)");
    verb->add_option("--stats", flags->stats, "statistics of kvaq calibrate instead of a text");
    verb->add_option("--json", flags->json, kJsonHelp);
    verb->add_option("--norms", flags->norms,
                     "write the weight norms here, as the paper's authors do: {\"w_k\", \"w_v\"}");
    verb->add_option("--score", flags->score, "which norm --norms writes: F (Frobenius) or S (spectral)")
        ->capture_default_str();
    verb->add_option("-c,--ctx-size", request.n_ctx, "tokens per chunk of the text")
        ->check(CLI::Range(1, kMostTokens))
        ->capture_default_str();
    verb->add_option("--chunks", request.n_chunks, "chunks at most")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_option("--tiles", flags->max_tiles, "sample tiles of 64 tokens per head that are quantized, at most")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    verb->add_option("-t,--threads", request.n_threads, "threads")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_flag("--verbose", flags->verbose, "show llama.cpp's log");
    verb->callback([flags] { run_analyze(*flags); });
}

}  // namespace kvaq
