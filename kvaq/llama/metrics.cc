#include "kvaq/llama/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <thread>

namespace kvaq {
namespace {

/// Backslash, quote and line feed as the format wants them; other control characters and bytes that are no UTF-8 are left out.
std::string label_value(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        const auto c = static_cast<unsigned char>(text[i]);
        const size_t n = c < 0x80                ? 1
                         : c >= 0xC2 && c < 0xE0 ? 2
                         : c >= 0xE0 && c < 0xF0 ? 3
                         : c >= 0xF0 && c < 0xF5 ? 4
                                                 : 0;
        size_t more = 1;
        while (more < n && i + more < text.size() && (static_cast<unsigned char>(text[i + more]) & 0xC0U) == 0x80)
            ++more;
        if (n == 0 || more != n) {
            ++i;
            continue;
        }
        if (c == '\n') {
            out += "\\n";
        } else if (c == '\\' || c == '"') {
            out += {'\\', static_cast<char>(c)};
        } else if (c >= 0x20 && c != 0x7F) {
            out += text.substr(i, n);
        }
        i += n;
    }
    return out;
}

struct Sample {
    std::string labels;  ///< besides context
    double value = 0;
};

struct Family {
    const char* name;
    const char* type;
    const char* help;
    std::function<std::vector<Sample>(const ContextMetrics&, const CacheUse&)> samples;
};

double number(uint64_t n) { return static_cast<double>(n); }

const std::vector<Family>& families() {
    using M = ContextMetrics;
    using U = CacheUse;
    const auto one = [](double value) { return std::vector<Sample>{{"", value}}; };
    static const std::vector<Family> all = {
        {"kvaq_cache_info", "gauge", "Which model and plan a context serves; always 1.",
         [](const M& m, const U&) {
             return std::vector<Sample>{
                 {fmt::format("model=\"{}\",plan=\"{}\"", label_value(m.facts().model), label_value(m.facts().plan)),
                  1}};
         }},
        {"kvaq_cached_tokens", "gauge", "Tokens cached over all sequences, shared ones once.",
         [=](const M&, const U& u) { return one(number(u.n_tokens)); }},
        {"kvaq_context_tokens", "gauge", "Tokens that the program asked room for.",
         [=](const M& m, const U&) { return one(number(m.facts().n_ctx)); }},
        {"kvaq_sequences", "gauge", "Sequences that hold tokens.",
         [=](const M&, const U& u) { return one(number(u.n_sequences)); }},
        {"kvaq_sequences_max", "gauge", "Most sequences at a time.",
         [=](const M& m, const U&) { return one(number(m.facts().n_seq_max)); }},
        {"kvaq_cache_bytes", "gauge",
         "Bytes held, by kind: sealed tiles, f16 pages (window, open ends, rows kept for --kv-rewind), f16 sink "
         "tokens, tables of codecs.",
         [](const M&, const U& u) {
             return std::vector<Sample>{{"kind=\"sealed\"", number(u.packed)},
                                        {"kind=\"f16\"", number(u.open)},
                                        {"kind=\"sinks\"", number(u.sinks)},
                                        {"kind=\"tables\"", number(u.tables)}};
         }},
        {"kvaq_cache_shared_bytes", "gauge", "Bytes that more would be held if no sequence shared tokens with another.",
         [=](const M&, const U& u) { return one(number(u.shared)); }},
        {"kvaq_cache_reserved_bytes", "gauge", "Bytes reserved for the cache, touched or not.",
         [=](const M&, const U& u) { return one(number(u.allocated)); }},
        {"kvaq_cache_planned_bytes", "gauge",
         "Bytes held when one sequence fills the context (or the room that --kv-budget leaves), with rows kept for "
         "--kv-rewind.",
         [=](const M& m, const U&) { return one(number(m.facts().planned)); }},
        {"kvaq_cache_budget_bytes", "gauge", "Hard limit of the reserved bytes (--kv-budget); 0 = none.",
         [=](const M& m, const U&) { return one(number(m.facts().budget)); }},
        {"kvaq_cache_effective_bits", "gauge",
         "Bits per K or V number of the cached tokens, all bytes counted; 0 while none is cached.",
         [=](const M&, const U& u) { return one(u.effective_bits()); }},
        {"kvaq_sealed_tiles", "gauge",
         "Sealed tiles held; a tile is one side of one KV head of one layer over a page of tokens.",
         [=](const M&, const U& u) { return one(number(u.n_tiles)); }},
        {"kvaq_tiles_sealed_total", "counter", "Tiles sealed, or restored from a snapshot.",
         [=](const M&, const U& u) { return one(number(u.n_tiles_sealed)); }},
        {"kvaq_tiles_freed_total", "counter",
         "Sealed tiles freed: a sliding window had passed them, or their tokens were removed.",
         [](const M&, const U& u) {
             return std::vector<Sample>{
                 {"reason=\"window\"", number(u.n_tiles_evicted)},
                 {"reason=\"removed\"", number(u.n_tiles_sealed - u.n_tiles_evicted - u.n_tiles)}};
         }},
        {"kvaq_attention_seconds_total", "counter",
         "Seconds in the cache's attention, of the first of the program's threads.",
         [=](const M& m, const U&) { return one(number(m.attention_ns.get()) * 1e-9); }},
        {"kvaq_batches_total", "counter", "Batches by result: decoded, no_space (as llama.cpp says it), failed.",
         [](const M& m, const U&) {
             return std::vector<Sample>{{"result=\"decoded\"", number(m.batches.get())},
                                        {"result=\"no_space\"", number(m.no_space.get())},
                                        {"result=\"failed\"", number(m.failed.get())}};
         }},
        {"kvaq_tokens_total", "counter", "Tokens decoded.",
         [=](const M& m, const U&) { return one(number(m.tokens.get())); }},
        {"kvaq_snapshots_total", "counter", "Sequence snapshots (slots, checkpoints) saved, restored and refused.",
         [](const M& m, const U&) {
             return std::vector<Sample>{{"result=\"saved\"", number(m.saved.get())},
                                        {"result=\"restored\"", number(m.restored.get())},
                                        {"result=\"refused\"", number(m.refused.get())}};
         }},
    };
    return all;
}

}  // namespace

