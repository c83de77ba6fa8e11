#include "kvaq/llama/gpu_attention.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/cuda/cuda_cache.h"
#include "kvaq/llama/served_context.h"

namespace kvaq {
namespace {

/// struct ggml_backend_event of ggml-backend-impl.h, not a public header; the version check at load holds the layout together. context: a cudaEvent_t.
struct BackendEvent {
    ggml_backend_dev_t device;
    void* context;
};

class OneThread final : public Team {
  public:
    [[nodiscard]] size_t index() const noexcept override { return 0; }
    [[nodiscard]] size_t size() const noexcept override { return 1; }
    void barrier() noexcept override {}
};

}  // namespace

int32_t cuda_number_of(ggml_backend_dev_t device) {
    int32_t number = -1;
    if (device == nullptr || std::sscanf(ggml_backend_dev_name(device), "CUDA%d", &number) != 1) return -1;
    return number;
}

KvDevice parse_kv_device(const std::string& text) {
    if (text == "auto") return KvDevice::kAuto;
    if (text == "cpu") return KvDevice::kCpu;
    if (text == "gpu") return KvDevice::kGpu;
    throw Error(ErrorCode::kInvalidArgument, "unknown place for the K/V cache (--kv-device, KVAQ_KV_DEVICE)",
                "auto, cpu or gpu", "'" + text + "'");
}

KvDevice wanted_kv_device() {
    const char* text = std::getenv("KVAQ_KV_DEVICE");
    return text == nullptr || *text == '\0' ? KvDevice::kAuto : parse_kv_device(text);
}

std::string why_no_gpu() {
    size_t n_cuda = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_CPU || type == GGML_BACKEND_DEVICE_TYPE_ACCEL) continue;
        if (cuda_number_of(device) < 0)
            return std::string("llama.cpp uses the device ") + ggml_backend_dev_name(device) +
                   ", which is no CUDA device";
        ++n_cuda;
    }
    if (n_cuda == 0) return "llama.cpp has no CUDA device";
    const CudaSupport support = cuda_support();
    if (support.gpus.empty()) return support.why_none;
    if (support.gpus.size() < n_cuda) return "llama.cpp has a CUDA device that kvaq's kernels do not run on";
    return "";
}

int32_t cuda_device_of(const ggml_tensor* tensor) {
    const ggml_backend_buffer_t buffer = tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
    if (buffer == nullptr || ggml_backend_buffer_is_host(buffer)) return -1;
    return cuda_number_of(ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer)));
}

void* shared_event(GpuBackend& gpu) {
    if (gpu.event == nullptr) gpu.event = ggml_backend_event_new(ggml_backend_get_device(gpu.backend));
    if (gpu.event == nullptr) return nullptr;
    BackendEvent inside{};
    std::memcpy(&inside, gpu.event, sizeof inside);
    return inside.context;
}

void run_on_gpu(ServedContext& context, ServedNode& served, ggml_tensor* node) {
    GpuBackend& gpu = context.gpus.at(served.device);
    if (context.leaves_out(served)) {
        ggml_backend_synchronize(gpu.backend);
        ggml_backend_tensor_memset(node, 0, 0, ggml_nbytes(node));  // the whole batch is going to be refused
        return;
    }
    const LayerShape& shape = *shape_of(context, served.layer);
    for (const ggml_tensor* tensor :
         {static_cast<const ggml_tensor*>(node), static_cast<const ggml_tensor*>(node->src[0]),
          static_cast<const ggml_tensor*>(node->src[1]), static_cast<const ggml_tensor*>(node->src[2])}) {
        if (cuda_device_of(tensor) == served.device) continue;
        context.fail(-2, "attention of layer " + std::to_string(served.layer) + ": '" + tensor->name +
                             "' is not on CUDA" + std::to_string(served.device) +
                             " with the others: please report this. Use --kv-device cpu");
        return;
    }
    if (served.check_mask) {
        const ggml_tensor* mask = node->src[3];
        ggml_backend_synchronize(gpu.backend);
        std::vector<std::byte> rows(ggml_nbytes(mask));
        ggml_backend_tensor_get(mask, rows.data(), 0, rows.size());
        check_mask(context, mask, rows.data(), shape);
    }
    if (node->src[4] != nullptr && served.sink_logits.empty()) {
        served.sink_logits.resize(shape.n_heads);
        ggml_backend_tensor_get(node->src[4], served.sink_logits.data(), 0, shape.n_heads * sizeof(float));
    }
    AttentionCall call = call_of(context, served, node);
    call.device = served.device;
    call.rule.sink_logits = node->src[4] != nullptr ? served.sink_logits.data() : nullptr;
    OneThread team;
    const auto start = std::chrono::steady_clock::now();
    void* event = shared_event(gpu);
    if (event != nullptr) {
        ggml_backend_event_record(gpu.event, gpu.backend);
        context.cache->begin_after(served.device, event);
    }
    context.handler->attend(call, team);
    if (event != nullptr && !served.program_wants) {
        context.cache->signal(served.device, event);
        ggml_backend_event_wait(gpu.backend, gpu.event);
    } else {
        context.cache->wait(served.device);
    }
    const auto time = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start);
    if (context.metrics != nullptr) context.metrics->attention_ns.add(static_cast<uint64_t>(time.count()));
    if (const std::string fault = context.cache->fault(); !fault.empty()) context.fail(-2, fault);
}

}  // namespace kvaq
