#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "kvaq/base/error.h"
#include "kvaq/eval/choice_score.h"
#include "kvaq/eval/task_parts.h"
#include "kvaq/eval/tasks.h"

namespace kvaq {
namespace {

constexpr int kDefaultShots = 10;

class HellaswagTask : public SuiteTask {
  public:
    HellaswagTask(const TaskRequest& request, const llama_model* model)
        : n_batch_(request.n_batch),
          sha256_(file_sha256(request.data)),
          shots_(static_cast<size_t>(request.shots < 0 ? kDefaultShots : request.shots)) {
        const std::vector<ChoiceItem> all = read_hellaswag(request.data);
        if (all.size() <= shots_) {
            throw Error(ErrorCode::kInvalidArgument, "the file has too few tasks",
                        fmt::format("more than the {} examples of --shots", shots_),
                        fmt::format("{} tasks in '{}'", all.size(), request.data));
        }
        const size_t n_asked = all.size() - shots_;
        const size_t n = request.n_items == 0 ? std::min<size_t>(200, n_asked) : request.n_items;
        if (n > n_asked) {
            throw Error(ErrorCode::kInvalidArgument, "the file has too few tasks",
                        fmt::format("{} items and {} examples", n, shots_),
                        fmt::format("{} tasks in '{}'", all.size(), request.data), "Use fewer --items");
        }
        prefix_ = start_of_text(model);
        for (size_t i = n_asked; i < all.size(); ++i) {
            const ChoiceItem& shot = all[i];
            const std::vector<llama_token> tokens =
                tokenize_part(model, shot.context + " " + shot.endings[shot.gold] + "\n\n");
            prefix_.insert(prefix_.end(), tokens.begin(), tokens.end());
        }
        for (const size_t i : draw_order(n_asked, n)) {
            items_.push_back(tokenize(model, all[i]));
            size_t needed = items_.back().context.size() + items_.back().shared.size();
            for (const auto& ending : items_.back().endings) needed += ending.size();
            longest_ = std::max(longest_, needed);
            all_tokens_ += needed;
            tokens_ += items_.back().context.size() + items_.back().shared.size();
        }
    }

    std::string says() const override {
        return fmt::format(
            "Four endings of a scene behind {} solved examples (the last of the file), the one of largest mean log p "
            "chosen: `acc_norm` per token as in llama-perplexity "
            "(tokens after what the endings share), `acc_norm char` per character as in lm-evaluation-harness. {} "
            "tokens are in the cache on average.",
            shots_, n_context());
    }
    std::vector<Metric> metrics() const override {
        return {{.name = "acc_norm"}, {.name = "acc_norm char"}, {.name = "same choice as f16", .of_difference = true}};
    }
    nlohmann::ordered_json settings() const override {
        return {{"data_sha256", sha256_}, {"shots", shots_}, {"n_batch", n_batch_}};
    }
    size_t n_items() const override { return items_.size(); }
    size_t n_context() const override { return prefix_.size() + tokens_ / items_.size(); }
    size_t work() const override { return all_tokens_ / items_.size(); }
    size_t n_ctx() const override { return prefix_.size() + longest_ + 512; }
    size_t n_seq() const override { return 6; }

    std::vector<ItemScore> run(size_t item, std::span<CacheSession> sessions) override {
        const Tokens& tokens = items_[item];
        std::vector<ItemScore> scores;
        size_t reference_choice = 0;
        for (CacheSession& session : sessions) {
            const ChoiceScores found = score(session, tokens);
            const size_t choice = found.best_per_token();
            if (scores.empty()) reference_choice = choice;
            scores.push_back({.observations = {{.values = {choice == tokens.gold ? 1.0 : 0.0,
                                                           found.best_per_character() == tokens.gold ? 1.0 : 0.0,
                                                           choice == reference_choice ? 1.0 : 0.0}}},
                              .text = std::to_string(choice)});
        }
        return scores;
    }

  private:
    /// An item's tokens: the scene, what all endings begin with, what each goes on with.
    struct Tokens {
        std::vector<llama_token> context;
        std::vector<llama_token> shared;
        std::array<std::vector<llama_token>, 4> endings;
        std::array<size_t, 4> characters{};
        size_t gold = 0;
    };

