#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvaq {

/// One thing that is timed: a prompt of n_prompt tokens (prefill) or n_gen tokens one by one (decode), with `depth` tokens already in the cache.
struct SpeedTest {
    size_t n_prompt = 0;
    size_t n_gen = 0;
    size_t depth = 0;
    bool operator==(const SpeedTest&) const = default;
    /// As llama-bench writes it: "pp512", "tg32 @ d4096".
    [[nodiscard]] std::string name() const;
};

/// What one run of llama-bench -o jsonl with one test said.
struct SpeedSample {
    SpeedTest test;
    double tokens_per_second = 0;
    std::string model;    ///< "llama ?B Q4_1"
    std::string backend;  ///< "CPU"
    std::string cpu;
    double model_bytes = 0;
    double model_parameters = 0;
};

/// The last line of llama-bench's output that is a JSON object. Throws Error kCorrupt (`who` names the run) when there is none, or one without
/// what is needed.
[[nodiscard]] SpeedSample parse_llama_bench(std::string_view output, const std::string& who);

/// Median, least and most of the rounds.
struct Spread {
    double median = 0, least = 0, most = 0;
};
/// At least one value; an even number of them: the mean of the middle two.
[[nodiscard]] Spread spread_of(std::vector<double> values);

/// Caches side by side, each round one after the other, so that a busy machine slows all alike.
struct SpeedRuns {
    std::vector<std::string> caches;
    size_t n_plans = 0;  ///< the first ones are plans, the others llama.cpp's types
    std::vector<SpeedTest> tests;
    std::vector<std::vector<std::vector<double>>> speeds;  ///< tokens/s by [test][cache][round]
    SpeedSample about;                                     ///< of any run: model and machine
    size_t n_threads = 0;
    std::string command;
    std::string flags;  ///< llama-bench's, of every run

    /// speeds[test][cache][i] / speeds[test][reference][i], over the rounds i.
    [[nodiscard]] Spread ratio(size_t test, size_t cache, size_t reference) const;

    /// The shallowest and the deepest decode test of the first number of tokens; none if all decode at one depth.
    [[nodiscard]] std::optional<std::pair<size_t, size_t>> depth_range() const;
    /// What 1024 tokens more in the cache add to a token's time, in milliseconds, by round: 1000 (1 / speed_deep - 1 / speed_shallow) 1024 / (depth_deep - depth_shallow).
    [[nodiscard]] std::vector<double> depth_cost(std::pair<size_t, size_t> range, size_t cache) const;
};

// llama-bench's table with a column for the cache, medians with their spread, and per type of llama.cpp the median of the ratios in each round.
[[nodiscard]] std::string speed_markdown(const SpeedRuns& runs);
[[nodiscard]] std::string speed_csv(const SpeedRuns& runs);
/// Schema kvaq.speed: docs/formats.md. `kvaq report --speed` reads it.
[[nodiscard]] std::string speed_json(const SpeedRuns& runs);

}  // namespace kvaq
