#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <utility>

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
    std::vector<std::string> tasks;
    std::vector<std::string> task_data;
    std::vector<std::string> items;
    std::vector<std::string> shots;
    std::vector<std::string> lengths;
    std::vector<std::string> max_tokens;
    uint64_t seed = 1;
    std::string results;
    std::string json;
    std::string markdown;
    bool no_control = false;
    bool verbose = false;
    const CLI::App* verb = nullptr;
};

std::vector<std::string> inputs_of(const EvalFlags& flags) {
    std::vector<std::string> inputs = flags.request.plans;
    inputs.insert(inputs.end(), {flags.request.model, flags.request.text});
    for (const std::string& data : flags.task_data) inputs.push_back(data.substr(data.find('=') + 1));
    return inputs;
}

/// Table to stdout and --md, numbers to --json; with --json - only they go to stdout.
void write_results(const EvalFlags& flags, const std::string& table, const std::string& json) {
    if (!is_stdout(flags.json)) std::fputs(table.c_str(), stdout);
    if (!flags.json.empty()) write_json(flags.json, json);
    if (!flags.markdown.empty()) atomic_write_text(flags.markdown, table);
}

void run_compare(const EvalFlags& flags) {
    CompareRequest request = flags.request;
    request.control = !flags.no_control;
    if (!json_file(flags.json).empty()) request.partial = flags.json + ".partial";
    require_outputs({json_file(flags.json), request.partial, flags.markdown}, inputs_of(flags));
    Progress progress("eval");
    const CompareResult result =
        compare(request, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
    std::string command =
        fmt::format("kvaq eval -m {} -f {} -c {} --chunks {} -b {} -t {}", request.model, request.text, request.n_ctx,
                    request.n_chunks, request.n_batch, request.n_threads);
    if (!request.plans.empty()) command += fmt::format(" --plan {}", fmt::join(request.plans, ","));
    if (!request.types.empty()) command += fmt::format(" --types {}", fmt::join(request.types, ","));
    if (flags.no_control) command += " --no-control";
    if (request.perturbed) command += " --perturbed";
    const std::string head =
        fmt::format("{} on {}, {} chunks of {} tokens, second halves scored ({} tokens). `{}`\n\n", result.shape.name,
                    request.text, request.n_chunks, request.n_ctx, result.rows[0].summary.n_tokens, command);
    write_results(flags, head + to_markdown(request, result), to_json(request, result, command));
    remove_partial(request.partial);
}

/// A flag's "task=value" or "value" (for every task): the values for one task.
std::vector<std::string> values_for(const std::string& task, const std::vector<std::string>& given) {
    std::vector<std::string> own;
    std::vector<std::string> all;
    for (const std::string& one : given) {
        const size_t at = one.find('=');
        if (at == std::string::npos) all.push_back(one);
        if (at != std::string::npos && one.substr(0, at) == task) own.push_back(one.substr(at + 1));
    }
    return own.empty() ? all : own;
}

/// Throws unless every "task=" is a task that is run.
void check_names(const EvalFlags& flags, const char* flag, const std::vector<std::string>& given) {
    for (const std::string& one : given) {
        const size_t at = one.find('=');
        if (at == std::string::npos ||
            std::find(flags.tasks.begin(), flags.tasks.end(), one.substr(0, at)) != flags.tasks.end())
            continue;
        throw Error(ErrorCode::kInvalidArgument, fmt::format("{} {} is for no task that is run", flag, one),
                    fmt::format("one of --task {}", fmt::join(flags.tasks, ",")), "'" + one.substr(0, at) + "'");
    }
}

size_t whole_number(const char* flag, const std::string& text, size_t least) {
    size_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < least || value > (size_t{1} << 31)) {
        throw Error(ErrorCode::kInvalidArgument, fmt::format("{} is a number", flag),
                    fmt::format("a whole number from {} on, or TASK=number", least), "'" + text + "'");
    }
    return value;
}

/// The last of the values, or `none`.
size_t number_for(const EvalFlags& flags, const char* flag, const std::vector<std::string>& given,
                  const std::string& task, size_t least, size_t none) {
    check_names(flags, flag, given);
    const std::vector<std::string> values = values_for(task, given);
    return values.empty() ? none : whole_number(flag, values.back(), least);
}

