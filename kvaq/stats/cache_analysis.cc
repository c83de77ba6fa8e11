#include "kvaq/stats/cache_analysis.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

#include "kvaq/base/error.h"
#include "kvaq/base/rope.h"
#include "kvaq/quant/affine.h"
#include "kvaq/quant/hadamard.h"
#include "kvaq/stats/distortion.h"
#include "kvaq/stats/spectrum.h"

namespace kvaq {
namespace {

constexpr size_t kTile = 64;  // tokens of a sample tile (kvaq/stats/model_stats.h)

/// Sample tiles of keys as the model caches them.
std::vector<float16> cached_tiles(const HeadStats& head, const RopeRule& rope, const std::vector<int32_t>& turns) {
    const size_t dim = head.key_mean.size();
    std::vector<float16> out = head.key_tiles;
    RopeTurn turn;
    for (size_t tile = 0; tile < turns.size(); ++tile) {
        turn.set(rope, -turns[tile]);
        for (size_t t = 0; t < kTile; ++t) {
            float16* row = &out[(tile * kTile + t) * dim];
            turn.apply(row, row, dim);
        }
    }
    return out;
}

/// Rounding to nearest in groups of 64 channels between their extremes, offset and scale in float16 as tiles have them, for widths without a codec; a
/// mean square per element.
double rounding_mse(int bits, bool rotated, std::span<const float16> rows, size_t dim) {
    constexpr size_t kGroup = 64;
    const double most = std::exp2(bits) - 1;
    double sum = 0;
    std::vector<double> row(dim);
    for (size_t first = 0; first < rows.size(); first += dim) {
        for (size_t c = 0; c < dim; ++c) row[c] = static_cast<double>(rows[first + c]);
        if (rotated) hadamard_transform(row.data(), dim);  // orthonormal: errors keep their size
        for (size_t begin = 0; begin < dim; begin += kGroup) {
            const std::span group(row.data() + begin, std::min(kGroup, dim - begin));
            const auto [low, high] = std::minmax_element(group.begin(), group.end());
            const double offset = static_cast<double>(round_down_f16(*low));
            const double scale = static_cast<double>(round_up_f16((*high - offset) / most));
            for (const double x : group) {
                const double code = scale > 0 ? std::clamp(std::rint((x - offset) / scale), 0.0, most) : 0.0;
                const double e = x - offset - scale * code;
                sum += e * e;
            }
        }
    }
    return rows.empty() ? 0 : sum / static_cast<double>(rows.size());
}

SideAnalysis analyze_side(const HeadStats& head, Side side, const std::vector<double>& second,
                          const std::vector<float16>& tiles, uint64_t n_tokens, size_t max_tiles) {
    const bool is_key = side == Side::kKey;
    const size_t dim = (is_key ? head.key_mean : head.value_mean).size();
    const std::span<const float16> rows =
        std::span(tiles).first(std::min(tiles.size() / (kTile * dim), max_tiles) * kTile * dim);
    SideAnalysis out;
    out.spectrum = singular_values(second, dim, n_tokens);
    out.frobenius = frobenius_norm(second, dim, n_tokens);
    out.spectral = out.spectrum.empty() ? 0 : out.spectrum.front();
    out.rank = effective_rank(out.spectrum);
    double top = 0;
    for (size_t i = 0; i < std::min<size_t>(4, out.spectrum.size()); ++i) top += out.spectrum[i] * out.spectrum[i];
    out.first_four = out.frobenius > 0 ? top / (out.frobenius * out.frobenius) : 0;
    for (const float16 x : rows) out.mean_square += static_cast<double>(x) * static_cast<double>(x);
    out.mean_square /= static_cast<double>(std::max<size_t>(rows.size(), 1));
    for (const int bits : kStudyBits) {
        if (bits == 7) {
            out.mse.push_back(rounding_mse(bits, false, rows, dim));
            out.mse_rotated.push_back(rounding_mse(bits, true, rows, dim));
            continue;
        }
        CodecSpec spec{.bits = static_cast<CodeBits>(bits), .group = 64};
        out.mse.push_back(quantization_mse(spec, side, rows, dim, kTile));
        spec.basis = Basis::kHadamard;
        out.mse_rotated.push_back(quantization_mse(spec, side, rows, dim, kTile));
    }
    for (const uint16_t group : kStudyGroups) {
        const auto bits = static_cast<CodeBits>(is_key ? kGroupStudyKeyBits : kGroupStudyValueBits);
        out.mse_grouped.push_back(quantization_mse({.bits = bits, .group = group}, side, rows, dim, kTile));
    }
    out.bounds = check_bounds(rows, dim, kStudyBits);
    return out;
}

}  // namespace

double LayerAnalysis::frobenius(Side side) const noexcept {
    double sum = 0;
    for (const HeadAnalysis& head : heads) sum += head.side(side).frobenius * head.side(side).frobenius;
    return std::sqrt(sum);
}

double LayerAnalysis::spectral(Side side) const noexcept { return mean(side, &SideAnalysis::spectral); }

double LayerAnalysis::mean(Side side, const std::vector<double> SideAnalysis::*member, size_t index) const {
    double sum = 0;
    for (const HeadAnalysis& head : heads) sum += (head.side(side).*member)[index];
    return sum / static_cast<double>(heads.size());
}

double LayerAnalysis::mean(Side side, double SideAnalysis::*member) const {
    double sum = 0;
    for (const HeadAnalysis& head : heads) sum += head.side(side).*member;
    return sum / static_cast<double>(heads.size());
}

CacheAnalysis analyze_cache(const ModelStats& stats, size_t max_tiles, size_t n_threads,
                            const std::function<void(size_t)>& progress) {
    if (stats.n_sample_tiles == 0 || max_tiles == 0) {
        throw Error(ErrorCode::kInvalidArgument, "the statistics hold no sample tiles to quantize",
                    "at least one of 64 tokens", "none", "Calibrate with -c 256 or more");
    }
    CacheAnalysis out;
    out.n_tokens = stats.n_tokens;
    out.n_sample_tokens = std::min(stats.n_sample_tiles, max_tiles) * kTile;
    out.layers.resize(stats.layers.size());
    for (const LayerStats& layer : stats.layers) {  // without RoPE nothing was turned
        for (const HeadStats& head : layer.heads) {
            out.as_cached = out.as_cached &&
                            (layer.rope.n_dims == 0 || (!head.cached_key_second.empty() && !stats.tile_turns.empty()));
        }
    }
    std::atomic<size_t> next{0};
    std::mutex mutex;
    size_t done = 0;
    std::exception_ptr failure;
    const auto work = [&] {
        for (size_t i = next++; i < stats.layers.size(); i = next++) {
            try {
                const LayerStats& layer = stats.layers[i];
                out.layers[i].shape = layer.shape;
                for (const HeadStats& head : layer.heads) {
                    const bool turned = out.as_cached && layer.rope.n_dims > 0;
                    std::vector<float16> turned_back;
                    if (turned) turned_back = cached_tiles(head, layer.rope, stats.tile_turns);
                    out.layers[i].heads.push_back(
                        {.key = analyze_side(head, Side::kKey, out.as_cached ? head.cached_keys() : head.key_second,
                                             turned ? turned_back : head.key_tiles, stats.n_tokens, max_tiles),
                         .value = analyze_side(head, Side::kValue, head.value_second, head.value_tiles, stats.n_tokens,
                                               max_tiles)});
                }
                const std::lock_guard lock(mutex);
                ++done;
                if (progress) progress(done);
            } catch (...) {
                const std::lock_guard lock(mutex);
                failure = std::current_exception();
                return;
            }
        }
    };
    std::vector<std::thread> threads;
    for (size_t t = 1; t < std::min(std::max<size_t>(n_threads, 1), stats.layers.size()); ++t)
        threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
    return out;
}

}  // namespace kvaq
