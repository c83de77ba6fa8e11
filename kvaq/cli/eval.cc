#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <sstream>

#include "kvaq/base/file.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/progress.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/compare.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"

namespace kvaq {
namespace {

struct EvalFlags {
    CompareRequest request;
    std::string json;
    std::string markdown;
    bool no_control = false;
    bool verbose = false;
};

void run_eval(const EvalFlags& flags) {
    CompareRequest request = flags.request;
    request.control = !flags.no_control;
    require_json(flags.json);
    require_writable(flags.markdown);
    quiet_llama(flags.verbose);
    announce_plans(flags.verbose);
    Progress progress("eval");
    const CompareResult result =
        compare(request, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
    const auto join = [](const std::vector<std::string>& parts) {
        std::string text;
        for (const std::string& part : parts) text += (text.empty() ? "" : ",") + part;
        return text;
    };
    std::string command =
        fmt::format("kvaq eval -m {} -f {} -c {} --chunks {} -b {} -t {}", request.model, request.text, request.n_ctx,
                    request.n_chunks, request.n_batch, request.n_threads);
    if (!request.plans.empty()) command += " --plan " + join(request.plans);
    if (!request.types.empty()) command += " --types " + join(request.types);
    if (flags.no_control) command += " --no-control";
    const std::string head =
        fmt::format("{} on {}, {} chunks of {} tokens, second halves scored ({} tokens). `{}`\n\n", result.shape.name,
                    request.text, request.n_chunks, request.n_ctx, result.rows[0].summary.n_tokens, command);
    const std::string table = to_markdown(request, result);
    if (!is_stdout(flags.json)) std::fputs((head + table).c_str(), stdout);
    if (!flags.json.empty()) write_json(flags.json, to_json(request, result, command));
    if (!flags.markdown.empty()) atomic_write_text(flags.markdown, head + table);
}

}  // namespace

void add_eval(CLI::App& app) {
    auto flags = std::make_shared<EvalFlags>();
    CompareRequest& request = flags->request;
    request.n_threads = default_threads();
    CLI::App* verb = app.add_subcommand(
        "eval", "perplexity, KL and agreement of plans and of llama.cpp's cache types against one f16 reference");
    verb->add_option("-m,--model", request.model, "GGUF model")->required();
    verb->add_option("-f,--file", request.text, "text to score")->required();
    verb->add_option("--plan", request.plans, "presets or *.plan.gguf files, separated by commas")->delimiter(',');
    verb->add_option("--types", request.types,
                     "llama.cpp cache types as rows, separated by commas (f16 is always the reference)")
        ->delimiter(',');
    verb->add_option("-c,--ctx-size", request.n_ctx, "tokens per chunk")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    verb->add_option("--chunks", request.n_chunks, "number of chunks")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    verb->add_option("-b,--batch-size", request.n_batch, "tokens per batch")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    verb->add_option("-t,--threads", request.n_threads, "threads")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_option("--json", flags->json, kJsonHelp);
    verb->add_option("--md", flags->markdown, "write the table here");
    verb->add_flag("--no-control", flags->no_control, "leave out the floor row (f16 against itself in batches of 3)");
    verb->add_flag("--verbose", flags->verbose, "show llama.cpp's log");
    verb->callback([flags] { run_eval(*flags); });
}

}  // namespace kvaq
