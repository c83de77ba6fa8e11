#pragma once

// PRIVATE header of kvaq/llama.

#include <cstddef>

namespace kvaq {

struct ServedContext;

/// While one lives, the graphs that this thread hands to llama.cpp's scheduler keep their attention on the host, beside our cache, also
/// where the model's weights lie on devices (-ngl, --rpc). `context` is the one that decodes, or null while llama.cpp reserves memory for
/// a context in the making. Scopes do not nest.
class HostAttention {
  public:
    explicit HostAttention(ServedContext* context) noexcept;
    HostAttention(const HostAttention&) = delete;
    HostAttention& operator=(const HostAttention&) = delete;
    ~HostAttention();

    /// Most devices, besides the host, that a scheduler in this scope had.
    [[nodiscard]] size_t n_devices() const noexcept { return n_devices_; }
    [[nodiscard]] ServedContext* context() const noexcept { return context_; }
    void note_devices(size_t n) noexcept { n_devices_ = n > n_devices_ ? n : n_devices_; }
    /// That of this thread, or null.
    [[nodiscard]] static HostAttention* current() noexcept;

  private:
    ServedContext* context_;
    size_t n_devices_ = 0;
};

}  // namespace kvaq
