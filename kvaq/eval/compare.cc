#include "kvaq/eval/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"
#include "kvaq/base/simd_target.h"
#include "kvaq/eval/perturbed_cache.h"
#include "kvaq/eval/prober.h"
#include "kvaq/eval/session.h"
#include "kvaq/eval/suite_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

constexpr size_t kControlBatch = 3;
constexpr const char* kChunks = "chunks";  ///< the one task in the partial file; item = chunk * rows + row

/// One row while it is being measured.
struct Runner {
    CompareRow row;
    ContextPtr ctx;
    size_t n_batch = 0;
    double chunk_seconds = 0;  ///< of the chunk at hand
};

class Comparison {
  public:
    Comparison(const CompareRequest& request, const std::function<void(size_t, size_t, const std::string&)>& progress)
        : request_(request), progress_(progress) {}

    CompareResult run() {
        for (const std::string& type : request_.types) (void)llama_cache_type(type);  // bad names before long work
        std::vector<HandlerFactory> factories;
        for (const std::string& plan : request_.plans) factories.push_back(plan_factory(plan));
        for (const Plan& plan : request_.made) factories.push_back(serve_plan(plan));
        model_ = load_model(request_.model);
        result_.shape = model_shape_of(model_.get());
        for (const HandlerFactory& factory : factories)
            (void)factory(result_.shape, {.n_seq_max = 1, .n_ctx = 1, .max_batch_tokens = 1});  // does it fit?
        result_.text_sha256 = sha256_hex(read_file(request_.text));
        tokens_ = tokenize_file(model_.get(), request_.text);
        result_.n_text_tokens = tokens_.size();
        if (tokens_.size() < request_.n_ctx * request_.n_chunks) {
            throw Error(ErrorCode::kInvalidArgument, "the text is too short",
                        fmt::format("{} chunks of {} tokens = {} tokens", request_.n_chunks, request_.n_ctx,
                                    request_.n_ctx * request_.n_chunks),
                        fmt::format("{} tokens", tokens_.size()), "Use fewer --chunks, a smaller -c or a longer text");
        }
        add("f16 (llama.cpp)", "reference", llama_cache_bytes(result_.shape, "f16", request_.n_ctx), request_.n_batch,
            GGML_TYPE_F16, {});
        if (request_.control) {
            add(fmt::format("f16, batches of {}", kControlBatch), "control", runners_[0].row.bytes, kControlBatch,
                GGML_TYPE_F16, {});
        }
        if (request_.perturbed) {
            add("f16, K and V off by 2^-12", "control", runners_[0].row.bytes, request_.n_batch, GGML_TYPE_F16,
                serve_perturbed_f16());
        }
        for (const std::string& type : request_.types) {
            add(type + " (llama.cpp)", "llama.cpp", llama_cache_bytes(result_.shape, type, request_.n_ctx),
                request_.n_batch, llama_cache_type(type), {});
        }
        for (size_t i = 0; i < factories.size(); ++i) {
            add(i < request_.plans.size() ? request_.plans[i] : request_.made[i - request_.plans.size()].name, "plan",
                0, request_.n_batch, GGML_TYPE_F16, factories[i]);
            Runner& runner = runners_.back();
            const KvCache* cache = cache_of(runner.ctx.get());
            KVAQ_CHECK(cache != nullptr);
            runner.row.bytes = cache_bytes(cache->plan(), request_.n_ctx).total;
            runner.row.name = cache->plan().name;
            runner.row.predicted_kl = cache->plan().predicted_kl;
            runner.row.plan_sha256 = sha256_hex(canonical_text(cache->plan()));
        }
        const auto n_elements = static_cast<double>(
            cache_bytes(make_uniform_plan(parse_preset("f16"), result_.shape), request_.n_ctx).elements);
        open_partial();
        for (size_t chunk = 0; chunk < request_.n_chunks; ++chunk) run_chunk(chunk);
        for (Runner& runner : runners_) {
            runner.row.effective_bits = 8.0 * static_cast<double>(runner.row.bytes) / n_elements;
            runner.row.summary = summarize(runner.row.chunks);
            result_.rows.push_back(std::move(runner.row));
        }
        return std::move(result_);
    }

