#include "kvaq/report/report.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/llama/file_json.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/stats_file.h"

namespace kvaq {
namespace {

struct ReportFlags {
    std::string model;
    std::string plan;
    std::string stats;
    std::vector<std::string> evals;
    std::string frontier;
    std::string suite;
    std::string analysis;
    std::vector<std::string> speeds;
    std::string html;
    std::string markdown;
    std::string json;
};

constexpr size_t kMaxJson = 256 << 20;

std::string text_of(const std::string& path) {
    const std::vector<std::byte> bytes = read_file(path, kMaxJson);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string command_of(const ReportFlags& flags) {
    std::string out = "kvaq report";
    const auto add = [&](const char* flag, const std::string& value) {
        if (!value.empty()) out += fmt::format(" {} {}", flag, quoted(value));
    };
    add("-m", flags.model);
    add("--plan", flags.plan);
    add("--stats", flags.stats);
    for (const std::string& eval : flags.evals) add("--eval", eval);
    add("--frontier", flags.frontier);
    add("--suite", flags.suite);
    add("--analysis", flags.analysis);
    for (const std::string& speed : flags.speeds) add("--speed", speed);
    add("-o", flags.html);
    add("--md", flags.markdown);
    return out;
}

/// Reads every file; one that is no good ends the command before anything is written.
ReportInput read_inputs(const ReportFlags& flags) {
    ReportInput input;
    input.version = KVAQ_VERSION;
    input.command = command_of(flags);
    const auto source = [&](const char* what, const std::string& file, const std::string& verb,
                            const std::string& command = "") {
        input.sources.push_back(
            {.what = what, .file = file, .sha256 = sha256_hex(read_file(file)), .command = command, .verb = verb});
    };
    if (!flags.model.empty()) {
        input.shape = read_model_shape(flags.model);
        input.shape->fingerprint = model_fingerprint(flags.model);
    }
    if (!flags.stats.empty()) {
        input.stats = read_stats(flags.stats);
        input.stats_file = flags.stats;
    }
    if (is_preset(flags.plan) && !flags.plan.empty()) {
        if (!input.shape) {
            throw Error(ErrorCode::kInvalidArgument, "preset '" + flags.plan + "' is no plan of a model yet",
                        "-m MODEL.gguf", "nothing");
        }
        input.plan = make_uniform_plan(parse_preset(flags.plan), *input.shape);
        input.plan_file = flags.plan;
    } else if (!flags.plan.empty()) {
        require_plan_file(flags.plan);
        input.plan = read_plan(flags.plan);
        input.plan_file = flags.plan;
        source("plan", flags.plan, "kvaq plan or kvaq import", file_command(flags.plan));
    }
    if (!flags.stats.empty()) source("statistics", flags.stats, "kvaq calibrate", file_command(flags.stats));
    for (const std::string& file : flags.evals) {
        input.evals.push_back(parse_eval(text_of(file), file));
        source("comparison", file, "kvaq eval --json", input.evals.back().command);
    }
    if (!flags.frontier.empty()) {
        input.frontier = parse_eval(text_of(flags.frontier), flags.frontier);
        source("frontier", flags.frontier, "kvaq plan --frontier", input.frontier->command);
    }
    if (!flags.suite.empty()) {
        input.suite = parse_suite(text_of(flags.suite), flags.suite);
        source("tasks", flags.suite, "kvaq eval --task --json", input.suite->command);
    }
    if (!flags.analysis.empty()) {
        input.analysis = parse_analysis(text_of(flags.analysis), flags.analysis);
        source("analysis", flags.analysis, "kvaq analyze --json", input.analysis->command);
    }
    for (const std::string& file : flags.speeds) {
        input.speeds.push_back(parse_speed(text_of(file), file));
        source("speed", file, "kvaq bench --json", input.speeds.back().command);
    }
    return input;
}

void run_report(const ReportFlags& flags) {
    if (flags.html.empty() && flags.markdown.empty())
        throw Error(ErrorCode::kInvalidArgument, "nothing to write", "-o REPORT.html, --md REPORT.md or both",
                    "neither");
    std::vector<std::string> inputs = flags.evals;
    inputs.insert(inputs.end(), flags.speeds.begin(), flags.speeds.end());
    for (const std::string* file :
         {&flags.model, &flags.plan, &flags.stats, &flags.frontier, &flags.suite, &flags.analysis})
        inputs.push_back(*file);
    require_outputs({flags.html, flags.markdown, json_file(flags.json)}, inputs);
    const Document document = make_report(read_inputs(flags));
    // Both texts are made before the first file is written.
    const std::string html = to_html(document);
    const std::string markdown = to_markdown(document);
    if (!flags.html.empty()) atomic_write_text(flags.html, html);
    if (!flags.markdown.empty()) atomic_write_text(flags.markdown, markdown);
    std::vector<std::string> ids;
    for (const Section& section : document.sections) ids.push_back(section.id);
    const auto path = [](const std::string& name) {
        return name.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(name);
    };
    write_json(flags.json, json_text({{"schema_version", 1},
                                      {"kind", "kvaq.report"},
                                      {"html", path(flags.html)},
                                      {"markdown", path(flags.markdown)},
                                      {"sections", ids}}));
    if (is_stdout(flags.json)) return;
    std::string sections;
    for (const Section& section : document.sections) sections += (sections.empty() ? "" : ", ") + section.id;
    fmt::print(stderr, "wrote {}{}{} ({})\n", flags.html, flags.html.empty() || flags.markdown.empty() ? "" : " and ",
               flags.markdown, sections);
}

}  // namespace

void add_report(CLI::App& app) {
    auto flags = std::make_shared<ReportFlags>();
    CLI::App* verb = app.add_subcommand(
        "report",
        "one HTML page (or Markdown) of what the other verbs measured: verdict, bits, quality, memory, speed");
    verb->add_option("-m,--model", flags->model,
                     "GGUF model: its header checks that the other files are of it, and gives its context length");
    verb->add_option("--plan", flags->plan,
                     "*.plan.gguf, or a preset with -m: verdict, heat map of bits, memory against context");
    verb->add_option("--stats", flags->stats, "*.stats.gguf of kvaq calibrate: damage by layer, norms, spectra");
    verb->add_option("--eval", flags->evals,
                     "JSON of kvaq eval --json (may be given several times): table of KL, perplexity, same top token")
        ->delimiter(',');
    verb->add_option("--frontier", flags->frontier, "JSON of kvaq plan --frontier: KL against bits");
    verb->add_option("--suite", flags->suite, "JSON of kvaq eval --task --json: tasks, with paired differences to f16");
    verb->add_option("--analysis", flags->analysis,
                     "JSON of kvaq analyze --json: norms, spectra and what the paper's theorems say");
    verb->add_option("--speed", flags->speeds,
                     "JSON of kvaq bench: tokens per second against depth (may be given several times)")
        ->delimiter(',');
    verb->add_option("-o,--output", flags->html, "HTML page to write; it loads nothing");
    verb->add_option("--md", flags->markdown, "the same as Markdown, for pasting");
    verb->add_option("--json", flags->json, "write which files and sections were made as JSON; - prints it");
    verb->callback([flags] { run_report(*flags); });
}

}  // namespace kvaq
