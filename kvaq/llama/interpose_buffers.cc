// libggml's allocation of the tensors of llama.cpp's own cache, interposed: all layers get the same memory. Under the drop-in that cache is only the way
// by which a layer's new rows reach our attention node, which copies them; the rows of the layer before are not read again, and the next layer's do not
// exist before this layer's attention is done. Without it the own cache of one batch (-b, 2048 tokens) would be as large as an f16 cache of a batch.
#include <ggml-alloc.h>
#include <ggml-backend.h>

#include <algorithm>
#include <cstring>

#include "kvaq/llama/attention_place.h"
#include "kvaq/llama/real.h"

namespace kvaq {
namespace {

/// 'k' or 'v' of "cache_k_l12" (llama-kv-cache.cpp), 0 of anything else.
char side_of(const ggml_tensor* tensor) {
    const char* end = std::strstr(tensor->name, "_l");
    if (std::strncmp(tensor->name, "cache_", 6) != 0 || end == nullptr) return 0;
    return end[-1] == 'k' || end[-1] == 'v' ? end[-1] : '\0';
}

/// A buffer in which all keys lie at one place and all values at another; null: not possible here.
ggml_backend_buffer_t alloc_shared(ggml_context* ctx, ggml_backend_buffer_type_t buft) {
    const size_t alignment = ggml_backend_buft_get_alignment(buft);
    size_t keys = 0;
    size_t values = 0;
    for (ggml_tensor* t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        if (t->view_src != nullptr) continue;
        const char side = side_of(t);
        if (side == 0 || t->data != nullptr) return nullptr;
        size_t& largest = side == 'k' ? keys : values;
        largest = std::max(largest, ggml_backend_buft_get_alloc_size(buft, t));
    }
    keys = (keys + alignment - 1) / alignment * alignment;
    if (keys + values == 0 || keys + values > ggml_backend_buft_get_max_size(buft)) return nullptr;
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buft, keys + values);
    if (buffer == nullptr) return nullptr;
    auto* base = static_cast<char*>(ggml_backend_buffer_get_base(buffer));
    for (ggml_tensor* t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        const ggml_status status = t->view_src != nullptr
                                       ? ggml_backend_view_init(t)
                                       : ggml_backend_tensor_alloc(buffer, t, base + (side_of(t) == 'k' ? 0 : keys));
        if (status == GGML_STATUS_SUCCESS) continue;
        ggml_backend_buffer_free(buffer);
        return nullptr;
    }
    return buffer;
}

}  // namespace
}  // namespace kvaq

using namespace kvaq;

extern "C" ggml_backend_buffer_t ggml_backend_alloc_ctx_tensors_from_buft(ggml_context* ctx,
                                                                          ggml_backend_buffer_type_t buft) {
    AttentionPlace* scope = AttentionPlace::current();
    ggml_backend_buffer_t buffer = scope != nullptr && scope->layers_share_rows() && ggml_backend_buft_is_host(buft)
                                       ? alloc_shared(ctx, buft)
                                       : nullptr;
    if (buffer == nullptr) buffer = KVAQ_REAL(ggml_backend_alloc_ctx_tensors_from_buft)(ctx, buft);
    if (scope != nullptr && buffer != nullptr) scope->note_own_cache(ggml_backend_buffer_get_size(buffer));
    return buffer;
}
