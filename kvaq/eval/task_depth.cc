#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "kvaq/base/error.h"
#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr size_t kBlock = 128;  ///< positions of one observation
constexpr size_t kTop = 10;

/// What the reference said of one batch.
struct Reference {
    std::vector<float> log_p;
    std::vector<size_t> top;
    std::vector<std::vector<size_t>> top_10;
};

class DepthTask : public SuiteTask {
  public:
    DepthTask(const TaskRequest& request, const llama_model* model)
        : model_(model), n_batch_(request.n_batch), sha256_(file_sha256(request.text)) {
        const auto trained = static_cast<size_t>(std::max(0, llama_model_n_ctx_train(model)));
        const std::vector<size_t> lengths =
            context_lengths(request, {std::min<size_t>(8192, trained)}, 8 * kBlock, model, "depth");
        n_ctx_ = *std::max_element(lengths.begin(), lengths.end()) / (8 * kBlock) * (8 * kBlock);
        tokens_ = tokenize_file(model, request.text);
        const size_t most = tokens_.size() / n_ctx_;
        n_items_ = request.n_items == 0 ? std::min<size_t>(4, most) : request.n_items;
        if (most == 0 || n_items_ > most) {
            throw Error(ErrorCode::kInvalidArgument, "the text is too short for depth",
                        fmt::format("{} chunks of {} tokens", std::max<size_t>(1, n_items_), n_ctx_),
                        fmt::format("{} tokens in '{}'", tokens_.size(), request.text),
                        "Use fewer --items, smaller --lengths or a longer text");
        }
    }

    std::string says() const override {
        return fmt::format(
            "Chunks of {} tokens of the text; `at` N: the second half of the first N tokens, as llama-perplexity "
            "scores a context of N. KL(f16 || cache) over the whole "
            "vocabulary; top-10: overlap of the ten most likely tokens.",
            n_ctx_);
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "PPL", .scale = Scale::kPerplexity, .larger_is_better = false},
                {.name = "KL", .scale = Scale::kNats, .of_difference = true, .larger_is_better = false},
                {.name = "same top-1", .of_difference = true},
                {.name = "top-10 overlap", .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"text_sha256", sha256_}, {"n_ctx", n_ctx_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return n_items_; }
    size_t n_context() const override { return n_ctx_; }
    size_t n_ctx() const override { return n_ctx_; }
    std::string curve_over() const override { return fmt::format("position (from there {} on)", n_ctx_ / 8); }
    size_t curve_metric() const override { return 1; }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        const std::vector<llama_token> chunk = chunk_of(model_, tokens_, item, n_ctx_);
        const size_t first = n_ctx_ / 8;
        std::vector<ItemScore> scores(sessions.size());
        for (CacheSession& session : sessions) session.clear();
        for (ItemScore& score : scores) {
            for (size_t at = first; at < n_ctx_; at += kBlock) {
                size_t group = n_ctx_;
                while (at < group / 2) group /= 2;
                const size_t n = std::min(at + kBlock, n_ctx_ - 1) - at;
                score.observations.push_back({.group = std::to_string(group),
                                              .at = at / (n_ctx_ / 8) * (n_ctx_ / 8),
                                              .weight = static_cast<double>(n),
                                              .values = {0, 0, 0, 0}});
            }
        }
        // All caches read one batch before any reads the next, so that the reference's log-probabilities are held for one batch only.
        for (size_t begin = 0; begin < n_ctx_; begin += n_batch_) {
            const size_t end = std::min(begin + n_batch_, n_ctx_);
            Reference reference;
            for (size_t r = 0; r < sessions.size(); ++r) {
                size_t scored = 0;
                sessions[r].decode(0, std::span(chunk).subspan(begin, end - begin), std::max(first, begin) - begin,
                                   [&](size_t index, std::span<const float> logits) {
                                       const size_t position = begin + index;
                                       if (position + 1 >= n_ctx_) return;
                                       Observation& o = scores[r].observations[(position - first) / kBlock];
                                       add(o, logits, chunk[position + 1], r == 0, scored++, reference);
                                   });
            }
        }
        for (ItemScore& score : scores) {
            for (Observation& o : score.observations) {
                for (double& value : o.values) value /= o.weight;
            }
        }
        return scores;
    }

  private:
    void add(Observation& o, std::span<const float> logits, llama_token next, bool first, size_t i,
             Reference& reference) {
        own_.resize(logits.size());
        const size_t top = log_softmax(logits, own_);
        const std::vector<size_t> top_10 = top_indices(own_, std::min(kTop, own_.size()));
        if (first) {
            reference.log_p.insert(reference.log_p.end(), own_.begin(), own_.end());
            reference.top.push_back(top);
            reference.top_10.push_back(top_10);
        }
        std::vector<size_t> shared;
        std::set_intersection(top_10.begin(), top_10.end(), reference.top_10[i].begin(), reference.top_10[i].end(),
                              std::back_inserter(shared));
        o.values[0] -= static_cast<double>(own_[static_cast<size_t>(next)]);
        if (!first) o.values[1] += kl_divergence({&reference.log_p[i * own_.size()], own_.size()}, own_);
        o.values[2] += top == reference.top[i] ? 1 : 0;
        o.values[3] += static_cast<double>(shared.size()) / static_cast<double>(top_10.size());
    }

    const llama_model* model_;
    size_t n_batch_;
    std::string sha256_;
    size_t n_ctx_ = 0;
    size_t n_items_ = 0;
    std::vector<llama_token> tokens_;
    std::vector<float> own_;
};

}  // namespace

std::unique_ptr<SuiteTask> make_depth_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<DepthTask>(request, model);
}

}  // namespace kvaq
