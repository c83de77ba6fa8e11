// libllama's state functions, interposed. One sequence (slots, llama-server's prompt cache, checkpoints) or all of a context (llama-completion's
// --prompt-cache, Llama.save_state in Python) is saved and restored with its packed bits.
#include <llama.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <span>
#include <string>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/llama/real.h"
#include "kvaq/llama/served_context.h"
#include "kvaq/llama/slot_file.h"

namespace kvaq {
namespace {

KvCache* cache_or_refuse(ServedContext& context) {
    if (context.cache == nullptr) print_error("this context's cache cannot be saved or restored");
    return context.cache;
}

/// call(cache), or 0 and a message if it throws: C callers see no exceptions. ContextMetrics has a cache's counters.
template <typename Call>
size_t guarded(ServedContext& context, Call call) {
    KvCache* cache = cache_or_refuse(context);
    if (cache == nullptr) return 0;
    try {
        return call(*cache);
    } catch (const std::exception& error) {
        context.metrics->refused.add(1);
        print_error(error.what());
        return 0;
    }
}

size_t state_size(ServedContext& context, llama_seq_id seq) {
    return guarded(context, [&](const KvCache& cache) { return cache.sequence_bytes(seq); });
}

/// What save(cache) gives, copied to dst. what: for the message.
template <typename Save>
size_t copy_saved(ServedContext& context, uint8_t* dst, size_t size, const std::string& what, Save save) {
    return guarded(context, [&](const KvCache& cache) {
        const std::vector<std::byte> bytes = save(cache);
        if (bytes.size() > size) {
            throw Error(ErrorCode::kInvalidArgument, "the buffer for the " + what + "'s state is too small",
                        std::to_string(bytes.size()) + " bytes", std::to_string(size));
        }
        std::memcpy(dst, bytes.data(), bytes.size());
        context.metrics->saved.add(1);
        return bytes.size();
    });
}

size_t get_state(ServedContext& context, uint8_t* dst, size_t size, llama_seq_id seq) {
    return copy_saved(context, dst, size, "sequence", [seq](const KvCache& cache) { return cache.save_sequence(seq); });
}

void load(ServedContext& context, KvCache& cache, llama_seq_id seq, std::span<const std::byte> bytes) {
    cache.load_sequence(seq, bytes);
    context.metrics->restored.add(1);
    context.publish();
}

size_t set_state(ServedContext& context, const uint8_t* src, size_t size, llama_seq_id seq) {
    return guarded(context, [&](KvCache& cache) {
        load(context, cache, seq, std::as_bytes(std::span(src, size)));
        return size;
    });
}

void check_capacity(const char* path, size_t n_tokens, size_t capacity) {
    if (n_tokens <= capacity) return;
    throw Error(ErrorCode::kInvalidArgument, std::string("cannot restore ") + path,
                "room for " + std::to_string(n_tokens) + " tokens", std::to_string(capacity));
}

size_t get_whole_state(ServedContext& context, uint8_t* dst, size_t size) {
    return copy_saved(context, dst, size, "context", [](const KvCache& cache) { return cache.save_context(); });
}

void load_whole(ServedContext& context, KvCache& cache, std::span<const std::byte> bytes) {
    cache.load_context(bytes);
    context.metrics->restored.add(1);
    context.publish();
}

size_t set_whole_state(ServedContext& context, const uint8_t* src, size_t size) {
    return guarded(context, [&](KvCache& cache) {
        load_whole(context, cache, std::as_bytes(std::span(src, size)));
        return cache.context_bytes();
    });
}

}  // namespace
}  // namespace kvaq

using namespace kvaq;

#define KVAQ_CONTEXT_OR(ctx, real_call)                      \
    ServedContext* context = Registry::instance().find(ctx); \
    if (context == nullptr) return real_call

extern "C" {

size_t llama_state_seq_get_size_ext(llama_context* ctx, llama_seq_id seq_id, llama_state_seq_flags flags) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_get_size_ext)(ctx, seq_id, flags));
    return state_size(*context, seq_id);  // also for partial states: a checkpoint is the whole sequence, packed
}

size_t llama_state_seq_get_data_ext(llama_context* ctx, uint8_t* dst, size_t size, llama_seq_id seq_id,
                                    llama_state_seq_flags flags) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_get_data_ext)(ctx, dst, size, seq_id, flags));
    return get_state(*context, dst, size, seq_id);
}

size_t llama_state_seq_set_data_ext(llama_context* ctx, const uint8_t* src, size_t size, llama_seq_id seq_id,
                                    llama_state_seq_flags flags) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_set_data_ext)(ctx, src, size, seq_id, flags));
    return set_state(*context, src, size, seq_id);
}

size_t llama_state_seq_get_size(llama_context* ctx, llama_seq_id seq_id) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_get_size)(ctx, seq_id));
    return state_size(*context, seq_id);
}