TaskRequest task_request(const EvalFlags& flags, const std::string& task) {
    TaskRequest out{.text = flags.request.text, .data = {}, .lengths = {}, .seed = flags.seed};
    check_names(flags, "--task-data", flags.task_data);
    const std::vector<std::string> data = values_for(task, flags.task_data);
    const bool own = data != values_for("", flags.task_data);
    if (!data.empty() && (own || task_reads_data(task))) out.data = data.back();
    out.n_items = number_for(flags, "--items", flags.items, task, 1, 0);
    out.max_tokens = number_for(flags, "--max-tokens", flags.max_tokens, task, 1, 0);
    constexpr size_t kNone = 1 << 20;
    const size_t shots = number_for(flags, "--shots", flags.shots, task, 0, kNone);
    out.shots = shots == kNone ? -1 : static_cast<int>(std::min<size_t>(shots, kNone));
    check_names(flags, "--lengths", flags.lengths);
    for (const std::string& length : values_for(task, flags.lengths))
        out.lengths.push_back(whole_number("--lengths", length, 1));
    return out;
}

void run_tasks(const EvalFlags& flags) {
    for (const char* name : {"--ctx-size", "--chunks", "--no-control", "--perturbed"}) {
        if (flags.verb->count(name) > 0) {
            throw Error(ErrorCode::kInvalidArgument, fmt::format("{} does not go with --task", name),
                        "--lengths for contexts, --items for how many", name);
        }
    }
    SuiteRequest request{.model = flags.request.model,
                         .tasks = {},
                         .plans = flags.request.plans,
                         .types = flags.request.types,
                         .n_batch = flags.request.n_batch,
                         .n_threads = flags.request.n_threads,
                         .results = flags.results};
    size_t n_readers = 0;
    for (const std::string& task : flags.tasks) {
        n_readers += task_reads_data(task) ? 1 : 0;
        request.tasks.push_back({task, task_request(flags, task)});
    }
    for (const std::string& file : values_for("", flags.task_data)) {
        if (n_readers == 1) continue;
        throw Error(ErrorCode::kInvalidArgument, "which task is --task-data " + file + " for?",
                    n_readers == 0 ? "hellaswag or gsm8k in --task" : "hellaswag=FILE,gsm8k=FILE", "a file alone");
    }
    if (request.results.empty() && !flags.json.empty() && !is_stdout(flags.json))
        request.results = flags.json + ".items.jsonl";
    require_outputs({request.results, json_file(flags.json), flags.markdown}, inputs_of(flags));
    std::string command = fmt::format("kvaq eval -m {} --task {}", request.model, fmt::join(flags.tasks, ","));
    if (!flags.request.text.empty()) command += " -f " + flags.request.text;
    const std::vector<std::pair<const char*, const std::vector<std::string>*>> lists = {
        {"--task-data", &flags.task_data},  {"--plan", &flags.request.plans}, {"--types", &flags.request.types},
        {"--items", &flags.items},          {"--shots", &flags.shots},        {"--lengths", &flags.lengths},
        {"--max-tokens", &flags.max_tokens}};
    for (const auto& [flag, values] : lists) {
        if (!values->empty()) command += fmt::format(" {} {}", flag, fmt::join(*values, ","));
    }
    command += fmt::format(" --seed {} -b {} -t {}", flags.seed, request.n_batch, request.n_threads);
    Progress progress("eval");
    const SuiteResult result = run_suite(
        request, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
    write_results(flags, suite_markdown(result, command), suite_json(result, command));
}

void run_eval(const EvalFlags& flags) {
    require_outputs({json_file(flags.json), flags.markdown}, inputs_of(flags));
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
        ->check(CLI::Range(1, kMostTokens))
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
    verb->add_option("--items", flags->items, "items of every task, or of one: TASK=N (else the task's own number)")
        ->delimiter(',');
    verb->add_option("--shots", flags->shots, "solved examples before an item, or TASK=N (hellaswag 10, gsm8k 8)")
        ->delimiter(',');
    verb->add_option("--lengths", flags->lengths,
                     "tokens of context of the items, or TASK=N, several separated by commas")
        ->delimiter(',');
    verb->add_option("--max-tokens", flags->max_tokens, "most tokens that are generated for an item, or TASK=N")
        ->delimiter(',');
    verb->add_option("--seed", flags->seed, "of made-up texts")->capture_default_str();
    verb->add_option(
        "--results", flags->results,
        "finished items are kept here and not done again (else the --json file with .items.jsonl behind it)");
    verb->add_option("--json", flags->json,
                     std::string(kJsonHelp) + "; with -f an interrupted run goes on from FILE.partial");
    verb->add_option("--md", flags->markdown, "write the table here");
    verb->add_flag("--no-control", flags->no_control, "leave out the floor row (f16 against itself in batches of 3)");
    verb->add_flag("--perturbed", request.perturbed,
                   "another row of the floor: f16 with every key and value off by 2^-12 of itself");
    verb->add_flag("--verbose", flags->verbose, "show llama.cpp's log");
    verb->callback([flags] { run_eval(*flags); });
}

}  // namespace kvaq
