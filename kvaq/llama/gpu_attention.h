#pragma once

// PRIVATE header of kvaq/llama: attention nodes whose keys and values lie on a CUDA device.

#include <ggml-backend.h>
#include <ggml.h>

#include <cstdint>
#include <string>

namespace kvaq {

struct GpuBackend;
struct ServedContext;
struct ServedNode;

/// What --kv-device (KVAQ_KV_DEVICE) asks for: kAuto puts the layers that llama.cpp keeps on CUDA devices there, kGpu refuses where that is not possible.
enum class KvDevice { kAuto, kCpu, kGpu };
/// "auto", "cpu", "gpu". Throws Error kInvalidArgument.
[[nodiscard]] KvDevice parse_kv_device(const std::string& text);
/// From the environment; kAuto when unset.
[[nodiscard]] KvDevice wanted_kv_device();

/// Empty if a context's layers can be kept on CUDA devices, else why not: no GPU or no kernels for it, or llama.cpp uses devices of another kind as well.
[[nodiscard]] std::string why_no_gpu();

/// CUDA's number of a device; -1 for the host and other devices.
[[nodiscard]] int32_t cuda_number_of(ggml_backend_dev_t device);
/// CUDA's number of the device that holds a tensor; -1 for the host and other devices.
[[nodiscard]] int32_t cuda_device_of(const ggml_tensor* tensor);

/// The event (a cudaEvent_t) by which our stream and the backend's wait for each other, so that the host need not wait for either; made at the first call. Null:
/// the backend has none.
[[nodiscard]] void* shared_event(GpuBackend& gpu);
/// Computes a node after what comes before it in the graph. The backend goes on when it is done; the host need not wait.
void run_on_gpu(ServedContext& context, ServedNode& served, ggml_tensor* node);

}  // namespace kvaq
