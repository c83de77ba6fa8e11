#include "kvaq/eval/calibrate.h"

#include <algorithm>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"
#include "kvaq/eval/divergence.h"
#include "kvaq/eval/session.h"
#include "kvaq/plan/plan.h"
#include "kvaq/stats/collector.h"
#include "kvaq/stats/transform_fit.h"

namespace kvaq {
namespace {

constexpr size_t kBatch = 512;
constexpr int32_t kProbeSinks = 4;
constexpr size_t kMaxTokens = size_t{1} << 31;
constexpr double kProbeBits = 2;  // low enough to stand out from the floor

HandlerFactory fixed_plan(const Plan& plan) {
    return [plan](const ModelShape&, const KvCacheOptions& options) -> std::unique_ptr<AttentionHandler> { return make_kv_cache(plan, options); };
}

/// Log-probabilities of the scored positions of the probe chunks, one plan after the other against the f16 plan's.
class Prober {
  public:
    Prober(llama_model* model, const CalibrateRequest& request, std::span<const llama_token> tokens) : model_(model), request_(request) {
        for (size_t i = 0; i < request.probe_chunks; ++i) chunks_.push_back(chunk_of(model, tokens, i, request.probe_ctx));
    }

    /// Mean KL of the plan; the first call makes the reference and returns 0.
    double kl(const Plan& plan) {
        const ContextPtr ctx = make_context(model_, {.n_ctx = static_cast<uint32_t>(request_.probe_ctx), .n_batch = kBatch, .n_seq_max = 1, .n_threads = request_.n_threads},
                                            fixed_plan(plan));
        const size_t first = request_.probe_ctx / 2;
        const auto n_vocab = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_)));
        const size_t n_scored = request_.probe_ctx - first;
        const bool reference = reference_.empty();
        if (reference) reference_.resize(chunks_.size() * n_scored * n_vocab);
        std::vector<float> own(n_vocab);
        double sum = 0;
        for (size_t i = 0; i < chunks_.size(); ++i) {
            decode_chunk(ctx.get(), chunks_[i], kBatch, first, [&](size_t position, std::span<const float> logits) {
                const std::span<float> log_p(&reference_[(i * n_scored + position - first) * n_vocab], n_vocab);
                if (reference) {
                    (void)log_softmax(logits, log_p);
                } else {
                    (void)log_softmax(logits, own);
                    sum += kl_divergence(log_p, own);
                }
            });
        }
        return sum / static_cast<double>(chunks_.size() * n_scored);
    }

  private:
    llama_model* model_;
    const CalibrateRequest& request_;
    std::vector<std::vector<llama_token>> chunks_;
    std::vector<float> reference_;
};

Plan probe_plan(const ModelShape& shape) {
    Plan plan = make_uniform_plan(parse_preset("f16"), shape);
    plan.name = "probe";
    plan.sinks = kProbeSinks;
    return plan;
}

}  // namespace

ModelStats calibrate(const CalibrateRequest& request, const std::function<void(size_t, size_t, const std::string&)>& progress) {
    const bool probes_fit = !request.probes || (request.probe_ctx >= 16 && request.probe_chunks >= 1 && request.probe_chunks < kMaxTokens / request.probe_ctx);
    if (request.n_ctx < 16 || request.n_ctx > kMaxTokens || request.n_chunks < 1 || !probes_fit) {
        throw Error(ErrorCode::kInvalidArgument, "nothing to measure", "-c of at least 16, --chunks and --probe-chunks of at least 1",
                    "-c " + std::to_string(request.n_ctx) + " --chunks " + std::to_string(request.n_chunks) + " --probe-chunks " + std::to_string(request.probe_chunks),
                    "--no-probes leaves the probes out");
    }
    const ModelPtr model = load_model(request.model);
    const ModelShape shape = model_shape_of(model.get());
    const std::string text_sha256 = sha256_hex(read_file(request.text));
    const std::vector<llama_token> tokens = tokenize_file(model.get(), request.text);
    const size_t n_chunks = std::min(request.n_chunks, tokens.size() / request.n_ctx);
    const size_t n_probe_tokens = request.probes ? request.probe_ctx * request.probe_chunks : 0;
    if (n_chunks == 0 || tokens.size() < n_probe_tokens) {
        throw Error(ErrorCode::kInvalidArgument, "the calibration text is too short", "at least " + std::to_string(std::max(request.n_ctx, n_probe_tokens)) + " tokens",
                    std::to_string(tokens.size()) + " tokens", "Use a longer text or a smaller -c");
    }
    const size_t n_probes = request.probes ? 2 + 2 * shape.layers.size() : 0;
    const size_t total = n_chunks + n_probes;
    size_t done = 0;

    StatsCollector* collector = nullptr;
    const HandlerFactory collecting = [&](const ModelShape& s, const KvCacheOptions& options) -> std::unique_ptr<AttentionHandler> {
        auto made = std::make_unique<StatsCollector>(s, make_kv_cache(make_uniform_plan(parse_preset("f16"), s), options), request.n_sample_tiles);
        collector = made.get();
        return made;
    };
    ModelStats stats;
    {
        const ContextPtr ctx = make_context(model.get(), {.n_ctx = static_cast<uint32_t>(request.n_ctx), .n_batch = kBatch, .n_seq_max = 1, .n_threads = request.n_threads}, collecting);
        for (size_t i = 0; i < n_chunks; ++i) {
            decode_chunk(ctx.get(), chunk_of(model.get(), tokens, i, request.n_ctx), kBatch, request.n_ctx - 1, [](size_t, std::span<const float>) {});
            progress(++done, total, "statistics");
        }
        stats = collector->stats();
    }
    stats.text_sha256 = text_sha256;
    if (!request.probes) return stats;

    stats.probe_bits = kProbeBits;
    Prober prober(model.get(), request, tokens);
    (void)prober.kl(probe_plan(shape));
    progress(++done, total, "reference");
    Plan tiny = probe_plan(shape);  // 8 bits in one layer: what any perturbation at all costs
    for (HeadPlan& head : tiny.layers[tiny.layers.size() / 2].heads) head.key = head.value = {.bits = CodeBits::k8, .group = 32};
    stats.probe_floor = prober.kl(tiny);
    progress(++done, total, "floor");
    for (size_t l = 0; l < stats.layers.size(); ++l) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            Plan plan = probe_plan(shape);
            for (size_t h = 0; h < plan.layers[l].heads.size(); ++h) {
                const FittedTransform fitted = fit_transform(stats.layers[l].heads[h], side, stats.n_sample_tiles);
                CodecSpec& codec = side == Side::kKey ? plan.layers[l].heads[h].key : plan.layers[l].heads[h].value;
                codec.transform = make_transform_codec(fitted.fit, rung_at(fitted, kProbeBits).unit_bits);
            }
            (side == Side::kKey ? stats.layers[l].probe.key_kl : stats.layers[l].probe.value_kl) = prober.kl(plan);
            progress(++done, total, "layer " + std::to_string(stats.layers[l].shape.layer) + " " + to_string(side));
        }
    }
    return stats;
}

}  // namespace kvaq
