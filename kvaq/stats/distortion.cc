#include "kvaq/stats/distortion.h"

#include "kvaq/base/error.h"
#include "kvaq/cache/tile.h"

namespace kvaq {

std::vector<float> quantization_errors(const CodecSpec& spec, Side side, std::span<const float16> rows, size_t head_dim,
                                       size_t tile_tokens) {
    const size_t tile_size = tile_tokens * head_dim;
    KVAQ_CHECK(tile_size > 0 && rows.size() % tile_size == 0);
    const TileLayout layout = make_tile_layout(spec, side, head_dim, tile_tokens);
    const size_t padded = (head_dim + 15) / 16 * 16;
    std::vector<float> errors(rows.size());
    std::vector<float> original(tile_size);
    std::vector<float> decoded(tile_tokens * padded);
    std::vector<double> row(head_dim);
    std::vector<std::byte> packed(layout.bytes);
    for (size_t first = 0; first < rows.size(); first += tile_size) {
        for (size_t i = 0; i < tile_size; ++i) original[i] = static_cast<float>(rows[first + i]);
        encode_tile(layout, original.data(), packed.data());
        decode_tile(layout, packed.data(), decoded.data());
        for (size_t token = 0; token < tile_tokens; ++token) {
            for (size_t channel = 0; channel < head_dim; ++channel) {
                row[channel] = static_cast<double>(side == Side::kKey ? decoded[channel * tile_tokens + token]
                                                                      : decoded[token * padded + channel]);
            }
            undo_codec_basis(spec, row.data(), head_dim);
            const float* x = original.data() + token * head_dim;
            float* e = errors.data() + first + token * head_dim;
            for (size_t channel = 0; channel < head_dim; ++channel)
                e[channel] = static_cast<float>(static_cast<double>(x[channel]) - row[channel]);
        }
    }
    return errors;
}

double quantization_mse(const CodecSpec& spec, Side side, std::span<const float16> rows, size_t head_dim,
                        size_t tile_tokens) {
    double sum = 0;
    for (const float e : quantization_errors(spec, side, rows, head_dim, tile_tokens)) {
        sum += static_cast<double>(e) * static_cast<double>(e);
    }
    return rows.empty() ? 0 : sum / static_cast<double>(rows.size());
}

}  // namespace kvaq
