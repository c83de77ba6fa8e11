#include "kvaq/eval/calibrate.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <span>
#include <string_view>
#include <utility>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"
#include "kvaq/eval/calibration_text.h"
#include "kvaq/eval/prober.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/model_weights.h"
#include "kvaq/plan/planner.h"
#include "kvaq/stats/collector.h"
#include "kvaq/stats/transform_fit.h"

namespace kvaq {
namespace {

constexpr size_t kBatch = 512;
constexpr int32_t kProbeSinks = 4;
constexpr size_t kMaxTokens = size_t{1} << 31;
constexpr double kBaseBits = 3;
constexpr double kProbeBits = 1;  // low enough to stand out
constexpr double kNotMeasured = -1;
constexpr size_t kProbesPerSave = 10;
constexpr std::array kJointBits = {1.0, 2.0, 3.0, 4.0};
constexpr std::array kJointWindows = {32, 64, 128, 256};

void check(const CalibrateRequest& request) {
    const bool probes_fit =
        !request.probes || (request.probe_ctx >= 16 && request.probe_chunks >= 1 &&
                            request.probe_chunks < kMaxTokens / request.probe_ctx && request.joint_ctx >= 16 &&
                            request.joint_chunks < kMaxTokens / request.joint_ctx);
    if (request.n_ctx < 16 || request.n_ctx > kMaxTokens || request.n_chunks < 1 || !probes_fit) {
        throw Error(ErrorCode::kInvalidArgument, "nothing to measure",
                    "-c of at least 16, --chunks and --probe-chunks of at least 1",
                    "-c " + std::to_string(request.n_ctx) + " --chunks " + std::to_string(request.n_chunks) +
                        " --probe-chunks " + std::to_string(request.probe_chunks),
                    "--no-probes leaves the probes out");
    }
}

/// One calibration: what it has and what it has yet to do.
class Calibration {
  public:
    Calibration(const CalibrateRequest& request,
                const std::function<void(size_t, size_t, const std::string&)>& progress,
                std::optional<ModelStats> started, const std::function<void(const ModelStats&)>& save)
        : request_(request), progress_(progress), save_(save), started_(std::move(started)) {}

    ModelStats run() {
        check(request_);
        model_ = load_model(request_.model);
        shape_ = model_shape_of(model_.get());
        const std::vector<std::byte> file = request_.text.empty() ? std::vector<std::byte>() : read_file(request_.text);
        const std::string_view text = request_.text.empty()
                                          ? calibration_text()
                                          : std::string_view(reinterpret_cast<const char*>(file.data()), file.size());
        const std::string text_sha256 = sha256_hex(std::as_bytes(std::span(text)));
        tokens_ = tokenize_text(model_.get(), text, request_.text.empty() ? "the built-in text" : request_.text);
        if (request_.text.empty()) tokens_.resize(tokens_.size() - std::min(tokens_.size(), kHeldOutTokens));
        n_chunks_ = std::min(request_.n_chunks, tokens_.size() / request_.n_ctx);
        size_t needed = request_.n_ctx;
        if (request_.probes)
            needed = std::max(
                {needed, request_.probe_ctx * request_.probe_chunks, request_.joint_ctx * request_.joint_chunks});
        if (n_chunks_ == 0 || tokens_.size() < needed) {
            throw Error(ErrorCode::kInvalidArgument, "the calibration text is too short",
                        "at least " + std::to_string(needed) + " tokens", std::to_string(tokens_.size()) + " tokens",
                        "Use a longer text or a smaller -c");
        }
        const size_t n_joint = request_.probes && request_.joint_chunks > 0 ? 1 + joint_probes().size() : 0;
        const size_t long_ctx = n_joint > 0 ? length_to_probe() : 0;
        total_ = n_chunks_ + (request_.probes ? 1 + 2 * shape_.layers.size() : 0) + n_joint + (long_ctx > 0 ? 2 : 0);
        if (started_ && started_->settings == request_.settings() && started_->text_sha256 == text_sha256 &&
            started_->fingerprint == shape_.fingerprint) {
            stats_ = std::move(*started_);
            done_ = n_chunks_;
            std::fputs("kvaq: going on where the interrupted run stopped\n", stderr);
            progress_(done_, total_, "statistics");
        } else {
            collect();
            stats_.text_sha256 = text_sha256;
            stats_.settings = request_.settings();
            if (request_.probes) {
                stats_.probe_bits = kProbeBits;
                stats_.base_bits = kBaseBits;
                stats_.base_kl = stats_.joint_floor = kNotMeasured;
                save();
            }
        }
        if (!request_.probes) return std::move(stats_);
        fits_ = fit_all(stats_);
        probe_layers();
        if (n_joint > 0) probe_jointly();
        if (long_ctx > 0) probe_length(long_ctx);
        stats_.joint_floor = std::max(0.0, stats_.joint_floor);
        return std::move(stats_);
    }

