// kvaq bench: llama-bench for our plans and llama.cpp's cache types, round by round in turn, in one table.
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/program.h"
#include "kvaq/cli/progress.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/session.h"
#include "kvaq/eval/speed.h"

extern char** environ;  // NOLINT: POSIX's

namespace kvaq {
namespace {

struct BenchFlags {
    std::string model;
    std::vector<std::string> plans;
    std::vector<std::string> types = {"f16", "q4_0"};
    std::vector<size_t> prompts = {512};
    std::vector<size_t> tokens = {32};
    std::vector<size_t> depths = {0};
    size_t rounds = 5;
    int32_t n_threads = default_threads();
    std::string format = "md";
    std::string json;
    const CLI::App* verb = nullptr;
};

/// One cache of the table.
struct Cache {
    std::string name;
    std::vector<std::string> flags;        ///< of llama-bench
    std::vector<std::string> environment;  ///< "NAME=value", before the own one
};

class Pipe {
  public:
    Pipe() {
        if (pipe2(ends_.data(), O_CLOEXEC) != 0)
            throw Error(ErrorCode::kIo, "cannot make a pipe", "", std::strerror(errno));
    }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    ~Pipe() {
        close_end(0);
        close_end(1);
    }
    [[nodiscard]] int end(size_t i) const noexcept { return ends_[i]; }
    void close_end(size_t i) noexcept {
        if (ends_[i] >= 0) close(ends_[i]);
        ends_[i] = -1;
    }

  private:
    std::array<int, 2> ends_ = {-1, -1};
};

/// What is left of a program's messages: the last line that says something.
std::string last_words(const std::string& text) {
    std::istringstream lines(text);
    std::string last;
    for (std::string line; std::getline(lines, line);) {
        if (line.find_first_not_of(" \t") != std::string::npos) last = line;
    }
    return last.empty() ? "no message" : last;
}

/// Runs a program to its end; its stdout. Throws Error with its last message if it fails.
std::string output_of(const std::string& program, const std::vector<std::string>& arguments,
                      const std::vector<std::string>& environment, const std::string& who) {
    std::vector<std::string> words = {program};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<std::string> variables = environment;
    for (char** v = environ; *v != nullptr; ++v) {
        const std::string name = std::string(*v).substr(0, std::string(*v).find('=') + 1);
        const bool replaced =
            name == "KVAQ_PLAN=" || std::any_of(environment.begin(), environment.end(),
                                                [&](const std::string& e) { return e.rfind(name, 0) == 0; });
        if (!replaced) variables.emplace_back(*v);
    }
    const auto pointers = [](std::vector<std::string>& texts) {
        std::vector<char*> out;
        for (std::string& text : texts) out.push_back(text.data());
        out.push_back(nullptr);
        return out;
    };
    Pipe out;
    char errors[] = "/tmp/kvaq-bench-XXXXXX";  // not a pipe: nothing has to be read while it runs
    const int messages = mkostemp(errors, O_CLOEXEC);
    if (messages < 0) throw Error(ErrorCode::kIo, "cannot write to /tmp", "", std::strerror(errno));
    unlink(errors);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out.end(1), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, messages, STDERR_FILENO);
    pid_t child = 0;
    const int failed =
        posix_spawn(&child, program.c_str(), &actions, nullptr, pointers(words).data(), pointers(variables).data());
    posix_spawn_file_actions_destroy(&actions);
    out.close_end(1);
    std::string text;
    std::array<char, 4096> buffer;
    for (ssize_t n = 0; failed == 0 && (n = read(out.end(0), buffer.data(), buffer.size())) > 0;)
        text.append(buffer.data(), static_cast<size_t>(n));
    int status = 0;
    while (failed == 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    std::string said;
    lseek(messages, 0, SEEK_SET);
    for (ssize_t n = 0; (n = read(messages, buffer.data(), buffer.size())) > 0;)
        said.append(buffer.data(), static_cast<size_t>(n));
    close(messages);
    if (failed != 0) throw Error(ErrorCode::kIo, "cannot start " + program, "", std::strerror(failed));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        const std::string how = WIFEXITED(status) ? fmt::format("exit code {}", WEXITSTATUS(status))
                                                  : fmt::format("signal {}", WTERMSIG(status));
        throw Error(ErrorCode::kIo, fmt::format("llama-bench failed for {} ({})", who, how), "", last_words(said));
    }
    return text;
}

std::vector<Cache> caches_of(const BenchFlags& flags) {
    std::vector<Cache> caches;
    for (const std::string& plan : flags.plans)
        caches.push_back({.name = plan,
                          .flags = {},
                          .environment = {"KVAQ_PLAN=" + plan_value(plan), "LD_PRELOAD=" + preload_value()}});
    for (const std::string& type : flags.types) {
        (void)llama_cache_type(type);
        caches.push_back({.name = type, .flags = {"-ctk", type, "-ctv", type, "-fa", "1"}, .environment = {}});
    }
    return caches;
}

void run_bench(BenchFlags flags) {
    std::vector<std::string> inputs = flags.plans;
    inputs.push_back(flags.model);
    require_outputs({json_file(flags.json)}, inputs);
    if (flags.plans.empty()) {
        const char* plan = std::getenv("KVAQ_PLAN");
        if (plan != nullptr && *plan != '\0') flags.plans = {plan};
    }
    if (flags.plans.empty()) {
        throw Error(
            ErrorCode::kInvalidArgument, "no plan given", "--plan PRESET|FILE[,...]", "nothing",
            "Try --plan k4v4-rot, or make a plan with: kvaq plan -m MODEL --budget 3.25bits -o MODEL.plan.gguf");
    }
    (void)file_bytes(flags.model);  // said here, not after minutes
    const std::vector<Cache> caches = caches_of(flags);
    const std::string program = find_program("llama-bench", false).string();
    SpeedRuns runs;
    runs.n_plans = flags.plans.size();
    runs.n_threads = static_cast<size_t>(flags.n_threads);
    for (const Cache& cache : caches) runs.caches.push_back(cache.name);
    for (const size_t depth : flags.depths) {
        for (const size_t n : flags.tokens) {
            if (n > 0) runs.tests.push_back({.n_prompt = 0, .n_gen = n, .depth = depth});
        }
        for (const size_t n : flags.prompts) {
            if (n > 0) runs.tests.push_back({.n_prompt = n, .n_gen = 0, .depth = depth});
        }
    }
    if (runs.tests.empty()) throw Error(ErrorCode::kInvalidArgument, "nothing to time", "-n or -p above 0", "both 0");
    const std::vector<std::string> others = flags.verb->remaining();
    std::vector<std::string> common = {"-m", flags.model, "-t", std::to_string(flags.n_threads),
                                       "-r", "1",         "-o", "jsonl"};
    common.insert(common.end(), others.begin(), others.end());
    runs.flags = fmt::format("{}", fmt::join(common, " "));
    runs.command =
        fmt::format("kvaq bench -m {} --plan {} --types {} -p {} -n {} -d {} -r {} -t {}", flags.model,
                    fmt::join(flags.plans, ","), fmt::join(flags.types, ","), fmt::join(flags.prompts, ","),
                    fmt::join(flags.tokens, ","), fmt::join(flags.depths, ","), flags.rounds, flags.n_threads);
    if (!others.empty()) runs.command += fmt::format(" {}", fmt::join(others, " "));
    runs.speeds.assign(runs.tests.size(), std::vector<std::vector<double>>(caches.size()));
    Progress progress("bench");
    const size_t total = flags.rounds * runs.tests.size() * caches.size();
    size_t done = 0;
    for (size_t round = 0; round < flags.rounds; ++round) {
        for (size_t t = 0; t < runs.tests.size(); ++t) {
            const SpeedTest& test = runs.tests[t];
            for (size_t c = 0; c < caches.size(); ++c) {
                std::vector<std::string> arguments = common;
                for (const auto& [flag, value] :
                     {std::pair{"-p", test.n_prompt}, {"-n", test.n_gen}, {"-d", test.depth}})
                    arguments.insert(arguments.end(), {flag, std::to_string(value)});
                arguments.insert(arguments.end(), caches[c].flags.begin(), caches[c].flags.end());
                const std::string who = caches[c].name + ", " + test.name();
                runs.about = parse_llama_bench(output_of(program, arguments, caches[c].environment, who), who);
                if (!(runs.about.test == test))
                    throw Error(ErrorCode::kCorrupt, "llama-bench timed something else", test.name(),
                                runs.about.test.name());
                runs.speeds[t][c].push_back(runs.about.tokens_per_second);
                progress.update(++done, total, who);
            }
        }
    }
    const std::string json = speed_json(runs);
    if (!flags.json.empty()) write_json(flags.json, json);
    if (is_stdout(flags.json)) return;
    const std::string text =
        flags.format == "md" ? speed_markdown(runs) : (flags.format == "csv" ? speed_csv(runs) : json);
    std::fputs(text.c_str(), stdout);
}

}  // namespace

