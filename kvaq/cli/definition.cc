#include "kvaq/cli/definition.h"

#include "kvaq/cli/verbs.h"

namespace kvaq {
namespace {

FlagDefinition definition_of(const CLI::Option& option) {
    FlagDefinition flag;
    flag.what = option.get_description();
    flag.required = option.get_required();
    flag.positional = option.nonpositional() == false;
    for (const std::string& name : option.get_snames()) flag.names.push_back("-" + name);
    for (const std::string& name : option.get_lnames()) flag.names.push_back("--" + name);
    if (flag.positional) flag.names = {option.get_single_name()};
    if (option.get_items_expected_max() == 0) return flag;
    flag.preset = option.get_default_str();
    // "TEXT:{quick,normal,thorough}", "UINT:POSITIVE", "TEXT"
    const std::string type = option.get_type_name();
    const size_t open = type.find('{');
    const size_t close = type.find('}');
    if (open != std::string::npos && close != std::string::npos) {
        std::string choice;
        for (size_t i = open + 1; i <= close; ++i) {
            if (type[i] != ',' && i != close) {
                choice += type[i];
                continue;
            }
            flag.choices.push_back(choice);
            flag.value += (flag.value.empty() ? "" : "|") + choice;
            choice.clear();
        }
    } else {
        flag.value = type.rfind("INT", 0) == 0 || type.rfind("UINT", 0) == 0 ? "N"
                     : type.rfind("FLOAT", 0) == 0                           ? "X"
                                                                             : "TEXT";
    }
    return flag;
}

}  // namespace

std::vector<VerbDefinition> definitions_of(const CLI::App& app) {
    std::vector<VerbDefinition> verbs;
    for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
        VerbDefinition verb{
            .name = sub->get_name(), .what = sub->get_description(), .passes_on = sub->get_allow_extras(), .flags = {}};
        for (const CLI::Option* option : sub->get_options()) verb.flags.push_back(definition_of(*option));
        verbs.push_back(std::move(verb));
    }
    for (const LaunchVerb& launch : launch_verbs()) {
        VerbDefinition verb{.name = launch.verb, .what = launch.what, .passes_on = true, .flags = {}};
        for (const LaunchFlag& flag : launch_flags())
            verb.flags.push_back({.names = {flag.name},
                                  .what = flag.what,
                                  .value = "TEXT",
                                  .choices = {},
                                  .preset = "",
                                  .positional = false,
                                  .required = false});
        verbs.push_back(std::move(verb));
    }
    return verbs;
}

}  // namespace kvaq
