#include "kvaq/llama/metrics.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace kvaq {
namespace {

CacheUse use_of(size_t n) {
    return {.packed = n,
            .open = 2 * n,
            .sinks = 3 * n,
            .tables = 4 * n,
            .allocated = 5 * n,
            .shared = 6 * n,
            .n_tokens = 7 * n,
            .n_sequences = 8 * n,
            .n_elements = 9 * n,
            .n_tiles = 10 * n,
            .n_tiles_sealed = 11 * n,
            .n_tiles_evicted = n};
}

TEST(Metrics, NamesFromFilesCannotAddLinesOrLabels) {
    const auto metrics = std::make_shared<ContextMetrics>(ContextMetrics::Facts{
        .model = "a\"b\\c\nd\x01\x7F", .plan = "\xC3\xA9t\xC3\xA9 \xFF\xC3", .n_ctx = 7, .n_seq_max = 1});
    const std::string text = prometheus_text({{.number = 3, .metrics = metrics}});
    EXPECT_NE(text.find("kvaq_cache_info{context=\"3\",model=\"a\\\"b\\\\c\\nd\",plan=\"\xC3\xA9t\xC3\xA9 \"} 1\n"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("\nkvaq_context_tokens{context=\"3\"} 7\n"), std::string::npos) << text;
}

TEST(Metrics, ReadersSeeNumbersOfOneMoment) {
    // The writer goes on until the reader has seen enough: either may wait for a processor of a busy machine.
    ContextMetrics metrics({});
    std::atomic<size_t> n_seen{0};
    std::atomic<bool> stop{false};
    size_t n_written = 0;
    std::thread writer([&] {
        while (!stop && (n_written < 200000 || n_seen < 20)) metrics.set_use(use_of(++n_written));
    });
    size_t last = 0;
    bool whole = true;
    while (whole && n_seen < 20) {
        const CacheUse use = metrics.use();
        const CacheUse expected = use_of(use.packed);
        whole = use.n_tiles_evicted == expected.n_tiles_evicted && use.n_tiles_sealed == expected.n_tiles_sealed &&
                use.n_elements == expected.n_elements && use.open == expected.open;
        n_seen += use.packed != last ? 1 : 0;
        last = use.packed;
    }
    stop = !whole;
    writer.join();
    EXPECT_TRUE(whole) << "numbers of two moments in one reading";
    EXPECT_EQ(metrics.most_tokens(), 7 * n_written);
}

}  // namespace
}  // namespace kvaq
