#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/llama/estimate.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/weight_norms.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/export.h"
#include "kvaq/plan/import.h"

namespace kvaq {
namespace {

struct ImportFlags {
    std::string file;
    std::string kvq;
    std::string model;
    std::string out;
    std::string json;
    std::string base = "k4v4";
    double budget = 0;
    double group_budget = 0;
};

constexpr size_t kMaxText = 16 << 20;
constexpr size_t kContext = 8192;  // at which effective bits are told

void run_import(const ImportFlags& flags) {
    if (flags.file.empty() == flags.kvq.empty()) {
        throw Error(ErrorCode::kInvalidArgument, "what to import", "a FILE, or --kvq TEXT",
                    flags.file.empty() ? "neither" : "both");
    }
    require_outputs({flags.out, json_file(flags.json)}, {flags.file, flags.model});
    std::string text = flags.kvq;
    if (!flags.file.empty()) {
        const std::vector<std::byte> bytes = read_file(flags.file, kMaxText);
        text.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    ImportContext context;
    context.what = flags.file.empty() ? "--kvq" : flags.file;
    context.shape = read_model_shape(flags.model);
    context.base = parse_preset(flags.base);
    context.budget = flags.budget;
    context.group_budget = flags.group_budget;
    context.qk_norm = has_qk_norm(flags.model);
    std::optional<WeightNorms> weights;
    context.weight_norms = [&](NormScore score) {
        if (!weights) weights = read_weight_norms(flags.model);
        return weights->of(score);
    };
    const ImportedPlan imported = import_plan(text, context);
    for (const std::string& warning : imported.warnings) fmt::print(stderr, "kvaq: warning: {}\n", warning);
    write_plan(imported.plan, flags.out, command_line());
    const double key = mean_bits(imported.plan, Side::kKey);
    const double value = mean_bits(imported.plan, Side::kValue);
    const double bits = cache_bytes(imported.plan, kContext).effective_bits;
    write_json(flags.json, json_text({{"schema_version", 1},
                                      {"kind", "kvaq.import"},
                                      {"format", imported.format},
                                      {"warnings", imported.warnings},
                                      {"mean_key_bits", key},
                                      {"mean_value_bits", value},
                                      {"n_ctx", kContext},
                                      {"effective_bits", bits},
                                      {"output", flags.out}}));
    if (is_stdout(flags.json)) return;
    fmt::print("{} for {}: mean code bits K {:.2f}, V {:.2f}; {:.2f} effective bits at {} tokens. Wrote {}\n",
               imported.format, imported.plan.model_name, key, value, bits, kContext, flags.out);
}

struct ExportFlags {
    std::string plan;
    std::string model;
    std::string to;
    std::string out;
    std::string json;
};

void run_export(const ExportFlags& flags) {
    require_outputs({flags.out, json_file(flags.json)}, {flags.plan, flags.model});
    Plan plan;
    if (is_preset(flags.plan)) {
        if (flags.model.empty())
            throw Error(ErrorCode::kInvalidArgument, "preset '" + flags.plan + "' is no plan of a model yet",
                        "-m MODEL.gguf", "nothing");
        plan = make_uniform_plan(parse_preset(flags.plan), read_model_shape(flags.model));
    } else if (flags.model.empty()) {
        require_plan_file(flags.plan);
        plan = read_plan(flags.plan);
    } else {
        ModelShape shape = read_model_shape(flags.model);
        shape.fingerprint = model_fingerprint(flags.model);
        plan = plan_for(flags.plan, shape);
    }
    const ExportedPlan exported = export_plan(plan, flags.to);
    for (const std::string& lost : exported.lost) fmt::print(stderr, "kvaq: lost: {}\n", lost);
    write_json(flags.json, json_text({{"schema_version", 1},
                                      {"kind", "kvaq.export"},
                                      {"format", flags.to},
                                      {"lost", exported.lost},
                                      {"text", exported.text}}));
    if (!flags.out.empty()) atomic_write(flags.out, std::as_bytes(std::span(exported.text)));
    if (is_stdout(flags.json)) return;
    if (flags.out.empty()) {
        std::fputs(exported.text.c_str(), stdout);
    } else {
        fmt::print(stderr, "wrote {}\n", flags.out);
    }
}

}  // namespace

void add_import(CLI::App& app) {
    auto flags = std::make_shared<ImportFlags>();
    CLI::App* verb = app.add_subcommand(
        "import", "a plan from the paper's norm or allocation JSON, its --kvq text, or KVTuner YAML");
    verb->add_option("file", flags->file, "file to import");
    verb->add_option("--kvq", flags->kvq, "the authors' --kvq text (JSON or key=value,...) instead of a file");
    verb->add_option("-m,--model", flags->model, "GGUF model the plan is for")->required();
    verb->add_option("-o,--output", flags->out, "*.plan.gguf to write")->required();
    verb->add_option("--json", flags->json,
                     "write what was read, with warnings, as JSON; - prints it instead of the sentence");
    verb->add_option("--base", flags->base, "preset for everything the file leaves open")->capture_default_str();
    verb->add_option("--budget", flags->budget, "mean code bits per matrix, for a file of norms")
        ->check(CLI::PositiveNumber);
    verb->add_option("--group-budget", flags->group_budget, "mean group size, for a file of norms")
        ->check(CLI::PositiveNumber);
    verb->callback([flags] { run_import(*flags); });
}

void add_export(CLI::App& app) {
    auto flags = std::make_shared<ExportFlags>();
    CLI::App* verb = app.add_subcommand("export", "a plan in another program's words; stderr says what is lost");
    verb->add_option("plan", flags->plan, "*.plan.gguf, or a preset with -m")->required();
    verb->add_option("--to", flags->to, fmt::format("{}", fmt::join(export_formats(), ", ")))->required();
    verb->add_option("-m,--model", flags->model, "GGUF model: what a preset is for; a plan file is held to it");
    verb->add_option("-o,--output", flags->out, "file to write (default: stdout)");
    verb->add_option("--json", flags->json, "write text and losses as JSON; - prints them instead of the text");
    verb->callback([flags] { run_export(*flags); });
}

}  // namespace kvaq
