// libggml's scheduler functions that libllama calls with a whole graph, interposed: with several backends (a GPU, RPC servers) the
// attention nodes are assigned to the host, or to the CUDA device that holds their keys and values, before the scheduler assigns the
// rest. It then copies queries there and results back. Also interposed: ggml_backend_synchronize, to leave out the scheduler's wait before an
// attention node of ours on a CUDA device; our stream waits instead.
#include <ggml-backend.h>

#include <map>

#include "kvaq/llama/attention_place.h"
#include "kvaq/llama/gpu_attention.h"
#include "kvaq/llama/real.h"
#include "kvaq/llama/served_context.h"

namespace kvaq {
namespace {

thread_local AttentionPlace* current_scope = nullptr;

/// `whole`: the graph is going to be computed, so its tensors have their data.
void place_attention(ggml_backend_sched_t scheduler, ggml_cgraph* graph, bool whole) {
    AttentionPlace* scope = AttentionPlace::current();
    const int n_backends = ggml_backend_sched_get_n_backends(scheduler);
    if (scope == nullptr || n_backends < 2) return;
    size_t n_devices = 0;
    std::map<int32_t, ggml_backend_t> gpus;
    for (int b = 0; b < n_backends; ++b) {
        ggml_backend_dev_t device = ggml_backend_get_device(ggml_backend_sched_get_backend(scheduler, b));
        const auto type = ggml_backend_dev_type(device);
        n_devices += type != GGML_BACKEND_DEVICE_TYPE_CPU && type != GGML_BACKEND_DEVICE_TYPE_ACCEL ? 1 : 0;
        if (const int32_t number = cuda_number_of(device); scope->on_gpu() && number >= 0)
            gpus[number] = ggml_backend_sched_get_backend(scheduler, b);
    }
    scope->note_devices(n_devices);
    ggml_backend_t host = ggml_backend_sched_get_backend(scheduler, n_backends - 1);  // always the CPU
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor* node = ggml_graph_node(graph, i);
        if (node->op != GGML_OP_FLASH_ATTN_EXT) continue;
        const auto gpu = gpus.find(cuda_device_of(node->src[1]));
        ggml_backend_sched_set_tensor_backend(scheduler, node, gpu != gpus.end() ? gpu->second : host);
        if (gpu != gpus.end())
            scope->note_gpu_layer(layer_of(node->src[1]), {.device = gpu->first, .backend = gpu->second});
        if (whole && scope->context() != nullptr) note_rope(*scope->context(), node);
    }
}

}  // namespace

AttentionPlace::AttentionPlace(ServedContext* context, bool on_gpu) noexcept : context_(context), on_gpu_(on_gpu) {
    current_scope = this;
}
AttentionPlace::~AttentionPlace() { current_scope = nullptr; }
AttentionPlace* AttentionPlace::current() noexcept { return current_scope; }

}  // namespace kvaq

using namespace kvaq;

extern "C" {

bool ggml_backend_sched_alloc_graph(ggml_backend_sched_t sched, ggml_cgraph* graph) {
    place_attention(sched, graph, true);
    return KVAQ_REAL(ggml_backend_sched_alloc_graph)(sched, graph);
}

bool ggml_backend_sched_reserve(ggml_backend_sched_t sched, ggml_cgraph* graph) {
    place_attention(sched, graph, false);
    return KVAQ_REAL(ggml_backend_sched_reserve)(sched, graph);
}

void ggml_backend_sched_reserve_size(ggml_backend_sched_t sched, ggml_cgraph* graph, size_t* sizes) {
    place_attention(sched, graph, false);
    KVAQ_REAL(ggml_backend_sched_reserve_size)(sched, graph, sizes);
}

void ggml_backend_synchronize(ggml_backend_t backend) {
    const AttentionPlace* scope = AttentionPlace::current();
    if (scope != nullptr && scope->context() != nullptr) {
        for (auto& [device, gpu] : scope->context()->gpus) {
            if (gpu.backend != backend || !gpu.in_order) continue;
            gpu.in_order = false;
            return;
        }
    }
    KVAQ_REAL(ggml_backend_synchronize)(backend);
}

void ggml_backend_sched_split_graph(ggml_backend_sched_t sched, ggml_cgraph* graph) {
    place_attention(sched, graph, false);
    KVAQ_REAL(ggml_backend_sched_split_graph)(sched, graph);
}

}  // extern "C"
