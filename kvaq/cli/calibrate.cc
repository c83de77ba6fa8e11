#include "kvaq/eval/calibrate.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "kvaq/base/error.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/progress.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/file_json.h"
#include "kvaq/llama/rope_bytes.h"
#include "kvaq/llama/stats_file.h"

namespace kvaq {
namespace {

struct CalibrateFlags {
    CalibrateRequest request;
    size_t n_chunks = 0;  ///< 0: the effort's
    size_t probe_chunks = 0;
    size_t probe_ctx = 0;
    int long_ctx = -1;  ///< negative: the effort's
    std::string out;
    std::string json;
    std::string effort = "normal";
    bool no_probes = false;
    bool verbose = false;
};

/// What an interrupted run of the same output left. Damaged or of another version: as if there were nothing.
std::optional<ModelStats> interrupted(const std::string& partial) {
    if (!std::filesystem::exists(partial)) return std::nullopt;
    try {
        return read_stats(partial);
    } catch (const Error& error) {
        fmt::print(stderr, "kvaq: warning: starting over, since what the interrupted run left cannot be used: {}\n",
                   error.what());
        return std::nullopt;
    }
}

/// The effort's numbers, but for those that the user gave.
CalibrateRequest request_of(const CalibrateFlags& flags) {
    CalibrateRequest request = flags.request;
    request.set(flags.effort == "quick"      ? Effort::kQuick
                : flags.effort == "thorough" ? Effort::kThorough
                                             : Effort::kNormal);
    if (flags.n_chunks > 0) request.n_chunks = flags.n_chunks;
    if (flags.probe_chunks > 0) request.probe_chunks = flags.probe_chunks;
    if (flags.probe_ctx > 0) request.probe_ctx = flags.probe_ctx;
    if (flags.long_ctx >= 0) request.long_ctx = static_cast<size_t>(flags.long_ctx);
    request.probes = !flags.no_probes;
    return request;
}

void run_calibrate(const CalibrateFlags& flags) {
    const CalibrateRequest request = request_of(flags);
    require_outputs({flags.out, json_file(flags.json), flags.out + ".partial"}, {request.model, request.text});
    quiet_llama(flags.verbose);
    announce_plans(flags.verbose);
    const std::string partial = flags.out + ".partial";
    ModelStats stats;
    {
        Progress progress("calibrate");
        stats = calibrate(
            request, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); },
            interrupted(partial), [&](const ModelStats& so_far) { write_stats(so_far, partial); });
    }
    write_stats(stats, flags.out, command_line());
    std::filesystem::remove(partial);
    if (!flags.json.empty()) write_json(flags.json, json_text(file_json(flags.out)));
    if (is_stdout(flags.json)) return;
    double key = 0;
    double value = 0;
    size_t larger = 0;
    size_t n = 0;
    for (const LayerStats& layer : stats.layers) {
        for (const HeadStats& head : layer.heads) {
            key += head.key_norm();
            value += head.value_norm();
            larger += head.key_norm() > head.value_norm() ? 1 : 0;
            ++n;
        }
    }
    fmt::print(
        "{}: {} tokens of {}. Mean norm per token: keys {:.2f}, values {:.2f}; keys are larger in {} of {} heads. "
        "Wrote {}\n",
        stats.model_name, stats.n_tokens, request.text.empty() ? "the built-in text" : request.text,
        key / static_cast<double>(n), value / static_cast<double>(n), larger, n, flags.out);
}

}  // namespace

void add_calibrate(CLI::App& app) {
    auto flags = std::make_shared<CalibrateFlags>();
    CalibrateRequest& request = flags->request;
    request.n_threads = default_threads();
    CLI::App* verb = app.add_subcommand(
        "calibrate", "measure K, V and Q of every layer and head, and what quantizing each layer costs");
    verb->add_option("-m,--model", request.model, "GGUF model")->required();
    verb->add_option("-f,--file", request.text,
                     "calibration text (never the text you evaluate on); without: a built-in text of many genres");
    verb->add_option("-o,--output", flags->out, "*.stats.gguf to write")->required();
    verb->add_option("--json", flags->json, kJsonHelp);
    verb->add_option("-c,--ctx-size", request.n_ctx, "tokens per chunk")
        ->check(CLI::Range(1, kMostTokens))
        ->capture_default_str();
    verb->add_option("--effort", flags->effort, "quick, normal or thorough: how much text and how many probes")
        ->check(CLI::IsMember({"quick", "normal", "thorough"}))
        ->capture_default_str();
    verb->add_option("--chunks", flags->n_chunks, "chunks at most (normal: 8)")->check(CLI::PositiveNumber);
    verb->add_option("--probe-chunks", flags->probe_chunks,
                     "chunks per layer's damage probe (quick: 1, normal: 2, thorough: 4)")
        ->check(CLI::PositiveNumber);
    verb->add_option("--probe-ctx", flags->probe_ctx,
                     "tokens per chunk of a layer's probe (quick: 512, normal: 384, thorough: 768)")
        ->check(CLI::Range(16, 1 << 20));
    verb->add_option("--joint-ctx", request.joint_ctx, "tokens per chunk of a joint probe")
        ->check(CLI::Range(16, 1 << 20))
        ->capture_default_str();
    verb->add_option("--long-ctx", flags->long_ctx,
                     "context of the length probe, which tells what longer contexts cost; 0: none (normal: 4096)")
        ->check(CLI::Range(0, 1 << 20));
    verb->add_option("--key-period", request.key_period,
                     "plans store keys turned back (RoPE) by multiples of this many positions, so that those of all "
                     "positions resemble each other; 0: as they are")
        ->check(CLI::Range(0, kMaxKeyPeriod))
        ->capture_default_str();
    verb->add_option("-t,--threads", request.n_threads, "threads")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_flag("--no-probes", flags->no_probes, "statistics only: quicker, but no measured plan can be made");
    verb->add_flag("--verbose", flags->verbose, "show llama.cpp's log");
    verb->callback([flags] { run_calibrate(*flags); });
}

}  // namespace kvaq
