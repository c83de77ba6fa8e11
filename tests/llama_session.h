#pragma once

// For tests: llama.cpp's public functions on a context that a plan serves, or on a plain one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvaq/base/file.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"

namespace kvaq {

using Tokens = std::vector<llama_token>;

/// Loaded once a process.
inline llama_model* shared_model() {
    static const ModelPtr model = [] {
        quiet_llama(false);
        announce_plans(false);
        return load_model(KVAQ_MODEL);
    }();
    return model.get();
}

inline Tokens tokenize(const std::string& text, llama_model* model = shared_model()) {
    Tokens tokens(text.size() + 8);
    const int32_t n = llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int32_t>(text.size()),
                                     tokens.data(), static_cast<int32_t>(tokens.size()), true, false);
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

/// The first n tokens of the WikiText excerpt.
inline Tokens wiki_tokens(size_t n) {
    const std::vector<std::byte> bytes = read_file(std::string(KVAQ_DATA_DIR) + "/wiki-excerpt.txt");
    Tokens tokens = tokenize({reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), n * 8)});
    tokens.resize(n);
    return tokens;
}

struct TopTwo {
    llama_token best = 0;
    llama_token second = 0;
    float gap = 0;  ///< logit of the best less that of the second
};

/// A context, plain if `plan` is empty.
class Session {
  public:
    explicit Session(const std::string& plan, uint32_t n_ctx = 1024, uint32_t n_seq_max = 4,
                     bool flash_attention = true, llama_model* model = shared_model(), bool swa_full = true)
        : model_(model),
          ctx_(make_context(model,
                            {.n_ctx = n_ctx,
                             .n_batch = 512,
                             .n_seq_max = n_seq_max,
                             .flash_attention = flash_attention,
                             .swa_full = swa_full},
                            plan.empty() ? HandlerFactory{} : plan_factory(plan))) {
        if ((handler_of(ctx_.get()) != nullptr) == plan.empty())
            throw std::logic_error("the plan does not serve this context");
    }
    [[nodiscard]] llama_context* ctx() const { return ctx_.get(); }
    [[nodiscard]] llama_memory_t memory() const { return llama_get_memory(ctx_.get()); }

    /// Tokens of one sequence from a position on; the last one gives logits.
    int32_t decode(const Tokens& tokens, llama_pos first, llama_seq_id seq = 0) const {
        llama_batch batch = llama_batch_init(static_cast<int32_t>(tokens.size()), 0, 1);
        for (size_t i = 0; i < tokens.size(); ++i) {
            batch.token[i] = tokens[i];
            batch.pos[i] = first + static_cast<llama_pos>(i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = seq;
            batch.logits[i] = i + 1 == tokens.size() ? 1 : 0;
        }
        batch.n_tokens = static_cast<int32_t>(tokens.size());
        const int32_t code = llama_decode(ctx_.get(), batch);
        llama_batch_free(batch);
        return code;
    }
    [[nodiscard]] std::vector<float> logits() const {
        const float* data = llama_get_logits_ith(ctx_.get(), -1);
        return {data, data + n_vocab()};
    }
    [[nodiscard]] int32_t n_vocab() const { return llama_vocab_n_tokens(llama_model_get_vocab(model_)); }
    [[nodiscard]] TopTwo top_two() const {
        const std::vector<float> x = logits();
        const auto best = std::max_element(x.begin(), x.end());
        auto second = best == x.begin() ? x.begin() + 1 : x.begin();
        for (auto i = x.begin(); i != x.end(); ++i) {
            if (i != best && *i > *second) second = i;
        }
        return {static_cast<llama_token>(best - x.begin()), static_cast<llama_token>(second - x.begin()),
                *best - *second};
    }
    /// Greedy continuation after what is cached.
    Tokens generate(size_t n, llama_seq_id seq = 0) const {
        Tokens tokens;
        for (size_t i = 0; i < n; ++i) {
            tokens.push_back(top_two().best);
            if (decode({tokens.back()}, llama_memory_seq_pos_max(memory(), seq) + 1, seq) != 0)
                throw std::runtime_error("decode failed");
        }
        return tokens;
    }
    [[nodiscard]] std::vector<llama_pos> positions(int32_t n_seq = 4) const {
        std::vector<llama_pos> out;
        for (int32_t s = 0; s < n_seq; ++s) {
            out.push_back(llama_memory_seq_pos_min(memory(), s));
            out.push_back(llama_memory_seq_pos_max(memory(), s));
        }
        return out;
    }

  private:
    llama_model* model_;
    ContextPtr ctx_;
};

/// Negative log-likelihood (nats) of a token.
inline double surprise(const float* logits, int32_t n_vocab, llama_token token) {
    const double top = static_cast<double>(*std::max_element(logits, logits + n_vocab));
    double all = 0;
    for (int32_t v = 0; v < n_vocab; ++v) all += std::exp(static_cast<double>(logits[v]) - top);
    return top + std::log(all) - static_cast<double>(logits[token]);
}

inline double rms_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    return std::sqrt(sum / static_cast<double>(a.size()));
}

/// Two orders of the same sums. llama.cpp rounds activations to int8, so its own logits move as well: 0.2 to 0.3 here, other texts
/// give 2 and more.
inline constexpr double kSameLogits = 0.5;

}  // namespace kvaq