  private:
    void save() {
        if (save_) save_(stats_);
    }

    void step(const std::string& what, bool measured) {
        progress_(++done_, total_, what);
        if (measured && ++since_save_ % kProbesPerSave == 0) save();
    }

    void collect() {
        const std::vector<OutputGrams> output = read_output_grams(request_.model, shape_);
        if (output.empty()) {
            std::fputs(
                "kvaq: warning: this model has no attn_output weights that can be read; heads of a layer are compared "
                "without them\n",
                stderr);
        }
        StatsCollector* collector = nullptr;
        const HandlerFactory collecting = [&](const ModelShape& s,
                                              const KvCacheOptions& options) -> std::unique_ptr<AttentionHandler> {
            auto made =
                std::make_unique<StatsCollector>(s, make_kv_cache(make_uniform_plan(parse_preset("f16"), s), options),
                                                 request_.n_sample_tiles, output, request_.key_period);
            collector = made.get();
            return made;
        };
        const ContextPtr ctx = make_context(model_.get(),
                                            {.n_ctx = static_cast<uint32_t>(request_.n_ctx),
                                             .n_batch = kBatch,
                                             .n_seq_max = 1,
                                             .n_threads = request_.n_threads},
                                            collecting);
        for (size_t i = 0; i < n_chunks_; ++i) {
            decode_chunk(ctx.get(), chunk_of(model_.get(), tokens_, i, request_.n_ctx), kBatch, request_.n_ctx - 1,
                         [](size_t, std::span<const float>) {});
            step("statistics", false);
        }
        stats_ = collector->stats();
    }

    [[nodiscard]] Plan f16_plan() const {
        Plan plan = make_uniform_plan(parse_preset("f16"), shape_);
        plan.name = "probe";
        plan.sinks = kProbeSinks;
        return plan;
    }

    void probe_layers() {
        Prober prober(
            model_.get(),
            probe_chunks(model_.get(), tokens_, n_chunks_ * request_.n_ctx, request_.probe_chunks, request_.probe_ctx),
            std::min(kProbeFirst, request_.probe_ctx / 2), request_.n_threads, {});
        const Plan base = uniform_transform_plan(stats_, fits_, kBaseBits, kBaseBits, 0, kProbeSinks, kProbeCodes);
        if (stats_.base_kl < 0) stats_.base_kl = std::max(0.0, prober.measure(base).kl.value);
        step("base", true);
        size_t next = 0;
        for (size_t l = 0; l < stats_.layers.size(); ++l) {
            for (const Side side : {Side::kKey, Side::kValue}) {
                double& kl = side == Side::kKey ? stats_.layers[l].probe.key_kl : stats_.layers[l].probe.value_kl;
                Plan plan = base;
                for (HeadPlan& head : plan.layers[l].heads) {
                    const FittedTransform& fitted = fits_[next++];
                    (side == Side::kKey ? head.key : head.value).transform =
                        fitted_codec(fitted, rung_at(fitted, kProbeBits, kProbeCodes).unit_bits, kProbeCodes);
                }
                const bool missing = kl <= LayerProbe::kNotMeasured;
                if (missing) kl = prober.measure(plan).kl.value - stats_.base_kl;
                step("layer " + std::to_string(stats_.layers[l].shape.layer) + " " + to_string(side), missing);
            }
        }
    }

    void probe_jointly() {
        Prober prober(
            model_.get(),
            probe_chunks(model_.get(), tokens_, n_chunks_ * request_.n_ctx, request_.joint_chunks, request_.joint_ctx),
            request_.joint_ctx / 2, request_.n_threads, {});
        if (stats_.joint_floor < 0) stats_.joint_floor = std::max(0.0, prober.measure(f16_plan()).kl.value);
        step("joint floor", true);
        const std::vector<JointProbe> wanted = joint_probes();
        for (size_t i = 0; i < wanted.size(); ++i) {
            JointProbe probe = wanted[i];
            const bool missing = i >= stats_.joint.size();
            if (missing) {
                probe.kl = prober
                               .measure(uniform_transform_plan(stats_, fits_, probe.key_bits, probe.value_bits,
                                                               probe.window, kProbeSinks, kProbeCodes))
                               .kl.value;
                stats_.joint.push_back(probe);
            }
            step("all layers at " + std::to_string(static_cast<int>(std::min(probe.key_bits, probe.value_bits))) +
                     " bits",
                 missing);
        }
    }

