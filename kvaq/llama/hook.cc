// The attention nodes of llama.cpp's graph: found in the scheduler's callback, turned into GGML_OP_CUSTOM in place, so that
// llama.cpp's own threads run our attention there and its own is never computed. The callback says "no need to look" for
// them, so the graph runs in one piece. On a CUDA device they become GGML_OP_NONE, which the backend passes over, and the callback asks to
// look at them: the graph is cut there, and our kernels run between its pieces. The scheduler's wait for a piece is left out (interpose_scheduler.cc).
#include <ggml-backend.h>
#include <ggml.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <span>

#include "kvaq/llama/gpu_attention.h"
#include "kvaq/llama/served_context.h"

namespace kvaq {
namespace {

/// What ggml keeps in op_params of GGML_OP_CUSTOM (struct ggml_custom_op_params of ggml-impl.h, not a public header; the
/// version check at load holds the layout together).
struct CustomParams {
    ggml_custom_op_t function;
    int n_tasks;
    void* user_data;
};
static_assert(sizeof(CustomParams) <= GGML_MAX_OP_PARAMS);

void run_node(ggml_tensor* node, int index, int size, void* user_data);

bool is_ours(const ggml_tensor* node) {
    if (node->op != GGML_OP_CUSTOM && node->op != GGML_OP_NONE) return false;
    CustomParams params;
    std::memcpy(&params, node->op_params, sizeof params);
    return params.function == run_node;
}

bool on_host(const ggml_tensor* tensor) {
    const ggml_backend_buffer_t buffer = tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
    return buffer != nullptr && ggml_backend_buffer_is_host(buffer);
}

/// Empty if the node can be served, else why not.
std::string why_not(const ServedContext& context, const ggml_tensor* node, int32_t layer) {
    const ggml_tensor* q = node->src[0];
    const ggml_tensor* k = node->src[1];
    const ggml_tensor* v = node->src[2];
    const std::string name = "attention of layer " + std::to_string(layer);
    if (layer < 0)
        return "an attention node does not read llama.cpp's K/V cache (tensor '" + std::string(k->name) +
               "'): this architecture is not served";
    const LayerShape* shape = shape_of(context, layer);
    if (shape == nullptr) return name + " is not in the plan's model shape: this architecture is not served";
    if (k->type != GGML_TYPE_F16 || v->type != GGML_TYPE_F16 || q->type != GGML_TYPE_F32)
        return name + ": wanted f32 queries and f16 keys and values";
    const int32_t device = cuda_device_of(k);
    if (device < 0 ? !on_host(k) || !on_host(v)
                   : !context.on_gpu || cuda_device_of(v) != device || !context.gpus.contains(device))
        return name +
               ": its keys and values are on a device, wanted on the host: please report this. Use -ngl 0, or leave "
               "the plan out";
    const auto differs = [](int64_t a, size_t b) { return a != static_cast<int64_t>(b); };
    if (differs(q->ne[0], shape->head_dim_k) || differs(q->ne[2], shape->n_heads) ||
        differs(k->ne[2], shape->n_kv_heads) || differs(v->ne[0], shape->head_dim_v) || q->ne[3] != 1 ||
        k->nb[0] != sizeof(float16) || v->nb[0] != sizeof(float16)) {
        return name + ": head counts or sizes differ from the model's metadata";
    }
    return "";
}

void begin_micro_batch(ServedContext& context, size_t n_tokens) {
    if (context.micro_open) {
        context.handler->end();
        context.micro_open = false;
        context.publish();
    }
    context.micro_first = context.micro_end;
    context.micro_end += n_tokens;
    context.appended.clear();
    context.masks.clear();
    if (context.failed.load()) return;
    if (context.micro_end > context.tokens.size()) {
        context.fail(-2, "llama.cpp computes more tokens than the batch holds: please report this");
        return;
    }
    try {
        std::vector<BatchToken> batch;
        for (size_t i = context.micro_first; i < context.micro_end; ++i) {
            batch.push_back({.pos = context.tokens[i].pos, .seq_ids = context.tokens[i].seq_ids});
        }
        if (!context.handler->begin(batch)) {
            context.fail(1, "");
            return;
        }
        context.micro_open = true;
    } catch (const std::exception& error) {
        context.fail(-1, error.what());
    }
}

/// The node as ours, or null if it cannot be served (the context has failed then).
ServedNode* prepare_node(ServedContext& context, ggml_tensor* node) {
    ServedNode* served = nullptr;
    if (is_ours(node)) {
        served = context.nodes.at(node).get();
    } else {
        auto fresh = std::make_unique<ServedNode>();
        fresh->context = &context;
        fresh->layer = layer_of(node->src[1]);
        fresh->device = cuda_device_of(node->src[1]);
        std::memcpy(&fresh->scale, node->op_params, sizeof(float));
        std::memcpy(&fresh->max_bias, node->op_params + 1, sizeof(float));
        std::memcpy(&fresh->softcap, node->op_params + 2, sizeof(float));
        const std::string reason = why_not(context, node, fresh->layer);
        if (!reason.empty()) {
            context.fail(-1, reason);
            return nullptr;
        }
        note_rope(context, node);
        const GraphRope& rope = context.ropes.at(fresh->layer);
        fresh->rope = rope.why_not.empty() ? &rope.rule : nullptr;
        served = fresh.get();
        context.nodes[node] = std::move(fresh);  // throws before the node is changed
        const CustomParams params{run_node, GGML_N_TASKS_MAX, served};
        node->op = served->device < 0 ? GGML_OP_CUSTOM : GGML_OP_NONE;
        std::memset(node->op_params, 0, sizeof node->op_params);
        std::memcpy(node->op_params, &params, sizeof params);
    }
    if (context.first_layer < 0) context.first_layer = served->layer;
    if (context.micro_end == context.micro_first ||
        (served->layer == context.first_layer && context.appended.contains(served->layer))) {
        begin_micro_batch(context, static_cast<size_t>(node->src[0]->ne[1]));
    }
    served->skip = static_cast<size_t>(node->src[0]->ne[1]) != context.micro_end - context.micro_first;
    if (served->skip) {
        context.fail(-2, "layers of one micro-batch have different numbers of tokens: this architecture is not served");
    }
    served->append = context.appended.insert(served->layer).second;
    served->check_mask = node->src[3] != nullptr && context.masks.insert(node->src[3]).second;
    if (node->src[3] == nullptr) context.fail(-1, "an attention node has no mask: this architecture is not served");
    return served;
}

bool visible(const ServedContext& context, const LayerShape& shape, const PendingToken& query,
             const PendingToken& key) {
    bool same_sequence = false;
    for (const int32_t s : key.seq_ids) same_sequence = same_sequence || s == query.seq_ids[0];
    if (!same_sequence || key.pos > query.pos) return false;
    if (shape.sliding_window <= 0) return true;
    if (context.chunked_window) return key.pos >= query.pos / shape.sliding_window * shape.sliding_window;
    return query.pos - key.pos < shape.sliding_window;
}

class LlamaTeam final : public Team {
  public:
    LlamaTeam(int index, int size, SpinBarrier& barrier)
        : index_(static_cast<size_t>(index)), size_(static_cast<size_t>(size)), barrier_(barrier) {}
    [[nodiscard]] size_t index() const noexcept override { return index_; }
    [[nodiscard]] size_t size() const noexcept override { return size_; }
    void barrier() noexcept override { barrier_.wait(static_cast<uint32_t>(size_)); }