  private:
    void add(const std::string& name, const std::string& kind, size_t bytes, size_t n_batch, ggml_type type,
             HandlerFactory factory) {
        Runner runner;
        runner.row.name = name;
        runner.row.kind = kind;
        runner.row.bytes = bytes;
        runner.n_batch = n_batch;
        runner.ctx = make_context(model_.get(),
                                  {.n_ctx = static_cast<uint32_t>(request_.n_ctx),
                                   .n_batch = static_cast<uint32_t>(n_batch),
                                   .n_seq_max = 1,
                                   .n_threads = request_.n_threads,
                                   .cache_type = type},
                                  std::move(factory));
        runners_.push_back(std::move(runner));
    }

    /// What an interrupted run has measured of the same rows on the same text.
    void open_partial() {
        if (request_.partial.empty()) return;
        nlohmann::ordered_json rows;
        for (const Runner& runner : runners_)
            rows.push_back({runner.row.name, runner.row.kind, runner.row.plan_sha256});
        const nlohmann::ordered_json head = {{"model", result_.shape.fingerprint},
                                             {"text", result_.text_sha256},
                                             {"n_ctx", request_.n_ctx},
                                             {"n_batch", request_.n_batch},
                                             {"threads", request_.n_threads},
                                             {"reference_bytes", request_.max_reference_bytes},
                                             {"simd", to_string(best_simd_target())},
                                             {"rows", rows}};
        try {
            kept_.emplace(request_.partial, head);
        } catch (const Error& error) {
            if (error.code() != ErrorCode::kMismatch && error.code() != ErrorCode::kCorrupt) throw;
            std::filesystem::remove(request_.partial);
            kept_.emplace(request_.partial, head);
        }
        measured_ = kept_->open_task(kChunks, nlohmann::ordered_json::object());
    }

    [[nodiscard]] bool is_measured(size_t chunk, size_t row) const {
        return measured_.count(chunk * runners_.size() + row) > 0;
    }

    void keep(size_t chunk, size_t row, double seconds) {
        if (!kept_) return;
        Observation all{.weight = seconds};
        for (const TokenScore& score : runners_[row].row.chunks.back())
            all.values.insert(all.values.end(), {score.nll, score.kl, score.same_top ? 1.0 : 0.0});
        kept_->append(kChunks, chunk * runners_.size() + row, {{.observations = {std::move(all)}, .text = ""}});
    }

    void restore(size_t chunk, size_t row) {
        const std::vector<ItemScore>& items = measured_.at(chunk * runners_.size() + row);
        const Observation none;
        const Observation& all = items.empty() || items[0].observations.empty() ? none : items[0].observations[0];
        std::vector<TokenScore>& scores = runners_[row].row.chunks.back();
        if (all.values.size() != 3 * scores.size()) {
            throw Error(ErrorCode::kCorrupt, fmt::format("'{}' is damaged", request_.partial),
                        fmt::format("{} numbers of a chunk", 3 * scores.size()), std::to_string(all.values.size()),
                        "Delete it to start again");
        }
        for (size_t i = 0; i < scores.size(); ++i) {
            scores[i] = {.nll = all.values[3 * i], .kl = all.values[3 * i + 1], .same_top = all.values[3 * i + 2] != 0};
        }
        runners_[row].row.seconds += all.weight;
        progress_(chunk * runners_.size() + row + 1, request_.n_chunks * runners_.size(), runners_[row].row.name);
    }