    /// llama-perplexity's order: drawn without putting back by mt19937(1), so that the first n items are its first n items.
    static std::vector<size_t> draw_order(size_t n_all, size_t n) {
        std::vector<size_t> left(n_all);
        for (size_t i = 0; i < n_all; ++i) left[i] = i;
        std::vector<size_t> order;
        std::mt19937 random(1);
        for (size_t i = 0; i < n; ++i) {
            std::uniform_int_distribution<size_t> pick(0, left.size() - 1);
            const auto at = left.begin() + static_cast<std::ptrdiff_t>(pick(random));
            order.push_back(*at);
            left.erase(at);
        }
        return order;
    }

    static Tokens tokenize(const llama_model* model, const ChoiceItem& item) {
        std::array<std::vector<llama_token>, 4> whole;
        for (size_t e = 0; e < 4; ++e) whole[e] = tokenize_part(model, item.context + " " + item.endings[e]);
        const auto common = [](const std::vector<llama_token>& a, const std::vector<llama_token>& b) {
            return agreed_tokens(a, b);
        };
        size_t shared = whole[0].size();
        for (const auto& one : whole) shared = std::min(shared, common(whole[0], one));
        for (const auto& one : whole) shared = std::min(shared, one.size() - 1);  // an ending has a token of its own
        const size_t context = std::min(shared, common(tokenize_part(model, item.context), whole[0]));
        Tokens out;
        out.gold = item.gold;
        out.context.assign(whole[0].begin(), whole[0].begin() + static_cast<std::ptrdiff_t>(context));
        out.shared.assign(whole[0].begin() + static_cast<std::ptrdiff_t>(context),
                          whole[0].begin() + static_cast<std::ptrdiff_t>(shared));
        for (size_t e = 0; e < 4; ++e) {
            out.endings[e].assign(whole[e].begin() + static_cast<std::ptrdiff_t>(shared), whole[e].end());
            out.characters[e] = count_characters(item.endings[e]);
        }
        return out;
    }

    ChoiceScores score(CacheSession& session, const Tokens& tokens) const {
        session.hold_prefix(prefix_);
        session.fork(0, 1);
        std::vector<llama_token> before(tokens.context);
        before.insert(before.end(), tokens.shared.begin(), tokens.shared.end());
        ChoiceScores scores;
        scores.characters = tokens.characters;
        std::vector<float> log_p;
        session.decode(1, before, tokens.context.size() - 1, [&](size_t index, std::span<const float> logits) {
            log_p.resize(logits.size());
            (void)log_softmax(logits, log_p);
            if (index + 1 < before.size()) {
                scores.shared += static_cast<double>(log_p[static_cast<size_t>(before[index + 1])]);
                return;
            }
            for (size_t e = 0; e < 4; ++e)
                scores.own[e] = static_cast<double>(log_p[static_cast<size_t>(tokens.endings[e][0])]);
        });
        std::vector<CacheSession::Piece> pieces;
        for (size_t e = 0; e < 4; ++e) {
            scores.tokens[e] = tokens.endings[e].size();
            session.fork(1, 2 + static_cast<int32_t>(e));
            pieces.push_back({.seq = 2 + static_cast<int32_t>(e),
                              .tokens = std::span(tokens.endings[e]).first(tokens.endings[e].size() - 1),
                              .first_scored = 0});
        }
        session.decode(pieces, [&](size_t e, size_t index, std::span<const float> logits) {
            (void)log_softmax(logits, log_p);
            scores.own[e] += static_cast<double>(log_p[static_cast<size_t>(tokens.endings[e][index + 1])]);
        });
        for (int32_t seq = 1; seq < 6; ++seq) session.drop(seq);
        return scores;
    }

    size_t n_batch_;
    std::string sha256_;
    size_t shots_;
    std::vector<llama_token> prefix_;
    std::vector<Tokens> items_;
    size_t longest_ = 0;
    size_t tokens_ = 0;      ///< before the endings, of all items
    size_t all_tokens_ = 0;  ///< with them
};

}  // namespace

std::unique_ptr<SuiteTask> make_hellaswag_task(const TaskRequest& request, const llama_model* model) {
    return std::make_unique<HellaswagTask>(request, model);
}

}  // namespace kvaq
