#pragma once

// The verbs of the kvaq program, one file each. Every add_* gives the app a subcommand whose callback does the work; errors are
// thrown (main.cc prints them and exits with 1).

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

namespace kvaq {

void add_analyze(CLI::App& app);
void add_bench(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_estimate(CLI::App& app);
void add_eval(CLI::App& app);
void add_export(CLI::App& app);
void add_import(CLI::App& app);
void add_inspect(CLI::App& app);
void add_plan(CLI::App& app);
void add_report(CLI::App& app);
void add_version(CLI::App& app);

/// run, chat, serve, perplexity, exec: replaces this process by a llama.cpp program under the drop-in. Empty if argv[1]
/// is none of them; otherwise only returns by throwing Error.
[[nodiscard]] bool is_launch_verb(const std::string& verb);
[[noreturn]] void launch(const std::vector<std::string>& args);
struct LaunchVerb {
    std::string verb;
    std::string what;
};
[[nodiscard]] std::vector<LaunchVerb> launch_verbs();
/// Flags that launch() takes itself, each with a value; all others are the program's.
struct LaunchFlag {
    std::string name;
    std::string what;
};
[[nodiscard]] const std::vector<LaunchFlag>& launch_flags();
/// Lines for `kvaq --help`.
[[nodiscard]] std::string launch_help();

}  // namespace kvaq
