// Quantizes one tile with the static core and prints its bytes and the mean squared error.
#include <kvaq/plan/plan.h>
#include <kvaq/stats/distortion.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
    const kvaq::Preset preset = kvaq::parse_preset("k4v2-rot");
    constexpr size_t kDim = 64;
    std::vector<kvaq::float16> rows;
    for (size_t i = 0; i < 64 * kDim; ++i)
        rows.push_back(kvaq::to_float16(std::sin(0.1F * static_cast<float>(i * i % 977))));
    std::printf("%zu %.6f\n", kvaq::packed_bytes(preset.key, kvaq::Side::kKey, kDim, 64),
                kvaq::quantization_mse(preset.key, kvaq::Side::kKey, rows, kDim, 64));
}
