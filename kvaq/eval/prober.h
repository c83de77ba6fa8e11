#pragma once

#include <llama.h>

#include <cstddef>
#include <span>
#include <vector>

#include "kvaq/eval/divergence.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

struct ProbeResult {
    Estimate kl;  ///< nats per token; error: over chunks by bootstrap if there are at least 2, else over tokens
    double same_top = 0;
    size_t n_tokens = 0;  ///< scored
};

/// The serving handler of a plan, whatever the model's shape.
[[nodiscard]] HandlerFactory serve_plan(const Plan& plan);

/// Measures plans on a few chunks against one reference whose log-probabilities are kept. Memory: scored tokens x vocabulary x 4 bytes.
class Prober {
  public:
    static constexpr size_t kBatch = 512;  ///< tokens of a micro-batch

    /// chunks: of equal length; tokens first_scored.. of each are scored. reference: empty = plain llama.cpp with its f16 cache. Decodes them once.
    Prober(llama_model* model, std::vector<std::vector<llama_token>> chunks, size_t first_scored, int32_t n_threads,
           HandlerFactory reference);

    [[nodiscard]] ProbeResult measure(const Plan& plan) { return measure(serve_plan(plan)); }
    [[nodiscard]] ProbeResult measure(HandlerFactory served, size_t n_batch = kBatch);
    [[nodiscard]] size_t n_ctx() const noexcept { return chunks_[0].size(); }

  private:
    /// visit(number of the scored token, its logits), from several threads at once.
    void decode(HandlerFactory factory, size_t n_batch, const Visit& visit);

    llama_model* model_;
    std::vector<std::vector<llama_token>> chunks_;
    size_t first_scored_;
    int32_t n_threads_;
    std::vector<float> reference_;
    std::vector<size_t> reference_top_;
};

/// n chunks of n_ctx tokens from token `first` on; when the text ends before, they are moved back (and may then overlap what comes before `first`).
/// Throws Error kInvalidArgument when the text is shorter than they are.
[[nodiscard]] std::vector<std::vector<llama_token>> probe_chunks(const llama_model* model,
                                                                 std::span<const llama_token> tokens, size_t first,
                                                                 size_t n, size_t n_ctx);

}  // namespace kvaq
