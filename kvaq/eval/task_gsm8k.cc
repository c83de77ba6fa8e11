#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/eval/answer_rules.h"
#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr int kDefaultShots = 8;  ///< the paper's Table 2 has 1 and 8
constexpr size_t kDefaultTokens = 256;
constexpr const char* kStop = "Question:";
constexpr const char* kWanted = "a JSON object a line with texts \"question\" and \"answer\"";

struct Problem {
    std::string question;
    std::string answer;
};

std::vector<Problem> read_problems(const std::string& path) {
    std::vector<Problem> problems;
    size_t number = 0;
    for (const std::string& line : text_lines(path, kWanted)) {
        ++number;
        if (line.empty()) continue;
        const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
        const auto has = [&](const char* key) {
            return json.is_object() && json.contains(key) && json[key].is_string();
        };
        if (!has("question") || !has("answer")) {
            throw Error(ErrorCode::kCorrupt, fmt::format("line {} of '{}' is no GSM8K problem", number, path), kWanted,
                        "'" + line.substr(0, 40) + "'");
        }
        problems.push_back({.question = json["question"], .answer = json["answer"]});
        (void)gold_number(problems.back().answer);  // said now, not in the middle of the run
    }
    return problems;
}

class Gsm8kTask : public SuiteTask {
  public:
    Gsm8kTask(const TaskRequest& request, const llama_model* model)
        : model_(model),
          n_batch_(request.n_batch),
          sha256_(file_sha256(request.data)),
          shots_(static_cast<size_t>(request.shots < 0 ? kDefaultShots : request.shots)),
          max_tokens_(request.max_tokens == 0 ? kDefaultTokens : request.max_tokens) {
        const std::vector<Problem> all = read_problems(request.data);
        const size_t n_asked = all.size() - std::min(all.size(), shots_);
        const size_t n = request.n_items == 0 ? std::min<size_t>(50, n_asked) : request.n_items;
        if (n_asked == 0 || n > n_asked) {
            throw Error(ErrorCode::kInvalidArgument, "the file has too few problems",
                        fmt::format("{} items and {} examples", std::max<size_t>(1, n), shots_),
                        fmt::format("{} problems in '{}'", all.size(), request.data), "Use fewer --items or --shots");
        }
        TokenText prefix(model);
        for (size_t i = n_asked; i < all.size(); ++i)
            prefix.append(fmt::format("Question: {}\nAnswer: {}\n\n", all[i].question, all[i].answer));
        prefix_ = prefix.tokens();
        for (size_t i = 0; i < n; ++i) {
            items_.push_back({.prompt = tokenize_part(model, fmt::format("Question: {}\nAnswer:", all[i].question)),
                              .gold = gold_number(all[i].answer)});
            longest_ = std::max(longest_, items_.back().prompt.size());
        }
    }

    std::string says() const override {
        return fmt::format(
            "Problems with {} solved ones before them (the last of the file), greedy, at most {} tokens, until \"{}\"; "
            "exact match of lm-evaluation-harness, strict (`#### N`) "
            "and flexible (the last number). A small model is near chance here: the last columns say how often a cache "
            "gives f16's number, and for how many tokens its text is "
            "f16's.",
            shots_, max_tokens_, kStop);
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "strict"},
                {.name = "flexible"},
                {.name = "f16's number", .of_difference = true},
                {.name = "agreed with f16", .scale = Scale::kTokens, .of_difference = true},
                {.name = "f16's text", .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"data_sha256", sha256_}, {"shots", shots_}, {"max_tokens", max_tokens_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return items_.size(); }
    size_t n_context() const override { return prefix_.size() + longest_; }
    size_t work() const override { return longest_ + 3 * max_tokens_ / 2; }
    size_t n_ctx() const override { return prefix_.size() + longest_ + max_tokens_ + 128; }
    size_t n_seq() const override { return 2; }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        std::vector<ItemScore> scores;
        Generated reference;
        std::optional<std::string> reference_number;
        for (CacheSession& session : sessions) {
            session.hold_prefix(prefix_);
            session.fork(0, 1);
            const auto stop = [&](std::span<const llama_token> so_far) {
                return text_of(model_, so_far).find(kStop) != std::string::npos;
            };
            const Generated out = session.generate(1, items_[item].prompt, max_tokens_, stop);
            session.drop(1);
            std::string text = text_of(model_, out.tokens);
            text.resize(std::min(text.find(kStop), text.size()));
            const std::optional<std::string> number = flexible_number(text);
            if (scores.empty()) {
                reference = out;
                reference_number = number;
            }
            const size_t agreed = agreed_tokens(out.tokens, reference.tokens);
            scores.push_back(
                {.observations = {{.values = {one_if(strict_number(text) == items_[item].gold),
                                              one_if(number == items_[item].gold), one_if(number == reference_number),
                                              static_cast<double>(agreed), one_if(out.tokens == reference.tokens)}}},
                 .text = text});
        }
        return scores;
    }

  private:
    struct Item {
        std::vector<llama_token> prompt;
        std::string gold;
    };
    const llama_model* model_;
    size_t n_batch_;
    std::string sha256_;
    size_t shots_;
    size_t max_tokens_;
    std::vector<llama_token> prefix_;
    std::vector<Item> items_;
    size_t longest_ = 0;
};

}  // namespace

std::unique_ptr<SuiteTask> make_gsm8k_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<Gsm8kTask>(request, model);
}

}  // namespace kvaq
