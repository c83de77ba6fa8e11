#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/eval/answer_rules.h"
#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr size_t kDefaultTokens = 64;  ///< of each answer

struct Message {
    const char* role;
    std::string text;
};

/// The dialogue as the model's template writes it, up to where the assistant answers. Throws Error kUnsupported without a template that llama.cpp knows.
std::string render(const llama_model* model, std::span<const Message> messages) {
    const char* form = llama_model_chat_template(model, nullptr);
    std::vector<llama_chat_message> chat;
    for (const Message& message : messages) chat.push_back({message.role, message.text.c_str()});
    std::string out;
    int32_t n = form == nullptr ? -1 : 0;
    if (form != nullptr) {
        n = llama_chat_apply_template(form, chat.data(), chat.size(), true, nullptr, 0);
        if (n >= 0) {
            out.resize(static_cast<size_t>(n) + 1);
            n = llama_chat_apply_template(form, chat.data(), chat.size(), true, out.data(), n + 1);
            out.resize(static_cast<size_t>(std::max(0, n)));
        }
    }
    if (n < 0) {
        throw Error(ErrorCode::kUnsupported, "task chat needs a chat template",
                    "one in the model that llama.cpp knows without Jinja",
                    form == nullptr ? "none (a base model?)" : "another one", "Leave chat out of --task");
    }
    return out;
}

std::string trimmed(const std::string& text) {
    const size_t begin = text.find_first_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

class ChatTask : public SuiteTask {
  public:
    ChatTask(const TaskRequest& request, const llama_model* model)
        : model_(model),
          n_batch_(request.n_batch),
          seed_(request.seed),
          max_tokens_(request.max_tokens == 0 ? kDefaultTokens : request.max_tokens),
          lengths_(context_lengths(request, {1024}, 256, model, "chat")),
          n_items_(request.n_items == 0 ? 24 : request.n_items) {
        (void)render(model, std::vector<Message>{{"user", "Hello"}});
    }

    std::string says() const override {
        return fmt::format(
            "A chat by the model's template: a fact and a text of about {} tokens, the cache's own answer, then a "
            "question for the fact; greedy, at most {} tokens an answer. "
            "Recalls: the second answer has the name; ended: it stopped by itself; repetition: share of runs of four "
            "words that both answers have had before.",
            fmt::join(lengths_, ", "), max_tokens_);
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "recalls"},
                {.name = "ended"},
                {.name = "repetition", .larger_is_better = false},
                {.name = "f16's second answer", .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"lengths", lengths_}, {"max_tokens", max_tokens_}, {"seed", seed_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return n_items_; }
    size_t n_context() const override { return mean_of(lengths_) + max_tokens_; }
    size_t work() const override { return n_context() + 3 * max_tokens_; }
    size_t n_ctx() const override {
        return *std::max_element(lengths_.begin(), lengths_.end()) + 2 * max_tokens_ + 384;
    }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        const size_t length = lengths_[item % lengths_.size()];
        MadeUpText made_up(seed_, "chat", item);
        const std::string animal = made_up.animal();
        const std::string name = made_up.first_name();
        std::string text = fmt::format("My {} is called {}. Here is a text:\n", animal, name);
        for (size_t n = 0; n + 128 < length;) {
            const std::string sentence = made_up.sentence() + "\n";
            n += tokenize_part(model_, sentence).size();
            text += sentence;
        }
        text += "Say in one sentence what the text is about.";
        const std::string question = fmt::format("Thank you. What is my {} called?", animal);
        std::vector<llama_token> prompt = start_of_text(model_);
        const std::string first_turn = render(model_, std::vector<Message>{{"user", text}});
        const std::vector<llama_token> part = tokenize_part(model_, first_turn, /*special=*/true);
        prompt.insert(prompt.end(), part.begin(), part.end());

        std::vector<ItemScore> scores;
        std::string reference;
        for (CacheSession& session : sessions) {
            session.clear();
            const Generated first = session.generate(0, prompt, max_tokens_, {});
            const std::string answer = text_of(model_, first.tokens);
            const Generated second =
                session.generate(0, second_prompt(text, first_turn, answer, question, first), max_tokens_, {});
            const std::string answer_2 = text_of(model_, second.tokens);
            if (scores.empty()) reference = answer_2;
            scores.push_back(
                {.observations = {{.values = {one_if(mentions(answer_2, name)), one_if(second.ended),
                                              repetition(answer + "\n" + answer_2), one_if(answer_2 == reference)}}},
                 .text = answer + "\n--\n" + answer_2});
        }
        return scores;
    }

  private:
    /// What the template writes behind the first answer, to be decoded behind its last token.
    std::vector<llama_token> second_prompt(const std::string& text, const std::string& first_turn,
                                           const std::string& answer, const std::string& question,
                                           const Generated& first) const {
        const std::string reply = trimmed(answer);
        const std::string whole =
            render(model_, std::vector<Message>{{"user", text}, {"assistant", reply}, {"user", question}});
        const std::string before = first_turn + reply;
        if (whole.rfind(before, 0) != 0) {
            throw Error(ErrorCode::kUnsupported, "task chat cannot use this chat template",
                        "one that leaves earlier messages as they were", "another one", "Leave chat out of --task");
        }
        std::vector<llama_token> tokens;
        if (!first.ended && !first.tokens.empty())
            tokens.push_back(first.tokens.back());  // generate() left it undecoded
        const std::vector<llama_token> rest = tokenize_part(model_, whole.substr(before.size()), /*special=*/true);
        tokens.insert(tokens.end(), rest.begin(), rest.end());
        return tokens;
    }

    const llama_model* model_;
    size_t n_batch_;
    uint64_t seed_;
    size_t max_tokens_;
    std::vector<size_t> lengths_;
    size_t n_items_;
};

}  // namespace

std::unique_ptr<SuiteTask> make_chat_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<ChatTask>(request, model);
}

}  // namespace kvaq
