// kvaq run|chat|serve|perplexity --plan P [that program's own flags], kvaq exec --plan P -- program args...
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

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

const std::vector<LaunchFlag>& launch_flags() {
    static const std::vector<LaunchFlag> flags = {
        {"--plan", "preset or *.plan.gguf"},
        {"--kv-budget", "most bytes the cache may take, e.g. 512MiB or 4GiB"},
        {"--kv-device",
         "auto, cpu or gpu: whether layers on a CUDA GPU have their attention and a copy of their cache there"},
        {"--kv-metrics", "serve Prometheus metrics of the cache at this address, e.g. 127.0.0.1:9464"},
    };
    return flags;
}

std::string launch_help() {
    std::string text =
        "\nllama.cpp programs under the packed cache (kvaq VERB --plan PRESET|FILE [--kv-budget BYTES] [--kv-device "
        "auto|cpu|gpu] [--kv-metrics "
        "HOST:PORT] [the program's own flags]):\n";
    for (const LaunchVerb& launch : launch_verbs()) {
        text += "  " + launch.verb + std::string(28 - launch.verb.size(), ' ') + launch.what + "\n";
    }
    return text;
}

void launch(const std::vector<std::string>& args) {
    const std::string& verb = args.at(0);
    std::optional<std::string> plan;
    std::optional<std::string> budget;
    std::optional<std::string> metrics;
    std::optional<std::string> device;
    std::vector<std::string> rest;
    bool own_flags = true;  // up to "--" for exec; everywhere for the others
    for (size_t i = 1; i < args.size(); ++i) {
        if (own_flags && args[i] == "--plan") {
            if (i + 1 == args.size())
                throw Error(ErrorCode::kInvalidArgument, "--plan needs a value",
                            "a preset (k4v2) or a *.plan.gguf file", "nothing");
            plan = args[++i];
        } else if (own_flags && args[i] == "--kv-budget") {
            if (i + 1 == args.size())
                throw Error(ErrorCode::kInvalidArgument, "--kv-budget needs a value", "e.g. 512MiB or 4GiB", "nothing");
            budget = args[++i];
        } else if (own_flags && args[i] == "--kv-metrics") {
            if (i + 1 == args.size())
                throw Error(ErrorCode::kInvalidArgument, "--kv-metrics needs a value", "e.g. 127.0.0.1:9464",
                            "nothing");
            metrics = args[++i];
        } else if (own_flags && args[i] == "--kv-device") {
            if (i + 1 == args.size())
                throw Error(ErrorCode::kInvalidArgument, "--kv-device needs a value", "auto, cpu or gpu", "nothing");
            device = args[++i];
        } else if (own_flags && args[i].rfind("--kv-device=", 0) == 0) {
            device = args[i].substr(12);
        } else if (own_flags && args[i].rfind("--kv-metrics=", 0) == 0) {
            metrics = args[i].substr(13);
        } else if (own_flags && args[i].rfind("--kv-budget=", 0) == 0) {
            budget = args[i].substr(12);
        } else if (own_flags && args[i].rfind("--plan=", 0) == 0) {
            plan = args[i].substr(7);
        } else if (verb == "exec" && own_flags && args[i] == "--") {
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
    if (budget) {
        (void)parse_bytes(*budget);
        setenv("KVAQ_KV_BUDGET", budget->c_str(), 1);
    }
    if (device) {
        (void)parse_kv_device(*device);
        setenv("KVAQ_KV_DEVICE", device->c_str(), 1);
    }
    if (metrics) {
        (void)parse_metrics_address(*metrics);
        setenv("KVAQ_METRICS", metrics->c_str(), 1);
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
