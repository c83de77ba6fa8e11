#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr size_t kScored = 256;  ///< at most this many tokens of the second copy, its last ones

class CopyTask : public SuiteTask {
  public:
    CopyTask(const TaskRequest& request, const llama_model* model)
        : model_(model),
          n_batch_(request.n_batch),
          seed_(request.seed),
          lengths_(context_lengths(request, {512, 2048}, 128, model, "copy")),
          n_items_(request.n_items == 0 ? 16 : request.n_items) {
        const llama_vocab* vocab = llama_model_get_vocab(model);
        for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
            const llama_token_attr attr = llama_vocab_get_attr(vocab, token);
            const bool plain = (attr & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNUSED | LLAMA_TOKEN_ATTR_UNKNOWN |
                                        LLAMA_TOKEN_ATTR_BYTE | LLAMA_TOKEN_ATTR_USER_DEFINED)) == 0;
            if (plain && !llama_vocab_is_eog(vocab, token)) ordinary_.push_back(token);
        }
        KVAQ_CHECK(!ordinary_.empty());
    }

    std::string says() const override {
        return fmt::format(
            "A sequence twice, {} tokens in all: `random` tokens of the vocabulary (what induction heads do), or a "
            "`list` of made-up entries. Exact: share of the last {} tokens "
            "of the second copy that are the most likely ones, given the right ones before.",
            fmt::join(lengths_, ", "), kScored);
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "exact"},
                {.name = "NLL", .scale = Scale::kNats, .larger_is_better = false},
                {.name = "KL", .scale = Scale::kNats, .of_difference = true, .larger_is_better = false},
                {.name = "same top-1", .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"lengths", lengths_}, {"seed", seed_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return n_items_; }
    size_t n_context() const override { return mean_of(lengths_); }
    size_t n_ctx() const override { return *std::max_element(lengths_.begin(), lengths_.end()) + 256; }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        const size_t length = lengths_[(item / 2) % lengths_.size()];
        const bool random = item % 2 == 0;
        const std::vector<llama_token> tokens = random ? random_twice(item, length) : list_twice(item, length);
        const size_t n_scored = std::min(kScored, tokens.size() / 2 - 1);
        const auto question = std::span(tokens).first(tokens.size() - n_scored);
        const auto answer = std::span(tokens).last(n_scored);
        std::vector<ItemScore> scores;
        Forced reference;
        for (CacheSession& session : sessions) {
            session.clear();
            Forced found = force(session, 0, question, answer, scores.empty() ? nullptr : &reference);
            if (scores.empty()) reference = found;
            scores.push_back(
                {.observations = {{.group = fmt::format("{} {}", random ? "random" : "list", length),
                                   .weight = static_cast<double>(n_scored),
                                   .values = {equal_share(found.top, answer), mean_value(found.nll),
                                              mean_value(found.kl), equal_share(found.top, reference.top)}}},
                 .text = ""});
        }
        return scores;
    }

  private:
    std::vector<llama_token> random_twice(size_t item, size_t length) const {
        MadeUpText made_up(seed_, "copy random", item);
        std::vector<llama_token> tokens = start_of_text(model_);
        const size_t begin = tokens.size();
        const size_t n = (length - begin) / 2;
        for (size_t i = 0; i < n; ++i)
            tokens.push_back(ordinary_[made_up.integer(0, static_cast<uint32_t>(ordinary_.size()) - 1)]);
        for (size_t i = 0; i < n; ++i) tokens.push_back(tokens[begin + i]);
        return tokens;
    }
    std::vector<llama_token> list_twice(size_t item, size_t length) const {
        MadeUpText made_up(seed_, "copy list", item);
        const std::vector<llama_token> again = tokenize_part(model_, "The same list once more:\n");
        TokenText text(model_);
        text.append("A list:\n");
        std::vector<llama_token> list;
        while (true) {
            const std::string name = made_up.first_name();
            const std::string place = made_up.place();
            const std::string colour = made_up.colour();
            const std::string thing = colour + " " + made_up.thing();
            const std::vector<llama_token> line =
                tokenize_part(model_, fmt::format("{}, {}, {} {}s\n", name, place, made_up.integer(10, 99), thing));
            if (text.size() + again.size() + 2 * (list.size() + line.size()) > length) break;
            list.insert(list.end(), line.begin(), line.end());
        }
        std::vector<llama_token> tokens = text.tokens();
        tokens.insert(tokens.end(), list.begin(), list.end());
        tokens.insert(tokens.end(), again.begin(), again.end());
        tokens.insert(tokens.end(), list.begin(), list.end());
        return tokens;
    }

    const llama_model* model_;
    size_t n_batch_;
    uint64_t seed_;
    std::vector<size_t> lengths_;
    size_t n_items_;
    std::vector<llama_token> ordinary_;
};

}  // namespace

std::unique_ptr<SuiteTask> make_copy_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<CopyTask>(request, model);
}

}  // namespace kvaq
