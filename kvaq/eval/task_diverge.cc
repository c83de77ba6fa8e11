#include <fmt/format.h>

#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr size_t kDefaultTokens = 128;

class DivergeTask : public SuiteTask {
  public:
    DivergeTask(const TaskRequest& request, const llama_model* model)
        : model_(model),
          n_batch_(request.n_batch),
          sha256_(file_sha256(request.text)),
          max_tokens_(request.max_tokens == 0 ? kDefaultTokens : request.max_tokens),
          lengths_(context_lengths(request, {1024}, 16, model, "diverge")) {
        tokens_ = tokenize_file(model, request.text);
        const size_t longest = *std::max_element(lengths_.begin(), lengths_.end());
        const size_t most = tokens_.size() / longest;
        n_items_ = request.n_items == 0 ? std::min<size_t>(32, most) : request.n_items;
        if (most == 0 || n_items_ > most) {
            throw Error(ErrorCode::kInvalidArgument, "the text is too short for diverge",
                        fmt::format("{} pieces of {} tokens", std::max<size_t>(1, n_items_), longest),
                        fmt::format("{} tokens in '{}'", tokens_.size(), request.text),
                        "Use fewer --items, smaller --lengths or a longer text");
        }
    }

    std::string says() const override {
        return fmt::format(
            "Pieces of the text (`at` N tokens) continued greedily, one token at a time, at most {}: how many tokens "
            "are those of f16 before the first other one.",
            max_tokens_);
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "agreed with f16", .scale = Scale::kTokens, .of_difference = true},
                {.name = "never parted", .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"text_sha256", sha256_}, {"lengths", lengths_}, {"max_tokens", max_tokens_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return n_items_; }
    size_t n_context() const override { return mean_of(lengths_); }
    size_t work() const override { return n_context() + 3 * max_tokens_ / 2; }
    size_t n_ctx() const override { return *std::max_element(lengths_.begin(), lengths_.end()) + max_tokens_ + 64; }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        const size_t longest = *std::max_element(lengths_.begin(), lengths_.end());
        const size_t length = lengths_[item % lengths_.size()];
        std::vector<llama_token> prompt = chunk_of(model_, tokens_, item, longest);
        prompt.resize(length);
        std::vector<ItemScore> scores;
        Generated reference;
        for (CacheSession& session : sessions) {
            session.clear();
            const bool first = scores.empty();
            const auto parted = [&](std::span<const llama_token> so_far) {  // what follows does not matter
                return !first && (so_far.size() > reference.tokens.size() ||
                                  so_far.back() != reference.tokens[so_far.size() - 1]);
            };
            const Generated out = session.generate(0, prompt, max_tokens_, parted);
            if (first) reference = out;
            scores.push_back(
                {.observations = {{.group = std::to_string(length),
                                   .values = {static_cast<double>(agreed_tokens(out.tokens, reference.tokens)),
                                              one_if(out.tokens == reference.tokens)}}},
                 .text = text_of(model_, out.tokens)});
        }
        return scores;
    }

  private:
    const llama_model* model_;
    size_t n_batch_;
    std::string sha256_;
    size_t max_tokens_;
    std::vector<size_t> lengths_;
    std::vector<llama_token> tokens_;
    size_t n_items_ = 0;
};

}  // namespace

std::unique_ptr<SuiteTask> make_diverge_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<DivergeTask>(request, model);
}

}  // namespace kvaq