void add_bench(CLI::App& app) {
    auto flags = std::make_shared<BenchFlags>();
    CLI::App* verb = app.add_subcommand(
        "bench", "decode and prefill speed of plans beside llama.cpp's cache types, by depth, in turn (llama-bench)");
    flags->verb = verb;
    verb->allow_extras();
    verb->add_option("-m,--model", flags->model, "GGUF model")->required();
    verb->add_option("--plan", flags->plans, "presets or *.plan.gguf files, separated by commas")->delimiter(',');
    verb->add_option("--types", flags->types, "llama.cpp cache types beside them, separated by commas")
        ->delimiter(',')
        ->capture_default_str();
    verb->add_option("-p,--n-prompt", flags->prompts,
                     "prompt lengths whose prefill is timed, separated by commas; 0: none")
        ->delimiter(',')
        ->capture_default_str();
    verb->add_option("-n,--n-gen", flags->tokens, "tokens decoded one by one, separated by commas; 0: none")
        ->delimiter(',')
        ->capture_default_str();
    verb->add_option("-d,--n-depth", flags->depths, "tokens already in the cache, separated by commas")
        ->delimiter(',')
        ->capture_default_str();
    verb->add_option("-r,--repetitions", flags->rounds, "rounds: in each, every cache runs every test")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    verb->add_option("-t,--threads", flags->n_threads, "threads")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_option("-o,--output", flags->format, "what is printed: md, csv or json")
        ->check(CLI::IsMember({"md", "csv", "json"}))
        ->capture_default_str();
    verb->add_option("--json", flags->json, kJsonHelp);
    verb->footer("Other flags go to llama-bench as they are.");
    verb->callback([flags] { run_bench(*flags); });
}

}  // namespace kvaq
