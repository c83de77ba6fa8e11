#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kvaq/base/model_shape.h"
#include "kvaq/eval/paired_stats.h"
#include "kvaq/eval/suite_task.h"

namespace kvaq {

struct AskedTask {
    std::string name;
    TaskRequest request;
};

/// What `kvaq eval --task` is asked.
struct SuiteRequest {
    std::string model;
    std::vector<AskedTask> tasks;
    std::vector<std::string> plans;  ///< presets or *.plan.gguf files
    std::vector<std::string> types;  ///< llama.cpp cache types
    size_t n_batch = 512;            ///< of every task
    int32_t n_threads = 2;
    std::string results;  ///< every finished item is written there, and found there by the next call; "" = nowhere
};

/// Items done of one task, and what is needed to read them.
struct TaskScores {
    std::string name;
    std::string says;
    std::vector<Metric> metrics;
    nlohmann::ordered_json settings;
    size_t n_context = 0;
    std::string curve_over;
    size_t curve_metric = 0;
    size_t n_items = 0;                                ///< asked for
    std::map<size_t, std::vector<ItemScore>> by_item;  ///< [item][cache], finished ones
};

struct SuiteResult {
    ModelShape shape;
    std::vector<CacheRow> rows;
    std::vector<TaskScores> tasks;
};

/// Runs every item of every task that the results file does not hold yet. progress(done, total, what) after every item, in
/// tokens (SuiteTask::work).
/// Throws Error: bad model, plan, type, task or data; a results file that was made with another model, other caches or other settings (which, by name).
[[nodiscard]] SuiteResult run_suite(const SuiteRequest& request,
                                    const std::function<void(size_t, size_t, const std::string&)>& progress);

/// Samples of one metric in one cache: of a group, of a place of the curve, or of all.
[[nodiscard]] std::vector<Sample> samples_of(const TaskScores& task, size_t row, size_t metric,
                                             const std::string* group, const size_t* at = nullptr);
/// Groups in the order in which items name them.
[[nodiscard]] std::vector<std::string> groups_of(const TaskScores& task);
[[nodiscard]] std::vector<size_t> places_of(const TaskScores& task);

/// Markdown: what was asked, one table per task, its curve. Values with standard errors; in brackets the paired difference to f16 with its error and p.
[[nodiscard]] std::string suite_markdown(const SuiteResult& result, const std::string& command);
/// Everything in numbers, kind "kvaq.suite" (docs/formats.md).
[[nodiscard]] std::string suite_json(const SuiteResult& result, const std::string& command);

}  // namespace kvaq
