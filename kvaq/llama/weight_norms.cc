#include "kvaq/llama/weight_norms.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Eigenvalues>

#include "kvaq/base/error.h"
#include "kvaq/llama/gguf_file.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/model_weights.h"

namespace kvaq {
namespace {

using Matrix = WeightMatrix;

struct Norms {
    double frobenius = 0;
    double spectral = 0;
};
Norms norms_of(const Matrix& weights) {
    const Eigen::MatrixXd w = weights.rows() <= weights.cols() ? Eigen::MatrixXd(weights.cast<double>())
                                                               : Eigen::MatrixXd(weights.transpose().cast<double>());
    Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(w.rows(), w.rows());
    gram.selfadjointView<Eigen::Lower>().rankUpdate(w);
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram, Eigen::EigenvaluesOnly);  // reads the lower half
    return {.frobenius = std::sqrt(gram.trace()),
            .spectral = std::sqrt(std::max(0.0, solver.eigenvalues().maxCoeff()))};
}

}  // namespace

LayerNorms WeightNorms::of(NormScore score) const {
    LayerNorms out;
    for (const LayerWeightNorms& layer : layers) {
        out.key.push_back(score == NormScore::kFrobenius ? layer.key_frobenius : layer.key_spectral);
        out.value.push_back(score == NormScore::kFrobenius ? layer.value_frobenius : layer.value_spectral);
    }
    return out;
}

WeightNorms read_weight_norms(const std::string& path, const std::function<void(size_t)>& progress) {
    const ModelShape shape = read_model_shape(path);
    const ModelFiles parts(path);
    const auto n_blocks = static_cast<int32_t>(parts.first().get_int(shape.architecture + ".block_count", 1, 512));
    WeightNorms out;
    out.qk_norm = parts.any_tensor_contains(".attn_k_norm.");
    for (const LayerShape& layer : shape.layers) {
        const std::string block = fmt::format("blk.{}.", layer.layer % n_blocks);  // looped models reuse their blocks
        const size_t rows_q = layer.n_heads * layer.head_dim_k;
        const size_t rows_k = layer.n_kv_heads * layer.head_dim_k;
        const size_t rows_v = layer.n_kv_heads * layer.head_dim_v;
        LayerWeightNorms norms{.layer = layer.layer};
        Matrix key;
        Matrix value;
        if (const GgufReader* file = parts.holder(block + "attn_k.weight"); file != nullptr) {
            key = read_weight_rows(*file, *file->find_tensor(block + "attn_k.weight"), rows_k, 0, rows_k);
            const std::string name = block + "attn_v.weight";
            if (const GgufReader* v = parts.holder(name); v != nullptr) {
                value = read_weight_rows(*v, *v->find_tensor(name), rows_v, 0, rows_v);
            } else {
                norms.value_is_key = true;
                value = key;
            }
        } else if (file = parts.holder(block + "attn_qkv.weight"); file != nullptr) {
            const GgufReader::Tensor& fused = *file->find_tensor(block + "attn_qkv.weight");
            const size_t n_rows = rows_q + rows_k + rows_v;
            key = read_weight_rows(*file, fused, n_rows, rows_q, rows_k);
            value = read_weight_rows(*file, fused, n_rows, rows_q + rows_k, rows_v);
        } else {
            throw Error(ErrorCode::kUnsupported,
                        fmt::format("model '{}', layer {}: no weights of the keys", path, layer.layer),
                        block + "attn_k.weight or " + block + "attn_qkv.weight", "neither",
                        "Weight norms cannot be had; cache norms can (kvaq calibrate)");
        }
        const Norms k = norms_of(key);
        const Norms v = norms.value_is_key ? k : norms_of(value);
        norms.key_frobenius = k.frobenius;
        norms.key_spectral = k.spectral;
        norms.value_frobenius = v.frobenius;
        norms.value_spectral = v.spectral;
        norms.key_elements = static_cast<size_t>(key.size());
        norms.value_elements = static_cast<size_t>(value.size());
        out.layers.push_back(norms);
        if (progress) progress(out.layers.size());
    }
    return out;
}

bool has_qk_norm(const std::string& path) { return ModelFiles(path).any_tensor_contains(".attn_k_norm."); }

}  // namespace kvaq
