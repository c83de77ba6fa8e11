#include "kvaq/llama/fingerprint.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/llama/gguf_model.h"

namespace kvaq {

namespace {

constexpr uint64_t kSample = 4096;

}  // namespace

std::string split_part_path(const std::string& first, int64_t index, int64_t count) {
    char suffix[64];
    std::snprintf(suffix, sizeof(suffix), "-%05d-of-%05d.gguf", 1, static_cast<int>(count));
    const std::string old = suffix;
    if (first.size() < old.size() || first.compare(first.size() - old.size(), old.size(), old) != 0) {
        throw Error(ErrorCode::kInvalidArgument, "model '" + first + "' is split, but not named so",
                    "a name that ends in " + old, first, "Give the first part under its own name");
    }
    std::snprintf(suffix, sizeof(suffix), "-%05d-of-%05d.gguf", static_cast<int>(index + 1), static_cast<int>(count));
    return first.substr(0, first.size() - old.size()) + suffix;
}

void add_to_fingerprint(const GgufReader& file, Sha256& sha) {
    std::vector<std::byte> buffer(file.header_bytes());
    read_file_range(file.path(), 0, buffer);
    sha.update(buffer);
    std::vector<GgufReader::Tensor> tensors = file.tensors();
    std::sort(tensors.begin(), tensors.end(),
              [](const GgufReader::Tensor& a, const GgufReader::Tensor& b) { return a.offset < b.offset; });
    for (const GgufReader::Tensor& tensor : tensors) {
        const uint64_t head = std::min(tensor.bytes, 2 * kSample) == tensor.bytes ? tensor.bytes : kSample;
        const uint64_t tail = head == tensor.bytes ? 0 : kSample;
        buffer.resize(head + tail);
        read_file_range(file.path(), tensor.offset, std::span(buffer).first(head));
        read_file_range(file.path(), tensor.offset + tensor.bytes - tail, std::span(buffer).subspan(head));
        sha.update(buffer);
    }
}

std::string model_fingerprint(const std::string& path) {
    Sha256 sha;
    const GgufReader first(path, "model");
    add_to_fingerprint(first, sha);
    const int64_t count = first.find_int("split.count", 0, 65535).value_or(1);
    for (int64_t i = 1; i < count; ++i) add_to_fingerprint(GgufReader(split_part_path(path, i, count), "model"), sha);
    return sha.hex_digest();
}

}  // namespace kvaq
