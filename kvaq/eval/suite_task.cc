#include "kvaq/eval/suite_task.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

struct Entry {
    const char* name;
    bool text;
    bool data;
    std::unique_ptr<SuiteTask> (*make)(const TaskRequest&, const llama_model*);
};

constexpr Entry kEntries[] = {
    {"depth", true, false, make_depth_task},    {"hellaswag", false, true, make_hellaswag_task},
    {"gsm8k", false, true, make_gsm8k_task},    {"passkey", false, false, make_passkey_task},
    {"needle", false, false, make_needle_task}, {"copy", false, false, make_copy_task},
    {"json", false, false, make_json_task},     {"diverge", true, false, make_diverge_task},
    {"chat", false, false, make_chat_task},
};

const Entry& entry(const std::string& name) {
    const auto* found =
        std::find_if(std::begin(kEntries), std::end(kEntries), [&](const Entry& one) { return name == one.name; });
    if (found == std::end(kEntries)) {
        throw Error(ErrorCode::kInvalidArgument, "unknown task", fmt::format("{}", fmt::join(suite_task_names(), ", ")),
                    "'" + name + "'");
    }
    return *found;
}

}  // namespace

const std::vector<std::string>& suite_task_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> all;
        for (const Entry& one : kEntries) all.emplace_back(one.name);
        return all;
    }();
    return names;
}

bool task_reads_text(const std::string& name) { return entry(name).text; }
bool task_reads_data(const std::string& name) { return entry(name).data; }

std::unique_ptr<SuiteTask> make_suite_task(const std::string& name, const TaskRequest& request,
                                           const llama_model* model) {
    const Entry& one = entry(name);
    if (one.text && request.text.empty())
        throw Error(ErrorCode::kInvalidArgument, "task " + name + " reads a text", "-f FILE", "none");
    if (one.data && request.data.empty()) {
        throw Error(ErrorCode::kInvalidArgument, "task " + name + " reads a data file",
                    fmt::format("--task-data {}=FILE", name), "none", "docs/formats.md says which file");
    }
    if (!one.data && !request.data.empty()) {
        throw Error(ErrorCode::kInvalidArgument, "task " + name + " reads no data file", "no --task-data for it",
                    "'" + request.data + "'");
    }
    return one.make(request, model);
}

}  // namespace kvaq
