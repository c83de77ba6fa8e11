#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kvaq/base/float16.h"
#include "kvaq/base/side.h"
#include "kvaq/quant/codec_spec.h"

namespace kvaq {

/// What a codec does to real tiles: e = x - decode(encode(x)) in the original basis.
///   rows  [n_tiles * tile_tokens, head_dim], tile after tile, as they lie in the cache
/// Result [n_tiles * tile_tokens, head_dim]. Uses encode_tile and decode_tile: the very numbers that attention reads.
/// Throws Error kInvalidArgument for a codec that does not fit the head.
[[nodiscard]] std::vector<float> quantization_errors(const CodecSpec& spec, Side side, std::span<const float16> rows,
                                                     size_t head_dim, size_t tile_tokens);

/// Mean squared error per element of the same.
[[nodiscard]] double quantization_mse(const CodecSpec& spec, Side side, std::span<const float16> rows, size_t head_dim,
                                      size_t tile_tokens);

}  // namespace kvaq
