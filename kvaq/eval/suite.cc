#include "kvaq/eval/suite.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"
#include "kvaq/eval/suite_file.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

using Json = nlohmann::ordered_json;

Json head_of(const SuiteResult& result) {
    Json caches = Json::array();
    for (const CacheRow& row : result.rows) {
        caches.push_back(
            {{"name", row.name}, {"plan_sha256", row.plan ? sha256_hex(canonical_text(*row.plan)) : std::string()}});
    }
    return {{"model", result.shape.name}, {"fingerprint", result.shape.fingerprint}, {"caches", caches}};
}

}  // namespace

SuiteResult run_suite(const SuiteRequest& request,
                      const std::function<void(size_t, size_t, const std::string&)>& progress) {
    std::set<std::string> names;
    for (const AskedTask& task : request.tasks) {
        if (!names.insert(task.name).second)
            throw Error(ErrorCode::kInvalidArgument, "a task is given twice", "every task once", "'" + task.name + "'");
    }
    const ModelPtr model = load_model(request.model);
    SuiteResult result;
    result.shape = model_shape_of(model.get());
    result.rows = cache_rows(result.shape, request.types, request.plans);
    std::vector<std::unique_ptr<SuiteTask>> tasks;
    for (const AskedTask& asked : request.tasks) {  // all data is read before long work
        TaskRequest task = asked.request;
        task.n_batch = request.n_batch;
        tasks.push_back(make_suite_task(asked.name, task, model.get()));
    }
    SuiteFile file(request.results, head_of(result));
    size_t total = 0;
    for (size_t i = 0; i < tasks.size(); ++i) {
        const SuiteTask& task = *tasks[i];
        TaskScores scores{.name = request.tasks[i].name,
                          .says = task.says(),
                          .metrics = task.metrics(),
                          .settings = task.settings(),
                          .n_context = task.n_context(),
                          .curve_over = task.curve_over(),
                          .curve_metric = task.curve_metric(),
                          .n_items = task.n_items(),
                          .by_item = {}};
        for (auto& [item, done] : file.open_task(scores.name, scores.settings)) {
            if (item < scores.n_items) scores.by_item[item] = std::move(done);
        }
        total += (scores.n_items - scores.by_item.size()) * task.work();
        result.tasks.push_back(std::move(scores));
    }
    size_t done = 0;
    for (size_t i = 0; i < tasks.size(); ++i) {
        TaskScores& scores = result.tasks[i];
        if (scores.by_item.size() == scores.n_items) continue;
        std::vector<CacheSession> sessions;
        for (const CacheRow& row : result.rows) {
            sessions.emplace_back(model.get(), row, tasks[i]->n_ctx(), tasks[i]->n_seq(), request.n_batch,
                                  request.n_threads);
        }
        for (size_t item = 0; item < scores.n_items; ++item) {
            if (scores.by_item.count(item) != 0) continue;
            std::vector<ItemScore> found = tasks[i]->run(item, sessions);
            file.append(scores.name, item, found);
            scores.by_item[item] = std::move(found);
            done += tasks[i]->work();
            progress(done, total, fmt::format("{} {}/{}", scores.name, scores.by_item.size(), scores.n_items));
        }
    }
    return result;
}

std::vector<Sample> samples_of(const TaskScores& task, size_t row, size_t metric, const std::string* group,
                               const size_t* at) {
    std::vector<Sample> samples;
    for (const auto& [item, scores] : task.by_item) {
        for (const Observation& o : scores.at(row).observations) {
            if ((group != nullptr && o.group != *group) || (at != nullptr && o.at != *at)) continue;
            samples.push_back({.item = item, .weight = o.weight, .value = o.values.at(metric)});
        }
    }
    return samples;
}

std::vector<std::string> groups_of(const TaskScores& task) {
    std::vector<std::string> groups;
    for (const auto& [item, scores] : task.by_item) {
        for (const Observation& o : scores.at(0).observations) {
            if (std::find(groups.begin(), groups.end(), o.group) == groups.end()) groups.push_back(o.group);
        }
    }
    return groups;
}

std::vector<size_t> places_of(const TaskScores& task) {
    std::set<size_t> places;
    for (const auto& [item, scores] : task.by_item) {
        for (const Observation& o : scores.at(0).observations) places.insert(o.at);
    }
    return {places.begin(), places.end()};
}

}  // namespace kvaq
