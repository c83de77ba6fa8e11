// kvaq run|chat|serve|perplexity --plan P [that program's own flags], kvaq exec --plan P -- program args...
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/cli/program.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/llama/gpu_attention.h"
#include "kvaq/llama/metrics_address.h"
#include "kvaq/plan/budget_text.h"

namespace kvaq {
namespace {

namespace fs = std::filesystem;

struct Program {
    const char* name;
    const char* what;
};

const std::map<std::string, Program>& programs() {
    static const std::map<std::string, Program> table = {
        {"run", {"llama-completion", "complete a prompt (-m MODEL -p PROMPT ...)"}},
        {"chat", {"llama-cli", "chat in the terminal"}},
        {"serve", {"llama-server", "OpenAI-compatible server"}},
        {"perplexity", {"llama-perplexity", "llama.cpp's own perplexity, KL and task scores"}},
        {"exec", {"", "any llama.cpp program: kvaq exec --plan P -- PROGRAM ARGS..."}},
    };
    return table;
}

}  // namespace

bool is_launch_verb(const std::string& verb) { return programs().contains(verb); }

std::vector<LaunchVerb> launch_verbs() {
    std::vector<LaunchVerb> verbs;
    for (const auto& [verb, program] : programs()) {
        verbs.push_back({verb, (program.name[0] != '\0' ? std::string(program.name) + ": " : "") + program.what});
    }
    return verbs;
}

namespace {

/// Own flags but --plan: what a value must look like, where it goes on to the program, and a check that throws.
struct OwnFlag {
    LaunchFlag flag;
    const char* example;
    const char* variable;
    void (*check)(const std::string& value);
};

const std::vector<OwnFlag>& own_flags_but_plan() {
    static const std::vector<OwnFlag> flags = {
        {.flag = {"--kv-budget", "most bytes the cache may take, e.g. 512MiB or 4GiB"},
         .example = "e.g. 512MiB or 4GiB",
         .variable = "KVAQ_KV_BUDGET",
         .check = [](const std::string& value) { (void)parse_bytes(value); }},
        {.flag =
             {"--kv-device",
              "auto, cpu or gpu: whether layers on a CUDA GPU have their attention and a copy of their cache there"},
         .example = "auto, cpu or gpu",
         .variable = "KVAQ_KV_DEVICE",
         .check = [](const std::string& value) { (void)parse_kv_device(value); }},
        {.flag = {"--kv-metrics", "serve Prometheus metrics of the cache at this address, e.g. 127.0.0.1:9464"},
         .example = "e.g. 127.0.0.1:9464",
         .variable = "KVAQ_METRICS",
         .check = [](const std::string& value) { (void)parse_metrics_address(value); }},
        {.flag = {"--kv-rewind",
                  "tokens by which a sequence can be cut back (an answer written again) and go on as if they had never "
                  "been there; their f16 rows are kept meanwhile"},
         .example = "a number of tokens, e.g. 512",
         .variable = "KVAQ_KV_REWIND",
         .check = [](const std::string& value) { (void)parse_rewind(value); }},
    };
    return flags;
}

/// The value of `flag` at args[i], as "--flag value" (i is then moved on) or "--flag=value"; none: args[i] is something else.
std::optional<std::string> value_of(const LaunchFlag& flag, const char* example, const std::vector<std::string>& args,
                                    size_t& i) {
    const std::string name = flag.name;
    if (args[i].rfind(name + "=", 0) == 0) return args[i].substr(name.size() + 1);
    if (args[i] != name) return std::nullopt;
    if (i + 1 == args.size()) throw Error(ErrorCode::kInvalidArgument, name + " needs a value", example, "nothing");
    return args[++i];
}

const LaunchFlag kPlanFlag = {"--plan", "preset or *.plan.gguf"};

}  // namespace

const std::vector<LaunchFlag>& launch_flags() {
    static const std::vector<LaunchFlag> flags = [] {
        std::vector<LaunchFlag> all = {kPlanFlag};
        for (const OwnFlag& own : own_flags_but_plan()) all.push_back(own.flag);
        return all;
    }();
    return flags;
}

std::string launch_help() {
    std::string text =
        "\nllama.cpp programs under the packed cache (kvaq VERB --plan PRESET|FILE [--kv-budget BYTES] [--kv-device "
        "auto|cpu|gpu] [--kv-metrics HOST:PORT] [--kv-rewind TOKENS] [the program's own flags]):\n";
    for (const LaunchVerb& launch : launch_verbs()) {
        text += "  " + launch.verb + std::string(28 - launch.verb.size(), ' ') + launch.what + "\n";
    }
    return text;
}

void launch(const std::vector<std::string>& args) {
    const std::string& verb = args.at(0);
    std::optional<std::string> plan;
    std::map<std::string, std::string> variables;  // of the other own flags
    std::vector<std::string> rest;
    bool own_flags = true;  // up to "--" for exec; everywhere for the others
    const auto is_own = [&](size_t& i) {
        if (auto value = value_of(kPlanFlag, "a preset (k4v2) or a *.plan.gguf file", args, i)) {
            plan = value;
            return true;
        }
        for (const OwnFlag& own : own_flags_but_plan()) {
            if (const auto value = value_of(own.flag, own.example, args, i)) {
                variables[own.variable] = *value;
                return true;
            }
        }
        return false;
    };
    for (size_t i = 1; i < args.size(); ++i) {
        if (own_flags && is_own(i)) continue;
        if (verb == "exec" && own_flags && args[i] == "--") {
            own_flags = false;
        } else if (verb == "exec" && own_flags && (args[i] == "--help" || args[i] == "-h")) {
            std::fputs("usage: kvaq exec --plan PRESET|FILE -- PROGRAM ARGS...\n", stdout);
            std::exit(0);
        } else if (verb == "exec" && own_flags && rest.empty() && args[i].rfind("-", 0) == 0) {
            throw Error(ErrorCode::kInvalidArgument, "unknown flag of kvaq exec",
                        "--plan PRESET|FILE -- PROGRAM ARGS...", args[i]);
        } else {
            rest.push_back(args[i]);
        }
    }
    const bool help_only = !rest.empty() && (rest[0] == "--help" || rest[0] == "-h" || rest[0] == "--version");
    if (!plan && !help_only) {
        const char* env = std::getenv("KVAQ_PLAN");
        if (env == nullptr || *env == '\0') {
            throw Error(
                ErrorCode::kInvalidArgument, "no plan given", "--plan PRESET|FILE", "nothing",
                "Try --plan k4v4-rot, or make a plan with: kvaq plan -m MODEL --budget 3.25bits -o MODEL.plan.gguf");
        }
        plan = env;
    }
    if (plan) (void)plan_value(*plan);  // a wrong name or file is said here, in one line
    for (const OwnFlag& own : own_flags_but_plan()) {
        const auto given = variables.find(own.variable);
        if (given == variables.end()) continue;
        own.check(given->second);
        setenv(own.variable, given->second.c_str(), 1);
    }
    if (verb == "exec") {
        if (rest.empty())
            throw Error(ErrorCode::kInvalidArgument, "no program given", "kvaq exec --plan P -- PROGRAM ARGS...",
                        "nothing");
    } else {
        rest.insert(rest.begin(), programs().at(verb).name);
    }
    const fs::path program = find_program(rest[0], verb == "exec");
    if (plan) {
        setenv("KVAQ_PLAN", plan_value(*plan).c_str(), 1);
        setenv("LD_PRELOAD", preload_value().c_str(), 1);
    }
    std::vector<char*> argv;
    argv.reserve(rest.size() + 1);
    for (std::string& arg : rest) argv.push_back(arg.data());
    argv.push_back(nullptr);
    execv(program.c_str(), argv.data());
    throw Error(ErrorCode::kNotFound, "cannot start " + program.string(), "an executable program",
                std::strerror(errno));
}

}  // namespace kvaq