  private:
    size_t index_, size_;
    SpinBarrier& barrier_;
};

/// Runs in every thread of llama.cpp's pool.
void run_node(ggml_tensor* node, int index, int size, void* user_data) {
    const ServedNode& served = *static_cast<const ServedNode*>(user_data);
    ServedContext& context = *served.context;
    if (context.leaves_out(served)) {
        if (index == 0) std::memset(node->data, 0, ggml_nbytes(node));  // the whole batch is going to be refused
        return;
    }
    const LayerShape& shape = *shape_of(context, served.layer);
    if (served.check_mask && index == 0) check_mask(context, node->src[3], node->src[3]->data, shape);
    AttentionCall call = call_of(context, served, node);
    if (node->src[4] != nullptr) call.rule.sink_logits = static_cast<const float*>(node->src[4]->data);
    LlamaTeam team(index, size, context.barrier);
    if (index != 0 || context.metrics == nullptr) {
        context.handler->attend(call, team);
        return;
    }
    const auto start = std::chrono::steady_clock::now();
    context.handler->attend(call, team);
    const auto time = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start);
    context.metrics->attention_ns.add(static_cast<uint64_t>(time.count()));
}

}  // namespace

int32_t layer_of(const ggml_tensor* k) {
    const ggml_tensor* root = k;
    while (root->view_src != nullptr) root = root->view_src;
    int32_t layer = -1;
    if (std::sscanf(root->name, "cache_k_l%d", &layer) != 1) return -1;
    return layer;
}

const LayerShape* shape_of(const ServedContext& context, int32_t layer) {
    for (const LayerShape& shape : context.shape.layers) {
        if (shape.layer == layer) return &shape;
    }
    return nullptr;
}

