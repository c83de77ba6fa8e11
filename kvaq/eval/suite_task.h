#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "kvaq/eval/cache_session.h"

namespace kvaq {

/// How a metric's mean is shown.
enum class Scale {
    kShare,       ///< 0 .. 1, shown in percent
    kNats,        ///< nats per token
    kPerplexity,  ///< observed as nats per token, shown as exp(mean)
    kTokens,      ///< a number of tokens
};

struct Metric {
    std::string name;  ///< column head and JSON key
    Scale scale = Scale::kShare;
    bool of_difference =
        false;  ///< it says how far a row is from the reference (KL, same answer): the reference has none
    bool larger_is_better = true;
};

/// What one cache did in one part of an item.
struct Observation {
    std::string group{};           ///< a row of the table: a context length, a kind of copy; "" = one group only
    size_t at = 0;                 ///< a column of the curve: a position or a depth
    double weight = 1;             ///< tokens it stands for
    std::vector<double> values{};  ///< one per metric
};

/// Of one cache and item.
struct ItemScore {
    std::vector<Observation> observations;  ///< the same groups, places and weights in every cache
    std::string text;                       ///< what it generated, if anything: for reading, not for scoring
};

/// What a task is asked. Zeros and negatives: the task's own choice.
struct TaskRequest {
    std::string text;             ///< -f
    std::string data;             ///< --task-data of this task
    size_t n_items = 0;           ///< --items
    int shots = -1;               ///< --shots
    std::vector<size_t> lengths;  ///< --lengths: tokens of context
    size_t max_tokens = 0;        ///< --max-tokens
    size_t n_batch = 512;
    uint64_t seed = 1;
};

/// A task of the suite: items that every cache answers, one after the other. The first session is the reference, plain llama.cpp with its f16 cache.
class SuiteTask {
  public:
    virtual ~SuiteTask() = default;
    /// One sentence for the reader of the table: what is asked, how it is scored.
    [[nodiscard]] virtual std::string says() const = 0;
    [[nodiscard]] virtual std::vector<Metric> metrics() const = 0;
    /// Everything but the number of items that decides the scores: a results file goes on only with the same.
    [[nodiscard]] virtual nlohmann::ordered_json settings() const = 0;
    [[nodiscard]] virtual size_t n_items() const = 0;
    /// Tokens a sequence holds when it is asked, on average: where bits per element are counted.
    [[nodiscard]] virtual size_t n_context() const = 0;
    /// Tokens decoded for an item by each cache, a generated one counted as three: what the time left is made of.
    [[nodiscard]] virtual size_t work() const { return n_context(); }
    /// Of the contexts it needs.
    [[nodiscard]] virtual size_t n_ctx() const = 0;
    [[nodiscard]] virtual size_t n_seq() const { return 1; }
    /// What Observation::at counts, and the metric whose curve over it is worth a table; "" = none.
    [[nodiscard]] virtual std::string curve_over() const { return ""; }
    [[nodiscard]] virtual size_t curve_metric() const { return 0; }
    /// Scores of all caches on one item. Depends on the item only, not on what was run before.
    [[nodiscard]] virtual std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) = 0;
};

/// The tasks by name, in the order in which they are listed.
[[nodiscard]] const std::vector<std::string>& suite_task_names();
/// Whether a task reads -f, whether it reads --task-data.
[[nodiscard]] bool task_reads_text(const std::string& name);
[[nodiscard]] bool task_reads_data(const std::string& name);
/// Throws Error: unknown name (lists all), missing or bad data, contexts beyond the model's.
[[nodiscard]] std::unique_ptr<SuiteTask> make_suite_task(const std::string& name, const TaskRequest& request,
                                                         const llama_model* model);

}  // namespace kvaq
