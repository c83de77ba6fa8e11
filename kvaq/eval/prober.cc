#include "kvaq/eval/prober.h"

#include <algorithm>
#include <utility>

#include "kvaq/base/error.h"
#include "kvaq/cache/kv_cache.h"

namespace kvaq {

HandlerFactory serve_plan(const Plan& plan) {
    return [plan](const ModelShape&, const KvCacheOptions& options) -> std::unique_ptr<AttentionHandler> {
        return make_kv_cache(plan, options);
    };
}

Prober::Prober(llama_model* model, std::vector<std::vector<llama_token>> chunks, size_t first_scored, int32_t n_threads,
               HandlerFactory reference)
    : model_(model), chunks_(std::move(chunks)), first_scored_(first_scored), n_threads_(n_threads) {
    KVAQ_CHECK(!chunks_.empty() && first_scored < chunks_[0].size());
    const auto n_vocab = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_)));
    const size_t n_scored = chunks_[0].size() - first_scored_;
    reference_.resize(chunks_.size() * n_scored * n_vocab);
    reference_top_.resize(chunks_.size() * n_scored);
    decode(std::move(reference), kBatch, [&](size_t i, std::span<const float> logits) {
        reference_top_[i] = log_softmax(logits, std::span<float>(&reference_[i * n_vocab], n_vocab));
    });
}

void Prober::decode(HandlerFactory factory, size_t n_batch, const Visit& visit) {
    const size_t n_ctx = chunks_[0].size();
    const ContextPtr ctx = make_context(model_,
                                        {.n_ctx = static_cast<uint32_t>(n_ctx),
                                         .n_batch = static_cast<uint32_t>(n_batch),
                                         .n_seq_max = 1,
                                         .n_threads = n_threads_},
                                        std::move(factory));
    for (size_t i = 0; i < chunks_.size(); ++i) {
        decode_chunk(
            ctx.get(), chunks_[i], n_batch, first_scored_,
            [&](size_t position, std::span<const float> logits) {
                visit(i * (n_ctx - first_scored_) + position - first_scored_, logits);
            },
            static_cast<size_t>(n_threads_));
    }
}

ProbeResult Prober::measure(HandlerFactory served, size_t n_batch) {
    const size_t n_vocab = reference_.size() / reference_top_.size();
    const size_t n_scored = reference_top_.size() / chunks_.size();
    std::vector<std::vector<TokenScore>> scores(chunks_.size(), std::vector<TokenScore>(n_scored));
    decode(std::move(served), n_batch, [&](size_t i, std::span<const float> logits) {
        TokenScore& score = scores[i / n_scored][i % n_scored];
        const SoftmaxNorm norm = softmax_norm(logits);
        score.same_top = norm.arg_max == reference_top_[i];
        score.kl = kl_divergence({&reference_[i * n_vocab], n_vocab}, logits, norm);
    });
    const ScoreSummary summary = summarize(scores);
    return {.kl = summary.mean_kl, .same_top = summary.same_top.value, .n_tokens = summary.n_tokens};
}

std::vector<std::vector<llama_token>> probe_chunks(const llama_model* model, std::span<const llama_token> tokens,
                                                   size_t first, size_t n, size_t n_ctx) {
    if (tokens.size() / n_ctx < n) {
        throw Error(ErrorCode::kInvalidArgument, "the text is too short",
                    "at least " + std::to_string(n * n_ctx) + " tokens", std::to_string(tokens.size()) + " tokens",
                    "Use a longer text, fewer chunks or smaller ones");
    }
    const std::span<const llama_token> rest = tokens.subspan(std::min(first, tokens.size() - n * n_ctx));
    std::vector<std::vector<llama_token>> chunks;
    for (size_t i = 0; i < n; ++i) chunks.push_back(chunk_of(model, rest, i, n_ctx));
    return chunks;
}

}  // namespace kvaq
