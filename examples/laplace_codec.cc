// A codec of your own (docs/adding-a-codec.md): Lloyd-Max levels for Laplace-distributed numbers on each head where their error is smaller.
//   example_laplace_codec MODEL.stats.gguf 4 OUT.plan.gguf && kvaq run --plan OUT.plan.gguf -m MODEL.gguf -p "Hello"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/stats_file.h"
#include "kvaq/plan/planner.h"
#include "kvaq/quant/gaussian_codebook.h"
#include "kvaq/stats/distortion.h"

using namespace kvaq;

/// 2^bits levels of least mean square error for a Laplace variable of variance 1, in steps of 1/32 (kLevelsPerSigma): Lloyd's iteration on quantiles.
std::vector<int8_t> laplace_codebook(unsigned bits) {
    std::vector<double> x(20001);
    for (size_t i = 0; i < x.size(); ++i) {
        const double p = static_cast<double>(i) / 20001 - 0.499975;
        x[i] = std::copysign(std::log(1 - 2 * std::fabs(p)) / std::sqrt(2.0), p);
    }
    const size_t n = size_t{1} << bits;
    std::vector<double> level(n);
    for (size_t k = 0; k < n; ++k) level[k] = x[(2 * k + 1) * x.size() / (2 * n)];
    for (int round = 0; round < 300; ++round) {
        for (size_t i = 0, k = 0; k < n; ++k) {  // each level moves to the mean of what is nearest to it
            const double end = k + 1 < n ? (level[k] + level[k + 1]) / 2 : x.back();
            double sum = 0, count = 0;
            for (; i < x.size() && x[i] <= end; ++i, ++count) sum += x[i];
            if (count > 0) level[k] = sum / count;
        }
    }
    std::vector<int8_t> out(n);
    for (size_t k = 0; k < n; ++k) out[k] = static_cast<int8_t>(std::lround(std::clamp(32 * level[k], -128.0, 127.0)));
    return out;
}

/// The built-in rotation with normal levels, or with ours; one value for all heads of a side and size, so its tables are kept once.
CodecSpec codec(Side side, size_t dim, unsigned bits, bool laplace) {
    static std::map<std::tuple<Side, size_t, bool>, std::shared_ptr<const TransformFit>> fits;
    auto& fit = fits[{side, dim, laplace}];
    if (fit == nullptr) {
        TransformFit made = *gaussian_fit(side, dim);
        for (unsigned b = 1; laplace && b <= 6; ++b) made.levels[b] = laplace_codebook(b);
        fit = std::make_shared<TransformFit>(made);
    }
    CodecSpec spec;
    const size_t n_units = (dim + transform_unit(side) - 1) / transform_unit(side);
    spec.transform = make_transform_codec(fit, std::vector<uint8_t>(n_units, static_cast<uint8_t>(bits)));
    return spec;
}

int main(int argc, char** argv) try {
    if (argc != 4 || argv[2][0] < '1' || argv[2][0] > '6' || argv[2][1] != 0)
        throw std::runtime_error("usage: example_laplace_codec MODEL.stats.gguf BITS(1..6) OUT.plan.gguf");
    const ModelStats stats = read_stats(argv[1]);
    const auto bits = static_cast<unsigned>(argv[2][0] - '0');
    Plan plan = make_uniform_plan(parse_preset("k16v16-s4"), shape_of(stats));
    plan.name = "laplace or gauss";
    plan.fingerprint = stats.fingerprint;
    const auto choose = [&](Side side, const std::vector<float16>& tiles, size_t dim) {
        const CodecSpec ours = codec(side, dim, bits, true), normal = codec(side, dim, bits, false);
        const auto mse = [&](const CodecSpec& spec) { return quantization_mse(spec, side, tiles, dim, 64); };
        return mse(ours) < mse(normal) ? ours : normal;
    };
    for (size_t l = 0; l < plan.layers.size(); ++l) {
        for (size_t h = 0; h < plan.layers[l].heads.size(); ++h) {
            const HeadStats& head = stats.layers[l].heads[h];
            plan.layers[l].heads[h] = {.key = choose(Side::kKey, head.key_tiles, head.key_mean.size()),
                                       .value = choose(Side::kValue, head.value_tiles, head.value_mean.size())};
        }
    }
    write_plan(plan, argv[3]);
    std::printf("wrote %s\n", argv[3]);
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
