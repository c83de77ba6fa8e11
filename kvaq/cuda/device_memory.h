#pragma once

// PRIVATE header of kvaq/cuda: GPUs, their memory, page-locked host memory, streams. Errors become kvaq::Error.

#include <cstddef>
#include <string>
#include <vector>

namespace kvaq::cuda {

/// Throws Error kOutOfMemory (the device has no room) or kIo (anything else) when a CUDA call failed. code: a cudaError_t.
void check(int code, const char* what);

/// Makes a device the calling thread's current one, and the one before it again at the end.
class OnDevice {
  public:
    explicit OnDevice(int device);
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice();

  private:
    int before_ = 0;
};

/// From ordinary host memory; what any stream does afterwards sees it.
void copy_to_device(void* to, const void* from, size_t bytes);

/// Device memory, zeroed. Throws Error kOutOfMemory naming `what`, the bytes wanted and those free.
class DeviceBuffer {
  public:
    DeviceBuffer() = default;
    DeviceBuffer(int device, size_t bytes, const char* what);
    DeviceBuffer(DeviceBuffer&& other) noexcept;
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
    ~DeviceBuffer();
    template <typename T = void>
    [[nodiscard]] T* as(size_t offset_bytes = 0) const noexcept {
        return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset_bytes);
    }
    [[nodiscard]] size_t bytes() const noexcept { return bytes_; }

  private:
    int device_ = 0;
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

/// Page-locked host memory that the device can write to and copy from.
class PinnedBuffer {
  public:
    PinnedBuffer() = default;
    PinnedBuffer(int device, size_t bytes);
    PinnedBuffer(PinnedBuffer&& other) noexcept;
    PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
    ~PinnedBuffer();
    template <typename T = std::byte>
    [[nodiscard]] T* as(size_t offset_bytes = 0) const noexcept {
        return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset_bytes);
    }
    [[nodiscard]] size_t bytes() const noexcept { return bytes_; }

  private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

class Stream {
  public:
    explicit Stream(int device);
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream();
    [[nodiscard]] void* get() const noexcept { return stream_; }
    void wait() const;
    /// event: a cudaEvent_t.
    void record(void* event) const;
    /// What comes next in this stream waits for an event recorded in another one.
    void begin_after(void* event) const;

  private:
    void* stream_ = nullptr;
};

}  // namespace kvaq::cuda
