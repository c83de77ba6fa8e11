// passkey: one number at one depth. needle: eight numbers at eight depths of one text, each asked for.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr size_t kPasskeyDepths = 5;
constexpr size_t kNeedles = 8;
constexpr size_t kQuestionTokens = 48;  ///< left for a question and its answer

class RetrievalTask : public SuiteTask {
  public:
    RetrievalTask(const TaskRequest& request, const llama_model* model, bool many)
        : model_(model),
          n_batch_(request.n_batch),
          seed_(request.seed),
          many_(many),
          lengths_(context_lengths(request, many ? std::vector<size_t>{2048, 4096} : std::vector<size_t>{2048}, 256,
                                   model, many ? "needle" : "passkey")),
          n_items_(request.n_items != 0 ? request.n_items
                   : many               ? 8
                                        : 20) {}

    std::string says() const override {
        return fmt::format(
            "{} of made-up sentences ({} tokens, `at` N), then the question{}. Exact: greedy decoding gives the whole "
            "number; digits: share that are the most likely ones given the right digits before (chance: 10 %); NLL: of "
            "a digit "
            "(chance: 2.3).",
            many_ ? fmt::format("{} access codes of five digits, at equal distances in lines", kNeedles)
                  : std::string("A pass key of five digits in lines"),
            fmt::join(lengths_, ", "), many_ ? " for each" : "");
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "exact"},
                {.name = "digits"},
                {.name = "NLL", .scale = Scale::kNats, .larger_is_better = false},
                {.name = "KL", .scale = Scale::kNats, .of_difference = true, .larger_is_better = false},
                {.name = "f16's answer", .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"lengths", lengths_}, {"seed", seed_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return n_items_; }
    size_t n_context() const override { return mean_of(lengths_); }
    size_t n_ctx() const override { return *std::max_element(lengths_.begin(), lengths_.end()) + 512; }
    size_t n_seq() const override { return 2; }
    std::string curve_over() const override { return "depth in the text (%)"; }
    size_t curve_metric() const override { return 1; }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        const size_t length = lengths_[(many_ ? item : item / kPasskeyDepths) % lengths_.size()];
        MadeUpText made_up(seed_, many_ ? "needle" : "passkey", item);
        std::vector<Needle> needles;
        std::vector<Asked> asked;
        const size_t first_place = made_up.integer(0, 23);
        for (size_t i = 0; i < (many_ ? kNeedles : 1); ++i) {
            const size_t step = many_ ? i : item % kPasskeyDepths;
            const double depth =
                (static_cast<double>(step) + 0.5) / static_cast<double>(many_ ? kNeedles : kPasskeyDepths);
            const std::string code = fmt::format("{}", made_up.integer(10000, 99999));
            const std::string place = place_name(first_place + i);
            needles.push_back(
                {depth, many_ ? fmt::format("The access code for {} is {}.", place, code)
                              : fmt::format("The pass key is {0}. Remember it. {0} is the pass key.", code)});
            const std::string question =
                many_ ? fmt::format("What is the access code for {0}? The access code for {0} is", place)
                      : "What is the pass key? The pass key is";
            asked.push_back(split_answer(static_cast<size_t>(100 * depth), question, code));
        }
        const std::vector<llama_token> text =
            haystack(model_, made_up,
                     many_ ? "There are access codes hidden in this text. Remember them.\n"
                           : "There is a pass key hidden in this text. Remember it.\n",
                     length - kQuestionTokens, needles);
        std::vector<ItemScore> scores;
        std::vector<Forced> reference;
        for (CacheSession& session : sessions) {
            const bool first = scores.empty();
            session.hold_prefix(text);
            scores.emplace_back();
            for (size_t i = 0; i < asked.size(); ++i) {
                session.fork(0, 1);
                Forced found = force(session, 1, asked[i].question, asked[i].answer, first ? nullptr : &reference[i]);
                session.drop(1);
                if (first) reference.push_back(found);
                scores.back().observations.push_back(
                    {.group = std::to_string(length),
                     .at = asked[i].percent,
                     .values = {found.exact(asked[i].answer) ? 1.0 : 0.0, equal_share(found.top, asked[i].answer),
                                mean_value(found.nll), mean_value(found.kl),
                                found.top == reference[i].top ? 1.0 : 0.0}});
                scores.back().text += (i > 0 ? "|" : "") + text_of(model_, found.top);
            }
        }
        return scores;
    }

  private:
    struct Asked {
        size_t percent = 0;
        std::vector<llama_token> question;
        std::vector<llama_token> answer;
    };
    /// A space that is a token of its own belongs to the question: it tells nothing.
    Asked split_answer(size_t percent, const std::string& question, const std::string& code) const {
        Asked out{.percent = percent, .question = tokenize_part(model_, question), .answer = {}};
        for (const llama_token token : tokenize_part(model_, " " + code)) {
            const bool digit = text_of(model_, {&token, 1}).find_first_of("0123456789") != std::string::npos;
            (digit || !out.answer.empty() ? out.answer : out.question).push_back(token);
        }
        return out;
    }

    const llama_model* model_;
    size_t n_batch_;
    uint64_t seed_;
    bool many_;
    std::vector<size_t> lengths_;
    size_t n_items_;
};

}  // namespace

std::unique_ptr<SuiteTask> make_passkey_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<RetrievalTask>(request, model, false);
}
std::unique_ptr<SuiteTask> make_needle_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<RetrievalTask>(request, model, true);
}

}  // namespace kvaq
