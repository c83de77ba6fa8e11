#include "kvaq/eval/calibrate.h"

#include <fmt/format.h>

#include <memory>

#include "kvaq/cli/flags.h"
#include "kvaq/cli/progress.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/stats_file.h"

namespace kvaq {
namespace {

struct CalibrateFlags {
    CalibrateRequest request;
    std::string out;
    bool no_probes = false;
    bool verbose = false;
};

void run_calibrate(const CalibrateFlags& flags) {
    CalibrateRequest request = flags.request;
    request.probes = !flags.no_probes;
    require_writable(flags.out);
    quiet_llama(flags.verbose);
    announce_plans(flags.verbose);
    ModelStats stats;
    {
        Progress progress("calibrate");
        stats = calibrate(request, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
    }
    write_stats(stats, flags.out);
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
    fmt::print("{}: {} tokens of {}. Mean norm per token: keys {:.2f}, values {:.2f}; keys are larger in {} of {} heads. Wrote {}\n", stats.model_name, stats.n_tokens,
               request.text, key / static_cast<double>(n), value / static_cast<double>(n), larger, n, flags.out);
}

}  // namespace

void add_calibrate(CLI::App& app) {
    auto flags = std::make_shared<CalibrateFlags>();
    CalibrateRequest& request = flags->request;
    request.n_threads = default_threads();
    CLI::App* verb = app.add_subcommand("calibrate", "measure K, V and Q of every layer and head, and what quantizing each layer costs");
    verb->add_option("-m,--model", request.model, "GGUF model")->required();
    verb->add_option("-f,--file", request.text, "calibration text (never the text you evaluate on)")->required();
    verb->add_option("-o,--output", flags->out, "*.stats.gguf to write")->required();
    verb->add_option("-c,--ctx-size", request.n_ctx, "tokens per chunk")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_option("--chunks", request.n_chunks, "chunks at most")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_option("--probe-chunks", request.probe_chunks, "chunks of 512 tokens per damage probe")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_option("-t,--threads", request.n_threads, "threads")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_flag("--no-probes", flags->no_probes, "statistics only: quicker, but no measured plan can be made");
    verb->add_flag("--verbose", flags->verbose, "show llama.cpp's log");
    verb->callback([flags] { run_calibrate(*flags); });
}

}  // namespace kvaq
