#include <fmt/format.h>

#include "kvaq/cli/definition.h"

namespace kvaq {
namespace {

/// Text that troff shows as it is.
std::string roff(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '\\') {
            out += "\\e";
        } else if (c == '-') {
            out += "\\-";
        } else if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) {
            out += std::string("\\&") + c;
        } else {
            out += c;
        }
    }
    return out;
}

std::string flag_line(const FlagDefinition& flag) {
    std::string out;
    for (const std::string& name : flag.names) out += (out.empty() ? "" : ", ") + fmt::format("\\fB{}\\fR", roff(name));
    return flag.value.empty() || flag.positional ? out : out + fmt::format(" \\fI{}\\fR", roff(flag.value));
}

}  // namespace

std::string man_page(const std::vector<VerbDefinition>& verbs, const std::string& what, const std::string& version) {
    std::string out = fmt::format(
        ".TH KVAQ 1 \"\" \"kvaq {}\" \"User Commands\"\n.SH NAME\nkvaq \\- {}\n.SH SYNOPSIS\n.B kvaq\n\\fIVERB\\fR "
        "[\\fIOPTIONS\\fR]\n.SH VERBS\n",
        roff(version), roff(what));
    for (const VerbDefinition& verb : verbs) out += fmt::format(".TP\n.B {}\n{}\n", roff(verb.name), roff(verb.what));
    for (const VerbDefinition& verb : verbs) {
        if (verb.flags.empty()) continue;
        out += fmt::format(".SH KVAQ {}\n{}\n", verb.name, roff(verb.what));
        for (const FlagDefinition& flag : verb.flags) {
            out +=
                fmt::format(".TP\n{}\n{}{}{}\n", flag_line(flag), roff(flag.what), flag.required ? " (required)" : "",
                            flag.preset.empty() ? "" : fmt::format(" (default: {})", roff(flag.preset)));
        }
        if (verb.passes_on) out += ".PP\nFurther arguments are those of the llama.cpp program.\n";
    }
    out +=
        ".SH ENVIRONMENT\n"
        ".TP\n.B KVAQ_PLAN\nPreset or *.plan.gguf, where no \\fB\\-\\-plan\\fR is given; read by libkvaq\\-llama.so.\n"
        ".TP\n.B KVAQ_KV_BUDGET\nMost bytes the cache may take, as with \\fB\\-\\-kv\\-budget\\fR.\n"
        ".TP\n.B KVAQ_KV_DEVICE\nauto, cpu or gpu, as with \\fB\\-\\-kv\\-device\\fR.\n"
        ".TP\n.B KVAQ_KV_REWIND\nTokens by which a sequence can be cut back without a trace, as with "
        "\\fB\\-\\-kv\\-rewind\\fR.\n"
        ".TP\n.B KVAQ_METRICS\nAddress that Prometheus metrics of the cache are served at, as with "
        "\\fB\\-\\-kv\\-metrics\\fR.\n"
        ".TP\n.B KVAQ_ATTENTION\n\\fBwide\\fR: queries in 15 bits, not in bytes, for packed keys of few bits; "
        "\\fBexact\\fR: "
        "packed tiles are decoded to f32. Both are slower.\n"
        ".TP\n.B KVAQ_LLAMA_BIN\nFolder of llama.cpp's programs.\n"
        ".TP\n.B NO_COLOR\nTables on a terminal stay plain Markdown.\n"
        ".SH OUTPUT\nData goes to stdout, progress, warnings and errors to stderr. \\fB\\-\\-json\\fR \\fIFILE\\fR "
        "writes the numbers as "
        "JSON, \\fB\\-\\-json \\-\\fR prints them instead of the table.\n"
        ".SH EXIT STATUS\n"
        ".TP\n.B 0\nDone.\n"
        ".TP\n.B 1\nAn error, with one line on stderr that says what was wanted, what was found and what to do. "
        "Nothing "
        "half\\-written is left.\n"
        ".TP\n.B other\nrun, chat, serve, perplexity and exec end with the exit status of the program they "
        "start; one that "
        "cannot be started is 1. A verb ended by a signal gives 128 and the signal's number in the shell.\n";
    return out;
}

}  // namespace kvaq
