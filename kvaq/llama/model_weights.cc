#include "kvaq/llama/model_weights.h"

#include <fmt/format.h>

#include <cstring>
#include <eigen3/Eigen/Dense>

#include "ggml.h"
#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/model_shape.h"
#include "kvaq/llama/fingerprint.h"

namespace kvaq {

ModelFiles::ModelFiles(const std::string& path) {
    files_.emplace_back(path, "model");
    const int64_t count = files_[0].find_int("split.count", 0, 65535).value_or(1);
    for (int64_t i = 1; i < count; ++i) files_.emplace_back(split_part_path(path, i, count), "model");
}

const GgufReader* ModelFiles::holder(const std::string& name) const {
    for (const GgufReader& file : files_) {
        if (file.find_tensor(name) != nullptr) return &file;
    }
    return nullptr;
}

bool ModelFiles::any_tensor_contains(const std::string& part) const {
    for (const GgufReader& file : files_) {
        for (const GgufReader::Tensor& tensor : file.tensors()) {
            if (tensor.name.find(part) != std::string::npos) return true;
        }
    }
    return false;
}

WeightMatrix read_weight_rows(const GgufReader& file, const GgufReader::Tensor& tensor, size_t n_rows, size_t first,
                              size_t n) {
    const auto type = static_cast<ggml_type>(tensor.type);
    const size_t n_cols = tensor.elements / n_rows;
    if (n_cols == 0 || n_cols * n_rows != tensor.elements || n_cols % static_cast<size_t>(ggml_blck_size(type)) != 0) {
        file.corrupt("tensor " + tensor.name, fmt::format("{} whole rows", n_rows),
                     fmt::format("{} elements", tensor.elements));
    }
    const size_t row_bytes = ggml_row_size(type, static_cast<int64_t>(n_cols));
    std::vector<std::byte> bytes(n * row_bytes);
    read_file_range(file.path(), tensor.offset + first * row_bytes, bytes);
    WeightMatrix out(static_cast<Eigen::Index>(n), static_cast<Eigen::Index>(n_cols));
    const auto to_float = ggml_get_type_traits(type)->to_float;
    if (type == GGML_TYPE_F32) {
        std::memcpy(out.data(), bytes.data(), bytes.size());
    } else if (to_float != nullptr) {
        to_float(bytes.data(), out.data(), static_cast<int64_t>(n * n_cols));
    } else {
        throw Error(ErrorCode::kUnsupported, "model '" + file.path() + "', tensor " + tensor.name,
                    "a type that ggml dequantizes", ggml_type_name(type));
    }
    if (!out.allFinite()) file.corrupt("tensor " + tensor.name, "finite weights", "infinite ones, or no numbers");
    return out;
}

std::vector<OutputGrams> read_output_grams(const std::string& path, const ModelShape& shape) {
    const ModelFiles parts(path);
    const auto n_blocks = static_cast<int32_t>(parts.first().get_int(shape.architecture + ".block_count", 1, 512));
    std::vector<OutputGrams> out;
    for (const LayerShape& layer : shape.layers) {
        const std::string block = fmt::format("blk.{}.", layer.layer % n_blocks);
        const std::string name = block + "attn_output.weight";
        const GgufReader* file = parts.holder(name);
        const size_t n_cols = layer.n_heads * layer.head_dim_v;
        if (file == nullptr || file->find_tensor(name)->elements % n_cols != 0) return {};
        const size_t n_rows = file->find_tensor(name)->elements / n_cols;
        WeightMatrix weights = read_weight_rows(*file, *file->find_tensor(name), n_rows, 0, n_rows);
        const std::string norm = block + "post_attention_norm.weight";
        if (const GgufReader* with = parts.holder(norm);
            with != nullptr && with->find_tensor(norm)->elements == n_rows) {
            const WeightMatrix gain = read_weight_rows(*with, *with->find_tensor(norm), 1, 0, 1);
            weights = gain.row(0).asDiagonal() * weights;
        }
        const auto dim = static_cast<Eigen::Index>(layer.head_dim_v);
        OutputGrams grams;
        for (size_t h = 0; h < layer.n_heads; ++h) {
            const Eigen::MatrixXf own = weights.middleCols(static_cast<Eigen::Index>(h) * dim, dim);
            const Eigen::MatrixXd gram = (own.transpose() * own).cast<double>();
            grams.emplace_back(gram.data(), gram.data() + gram.size());
        }
        out.push_back(std::move(grams));
    }
    return out;
}

}  // namespace kvaq
