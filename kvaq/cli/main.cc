#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "kvaq/cli/verbs.h"
#include "kvaq/eval/session.h"

namespace {

int fail(const std::string& message) {
    std::fprintf(stderr, "kvaq: error: %s\n", message.c_str());
    return 1;
}

int run(int argc, char** argv) {
    const std::vector<std::string> args(argv + 1, argv + argc);
    if (!args.empty() && kvaq::is_launch_verb(args[0])) kvaq::launch(args);

    if (!args.empty() && args[0].rfind("-", 0) != 0) {
        const std::vector<std::string> verbs = {"calibrate", "analyze", "plan",   "estimate", "eval",
                                                "inspect",   "import",  "export", "report",   "version"};
        if (std::find(verbs.begin(), verbs.end(), args[0]) == verbs.end()) {
            return fail(
                "unknown verb: wanted calibrate, analyze, plan, estimate, eval, inspect, import, export, report, run, "
                "chat, "
                "serve, perplexity, bench, exec or version, found '" +
                args[0] + "'");
        }
    }
    CLI::App app{"kvaq: the KV cache of llama.cpp programs, packed to a plan of bits per layer, side and head", "kvaq"};
    app.set_version_flag("--version", std::string("kvaq " KVAQ_VERSION));
    app.require_subcommand(1);
    app.footer(kvaq::launch_help());
    app.add_subcommand("version", "print the version")->callback([] { std::puts("kvaq " KVAQ_VERSION); });
    kvaq::add_calibrate(app);
    kvaq::add_analyze(app);
    kvaq::add_plan(app);
    kvaq::add_estimate(app);
    kvaq::add_eval(app);
    kvaq::add_inspect(app);
    kvaq::add_import(app);
    kvaq::add_export(app);
    kvaq::add_report(app);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
        return fail(std::string(error.what()) + " (see kvaq" +
                    (args.empty() || args[0].rfind("-", 0) == 0 ? "" : " " + args[0]) + " --help)");
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    kvaq::quiet_llama(false);
    try {
        return run(argc, argv);
    } catch (const std::exception& error) {
        return fail(error.what());
    }
}
