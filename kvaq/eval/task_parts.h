#pragma once

// What several tasks of the suite are made of.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvaq/eval/cache_session.h"
#include "kvaq/eval/divergence.h"
#include "kvaq/eval/made_up_text.h"
#include "kvaq/eval/suite_task.h"

namespace kvaq {

/// --lengths, or the task's own. Throws Error unless each is at least `least` and within the model's context.
[[nodiscard]] std::vector<size_t> context_lengths(const TaskRequest& request, std::vector<size_t> preset, size_t least,
                                                  const llama_model* model, const std::string& task);
[[nodiscard]] size_t mean_of(std::span<const size_t> values);

/// Tokens, appended in parts that are tokenized alone.
class TokenText {
  public:
    explicit TokenText(const llama_model* model) : model_(model), tokens_(start_of_text(model)) {}
    void append(const std::string& text);
    [[nodiscard]] const std::vector<llama_token>& tokens() const noexcept { return tokens_; }
    [[nodiscard]] size_t size() const noexcept { return tokens_.size(); }

  private:
    const llama_model* model_;
    std::vector<llama_token> tokens_;
};

/// Lines of made-up sentences, about n_tokens in all, with each needle's line at its depth (0 .. 1) among them. Needles in order of depth.
struct Needle {
    double depth = 0;
    std::string line;
};
[[nodiscard]] std::vector<llama_token> haystack(const llama_model* model, MadeUpText& made_up, const std::string& intro,
                                                size_t n_tokens, std::span<const Needle> needles);

/// How a cache takes given tokens as the continuation of a sequence (teacher forcing: greedy decoding would write exactly them if and only if every one is
/// the most likely).
struct Forced {
    std::vector<double> nll;       ///< nats per token
    std::vector<double> kl;        ///< KL(reference || this) per token; 0 in the reference
    std::vector<llama_token> top;  ///< the most likely token at each
    std::vector<float> log_p;      ///< of the reference only: [token, vocabulary]
    [[nodiscard]] bool exact(std::span<const llama_token> answer) const;
};
/// Continues `seq` by the question (at least one token) and the answer. reference: of the first session on the same tokens; null there.
[[nodiscard]] Forced force(CacheSession& session, int32_t seq, std::span<const llama_token> question,
                           std::span<const llama_token> answer, const Forced* reference);
[[nodiscard]] double mean_value(std::span<const double> values);

/// A yes or no as an observation.
[[nodiscard]] constexpr double one_if(bool yes) noexcept { return yes ? 1.0 : 0.0; }

/// Share of places at which two runs of tokens of one length are equal.
[[nodiscard]] double equal_share(std::span<const llama_token> a, std::span<const llama_token> b);

/// Tokens that two generations have in common before they part.
[[nodiscard]] size_t agreed_tokens(std::span<const llama_token> a, std::span<const llama_token> b);

/// Lines of a text file, without their ends ("\r\n" or "\n"). Throws Error: missing, empty, not text (named: gzip, bzip2, xz, zip, GGUF).
[[nodiscard]] std::vector<std::string> text_lines(const std::string& path, const std::string& wanted);
/// sha256 of a file.
[[nodiscard]] std::string file_sha256(const std::string& path);

}  // namespace kvaq