    /// The longest context up to the one asked for that the text and the model have, in powers of two times joint_ctx; 0: none
    /// longer than that.
    [[nodiscard]] size_t length_to_probe() const {
        size_t length = request_.joint_ctx;
        while (2 * length <= std::min({request_.long_ctx, tokens_.size(), static_cast<size_t>(shape_.n_ctx_train)}))
            length *= 2;
        return length > request_.joint_ctx ? length : 0;
    }

    void probe_length(size_t long_ctx) {
        if (!stats_.lengths.empty()) {
            done_ += 2;
            return;
        }
        const size_t short_ctx = request_.joint_ctx;
        const Plan base = uniform_transform_plan(stats_, fits_, kBaseBits, kBaseBits, 0, kProbeSinks, kProbeCodes);
        const std::span<const llama_token> text =
            std::span(tokens_).subspan(std::min(n_chunks_ * request_.n_ctx, tokens_.size() - long_ctx), long_ctx);
        // Against our own f16, which has the floor of our kernels in it already.
        const auto added = [&](std::vector<std::vector<llama_token>> chunks) {
            const size_t first_scored = chunks[0].size() / 2;
            return Prober(model_.get(), std::move(chunks), first_scored, request_.n_threads, serve_plan(f16_plan()))
                .measure(base)
                .kl.value;
        };
        LengthProbe probe{.n_ctx = static_cast<int32_t>(long_ctx), .short_ctx = static_cast<int32_t>(short_ctx)};
        probe.kl = added({chunk_of(model_.get(), text, 0, long_ctx)});
        step(std::to_string(long_ctx) + " tokens", false);
        std::vector<std::vector<llama_token>> chunks;
        for (size_t first = (long_ctx - short_ctx) / 2; first + short_ctx <= long_ctx; first += short_ctx / 2)
            chunks.push_back(chunk_of(model_.get(), text.subspan(first), 0, short_ctx));
        probe.short_kl = added(std::move(chunks));
        stats_.lengths.push_back(probe);
        step("the same in chunks of " + std::to_string(short_ctx), true);
    }

    [[nodiscard]] std::vector<JointProbe> joint_probes() const {
        std::vector<JointProbe> probes;
        for (const double bits : kJointBits) {
            for (const auto& [key, value] : {std::pair(bits, 16.0), std::pair(16.0, bits), std::pair(bits, bits)})
                probes.push_back({.key_bits = key, .value_bits = value});
        }
        for (const int32_t window : kJointWindows) {
            if (static_cast<size_t>(window) * 4 <= request_.joint_ctx)
                probes.push_back({.key_bits = kBaseBits, .value_bits = kBaseBits, .window = window});
        }
        return probes;
    }

    const CalibrateRequest& request_;
    const std::function<void(size_t, size_t, const std::string&)>& progress_;
    const std::function<void(const ModelStats&)>& save_;
    std::optional<ModelStats> started_;
    ModelPtr model_;
    ModelShape shape_;
    std::vector<llama_token> tokens_;
    size_t n_chunks_ = 0;
    size_t total_ = 0;
    size_t done_ = 0;
    size_t since_save_ = 0;
    ModelStats stats_;
    std::vector<FittedTransform> fits_;
};

}  // namespace

void CalibrateRequest::set(Effort effort) noexcept {
    if (effort == Effort::kQuick) {
        n_chunks = 4;
        probe_chunks = 1;
        probe_ctx = 512;
    } else if (effort == Effort::kThorough) {
        n_chunks = 16;
        n_sample_tiles = 48;
        probe_chunks = 4;
        probe_ctx = 768;
        joint_chunks = 4;
        long_ctx = 8192;
    }
}

std::string CalibrateRequest::settings() const {
    const auto product = [](size_t a, size_t b) { return std::to_string(a) + "x" + std::to_string(b); };
    std::string words =
        "statistics " + product(n_chunks, n_ctx) + " tokens, " + std::to_string(n_sample_tiles) + " sample tiles" +
        (key_period > 0 ? ", keys turned back by multiples of " + std::to_string(key_period) + " positions"
                        : std::string());
    if (probes)
        words += ", layer probes " + product(probe_chunks, probe_ctx) + " from " +
                 std::to_string(std::min(kProbeFirst, probe_ctx / 2)) + ", joint probes " +
                 product(joint_chunks, joint_ctx) + ", length probe up to " + std::to_string(long_ctx);
    return words;
}

ModelStats calibrate(const CalibrateRequest& request,
                     const std::function<void(size_t, size_t, const std::string&)>& progress,
                     std::optional<ModelStats> started, const std::function<void(const ModelStats&)>& save) {
    return Calibration(request, progress, std::move(started), save).run();
}

}  // namespace kvaq