    void run_chunk(size_t index) {
        const std::vector<llama_token> chunk = chunk_of(model_.get(), tokens_, index, request_.n_ctx);
        const size_t first = request_.n_ctx / 2;
        const size_t n_scored = request_.n_ctx - 1 - first;
        bool whole = true;
        for (size_t r = 0; r < runners_.size(); ++r) {
            llama_memory_clear(llama_get_memory(runners_[r].ctx.get()), true);
            runners_[r].row.chunks.emplace_back(n_scored);
            if (is_measured(index, r)) {
                restore(index, r);
            } else {
                whole = false;
            }
        }
        if (whole) return;
        // Every row decodes one slice before any decodes the next, so that the reference is held for one slice only. Slices are
        // whole batches: where a chunk fits in one, the batches are llama-perplexity's.
        const auto n_vocab = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
        const size_t n_held = request_.max_reference_bytes / (n_vocab * sizeof(float));
        const size_t n_slice = std::max<size_t>(1, n_held / request_.n_batch) * request_.n_batch;
        const size_t unscored = first / request_.n_batch * request_.n_batch;
        for (size_t begin = 0; begin < request_.n_ctx;) {
            const size_t end = n_held >= n_scored ? request_.n_ctx
                                                  : std::min(request_.n_ctx, (begin == 0 ? unscored : begin) + n_slice);
            run_slice(index, chunk, begin, end);
            begin = end;
        }
    }

    void run_slice(size_t index, std::span<const llama_token> chunk, size_t begin, size_t end) {
        const size_t first = request_.n_ctx / 2;
        const size_t base = std::max(begin, first);
        const size_t n_scored = end > base ? end - base : 0;
        const auto n_vocab = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
        reference_.resize(n_scored * n_vocab);
        reference_top_.resize(n_scored);
        for (size_t r = 0; r < runners_.size(); ++r) {
            Runner& runner = runners_[r];
            const bool known = is_measured(index, r);
            if (known && r > 0) continue;  // the reference is what the others are scored against
            std::vector<TokenScore>& scores = runner.row.chunks.back();
            const auto score = [&](size_t position, std::span<const float> logits) {
                if (position + 1 >= chunk.size()) return;
                const size_t i = position - base;
                const std::span<float> reference(&reference_[i * n_vocab], n_vocab);
                const SoftmaxNorm norm = softmax_norm(logits);
                if (r == 0) {
                    reference_top_[i] = norm.arg_max;
                    for (size_t j = 0; j < n_vocab; ++j) reference[j] = norm.log_of(logits[j]);
                }
                scores[position - first] = {
                    .nll = -static_cast<double>(norm.log_of(logits[static_cast<size_t>(chunk[position + 1])])),
                    .kl = r == 0 ? 0.0 : kl_divergence(reference, logits, norm),
                    .same_top = norm.arg_max == reference_top_[i]};
            };
            const double seconds = decode_part(runner.ctx.get(), chunk, begin, end, runner.n_batch, first, score,
                                               static_cast<size_t>(request_.n_threads));
            if (known) continue;
            runner.row.seconds += seconds;
            runner.chunk_seconds = (begin == 0 ? 0 : runner.chunk_seconds) + seconds;
            if (end < request_.n_ctx) continue;
            keep(index, r, runner.chunk_seconds);
            progress_(index * runners_.size() + r + 1, request_.n_chunks * runners_.size(), runner.row.name);
        }
    }

    const CompareRequest& request_;
    const std::function<void(size_t, size_t, const std::string&)>& progress_;
    CompareResult result_;
    ModelPtr model_;
    std::vector<llama_token> tokens_;
    std::vector<Runner> runners_;
    std::vector<float> reference_;
    std::vector<size_t> reference_top_;
    std::optional<SuiteFile> kept_;
    std::map<size_t, std::vector<ItemScore>> measured_;  ///< by an interrupted run
};

}  // namespace

CompareResult compare(const CompareRequest& request,
                      const std::function<void(size_t, size_t, const std::string&)>& progress) {
    constexpr size_t kMax = size_t{1} << 31;  // n_ctx * n_chunks must not wrap around
    if (request.n_ctx < 16 || request.n_ctx > kMax || request.n_chunks < 1 || request.n_chunks > kMax ||
        request.n_batch < 1) {
        throw Error(ErrorCode::kInvalidArgument, "nothing to evaluate",
                    "-c of 16 to 2^31, --chunks of 1 to 2^31 and -b of at least 1",
                    fmt::format("-c {} --chunks {} -b {}", request.n_ctx, request.n_chunks, request.n_batch));
    }
    return Comparison(request, progress).run();
}