size_t llama_state_seq_get_data(llama_context* ctx, uint8_t* dst, size_t size, llama_seq_id seq_id) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_get_data)(ctx, dst, size, seq_id));
    return get_state(*context, dst, size, seq_id);
}

size_t llama_state_seq_set_data(llama_context* ctx, const uint8_t* src, size_t size, llama_seq_id seq_id) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_set_data)(ctx, src, size, seq_id));
    return set_state(*context, src, size, seq_id);
}

size_t llama_state_seq_save_file(llama_context* ctx, const char* path, llama_seq_id seq_id, const llama_token* tokens,
                                 size_t n_tokens) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_save_file)(ctx, path, seq_id, tokens, n_tokens));
    return guarded(*context, [&](const KvCache& cache) {
        const std::vector<std::byte> file = slot_file({tokens, n_tokens}, cache.save_sequence(seq_id));
        atomic_write(path, file);
        context->metrics->saved.add(1);
        return file.size();
    });
}

size_t llama_state_seq_load_file(llama_context* ctx, const char* path, llama_seq_id seq_id, llama_token* tokens,
                                 size_t capacity, size_t* n_tokens_out) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_seq_load_file)(ctx, path, seq_id, tokens, capacity, n_tokens_out));
    return guarded(*context, [&](KvCache& cache) {
        const std::vector<std::byte> file = read_file(path);
        const SlotFile slot = read_slot_file(file, path);
        const size_t count = slot.tokens.size();
        if (tokens == nullptr) {
            *n_tokens_out = count;
            return file.size();
        }
        check_capacity(path, count, capacity);
        if (slot.snapshot.empty() && count == 0) {  // of an empty sequence
            (void)cache.seq_rm(seq_id, -1, -1);
            context->publish();
        } else {
            load(*context, cache, seq_id, slot.snapshot);
        }
        *n_tokens_out = count;
        std::copy(slot.tokens.begin(), slot.tokens.end(), tokens);
        return file.size();
    });
}

size_t llama_state_get_size(llama_context* ctx) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_get_size)(ctx));
    return guarded(*context, [](const KvCache& cache) { return cache.context_bytes(); });
}

size_t llama_state_get_data(llama_context* ctx, uint8_t* dst, size_t size) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_get_data)(ctx, dst, size));
    return get_whole_state(*context, dst, size);
}

size_t llama_state_set_data(llama_context* ctx, const uint8_t* src, size_t size) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_set_data)(ctx, src, size));
    return set_whole_state(*context, src, size);
}

bool llama_state_load_file(llama_context* ctx, const char* path, llama_token* tokens, size_t capacity,
                           size_t* n_tokens_out) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_load_file)(ctx, path, tokens, capacity, n_tokens_out));
    return guarded(*context, [&](KvCache& cache) {
               const std::vector<std::byte> file = read_file(path);
               const SlotFile session = read_slot_file(file, path);
               check_capacity(path, session.tokens.size(), capacity);
               load_whole(*context, cache, session.snapshot);
               *n_tokens_out = session.tokens.size();
               std::copy(session.tokens.begin(), session.tokens.end(), tokens);
               return file.size();
           }) > 0;
}

bool llama_state_save_file(llama_context* ctx, const char* path, const llama_token* tokens, size_t n_tokens) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_save_file)(ctx, path, tokens, n_tokens));
    return guarded(*context, [&](const KvCache& cache) {
               const std::vector<std::byte> file = slot_file({tokens, n_tokens}, cache.save_context());
               atomic_write(path, file);
               context->metrics->saved.add(1);
               return file.size();
           }) > 0;
}

// Deprecated names.
size_t llama_get_state_size(llama_context* ctx) { return llama_state_get_size(ctx); }
size_t llama_copy_state_data(llama_context* ctx, uint8_t* dst) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_get_data)(ctx, dst, KVAQ_REAL(llama_state_get_size)(ctx)));
    return get_whole_state(*context, dst, SIZE_MAX);
}
size_t llama_set_state_data(llama_context* ctx, const uint8_t* src) {
    KVAQ_CONTEXT_OR(ctx, KVAQ_REAL(llama_state_set_data)(ctx, src, SIZE_MAX));
    return set_whole_state(*context, src, SIZE_MAX);
}
bool llama_load_session_file(llama_context* ctx, const char* path, llama_token* tokens, size_t capacity,
                             size_t* n_tokens_out) {
    return llama_state_load_file(ctx, path, tokens, capacity, n_tokens_out);
}
bool llama_save_session_file(llama_context* ctx, const char* path, const llama_token* tokens, size_t n_tokens) {
    return llama_state_save_file(ctx, path, tokens, n_tokens);
}

}  // extern "C"
