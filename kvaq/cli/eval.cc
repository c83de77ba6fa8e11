#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <memory>
#include <sstream>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/progress.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/compare.h"
#include "kvaq/eval/session.h"
#include "kvaq/eval/suite.h"
#include "kvaq/llama/attach.h"

namespace kvaq {
namespace {

struct EvalFlags {
    CompareRequest request;
    TaskRequest task;
    std::vector<std::string> tasks;
    std::vector<std::string> task_data;
    std::string results;
    std::string json;
    std::string markdown;
    bool no_control = false;
    bool verbose = false;
    const CLI::App* verb = nullptr;
};

bool on_stdout(const std::string& path) { return path == "-"; }

/// Table to stdout and --md, numbers to --json; with --json - only they go to stdout.
void write_results(const EvalFlags& flags, const std::string& table, const std::string& json) {
    std::fputs((on_stdout(flags.json) ? json : table).c_str(), stdout);
    if (!flags.json.empty() && !on_stdout(flags.json)) atomic_write_text(flags.json, json);
    if (!flags.markdown.empty()) atomic_write_text(flags.markdown, table);
}

void run_compare(const EvalFlags& flags) {
    CompareRequest request = flags.request;
    request.control = !flags.no_control;
    Progress progress("eval");
    const CompareResult result =
        compare(request, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
    std::string command =
        fmt::format("kvaq eval -m {} -f {} -c {} --chunks {} -b {} -t {}", request.model, request.text, request.n_ctx,
                    request.n_chunks, request.n_batch, request.n_threads);
    if (!request.plans.empty()) command += fmt::format(" --plan {}", fmt::join(request.plans, ","));
    if (!request.types.empty()) command += fmt::format(" --types {}", fmt::join(request.types, ","));
    if (flags.no_control) command += " --no-control";
    const std::string head =
        fmt::format("{} on {}, {} chunks of {} tokens, second halves scored ({} tokens). `{}`\n\n", result.shape.name,
                    request.text, request.n_chunks, request.n_ctx, result.rows[0].summary.n_tokens, command);
    write_results(flags, head + to_markdown(request, result), to_json(request, result, command));
}

/// "task=FILE", or one FILE for the one task that reads one.
std::map<std::string, std::string> data_of(const EvalFlags& flags) {
    std::map<std::string, std::string> data;
    for (const std::string& given : flags.task_data) {
        const size_t at = given.find('=');
        std::string task = at == std::string::npos ? "" : given.substr(0, at);
        if (at == std::string::npos) {
            for (const std::string& name : flags.tasks) {
                if (!task_reads_data(name)) continue;
                if (!task.empty()) {
                    throw Error(ErrorCode::kInvalidArgument, "which task is --task-data " + given + " for?",
                                fmt::format("{0}={2} or {1}={2}", task, name, given), "a file alone");
                }
                task = name;
            }
            if (task.empty()) {
                throw Error(ErrorCode::kInvalidArgument, "--task-data is for no task here",
                            "hellaswag or gsm8k in --task", fmt::format("--task {}", fmt::join(flags.tasks, ",")));
            }
        }
        data[task] = at == std::string::npos ? given : given.substr(at + 1);
    }
    return data;
}

void run_tasks(const EvalFlags& flags) {
    for (const char* name : {"--ctx-size", "--chunks", "--no-control"}) {
        if (flags.verb->count(name) > 0) {
            throw Error(ErrorCode::kInvalidArgument, fmt::format("{} does not go with --task", name),
                        "--lengths for contexts, --items for how many", name);
        }
    }
    SuiteRequest request{.model = flags.request.model,
                         .tasks = flags.tasks,
                         .plans = flags.request.plans,
                         .types = flags.request.types,
                         .task = flags.task,
                         .data = data_of(flags),
                         .n_threads = flags.request.n_threads,
                         .results = flags.results};
    request.task.text = flags.request.text;
    request.task.n_batch = flags.request.n_batch;
    if (request.results.empty() && !flags.json.empty() && !on_stdout(flags.json))
        request.results = flags.json + ".items.jsonl";
    require_writable(request.results);
    std::string command = fmt::format("kvaq eval -m {} --task {}", request.model, fmt::join(request.tasks, ","));
    if (!request.task.text.empty()) command += " -f " + request.task.text;
    if (!flags.task_data.empty()) command += fmt::format(" --task-data {}", fmt::join(flags.task_data, ","));
    if (!request.plans.empty()) command += fmt::format(" --plan {}", fmt::join(request.plans, ","));
    if (!request.types.empty()) command += fmt::format(" --types {}", fmt::join(request.types, ","));
    if (request.task.n_items > 0) command += fmt::format(" --items {}", request.task.n_items);
    if (request.task.shots >= 0) command += fmt::format(" --shots {}", request.task.shots);
    if (!request.task.lengths.empty()) command += fmt::format(" --lengths {}", fmt::join(request.task.lengths, ","));
    if (request.task.max_tokens > 0) command += fmt::format(" --max-tokens {}", request.task.max_tokens);
    command += fmt::format(" --seed {} -b {} -t {}", request.task.seed, request.task.n_batch, request.n_threads);
    Progress progress("eval");
    const SuiteResult result = run_suite(
        request, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
    write_results(flags, suite_markdown(result, command), suite_json(result, command));
}

void run_eval(const EvalFlags& flags) {
    if (!on_stdout(flags.json)) require_writable(flags.json);
    require_writable(flags.markdown);
    quiet_llama(flags.verbose);
    announce_plans(flags.verbose);
    if (!flags.tasks.empty()) {
        run_tasks(flags);
        return;
    }
    for (const char* name : {"--task-data", "--items", "--shots", "--lengths", "--max-tokens", "--seed", "--results"}) {
        if (flags.verb->count(name) > 0)
            throw Error(ErrorCode::kInvalidArgument, fmt::format("{} goes with --task", name), "--task NAME", "none");
    }
    if (flags.request.text.empty()) {
        throw Error(ErrorCode::kInvalidArgument, "nothing to evaluate", "-f TEXT, or --task NAME", "neither");
    }
    run_compare(flags);
}

}  // namespace

void add_eval(CLI::App& app) {
    auto flags = std::make_shared<EvalFlags>();
    CompareRequest& request = flags->request;
    request.n_threads = default_threads();
    CLI::App* verb = app.add_subcommand(
        "eval",
        "perplexity, KL and agreement, or tasks, of plans and of llama.cpp's cache types against one f16 reference");
    flags->verb = verb;
    verb->add_option("-m,--model", request.model, "GGUF model")->required();
    verb->add_option("-f,--file", request.text, "text to score (and of the tasks depth and diverge)");
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
    verb->add_option("--task", flags->tasks,
                     fmt::format("tasks instead of the table of a text, separated by commas: {}",
                                 fmt::join(suite_task_names(), ", ")))
        ->delimiter(',');
    verb->add_option("--task-data", flags->task_data,
                     "data of the tasks that read a file: hellaswag=FILE,gsm8k=FILE (docs/formats.md), or a FILE alone")
        ->delimiter(',');
    verb->add_option("--items", flags->task.n_items, "items of each task (else the task's own number)")
        ->check(CLI::PositiveNumber);
    verb->add_option("--shots", flags->task.shots, "solved examples before an item (hellaswag 10, gsm8k 8)")
        ->check(CLI::Range(0, 1000));
    verb->add_option("--lengths", flags->task.lengths, "tokens of context of a task's items, separated by commas")
        ->delimiter(',')
        ->check(CLI::PositiveNumber);
    verb->add_option("--max-tokens", flags->task.max_tokens, "most tokens a task generates")
        ->check(CLI::PositiveNumber);
    verb->add_option("--seed", flags->task.seed, "of made-up texts")->capture_default_str();
    verb->add_option(
        "--results", flags->results,
        "finished items are kept here and not done again (else the --json file with .items.jsonl behind it)");
    verb->add_option("--json", flags->json, "write all numbers here; - for stdout instead of the table");
    verb->add_option("--md", flags->markdown, "write the table here");
    verb->add_flag("--no-control", flags->no_control, "leave out the floor row (f16 against itself in batches of 3)");
    verb->add_flag("--verbose", flags->verbose, "show llama.cpp's log");
    verb->callback([flags] { run_eval(*flags); });
}

}  // namespace kvaq
