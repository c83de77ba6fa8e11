#pragma once

#include <cstddef>
#include <eigen3/Eigen/Core>
#include <string>
#include <vector>

#include "kvaq/llama/gguf_file.h"
#include "kvaq/stats/output_metric.h"

namespace kvaq {

struct ModelShape;

using WeightMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// All files of a model (split GGUF included); headers are read at once, weights when asked for.
class ModelFiles {
  public:
    /// Throws Error as GgufReader.
    explicit ModelFiles(const std::string& path);
    [[nodiscard]] const GgufReader& first() const { return files_[0]; }
    /// The file with that tensor, or null.
    [[nodiscard]] const GgufReader* holder(const std::string& name) const;
    [[nodiscard]] bool any_tensor_contains(const std::string& part) const;

  private:
    std::vector<GgufReader> files_;
};

/// Rows [first, first + n) of a tensor that has n_rows rows, dequantized by ggml. Throws Error kCorrupt (no whole rows, weights
/// that are no numbers), kUnsupported (a type that ggml does not dequantize).
[[nodiscard]] WeightMatrix read_weight_rows(const GgufReader& file, const GgufReader::Tensor& tensor, size_t n_rows,
                                            size_t first, size_t n);

/// W_O,h^T W_O,h of every query head of every layer of the shape, [layer][head][dv, dv]: what an error of a head's output becomes
/// in the residual stream. Where the model norms the attention's output (post_attention_norm) its rows are weighted by that
/// norm's weights. Empty when a layer has no attn_output.weight of the expected size (then nothing is known of W_O).
[[nodiscard]] std::vector<OutputGrams> read_output_grams(const std::string& path, const ModelShape& shape);

}  // namespace kvaq
