#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvaq/cache/kv_cache.h"

namespace kvaq {

/// What one context tells of itself. The thread that uses the context writes, any thread reads: numbers are atomic, those of one moment
/// stay together (a sequence lock), and the writer never waits.
class ContextMetrics {
  public:
    /// What does not change.
    struct Facts {
        std::string model;
        std::string plan;
        size_t n_ctx = 0;  ///< tokens that the program asked for
        size_t n_seq_max = 0;
        size_t budget = 0;   ///< bytes of --kv-budget, 0 = none
        size_t planned = 0;  ///< bytes of one sequence that fills the context
    };
    explicit ContextMetrics(Facts facts) : facts_(std::move(facts)) {}
    [[nodiscard]] const Facts& facts() const noexcept { return facts_; }

    /// Publishes what the cache holds now.
    void set_use(const CacheUse& use) noexcept;
    [[nodiscard]] CacheUse use() const noexcept;
    [[nodiscard]] size_t most_tokens() const noexcept { return most_tokens_.load(std::memory_order_relaxed); }

    // Counters: one writer each.
    struct Counter {
        std::atomic<uint64_t> value{0};
        void add(uint64_t n) noexcept { value.store(get() + n, std::memory_order_relaxed); }
        [[nodiscard]] uint64_t get() const noexcept { return value.load(std::memory_order_relaxed); }
    };
    Counter attention_ns;              ///< wall time in our attention, of the first of llama.cpp's threads
    Counter batches;                   ///< decoded
    Counter tokens;                    ///< decoded
    Counter no_space;                  ///< batches answered with llama.cpp's "no space"
    Counter failed;                    ///< batches that failed otherwise
    Counter saved, restored, refused;  ///< sequence snapshots

  private:
    static constexpr size_t kFields = 12;
    Facts facts_;
    std::atomic<uint32_t> version_{0};  ///< odd while set_use() writes
    std::array<std::atomic<uint64_t>, kFields> fields_ = {};
    std::atomic<size_t> most_tokens_{0};
};

/// A context in the text below.
struct NumberedMetrics {
    size_t number = 0;
    std::shared_ptr<const ContextMetrics> metrics;
};

/// Prometheus' text exposition format 0.0.4: every family once, with HELP and TYPE, one sample per context.
[[nodiscard]] std::string prometheus_text(const std::vector<NumberedMetrics>& contexts);

}  // namespace kvaq