void check_mask(ServedContext& context, const ggml_tensor* mask, const void* data, const LayerShape& shape) {
    constexpr uint16_t kMinusInf = 0xFC00;
    const size_t n = context.micro_end - context.micro_first;
    if (mask->type != GGML_TYPE_F16 || static_cast<size_t>(mask->ne[0]) < context.micro_end ||
        static_cast<size_t>(mask->ne[1]) < n) {
        context.fail(-2, "llama.cpp's attention mask has an unexpected shape: this architecture is not served");
        return;
    }
    // Cell j of llama.cpp's cache is token j of the batch. The micro-batch's own tokens in every row; those before them, which show windows as long as
    // the batch, in its first and last row.
    for (size_t i = 0; i < n; ++i) {
        const auto* row = reinterpret_cast<const uint16_t*>(static_cast<const char*>(data) + i * mask->nb[1]);
        const PendingToken& query = context.tokens[context.micro_first + i];
        for (size_t j = i == 0 || i + 1 == n ? 0 : context.micro_first; j < context.micro_end; ++j) {
            if ((row[j] != kMinusInf) == visible(context, shape, query, context.tokens[j])) continue;
            context.fail(-2, "llama.cpp's attention mask of layer " + std::to_string(shape.layer) +
                                 " differs from the rule we serve (token " + std::to_string(context.micro_first + i) +
                                 " and " + std::to_string(j) + " of the batch): please report this model");
            return;
        }
    }
}

AttentionCall call_of(const ServedContext& context, const ServedNode& served, const ggml_tensor* node) {
    const ggml_tensor* q = node->src[0];
    const ggml_tensor* k = node->src[1];
    const ggml_tensor* v = node->src[2];
    const LayerShape& shape = *shape_of(context, served.layer);
    AttentionCall call;
    call.layer = served.layer;
    call.n_tokens = static_cast<size_t>(q->ne[1]);
    call.q = {static_cast<const float*>(q->data), q->nb[1] / sizeof(float), q->nb[2] / sizeof(float)};
    call.k = {reinterpret_cast<const float16*>(static_cast<const char*>(k->data) + context.micro_first * k->nb[1]),
              k->nb[1] / sizeof(float16), k->nb[2] / sizeof(float16)};
    call.v = {reinterpret_cast<const float16*>(static_cast<const char*>(v->data) + context.micro_first * v->nb[1]),
              v->nb[1] / sizeof(float16), v->nb[2] / sizeof(float16)};
    call.append = served.append;
    call.rope = served.rope;
    call.rule = {.scale = served.scale,
                 .softcap = served.softcap,
                 .alibi_max_bias = served.max_bias,
                 .sliding_window = shape.sliding_window,
                 .chunked_window = context.chunked_window};
    call.out = {static_cast<float*>(node->data), node->nb[2] / sizeof(float), node->nb[1] / sizeof(float)};
    return call;
}

void note_rope(ServedContext& context, const ggml_tensor* node) {
    const int32_t layer = layer_of(node->src[1]);
    if (layer < 0) return;  // prepare_node says so
    const auto [rope, first] = context.ropes.try_emplace(layer);
    if (first) rope->second = rope_of_queries(node->src[0]);
}

namespace {

/// A node that was asked for is computed: ours on a device is now, and the program's callback sees what it wanted. Returns whether to go on.
bool look_at(ServedContext& context, ggml_tensor* node) {
    bool program_wants = context.program_callback != nullptr;
    if (context.decoding && is_ours(node)) {
        ServedNode& served = *context.nodes.at(node);
        program_wants = served.program_wants || served.device < 0;
        try {
            if (served.device >= 0) {
                context.gpus.at(served.device).in_order = false;  // where the wait was not ours to leave out
                run_on_gpu(context, served, node);
            }
        } catch (const std::exception& error) {  // the caller is C
            context.fail(-2, error.what());
        }
    }
    return program_wants ? context.program_callback(node, false, context.program_callback_data) : true;
}

}  // namespace

bool serve_callback(ggml_tensor* node, bool ask, void* user_data) {
    ServedContext& context = *static_cast<ServedContext*>(user_data);
    if (!ask) return look_at(context, node);
    const bool program_wants =
        context.program_callback != nullptr && context.program_callback(node, true, context.program_callback_data);
    if (!context.decoding || (node->op != GGML_OP_FLASH_ATTN_EXT && !is_ours(node))) return program_wants;
    try {
        ServedNode* served = prepare_node(context, node);
        if (served == nullptr || served->device < 0) return program_wants;
        served->program_wants = program_wants;
        GpuBackend& gpu = context.gpus.at(served->device);
        gpu.in_order = !program_wants && shared_event(gpu) != nullptr;
    } catch (const std::exception& error) {  // the caller is C
        context.fail(-2, error.what());
        return program_wants;
    }
    return true;
}

}  // namespace kvaq
