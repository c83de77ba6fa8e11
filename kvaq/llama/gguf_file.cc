#include "kvaq/llama/gguf_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "ggml.h"
#include "gguf.h"
#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"

namespace kvaq {

namespace {

/// Element i of an integer or bool scalar or array as int64; false for another type or a value above int64.
bool int_at(const void* data, gguf_type type, size_t i, int64_t& out) {
    const auto load = [&](auto value) {
        std::memcpy(&value, static_cast<const char*>(data) + i * sizeof(value), sizeof(value));
        return value;
    };
    switch (type) {
        case GGUF_TYPE_UINT8:
            out = load(uint8_t{});
            return true;
        case GGUF_TYPE_INT8:
            out = load(int8_t{});
            return true;
        case GGUF_TYPE_UINT16:
            out = load(uint16_t{});
            return true;
        case GGUF_TYPE_INT16:
            out = load(int16_t{});
            return true;
        case GGUF_TYPE_UINT32:
            out = load(uint32_t{});
            return true;
        case GGUF_TYPE_INT32:
            out = load(int32_t{});
            return true;
        case GGUF_TYPE_INT64:
            out = load(int64_t{});
            return true;
        case GGUF_TYPE_BOOL:
            out = load(int8_t{}) != 0 ? 1 : 0;
            return true;
        case GGUF_TYPE_UINT64: {
            const uint64_t value = load(uint64_t{});
            out = static_cast<int64_t>(value);
            return value <= static_cast<uint64_t>(INT64_MAX);
        }
        default:
            return false;
    }
}

std::string range(int64_t low, int64_t high) { return std::to_string(low) + " to " + std::to_string(high); }

}  // namespace

namespace {

constexpr size_t kHexDigits = 64;

/// Where the value of a string key of 64 characters lies; the key is the first text in the file that reads so. npos if nowhere.
size_t value_offset(std::span<const std::byte> header, const std::string& key) {
    const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
    const size_t at = text.find(key);
    const size_t value = at + key.size() + sizeof(uint32_t) + sizeof(uint64_t);  // type and length come between
    return at == std::string_view::npos || value + kHexDigits > text.size() ? std::string_view::npos : value;
}

}  // namespace

void GgufReader::Free::operator()(gguf_context* ctx) const noexcept { gguf_free(ctx); }

GgufReader::~GgufReader() = default;
GgufReader::GgufReader(GgufReader&&) noexcept = default;
GgufReader& GgufReader::operator=(GgufReader&&) noexcept = default;

void GgufReader::corrupt(const std::string& fact, const std::string& wanted, const std::string& found) const {
    throw Error(ErrorCode::kCorrupt, what_ + " '" + path_ + "': " + fact, wanted, found);
}

GgufReader::GgufReader(const std::string& path, std::string what) : path_(path), what_(std::move(what)) {
    const uint64_t size = file_bytes(path);
    // The magic and the version are looked at here, because ggml tells of them on stderr only.
    std::array<std::byte, 8> start = {};
    if (size < start.size()) {
        throw Error(ErrorCode::kCorrupt, what_ + " '" + path + "' is not a GGUF file", "24 bytes or more",
                    std::to_string(size) + " bytes", "Fetch or make the file again");
    }
    read_file_range(path, 0, start);
    if (std::memcmp(start.data(), GGUF_MAGIC, 4) != 0) {
        throw Error(ErrorCode::kCorrupt, what_ + " '" + path + "' is not a GGUF file", "the first four bytes 'GGUF'",
                    "something else", "Convert the model with llama.cpp's convert_hf_to_gguf.py, or check the path");
    }
    ctx_.reset(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
    if (!ctx_) {
        throw Error(ErrorCode::kCorrupt, what_ + " '" + path + "' has a damaged or truncated header",
                    "a whole GGUF header of version 2 or 3",
                    std::to_string(size) + " bytes that end or go wrong inside it", "Fetch or make the file again");
    }
    header_bytes_ = gguf_get_data_offset(ctx_.get());
    const int64_t n_tensors = gguf_get_n_tensors(ctx_.get());
    tensors_.reserve(static_cast<size_t>(n_tensors));
    uint64_t wanted = 0;
    for (int64_t i = 0; i < n_tensors; ++i) {
        Tensor tensor;
        tensor.name = gguf_get_tensor_name(ctx_.get(), i);
        tensor.offset = header_bytes_ + gguf_get_tensor_offset(ctx_.get(), i);
        tensor.bytes = gguf_get_tensor_size(ctx_.get(), i);
        tensor.type = gguf_get_tensor_type(ctx_.get(), i);
        tensor.elements = 1;
        for (int d = 0; d < GGML_MAX_DIMS; ++d) {
            tensor.elements *= static_cast<uint64_t>(gguf_get_tensor_ne(ctx_.get(), i)[d]);
        }
        if (tensor.offset > UINT64_MAX - tensor.bytes)
            corrupt("tensor " + tensor.name + " is impossibly large", "", "");
        wanted = std::max(wanted, tensor.offset + tensor.bytes);
        tensors_.push_back(std::move(tensor));
    }
    if (wanted > size) {
        throw Error(ErrorCode::kCorrupt, what_ + " '" + path + "' is truncated", std::to_string(wanted) + " bytes",
                    std::to_string(size) + " bytes", "Fetch or make the file again");
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
}

int64_t GgufReader::id(const std::string& key) const { return gguf_find_key(ctx_.get(), key.c_str()); }

bool GgufReader::has(const std::string& key) const { return id(key) >= 0; }

bool GgufReader::is_array(const std::string& key) const {
    const int64_t i = id(key);
    return i >= 0 && gguf_get_kv_type(ctx_.get(), i) == GGUF_TYPE_ARRAY;
}

bool GgufReader::has_prefix(std::string_view prefix) const {
    const int64_t n = gguf_get_n_kv(ctx_.get());
    for (int64_t i = 0; i < n; ++i) {
        if (std::string_view(gguf_get_key(ctx_.get(), i)).substr(0, prefix.size()) == prefix) return true;
    }
    return false;
}

std::optional<int64_t> GgufReader::find_int(const std::string& key, int64_t low, int64_t high) const {
    const int64_t i = id(key);
    if (i < 0) return std::nullopt;
    const gguf_type type = gguf_get_kv_type(ctx_.get(), i);
    int64_t value = 0;
    if (type == GGUF_TYPE_ARRAY || type == GGUF_TYPE_STRING ||
        !int_at(gguf_get_val_data(ctx_.get(), i), type, 0, value)) {
        corrupt("key " + key, "an integer", gguf_type_name(type));
    }
    if (value < low || value > high) corrupt("key " + key, range(low, high), std::to_string(value));
    return value;
}

std::optional<std::string> GgufReader::find_string(const std::string& key) const {
    const int64_t i = id(key);
    if (i < 0) return std::nullopt;
    const gguf_type type = gguf_get_kv_type(ctx_.get(), i);
    if (type != GGUF_TYPE_STRING) corrupt("key " + key, "a string", gguf_type_name(type));
    return std::string(gguf_get_val_str(ctx_.get(), i));
}

std::optional<bool> GgufReader::find_bool(const std::string& key) const {
    const int64_t i = id(key);
    if (i < 0) return std::nullopt;
    const gguf_type type = gguf_get_kv_type(ctx_.get(), i);
    if (type != GGUF_TYPE_BOOL) corrupt("key " + key, "true or false", gguf_type_name(type));
    return gguf_get_val_bool(ctx_.get(), i);
}

std::optional<std::vector<int64_t>> GgufReader::find_ints(const std::string& key, int64_t low, int64_t high) const {
    const int64_t i = id(key);
    if (i < 0) return std::nullopt;
    if (gguf_get_kv_type(ctx_.get(), i) != GGUF_TYPE_ARRAY) {
        corrupt("key " + key, "an array", gguf_type_name(gguf_get_kv_type(ctx_.get(), i)));
    }
    const gguf_type type = gguf_get_arr_type(ctx_.get(), i);
    const size_t n = gguf_get_arr_n(ctx_.get(), i);
    std::vector<int64_t> values(n);
    if (type == GGUF_TYPE_STRING) corrupt("key " + key, "an array of integers", "strings");
    const void* data = gguf_get_arr_data(ctx_.get(), i);
    for (size_t k = 0; k < n; ++k) {
        if (!int_at(data, type, k, values[k])) corrupt("key " + key, "an array of integers", gguf_type_name(type));
        if (values[k] < low || values[k] > high) {
            corrupt("key " + key + "[" + std::to_string(k) + "]", range(low, high), std::to_string(values[k]));
        }
    }
    return values;
}

int64_t GgufReader::get_int(const std::string& key, int64_t low, int64_t high) const {
    const std::optional<int64_t> value = find_int(key, low, high);
    if (!value) corrupt("key " + key, "an integer", "nothing");
    return *value;
}

double GgufReader::get_float(const std::string& key) const {
    const int64_t i = id(key);
    if (i < 0) corrupt("key " + key, "a number", "nothing");
    const gguf_type type = gguf_get_kv_type(ctx_.get(), i);
    double value = 0;
    if (type == GGUF_TYPE_FLOAT64) {
        value = gguf_get_val_f64(ctx_.get(), i);
    } else if (type == GGUF_TYPE_FLOAT32) {
        value = static_cast<double>(gguf_get_val_f32(ctx_.get(), i));
    } else {
        corrupt("key " + key, "a number", gguf_type_name(type));
    }
    if (!std::isfinite(value)) corrupt("key " + key, "a finite number", std::to_string(value));
    return value;
}

std::string GgufReader::get_string(const std::string& key) const {
    std::optional<std::string> value = find_string(key);
    if (!value) corrupt("key " + key, "a string", "nothing");
    return *std::move(value);
}

std::vector<std::string> GgufReader::get_strings(const std::string& key) const {
    const int64_t i = id(key);
    if (i < 0) corrupt("key " + key, "an array of strings", "nothing");
    if (gguf_get_kv_type(ctx_.get(), i) != GGUF_TYPE_ARRAY || gguf_get_arr_type(ctx_.get(), i) != GGUF_TYPE_STRING) {
        corrupt("key " + key, "an array of strings", gguf_type_name(gguf_get_kv_type(ctx_.get(), i)));
    }
    std::vector<std::string> values;
    const size_t n = gguf_get_arr_n(ctx_.get(), i);
    values.reserve(n);
    for (size_t k = 0; k < n; ++k) values.emplace_back(gguf_get_arr_str(ctx_.get(), i, k));
    return values;
}

std::vector<int64_t> GgufReader::get_ints(const std::string& key, int64_t low, int64_t high, int64_t n) const {
    std::optional<std::vector<int64_t>> values = find_ints(key, low, high);
    if (!values) corrupt("key " + key, "an array of integers", "nothing");
    if (n >= 0 && values->size() != static_cast<size_t>(n)) {
        corrupt("key " + key, std::to_string(n) + " entries", std::to_string(values->size()));
    }
    return *std::move(values);
}

const GgufReader::Tensor* GgufReader::find_tensor(const std::string& name) const noexcept {
    const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const Tensor& tensor, const std::string& n) { return tensor.name < n; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

template <typename T>
std::vector<T> GgufReader::read_tensor(const std::string& name, uint64_t elements, int32_t type) const {
    const Tensor* tensor = find_tensor(name);
    if (tensor == nullptr) corrupt("tensor " + name, std::to_string(elements) + " elements", "nothing");
    if (tensor->type != type) {
        corrupt("tensor " + name, std::string("type ") + ggml_type_name(static_cast<ggml_type>(type)),
                ggml_type_name(static_cast<ggml_type>(tensor->type)));
    }
    if (tensor->elements != elements) {
        corrupt("tensor " + name, std::to_string(elements) + " elements", std::to_string(tensor->elements));
    }
    std::vector<T> values(elements);
    read_file_range(path_, tensor->offset, std::as_writable_bytes(std::span(values)));
    return values;
}

std::vector<float> GgufReader::read_f32(const std::string& name, uint64_t elements) const {
    return read_tensor<float>(name, elements, GGML_TYPE_F32);
}
std::vector<double> GgufReader::read_f64(const std::string& name, uint64_t elements) const {
    return read_tensor<double>(name, elements, GGML_TYPE_F64);
}
std::vector<uint16_t> GgufReader::read_f16_bits(const std::string& name, uint64_t elements) const {
    return read_tensor<uint16_t>(name, elements, GGML_TYPE_F16);
}

std::vector<std::byte> GgufReader::read_bytes(const std::string& name, uint64_t max_bytes) const {
    const Tensor* tensor = find_tensor(name);
    if (tensor == nullptr) corrupt("tensor " + name, "bytes", "nothing");
    if (tensor->elements > max_bytes)
        corrupt("tensor " + name, "at most " + std::to_string(max_bytes) + " bytes", std::to_string(tensor->elements));
    return read_tensor<std::byte>(name, tensor->elements, GGML_TYPE_I8);
}

void GgufReader::check_sha256(const std::string& key) const {
    std::vector<std::byte> bytes = read_file(path_);
    const std::string wanted = get_string(key);
    const size_t at = value_offset(std::span(bytes).first(std::min<size_t>(header_bytes_, bytes.size())), key);
    if (wanted.size() != kHexDigits || at == std::string::npos ||
        std::memcmp(bytes.data() + at, wanted.data(), kHexDigits) != 0) {
        corrupt("key " + key, "64 hex digits", "others");
    }
    std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at), kHexDigits, static_cast<std::byte>('0'));
    if (sha256_hex(bytes) != wanted)
        corrupt("the checksum does not fit the contents", "an unchanged file", "a changed one");
}

struct GgufWriter::Impl {
    struct Free {
        void operator()(gguf_context* ctx) const noexcept { gguf_free(ctx); }
    };
    std::unique_ptr<gguf_context, Free> ctx{gguf_init_empty()};
    std::vector<std::span<const std::byte>> data;
    std::string sha256_key;
};

std::string printable(std::string text) {
    std::replace_if(
        text.begin(), text.end(), [](char c) { return (c >= 0 && c < ' ') || c == 0x7F; }, ' ');
    return text;
}

GgufWriter::GgufWriter() : impl_(std::make_unique<Impl>()) {}
GgufWriter::GgufWriter(const std::string& sha256_key) : GgufWriter() {
    impl_->sha256_key = sha256_key;
    set(sha256_key, std::string(kHexDigits, '0'));
}
GgufWriter::~GgufWriter() = default;

void GgufWriter::set(const std::string& key, uint32_t value) { gguf_set_val_u32(impl_->ctx.get(), key.c_str(), value); }
void GgufWriter::set(const std::string& key, int32_t value) { gguf_set_val_i32(impl_->ctx.get(), key.c_str(), value); }
void GgufWriter::set(const std::string& key, uint64_t value) { gguf_set_val_u64(impl_->ctx.get(), key.c_str(), value); }
void GgufWriter::set(const std::string& key, double value) { gguf_set_val_f64(impl_->ctx.get(), key.c_str(), value); }
void GgufWriter::set(const std::string& key, const std::string& value) {
    gguf_set_val_str(impl_->ctx.get(), key.c_str(), value.c_str());
}
void GgufWriter::set(const std::string& key, const std::vector<std::string>& values) {
    std::vector<const char*> pointers;
    for (const std::string& value : values) pointers.push_back(value.c_str());
    gguf_set_arr_str(impl_->ctx.get(), key.c_str(), pointers.data(), pointers.size());
}
void GgufWriter::set(const std::string& key, const std::vector<int32_t>& values) {
    gguf_set_arr_data(impl_->ctx.get(), key.c_str(), GGUF_TYPE_INT32, values.data(), values.size());
}

void GgufWriter::add(const std::string& name, int type, std::span<const std::byte> data, size_t elements) {
    KVAQ_CHECK(name.size() < GGML_MAX_NAME);
    ggml_tensor tensor = {};
    tensor.type = static_cast<ggml_type>(type);
    tensor.ne[0] = static_cast<int64_t>(elements);
    tensor.ne[1] = tensor.ne[2] = tensor.ne[3] = 1;
    tensor.nb[0] = ggml_type_size(tensor.type);
    tensor.nb[1] = tensor.nb[2] = tensor.nb[3] = tensor.nb[0] * elements;
    ggml_set_name(&tensor, name.c_str());
    gguf_add_tensor(impl_->ctx.get(), &tensor);
    impl_->data.push_back(data);
}

void GgufWriter::add_tensor(const std::string& name, std::span<const float> data) {
    add(name, GGML_TYPE_F32, std::as_bytes(data), data.size());
}
void GgufWriter::add_tensor(const std::string& name, std::span<const double> data) {
    add(name, GGML_TYPE_F64, std::as_bytes(data), data.size());
}
void GgufWriter::add_tensor_bytes(const std::string& name, std::span<const std::byte> data) {
    add(name, GGML_TYPE_I8, data, data.size());
}
void GgufWriter::add_tensor_f16(const std::string& name, std::span<const uint16_t> data) {
    add(name, GGML_TYPE_F16, std::as_bytes(data), data.size());
}

void GgufWriter::write(const std::string& path) const {
    const gguf_context* ctx = impl_->ctx.get();
    const size_t header = gguf_get_meta_size(ctx);
    size_t size = header;
    for (size_t i = 0; i < impl_->data.size(); ++i) {
        // Every tensor, the last one too, is padded: ggml reads it so.
        const size_t end = header + gguf_get_tensor_offset(ctx, static_cast<int64_t>(i)) + impl_->data[i].size();
        size = std::max(size, (end + GGUF_DEFAULT_ALIGNMENT - 1) / GGUF_DEFAULT_ALIGNMENT * GGUF_DEFAULT_ALIGNMENT);
    }
    std::vector<std::byte> bytes(size);
    gguf_get_meta_data(ctx, bytes.data());
    for (size_t i = 0; i < impl_->data.size(); ++i) {
        if (impl_->data[i].empty()) continue;
        std::memcpy(bytes.data() + header + gguf_get_tensor_offset(ctx, static_cast<int64_t>(i)), impl_->data[i].data(),
                    impl_->data[i].size());
    }
    if (!impl_->sha256_key.empty()) {
        const std::string digest = sha256_hex(bytes);
        const size_t at = value_offset(std::span(bytes).first(header), impl_->sha256_key);
        KVAQ_CHECK(at != std::string::npos);
        std::memcpy(bytes.data() + at, digest.data(), kHexDigits);
    }
    atomic_write(path, bytes);
}

}  // namespace kvaq
