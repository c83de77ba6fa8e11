#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kvaq/eval/answer_rules.h"
#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr size_t kSameDepth = 8;  ///< items in a row at one length: they share what is before them
constexpr size_t kDefaultTokens = 64;

struct Call {
    std::string request;
    std::string json;
};

Call make_call(MadeUpText& made_up) {
    nlohmann::ordered_json arguments;
    std::string tool;
    std::string request;
    switch (made_up.integer(0, 3)) {
        case 0: {
            const uint32_t minutes = made_up.integer(2, 59);
            const std::string label = made_up.thing();
            tool = "set_timer";
            request = fmt::format("Set a timer of {} minutes called {}.", minutes, label);
            arguments = {{"minutes", minutes}, {"label", label}};
            break;
        }
        case 1: {
            const std::string name = made_up.first_name();
            const std::string thing = made_up.thing();
            const std::string text = fmt::format("the {} is {}", thing, made_up.colour());
            tool = "send_message";
            request = fmt::format("Tell {} that {}.", name, text);
            arguments = {{"to", name}, {"text", text}};
            break;
        }
        case 2: {
            const uint32_t people = made_up.integer(2, 9);
            const std::string place = made_up.place();
            const std::string day = made_up.weekday();
            tool = "book_table";
            request = fmt::format("Book a table for {} people in {} on {}.", people, place, day);
            arguments = {{"people", people}, {"city", place}, {"day", day}};
            break;
        }
        default: {
            const uint32_t n = made_up.integer(2, 40);
            const std::string colour = made_up.colour();
            const std::string thing = made_up.thing();
            tool = "order";
            request = fmt::format("Order {} {} {}s.", n, colour, thing);
            arguments = {{"item", thing}, {"colour", colour}, {"count", n}};
            break;
        }
    }
    return {.request = request, .json = nlohmann::ordered_json{{"tool", tool}, {"arguments", arguments}}.dump()};
}

class JsonTask : public SuiteTask {
  public:
    JsonTask(const TaskRequest& request, const llama_model* model)
        : model_(model),
          n_batch_(request.n_batch),
          seed_(request.seed),
          max_tokens_(request.max_tokens == 0 ? kDefaultTokens : request.max_tokens),
          lengths_(context_lengths(request, {1024, 4096}, 256, model, "json")),
          n_items_(request.n_items == 0 ? 32 : request.n_items) {}

    std::string says() const override {
        return fmt::format(
            "A request to be turned into a tool call in JSON, after {} tokens (`at`) of earlier requests and calls of "
            "four tools; greedy, one line. Valid: nlohmann's parser takes "
            "it as one object; shaped: \"tool\" and \"arguments\"; right: equal to the wanted call.",
            fmt::join(lengths_, ", "));
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "valid JSON"},
                {.name = "shaped"},
                {.name = "right call"},
                {.name = "f16's text", .of_difference = true},
                {.name = "agreed with f16", .scale = Scale::kTokens, .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"lengths", lengths_}, {"max_tokens", max_tokens_}, {"seed", seed_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return n_items_; }
    size_t n_context() const override { return mean_of(lengths_); }
    size_t work() const override { return n_context() / kSameDepth + 3 * 40; }
    size_t n_ctx() const override { return *std::max_element(lengths_.begin(), lengths_.end()) + max_tokens_ + 320; }
    size_t n_seq() const override { return 2; }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        const size_t length = lengths_[(item / kSameDepth) % lengths_.size()];
        const std::vector<llama_token> before = history(length);
        MadeUpText made_up(seed_, "json request", item);
        const Call call = make_call(made_up);
        const std::vector<llama_token> prompt = tokenize_part(model_, "Request: " + call.request + "\nCall:");
        const auto stop = [&](std::span<const llama_token> so_far) {
            return text_of(model_, so_far.last(1)).find('\n') != std::string::npos;
        };
        std::vector<ItemScore> scores;
        Generated reference;
        for (CacheSession& session : sessions) {
            session.hold_prefix(before);
            session.fork(0, 1);
            const Generated out = session.generate(1, prompt, max_tokens_, stop);
            session.drop(1);
            if (scores.empty()) reference = out;
            std::string text = text_of(model_, out.tokens);
            text.resize(std::min(text.find('\n'), text.size()));
            const CallScore score = score_call(text, call.json);
            scores.push_back(
                {.observations = {{.group = std::to_string(length),
                                   .values = {one_if(score.valid), one_if(score.shaped), one_if(score.right),
                                              one_if(out.tokens == reference.tokens),
                                              static_cast<double>(agreed_tokens(out.tokens, reference.tokens))}}},
                 .text = text});
        }
        return scores;
    }

  private:
    std::vector<llama_token> history(size_t length) const {
        MadeUpText made_up(seed_, "json history", length);
        TokenText text(model_);
        text.append("Every request becomes one tool call in JSON.\n");
        while (text.size() + 64 < length) {
            const Call call = make_call(made_up);
            text.append("Request: " + call.request + "\nCall: " + call.json + "\n");
        }
        return text.tokens();
    }

    const llama_model* model_;
    size_t n_batch_;
    uint64_t seed_;
    size_t max_tokens_;
    std::vector<size_t> lengths_;
    size_t n_items_;
};

}  // namespace

std::unique_ptr<SuiteTask> make_json_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<JsonTask>(request, model);
}

}  // namespace kvaq
