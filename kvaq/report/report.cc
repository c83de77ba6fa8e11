#include "kvaq/report/report.h"

#include "kvaq/report/sections.h"

namespace kvaq {

Document make_report(ReportInput input) {
    settle_model(input);
    Document document;
    const std::string name = input.model.name.empty() ? "a model" : input.model.name;
    document.title = "The KV cache of " + name;
    if (input.plan) {
        document.subtitle = "Plan " + input.plan->name;
        if (!input.model.architecture.empty()) document.subtitle += ", architecture " + input.model.architecture;
    } else {
        document.subtitle = "Measurements by KV-AdaQuant";
    }
    const auto add = [&](std::optional<Section> section) {
        if (section) document.sections.push_back(std::move(*section));
    };
    add(summary_section(input));
    add(bits_section(input));
    for (size_t i = 0; i < input.evals.size(); ++i) add(eval_section(input, i));
    add(frontier_section(input));
    add(tasks_section(input));
    add(memory_section(input));
    for (size_t i = 0; i < input.speeds.size(); ++i) add(speed_section(input, i));
    add(damage_section(input));
    add(norms_section(input));
    add(sources_section(input));
    document.footer = {
        {.text = "Made by kvaq " + input.version +
                 " (KV-AdaQuant). The page is complete in itself: it loads nothing and runs no script."}};
    return document;
}

}  // namespace kvaq
