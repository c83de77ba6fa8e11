#include <fmt/format.h>

#include "kvaq/base/error.h"
#include "kvaq/cli/definition.h"

namespace kvaq {
namespace {

std::string joined(const std::vector<std::string>& words, const char* between) {
    return fmt::format("{}", fmt::join(words, between));
}

std::string bash_script(const std::vector<VerbDefinition>& verbs) {
    std::vector<std::string> names;
    std::string cases;
    for (const VerbDefinition& verb : verbs) {
        names.push_back(verb.name);
        std::vector<std::string> flags;
        std::string values;
        std::string words;  // of a positional argument
        std::vector<std::string> others;
        for (const FlagDefinition& flag : verb.flags) {
            if (flag.positional) {
                words = joined(flag.choices, " ");
                continue;
            }
            flags.insert(flags.end(), flag.names.begin(), flag.names.end());
            if (!flag.choices.empty()) {
                values += fmt::format("                {}) COMPREPLY=($(compgen -W '{}' -- \"$cur\")); return ;;\n",
                                      joined(flag.names, "|"), joined(flag.choices, " "));
            } else if (!flag.value.empty()) {
                others.insert(others.end(), flag.names.begin(), flag.names.end());
            }
        }
        // An empty reply: bash itself completes file names.
        if (!others.empty()) values += fmt::format("                {}) return ;;\n", joined(others, "|"));
        cases += fmt::format("        {})\n", verb.name);
        if (!values.empty()) cases += fmt::format("            case \"$prev\" in\n{}            esac\n", values);
        cases += fmt::format("            flags='{}' words='{}' ;;\n", joined(flags, " "), words);
    }
    return fmt::format(
        "# bash completion of kvaq; made by: kvaq completion bash\n"
        "_kvaq() {{\n"
        "    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} flags='' words=''\n"
        "    COMPREPLY=()\n"
        "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "        COMPREPLY=($(compgen -W '{} --help --version' -- \"$cur\"))\n"
        "        return\n"
        "    fi\n"
        "    case \"${{COMP_WORDS[1]}}\" in\n{}"
        "    esac\n"
        "    case \"$cur\" in\n"
        "        -*) COMPREPLY=($(compgen -W \"$flags\" -- \"$cur\")) ;;\n"
        "        *) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n"
        "    esac\n"
        "}}\n"
        "complete -o default -o bashdefault -F _kvaq kvaq\n",
        joined(names, " "), cases);
}

/// Text inside [...] of an _arguments specification in single quotes.
std::string zsh_text(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '\'') {
            out += "'\\''";
        } else if (c == '[' || c == ']' || c == ':' || c == '\\') {
            out += std::string("\\") + c;
        } else {
            out += c;
        }
    }
    return out;
}

std::string zsh_script(const std::vector<VerbDefinition>& verbs) {
    std::string list;
    std::string cases;
    for (const VerbDefinition& verb : verbs) {
        list += fmt::format("        '{}:{}'\n", verb.name, zsh_text(verb.what));
        std::string specs;
        for (const FlagDefinition& flag : verb.flags) {
            const std::string value = flag.value.empty()     ? ""
                                      : flag.choices.empty() ? ":value:_files"
                                                             : fmt::format(":value:({})", joined(flag.choices, " "));
            if (flag.positional) {
                specs += fmt::format(" \\\n                '{}:{}:_files'",
                                     flag.required ? "1" : "1:", zsh_text(flag.names[0]));
                continue;
            }
            for (const std::string& name : flag.names)
                specs += fmt::format(" \\\n                '({}){}[{}]{}'", joined(flag.names, " "), name,
                                     zsh_text(flag.what), value);
        }
        if (verb.passes_on) specs += " \\\n                '*:argument:_files'";
        cases += fmt::format("            {})\n                _arguments{} ;;\n", verb.name, specs);
    }
    return fmt::format(
        "#compdef kvaq\n"
        "# zsh completion of kvaq; made by: kvaq completion zsh\n"
        "_kvaq() {{\n"
        "    local context state state_descr line\n"
        "    typeset -A opt_args\n"
        "    local -a verbs\n"
        "    verbs=(\n{}    )\n"
        "    _arguments -C '1:verb:->verb' '*::argument:->rest'\n"
        "    case $state in\n"
        "        verb) _describe verb verbs ;;\n"
        "        rest)\n"
        "            case $words[1] in\n{}"
        "            esac ;;\n"
        "    esac\n"
        "}}\n"
        "if [ \"$funcstack[1]\" = _kvaq ]; then _kvaq \"$@\"; else compdef _kvaq kvaq; fi\n",
        list, cases);
}

}  // namespace

std::string completion_script(const std::vector<VerbDefinition>& verbs, const std::string& shell) {
    if (shell == "bash") return bash_script(verbs);
    if (shell == "zsh") return zsh_script(verbs);
    throw Error(ErrorCode::kInvalidArgument, "shell", "bash or zsh", "'" + shell + "'");
}

}  // namespace kvaq
