#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace kvaq {

/// What the command line takes, read off CLI11's own definitions: shell completion and man page are made of it and cannot drift from the parser (what starts llama.cpp's programs is parsed by hand: launch_flags()).
struct FlagDefinition {
    std::vector<std::string> names;  ///< with their hyphens, short ones first; a positional one: its name
    std::string what;
    std::string value;                 ///< "" = a switch; else N, X, TEXT or the choices with | between
    std::vector<std::string> choices;  ///< the only values that are taken; empty = any
    std::string preset;                ///< value without being given
    bool positional = false;
    bool required = false;
};

struct VerbDefinition {
    std::string name;
    std::string what;
    bool passes_on = false;  ///< further arguments are another program's
    std::vector<FlagDefinition> flags;
};

/// Verbs in the order in which --help lists them, then those that start llama.cpp's programs.
[[nodiscard]] std::vector<VerbDefinition> definitions_of(const CLI::App& app);

/// A completion script for "bash" or "zsh". Throws Error kInvalidArgument for another shell.
[[nodiscard]] std::string completion_script(const std::vector<VerbDefinition>& verbs, const std::string& shell);
/// kvaq(1) in troff.
[[nodiscard]] std::string man_page(const std::vector<VerbDefinition>& verbs, const std::string& what,
                                   const std::string& version);

}  // namespace kvaq