void remove_partial(const std::string& partial) noexcept {
    std::error_code ignored;
    if (!partial.empty()) std::filesystem::remove(partial, ignored);
}

std::string to_markdown(const CompareRequest& request, const CompareResult& result) {
    std::string text = fmt::format(
        "| cache | bits/element | MiB at {} | PPL | mean KL (nats) | median KL | 99 % KL | same top token "
        "|\n|---|---|---|---|---|---|---|---|\n",
        request.n_ctx);
    for (const CompareRow& row : result.rows) {
        const ScoreSummary& s = row.summary;
        const bool reference = row.kind == "reference";
        text += fmt::format(
            "| {} | {:.2f} | {:.1f} | {:.4f} ± {:.4f} | {} | {} | {} | {} |\n", row.name, row.effective_bits,
            static_cast<double>(row.bytes) / (1024 * 1024), s.perplexity.value, s.perplexity.error,
            reference ? "reference" : fmt::format("{:.5f} ± {:.5f}", s.mean_kl.value, s.mean_kl.error),
            reference ? "" : fmt::format("{:.5f}", s.median_kl), reference ? "" : fmt::format("{:.4f}", s.kl_99),
            reference ? "" : fmt::format("{:.2f} ± {:.2f} %", 100 * s.same_top.value, 100 * s.same_top.error));
    }
    return text;
}

std::string to_json(const CompareRequest& request, const CompareResult& result, const std::string& command) {
    nlohmann::ordered_json json;
    json["schema_version"] = 1;
    json["kind"] = "kvaq.eval";
    json["command"] = command;
    json["model"] = {{"path", request.model},
                     {"name", result.shape.name},
                     {"architecture", result.shape.architecture},
                     {"fingerprint", result.shape.fingerprint}};
    json["text"] = {{"path", request.text}, {"sha256", result.text_sha256}, {"tokens", result.n_text_tokens}};
    json["n_ctx"] = request.n_ctx;
    json["n_chunks"] = request.n_chunks;
    json["scored"] = "positions n_ctx/2 .. n_ctx-2 of each chunk";
    for (const CompareRow& row : result.rows) {
        const ScoreSummary& s = row.summary;
        nlohmann::ordered_json out;
        out["name"] = row.name;
        out["kind"] = row.kind;
        out["effective_bits"] = row.effective_bits;
        out["bytes"] = row.bytes;
        out["seconds"] = row.seconds;
        out["tokens_per_second"] = static_cast<double>(request.n_ctx * request.n_chunks) / row.seconds;
        out["n_tokens"] = s.n_tokens;
        out["perplexity"] = {{"value", s.perplexity.value}, {"standard_error", s.perplexity.error}};
        out["mean_kl"] = {{"value", s.mean_kl.value}, {"standard_error", s.mean_kl.error}, {"unit", "nats"}};
        if (!row.plan_sha256.empty()) out["plan_sha256"] = row.plan_sha256;
        if (row.predicted_kl >= 0) out["predicted_kl"] = row.predicted_kl;
        out["median_kl"] = s.median_kl;
        out["kl_99"] = s.kl_99;
        out["max_kl"] = s.max_kl;
        out["same_top"] = {{"value", s.same_top.value}, {"standard_error", s.same_top.error}};
        for (const auto& chunk : row.chunks) {
            double kl = 0;
            double nll = 0;
            for (const TokenScore& score : chunk) {
                kl += score.kl;
                nll += score.nll;
            }
            const auto n = static_cast<double>(chunk.size());
            out["chunks"].push_back({{"mean_kl", kl / n}, {"mean_nll", nll / n}});
        }
        json["rows"].push_back(out);
    }
    return json.dump(2) + "\n";
}

}  // namespace kvaq