void ContextMetrics::set_use(const CacheUse& use) noexcept {
    const std::array<uint64_t, kFields> values = {use.packed,     use.open,    use.sinks,          use.tables,
                                                  use.allocated,  use.shared,  use.n_tokens,       use.n_sequences,
                                                  use.n_elements, use.n_tiles, use.n_tiles_sealed, use.n_tiles_evicted};
    version_.fetch_add(1, std::memory_order_acq_rel);
    for (size_t i = 0; i < kFields; ++i) fields_[i].store(values[i], std::memory_order_release);
    version_.fetch_add(1, std::memory_order_release);
    most_tokens_.store(std::max(most_tokens(), use.n_tokens), std::memory_order_relaxed);
}

CacheUse ContextMetrics::use() const noexcept {
    std::array<uint64_t, kFields> v;
    for (;;) {
        const uint32_t before = version_.load(std::memory_order_acquire);
        for (size_t i = 0; i < kFields; ++i) v[i] = fields_[i].load(std::memory_order_acquire);
        if (before % 2 == 0 && version_.load(std::memory_order_relaxed) == before) break;
        std::this_thread::yield();
    }
    return {.packed = v[0],
            .open = v[1],
            .sinks = v[2],
            .tables = v[3],
            .allocated = v[4],
            .shared = v[5],
            .n_tokens = v[6],
            .n_sequences = v[7],
            .n_elements = v[8],
            .n_tiles = v[9],
            .n_tiles_sealed = v[10],
            .n_tiles_evicted = v[11]};
}

std::string prometheus_text(const std::vector<NumberedMetrics>& contexts) {
    std::vector<CacheUse> uses;
    for (const NumberedMetrics& context : contexts) uses.push_back(context.metrics->use());
    std::string out;
    for (const Family& family : families()) {
        out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", family.name, family.help, family.name, family.type);
        for (size_t i = 0; i < contexts.size(); ++i) {
            for (const Sample& sample : family.samples(*contexts[i].metrics, uses[i])) {
                out += fmt::format("{}{{context=\"{}\"{}{}}} {}\n", family.name, contexts[i].number,
                                   sample.labels.empty() ? "" : ",", sample.labels, sample.value);
            }
        }
    }
    return out;
}

}  // namespace kvaq
