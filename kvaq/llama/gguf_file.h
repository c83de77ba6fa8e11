#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct gguf_context;

namespace kvaq {

/// A GGUF file's header, read strictly: every value is asked for with its type, everything missing, of another type or out
/// of range is an Error kCorrupt that names file and key. Tensor data stays on disk until it is asked for.
/// Distinct objects may be used from distinct threads.
class GgufReader {
  public:
    /// `what` names the kind of file in messages ("model", "plan"). Throws Error kNotFound (no such file), kIo, kCorrupt (not
    /// GGUF; header cut short; a tensor that ends beyond the file: wanted bytes, found bytes).
    GgufReader(const std::string& path, std::string what);
    ~GgufReader();
    GgufReader(GgufReader&&) noexcept;
    GgufReader& operator=(GgufReader&&) noexcept;

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] bool has(const std::string& key) const;
    /// True if a key of that name is an array.
    [[nodiscard]] bool is_array(const std::string& key) const;
    /// True if any key starts so.
    [[nodiscard]] bool has_prefix(std::string_view prefix) const;

    // Empty when the key is missing; Error kCorrupt when it is there with another type or outside [low, high].
    [[nodiscard]] std::optional<int64_t> find_int(const std::string& key, int64_t low, int64_t high) const;
    [[nodiscard]] std::optional<std::string> find_string(const std::string& key) const;
    [[nodiscard]] std::optional<bool> find_bool(const std::string& key) const;
    /// Arrays of any integer type or of bool.
    [[nodiscard]] std::optional<std::vector<int64_t>> find_ints(const std::string& key, int64_t low,
                                                                int64_t high) const;

    // The same for keys that must be there.
    [[nodiscard]] int64_t get_int(const std::string& key, int64_t low, int64_t high) const;
    [[nodiscard]] double get_float(const std::string& key) const;  ///< finite f32 or f64
    [[nodiscard]] std::string get_string(const std::string& key) const;
    [[nodiscard]] std::vector<std::string> get_strings(const std::string& key) const;
    /// n < 0: any length
    [[nodiscard]] std::vector<int64_t> get_ints(const std::string& key, int64_t low, int64_t high,
                                                int64_t n = -1) const;

    struct Tensor {
        std::string name;
        uint64_t offset = 0;  ///< from the file's start
        uint64_t bytes = 0;
        uint64_t elements = 0;
        int32_t type = 0;  ///< ggml_type
    };
    [[nodiscard]] const std::vector<Tensor>& tensors() const noexcept { return tensors_; }
    /// Bytes before the first tensor's data.
    [[nodiscard]] uint64_t header_bytes() const noexcept { return header_bytes_; }
    /// Reads a whole f32 / f64 / f16 tensor that must exist with that many elements. Values may be any bits.
    [[nodiscard]] std::vector<float> read_f32(const std::string& name, uint64_t elements) const;
    [[nodiscard]] std::vector<double> read_f64(const std::string& name, uint64_t elements) const;
    [[nodiscard]] std::vector<uint16_t> read_f16_bits(const std::string& name, uint64_t elements) const;
    /// An i8 tensor of any length up to max_bytes.
    [[nodiscard]] std::vector<std::byte> read_bytes(const std::string& name, uint64_t max_bytes) const;
    /// Throws Error kCorrupt unless the string `key` holds the sha256 of the file (see GgufWriter). Reads all of it.
    void check_sha256(const std::string& key) const;
    [[nodiscard]] const Tensor* find_tensor(const std::string& name) const noexcept;

    /// Throws Error kCorrupt about this file.
    [[noreturn]] void corrupt(const std::string& fact, const std::string& wanted, const std::string& found) const;

  private:
    struct Free {
        void operator()(gguf_context* ctx) const noexcept;
    };
    [[nodiscard]] int64_t id(const std::string& key) const;
    template <typename T>
    [[nodiscard]] std::vector<T> read_tensor(const std::string& name, uint64_t elements, int32_t type) const;

    std::string path_;
    std::string what_;
    std::unique_ptr<gguf_context, Free> ctx_;
    std::vector<Tensor> tensors_;  ///< sorted by name for find_tensor
    uint64_t header_bytes_ = 0;
};

/// Without characters that a terminal would obey.
[[nodiscard]] std::string printable(std::string text);

/// Builds a GGUF file in memory and writes it atomically. Strings must not contain NUL.
class GgufWriter {
  public:
    GgufWriter();
    /// The string sha256_key becomes the hex SHA-256 of the whole file, in which it is 64 zeros.
    explicit GgufWriter(const std::string& sha256_key);
    ~GgufWriter();
    GgufWriter(const GgufWriter&) = delete;
    GgufWriter& operator=(const GgufWriter&) = delete;

    void set(const std::string& key, uint32_t value);
    void set(const std::string& key, int32_t value);
    void set(const std::string& key, uint64_t value);
    void set(const std::string& key, double value);
    void set(const std::string& key, const std::string& value);
    void set(const std::string& key, const std::vector<std::string>& values);
    void set(const std::string& key, const std::vector<int32_t>& values);
    /// Tensor names are unique and under 64 bytes; the data must live until write().
    void add_tensor(const std::string& name, std::span<const float> data);
    void add_tensor(const std::string& name, std::span<const double> data);
    void add_tensor_bytes(const std::string& name, std::span<const std::byte> data);
    void add_tensor_f16(const std::string& name, std::span<const uint16_t> data);
    /// Throws Error kIo.
    void write(const std::string& path) const;

  private:
    void add(const std::string& name, int type, std::span<const std::byte> data, size_t elements);
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace kvaq
