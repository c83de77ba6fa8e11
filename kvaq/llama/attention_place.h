#pragma once

// PRIVATE header of kvaq/llama.

#include <cstddef>
#include <cstdint>
#include <map>

struct ggml_backend;

namespace kvaq {

struct ServedContext;

/// While one lives, it decides where the graphs that this thread hands to llama.cpp's scheduler compute attention, also where the model's weights lie on
/// devices (-ngl, --rpc): beside our cache. That is the host, or, with on_gpu, the CUDA device that holds a layer's keys and values. `context` is the one
/// that decodes, or null while llama.cpp reserves memory for a context in the making. Scopes do not nest.
class AttentionPlace {
  public:
    AttentionPlace(ServedContext* context, bool on_gpu) noexcept;
    AttentionPlace(const AttentionPlace&) = delete;
    AttentionPlace& operator=(const AttentionPlace&) = delete;
    ~AttentionPlace();

    /// A layer on a CUDA device, and the scheduler's backend there.
    struct OnGpu {
        int32_t device = 0;
        ggml_backend* backend = nullptr;
    };

    /// Most devices, besides the host, that a scheduler in this scope had.
    [[nodiscard]] size_t n_devices() const noexcept { return n_devices_; }
    [[nodiscard]] ServedContext* context() const noexcept { return context_; }
    [[nodiscard]] bool on_gpu() const noexcept { return on_gpu_; }
    /// Layers that were given to a CUDA device.
    [[nodiscard]] const std::map<int32_t, OnGpu>& gpu_layers() const noexcept { return gpu_layers_; }
    /// The layers of a context in the making may have the same memory for their new rows (interpose_buffers.cc): each is read by its own layer only.
    void share_rows() noexcept { layers_share_rows_ = true; }
    [[nodiscard]] bool layers_share_rows() const noexcept { return layers_share_rows_; }
    /// Bytes of llama.cpp's own cache.
    [[nodiscard]] size_t own_cache() const noexcept { return own_cache_; }
    void note_own_cache(size_t bytes) noexcept { own_cache_ += bytes; }
    void note_devices(size_t n) noexcept { n_devices_ = n > n_devices_ ? n : n_devices_; }
    void note_gpu_layer(int32_t layer, OnGpu place) { gpu_layers_[layer] = place; }
    /// That of this thread, or null.
    [[nodiscard]] static AttentionPlace* current() noexcept;

  private:
    ServedContext* context_;
    bool on_gpu_;
    bool layers_share_rows_ = false;
    size_t n_devices_ = 0;
    size_t own_cache_ = 0;
    std::map<int32_t, OnGpu> gpu_layers_;
};

}  // namespace kvaq
