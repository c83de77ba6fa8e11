#include "kvaq/plan/plan_builder.h"

namespace kvaq::importing {

const char* const kQkNormWarning =
    "this model normalises its keys after W_K (QK-norm), so the norm of W_K says nothing about the cache: a plan from "
    "weight norms is a guess here; use kvaq calibrate and "
    "kvaq plan --policy measured";

void refuse(const std::string& what, const std::string& fact, const std::string& wanted, const std::string& found,
            const std::string& hint) {
    throw Error(ErrorCode::kInvalidArgument, what + ": " + fact, wanted, found, hint);
}

void drop_ternary(const ImportContext& context, std::vector<double>& widths, std::vector<std::string>& warnings) {
    if (!context.base.lloyd_max || std::erase(widths, 1.58) == 0) return;
    warnings.push_back("a base of -lm or -tcq has no 1.58 bits: the allocator chooses among the other widths");
}

std::string brief(const Json& json) {
    const std::string text = json.dump();
    return text.size() <= 40 ? text : text.substr(0, 37) + "...";
}

std::vector<double> numbers(const std::string& what, const std::string& key, const Json& json) {
    std::vector<double> out;
    if (!json.is_array()) refuse(what, "'" + key + "'", "a list of numbers", brief(json));
    for (const Json& x : json) {
        if (!x.is_number()) refuse(what, "'" + key + "'", "numbers only", brief(x));
        out.push_back(x.get<double>());
    }
    return out;
}

}  // namespace kvaq::importing
