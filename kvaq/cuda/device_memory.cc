#include "kvaq/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "kvaq/base/error.h"

namespace kvaq::cuda {

void check(int code, const char* what) {
    const auto error = static_cast<cudaError_t>(code);
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // one that can be recovered from is not reported again
    const bool memory = error == cudaErrorMemoryAllocation;
    throw Error(
        memory ? ErrorCode::kOutOfMemory : ErrorCode::kIo, std::string("the GPU failed: ") + what, "",
        cudaGetErrorString(error),
        memory ? "Use a smaller context (-c), fewer bits, fewer layers on the GPU (-ngl), or --kv-device cpu" : "");
}

void copy_to_device(void* to, const void* from, size_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cannot copy to the device");
    // It may return when the bytes have left, and streams that do not wait for the default one would not see that they have not arrived.
    check(cudaStreamSynchronize(cudaStreamLegacy), "cannot copy to the device");
}

OnDevice::OnDevice(int device) {
    check(cudaGetDevice(&before_), "cannot read the current device");
    if (before_ != device) check(cudaSetDevice(device), "cannot use the device");
}
OnDevice::~OnDevice() { (void)cudaSetDevice(before_); }

DeviceBuffer::DeviceBuffer(int device, size_t bytes, const char* what) : device_(device), bytes_(bytes) {
    if (bytes == 0) return;
    const OnDevice on(device);
    const cudaError_t error = cudaMalloc(&data_, bytes);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        data_ = nullptr;
        bytes_ = 0;
        size_t free = 0;
        size_t total = 0;
        if (cudaMemGetInfo(&free, &total) != cudaSuccess) free = 0;
        const auto mebibytes = [](size_t n) { return std::to_string((n + (1U << 20) - 1) >> 20) + " MiB"; };
        throw Error(ErrorCode::kOutOfMemory, std::string("cannot allocate the K/V cache on the GPU (") + what + ")",
                    mebibytes(bytes),
                    mebibytes(free) + " free on CUDA" + std::to_string(device) + " (" + cudaGetErrorString(error) + ")",
                    "Use a smaller context (-c), fewer bits, fewer layers on the GPU (-ngl), or --kv-device cpu");
    }
    check(cudaMemset(data_, 0, bytes), "cannot clear memory");
    check(cudaDeviceSynchronize(), "cannot clear memory");
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : device_(other.device_), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

DeviceBuffer::~DeviceBuffer() {
    if (data_ != nullptr) (void)cudaFree(data_);
}

PinnedBuffer::PinnedBuffer(int device, size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    const OnDevice on(device);
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocMapped | cudaHostAllocPortable),
          "cannot lock host memory for copies");
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

PinnedBuffer::~PinnedBuffer() {
    if (data_ != nullptr) (void)cudaFreeHost(data_);
}

Stream::Stream(int device) {
    const OnDevice on(device);
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cannot make a stream");
    stream_ = stream;
}

Stream::~Stream() {
    if (stream_ != nullptr) (void)cudaStreamDestroy(static_cast<cudaStream_t>(stream_));
}

void Stream::record(void* event) const {
    check(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream_)),
          "cannot record an event");
}

void Stream::begin_after(void* event) const {
    check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream_), static_cast<cudaEvent_t>(event), 0),
          "cannot wait for an event");
}

void Stream::wait() const { check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream_)), "a kernel failed"); }

}  // namespace kvaq::cuda
