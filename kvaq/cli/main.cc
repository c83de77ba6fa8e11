#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "kvaq/cli/definition.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/terminal.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/session.h"

namespace {

int fail(const std::string& message) {
    std::fprintf(stderr, "kvaq: error: %s\n", message.c_str());
    return 1;
}

/// Letters to change, put in or leave out (Levenshtein).
size_t edits(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < a.size(); ++i) {
        size_t corner = std::exchange(row[0], i + 1);
        for (size_t j = 0; j < b.size(); ++j) {
            const size_t changed = corner + (a[i] == b[j] ? 0 : 1);
            corner = row[j + 1];
            row[j + 1] = std::min({changed, row[j] + 1, corner + 1});
        }
    }
    return row.back();
}

int unknown_verb(const std::string& verb, const std::vector<std::string>& names) {
    const auto nearest = std::min_element(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
        return edits(verb, a) < edits(verb, b);
    });
    return fail(fmt::format("unknown verb: wanted {}, found '{}'{}", fmt::join(names, ", "), verb,
                            edits(verb, *nearest) <= 2 ? ". Did you mean " + *nearest + "?" : ". See kvaq --help"));
}

/// CLI11's own message, with the numbers of its ranges as people write them.
std::string plain(const std::string& message) {
    static const std::regex range(R"(^(\S+): Value (.*) not in range (\S+) to (\S+)$)");
    std::smatch found;
    if (!std::regex_match(message, found, range)) return message;
    const double low = std::strtod(found[3].str().c_str(), nullptr);
    const double high = std::strtod(found[4].str().c_str(), nullptr);
    const bool tiny = low > 0 && low < 1e-300;  // CLI11's way to say "above 0"
    return fmt::format("{}: wanted a number {}{}, found '{}'", found[1].str(),
                       tiny ? "above 0" : fmt::format("from {:.15g}", low),
                       high > 1e300 ? "" : fmt::format(" to {:.15g}", high), found[2].str());
}

/// What the command line says of itself for shells and for man.
void add_self_description(CLI::App& app) {
    auto shell = std::make_shared<std::string>();
    CLI::App* completion = app.add_subcommand("completion", "a completion script: source <(kvaq completion bash)");
    completion->add_option("shell", *shell, "bash or zsh")->check(CLI::IsMember({"bash", "zsh"}))->required();
    completion->callback(
        [&app, shell] { std::fputs(kvaq::completion_script(kvaq::definitions_of(app), *shell).c_str(), stdout); });
    app.add_subcommand("man", "the man page: kvaq man | man -l -")->callback([&app] {
        std::fputs(kvaq::man_page(kvaq::definitions_of(app), app.get_description(), KVAQ_VERSION).c_str(), stdout);
    });
}

int run(int argc, char** argv) {
    std::vector<std::string> args(argv + 1, argv + argc);
    if (!args.empty() && args[0] == "help") {  // kvaq help [VERB]
        args.erase(args.begin());
        args.emplace_back("--help");
        std::vector<char*> words = {argv[0]};
        for (std::string& arg : args) words.push_back(arg.data());
        words.push_back(nullptr);
        return run(static_cast<int>(args.size()) + 1, words.data());
    }
    if (!args.empty() && kvaq::is_launch_verb(args[0])) kvaq::launch(args);
    kvaq::set_command_line(args);

    CLI::App app{"the KV cache of llama.cpp programs, packed to a plan of bits per layer, side and head", "kvaq"};
    app.set_version_flag("--version", std::string("kvaq " KVAQ_VERSION));
    app.require_subcommand(1);
    app.footer(kvaq::launch_help());
    kvaq::add_version(app);
    kvaq::add_calibrate(app);
    kvaq::add_analyze(app);
    kvaq::add_plan(app);
    kvaq::add_estimate(app);
    kvaq::add_eval(app);
    kvaq::add_bench(app);
    kvaq::add_inspect(app);
    kvaq::add_import(app);
    kvaq::add_export(app);
    kvaq::add_report(app);
    add_self_description(app);
    if (args.empty())
        return fail("no verb given: wanted one, e.g. kvaq estimate -m MODEL.gguf, found nothing. See kvaq --help");
    if (args[0].rfind("-", 0) == 0 && args[0] != "--help" && args[0] != "-h" && args[0] != "--version")
        return fail("unknown flag: wanted a verb, --help or --version, found '" + args[0] +
                    "'. Flags go after the verb");
    if (args[0].rfind("-", 0) != 0) {
        std::vector<std::string> names;
        bool known = false;
        for (const kvaq::VerbDefinition& verb : kvaq::definitions_of(app)) {
            names.push_back(verb.name);
            known = known || verb.name == args[0];
        }
        if (!known) return unknown_verb(args[0], names);
    }
    // -ub is llama.cpp's name of a flag that CLI11 cannot have: long names want two dashes.
    std::replace(args.begin(), args.end(), std::string("-ub"), std::string("--ub"));
    try {
        app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
        return fail(plain(error.what()) + " (see kvaq " + args[0] + " --help)");
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    kvaq::quiet_llama(false);
    const kvaq::PrettyStdout pretty;
    try {
        const int code = run(argc, argv);
        if (code == 0 && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0))
            return fail(fmt::format("cannot write to stdout: found {}", std::strerror(errno)));
        return code;
    } catch (const std::exception& error) {
        return fail(error.what());
    }
}
