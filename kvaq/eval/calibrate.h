#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>

#include "kvaq/stats/model_stats.h"

namespace kvaq {

/// First scored token of a layer's probe: two pages of packed tokens are behind it.
inline constexpr size_t kProbeFirst = 128;

/// How much is measured.
enum class Effort { kQuick, kNormal, kThorough };

struct CalibrateRequest {
    std::string model;
    std::string text;            ///< a file; empty: calibration_text() but for its last kHeldOutTokens
    size_t n_ctx = 2048;         ///< tokens per chunk of the statistics
    size_t n_chunks = 8;         ///< at most this many; fewer if the text ends
    size_t n_sample_tiles = 24;  ///< per head
    size_t probe_ctx =
        384;  ///< tokens per chunk of a layer's probe, from the text after the statistics' chunks; all from
              ///< kProbeFirst on (the second half, if that begins before) are scored
    size_t probe_chunks = 2;  ///< two places of the text err less than one of twice the length
    size_t joint_ctx = 2048;  ///< tokens per chunk of a joint probe; its second half is scored
    size_t joint_chunks = 1;  ///< 0: no joint probes
    size_t long_ctx = 4096;   ///< of the length probe, if the text and the model go that far; 0: none
    bool probes = true;
    int32_t key_period = 256;  ///< Plan::key_period of the plans that come of it; 0: keys stay as they are
    int32_t n_threads = 2;

    /// The numbers of an effort: quick halves the text and shortens the layers' probes, thorough doubles the text and takes four times the probes.
    void set(Effort effort) noexcept;
    /// Everything that decides the result, as text: a calibration that stopped goes on only with the same.
    [[nodiscard]] std::string settings() const;
};

/// Collects moments and sample tiles of K, V and Q over the text, then measures damage as mean KL:
///   layer probes  one side of one layer lowered from 3 bits to 1, everything else at 3 bits of the fitted transform codecs
///   length probe  everything at 3 bits at long_ctx tokens, and the same tokens in chunks of joint_ctx
///   joint probes  all layers' keys, values or both at 1, 2, 3 and 4 bits; both at 3 bits with the newest 32 to 256 tokens in f16
/// against plain llama.cpp with its f16 cache (the length probe: against our own), four sink tokens in f16, on text that the statistics have not seen where it is long enough (in the built-in text: with quick and normal effort). progress(done, total, what) after every chunk or probe.
///   started   what an earlier call with the same settings left behind: what it measured is not measured again
///   save      called now and then with everything so far, so that the work can go on after an interruption
/// Throws Error: bad model or text, a text of less than one chunk.
[[nodiscard]] ModelStats calibrate(const CalibrateRequest& request,
                                   const std::function<void(size_t, size_t, const std::string&)>& progress,
                                   std::optional<ModelStats> started = std::nullopt,
                                   const std::function<void(const ModelStats&)>& save = {});

}  // namespace kvaq
