// libllama's batch and decode functions, interposed: they tell the cache which tokens come, at which positions and of which
// sequences, and keep llama.cpp's own cache one batch long.
#include <llama.h>

#include <algorithm>
#include <exception>
#include <set>
#include <vector>

#include "kvaq/llama/attention_place.h"
#include "kvaq/llama/real.h"
#include "kvaq/llama/served_context.h"

namespace kvaq {
namespace {

/// Sequence ids and positions of a llama_batch_ext, which is opaque: noted as the program sets them.
struct MirrorToken {
    std::set<int32_t> seq_ids;  // llama.cpp keeps them in a set as well
    int32_t pos = 0;
    bool has_token = false;
};

class BatchMirrors {
  public:
    static BatchMirrors& instance() {
        static BatchMirrors& mirrors = *new BatchMirrors();  // never destroyed, as Registry
        return mirrors;
    }
    std::vector<MirrorToken>& of(const llama_batch_ext* batch) {
        const std::lock_guard lock(mutex_);
        return mirrors_[batch];  // references stay valid: a node-based map
    }
    void forget(const llama_batch_ext* batch) {
        const std::lock_guard lock(mutex_);
        mirrors_.erase(batch);
    }

  private:
    std::mutex mutex_;
    std::unordered_map<const llama_batch_ext*, std::vector<MirrorToken>> mirrors_;
};

/// Why a context decodes no more when the tokens of a failed batch could not be removed again (no memory for that).
constexpr const char* kHalfDecoded =
    "a batch failed and could not be undone; clear the memory (llama_memory_clear) first";

/// Checks what llama.cpp itself can no longer check, since its own memory is empty: positions continue what is cached.
bool positions_continue(ServedContext& context) {
    std::vector<int32_t> next(context.n_seq_max);
    for (size_t s = 0; s < next.size(); ++s) next[s] = context.handler->seq_pos_max(static_cast<int32_t>(s)) + 1;
    for (const PendingToken& token : context.tokens) {
        for (const int32_t s : token.seq_ids) {
            if (s < 0 || static_cast<size_t>(s) >= next.size()) {
                print_error("invalid sequence id in the batch: wanted 0.." + std::to_string(next.size() - 1) +
                            ", found " + std::to_string(s));
                return false;
            }
            if (token.pos != next[static_cast<size_t>(s)]) {
                print_error("the tokens of sequence " + std::to_string(s) +
                            " in the batch do not continue the cache: wanted position " +
                            std::to_string(next[static_cast<size_t>(s)]) + ", found " + std::to_string(token.pos));
                return false;
            }
            ++next[static_cast<size_t>(s)];
        }
    }
    return true;
}

template <typename Decode>
int32_t decode_tokens(ServedContext& context, Decode decode) {
    if (context.non_causal) {
        print_error(
            "not decoding: the program wants non-causal attention (llama_set_causal_attn), which the plan's cache does "
            "not serve");
        return -1;
    }
    if (!context.poisoned.empty()) {
        print_error("not decoding: " + context.poisoned);
        return -1;
    }
    if (context.tokens.empty()) return decode();  // llama.cpp's own message
    if (!positions_continue(context)) return -1;
    if (context.cache != nullptr && context.cache->use().n_tokens + context.tokens.size() > context.n_ctx) return 1;
    if (context.cache != nullptr && context.tokens.size() > context.n_ubatch) {
        // Several micro-batches: whether all find room is known before the first changes anything, as in llama.cpp.
        std::vector<BatchToken> batch;
        for (const PendingToken& token : context.tokens) batch.push_back({.pos = token.pos, .seq_ids = token.seq_ids});
        try {
            if (!context.cache->fits(batch)) return 1;
        } catch (const std::exception& error) {
            print_error(error.what());
            return -1;
        }
    }
    std::vector<int32_t> before(context.n_seq_max);
    for (size_t s = 0; s < before.size(); ++s) before[s] = context.handler->seq_pos_max(static_cast<int32_t>(s)) + 1;

    KVAQ_REAL(llama_memory_clear)(KVAQ_REAL(llama_get_memory)(context.ctx), false);
    context.micro_first = context.micro_end = 0;
    context.micro_open = false;
    context.first_layer = -1;
    context.appended.clear();
    for (auto& [device, gpu] : context.gpus) gpu.in_order = false;
    context.failed.store(false);
    context.fail_code = 0;
    context.failure.clear();
    context.decoding = true;
    int32_t result = 0;
    {
        const AttentionPlace place(&context, context.on_gpu);
        result = decode();
    }
    context.decoding = false;
    if (result == 0 && !context.failed.load() && context.appended.size() != context.shape.layers.size()) {
        context.fail(-2, "llama.cpp computed attention for " + std::to_string(context.appended.size()) +
                             " layers, the model has " + std::to_string(context.shape.layers.size()) +
                             ": this architecture is not served");
    }
    if (result == 0 && !context.failed.load()) {
        context.handler->end();
        context.micro_open = false;
        return 0;
    }
    if (context.micro_open) context.handler->rollback();
    context.micro_open = false;
    if (context.failed.load()) {
        result = context.fail_code;
        if (!context.failure.empty()) print_error(context.failure);
    }
    if (result != 2) {  // 2 = aborted: finished micro-batches stay, as in llama.cpp
        context.poisoned = kHalfDecoded;
        for (size_t s = 0; s < before.size(); ++s) {
            const auto seq = static_cast<int32_t>(s);
            if (context.handler->seq_rm(seq, before[s], -1)) continue;
            // Finished micro-batches have moved a sliding window too far to go back: nothing is better than a wrong rest.
            (void)context.handler->seq_rm(seq, -1, -1);
            print_error("the failed batch cost all of sequence " + std::to_string(s) +
                        ": its sliding windows had moved on. Decode it again from its start");
        }
        context.poisoned.clear();
    }
    return result;
}

/// Runs `decode` (the real function) over context.tokens. Returns llama_decode's codes.
template <typename Decode>
int32_t serve_decode(ServedContext& context, Decode decode) {
    int32_t result = 0;
    try {
        result = decode_tokens(context, decode);
    } catch (const std::exception& error) {  // of memory; the program's C API knows no exceptions
        context.decoding = false;
        if (context.micro_open) context.handler->rollback();
        context.micro_open = false;
        print_error(error.what());
        result = -2;
    }
    if (context.metrics == nullptr) return result;
    ContextMetrics& metrics = *context.metrics;
    if (result == 0) {
        metrics.batches.add(1);
        metrics.tokens.add(context.tokens.size());
    } else {
        (result == 1 ? metrics.no_space : metrics.failed).add(1);
    }
    context.publish();
    return result;
}

void take_tokens(ServedContext& context, const std::vector<MirrorToken>& batch) {
    context.tokens.clear();
    for (const MirrorToken& token : batch)
        context.tokens.push_back({.pos = token.pos, .seq_ids = {token.seq_ids.begin(), token.seq_ids.end()}});
}

constexpr size_t kMostPositions = 4;  ///< of a token: M-RoPE's, of which llama.cpp reads all from batches of embeddings

/// Returns every token's position, and zeros for its further ones.
std::vector<llama_pos> take_tokens(ServedContext& context, const llama_batch& batch) {
    const auto n = static_cast<size_t>(std::max(0, batch.n_tokens));
    std::vector<int32_t> next(context.n_seq_max);
    for (size_t s = 0; s < next.size(); ++s) next[s] = context.handler->seq_pos_max(static_cast<int32_t>(s)) + 1;
    std::vector<llama_pos> positions(kMostPositions * n);
    context.tokens.clear();
    for (size_t i = 0; i < n; ++i) {
        PendingToken token;
        if (batch.seq_id != nullptr) {
            token.seq_ids.assign(batch.seq_id[i],
                                 batch.seq_id[i] + (batch.n_seq_id != nullptr ? batch.n_seq_id[i] : 1));
            std::sort(token.seq_ids.begin(), token.seq_ids.end());
        } else {
            token.seq_ids = {0};
        }
        if (batch.pos != nullptr) {
            token.pos = batch.pos[i];
        } else {  // llama.cpp would continue its own memory, which we keep empty
            for (const int32_t s : token.seq_ids) {
                if (s >= 0 && static_cast<size_t>(s) < next.size()) token.pos = next[static_cast<size_t>(s)]++;
            }
        }
        positions[i] = token.pos;
        context.tokens.push_back(std::move(token));
    }
    return positions;
}

/// Nothing has changed yet. llama_decode's code of a failed allocation.
int32_t cannot_begin(const std::exception& error) {
    print_error(error.what());
    return -2;
}

}  // namespace
}  // namespace kvaq

using namespace kvaq;

extern "C" {

llama_batch_ext* llama_batch_ext_init(llama_context* ctx) {
    llama_batch_ext* batch = KVAQ_REAL(llama_batch_ext_init)(ctx);
    BatchMirrors::instance().of(batch).clear();
    return batch;
}

void llama_batch_ext_free(llama_batch_ext* batch) {
    BatchMirrors::instance().forget(batch);
    KVAQ_REAL(llama_batch_ext_free)(batch);
}

void llama_batch_ext_clear(llama_batch_ext* batch) {
    BatchMirrors::instance().of(batch).clear();
    KVAQ_REAL(llama_batch_ext_clear)(batch);
}

int32_t llama_batch_ext_add(llama_batch_ext* batch, llama_seq_id seq_id) {
    const int32_t index = KVAQ_REAL(llama_batch_ext_add)(batch, seq_id);
    if (index >= 0) BatchMirrors::instance().of(batch).push_back({.seq_ids = {seq_id}});
    return index;
}

int32_t llama_batch_ext_add_token(llama_batch_ext* batch, llama_seq_id seq_id, llama_token id) {
    const int32_t index = KVAQ_REAL(llama_batch_ext_add_token)(batch, seq_id, id);
    // -2 (bad token id) leaves an entry behind in llama.cpp's batch
    if (index >= 0 || index == -2)
        BatchMirrors::instance().of(batch).push_back({.seq_ids = {seq_id}, .has_token = true});
    return index;
}

int32_t llama_batch_ext_add_embd(llama_batch_ext* batch, llama_seq_id seq_id, llama_embd embd) {
    const int32_t index = KVAQ_REAL(llama_batch_ext_add_embd)(batch, seq_id, embd);
    if (index >= 0 || index == -2) BatchMirrors::instance().of(batch).push_back({.seq_ids = {seq_id}});
    return index;
}

bool llama_batch_ext_add_seq(llama_batch_ext* batch, int32_t idx, llama_seq_id seq_id) {
    const bool done = KVAQ_REAL(llama_batch_ext_add_seq)(batch, idx, seq_id);
    if (done) BatchMirrors::instance().of(batch).at(static_cast<size_t>(idx)).seq_ids.insert(seq_id);
    return done;
}

bool llama_batch_ext_set_pos(llama_batch_ext* batch, int32_t idx, const llama_pos* pos) {
    const bool done = KVAQ_REAL(llama_batch_ext_set_pos)(batch, idx, pos);
    if (done) BatchMirrors::instance().of(batch).at(static_cast<size_t>(idx)).pos = pos[0];
    return done;
}

int32_t llama_process(llama_context* ctx, llama_process_type type, llama_batch_ext* batch) {
    ServedContext* context = Registry::instance().find(ctx);
    // Encoding uses no cache: llama.cpp's own attention serves it, untouched.
    if (context == nullptr || type != LLAMA_PROCESS_TYPE_DECODE) return KVAQ_REAL(llama_process)(ctx, type, batch);
    try {
        take_tokens(*context, BatchMirrors::instance().of(batch));
    } catch (const std::exception& error) {
        return cannot_begin(error);
    }
    return serve_decode(*context, [&] { return KVAQ_REAL(llama_process)(ctx, type, batch); });
}

int32_t llama_decode(llama_context* ctx, llama_batch batch) {
    ServedContext* context = Registry::instance().find(ctx);
    if (context == nullptr) return KVAQ_REAL(llama_decode)(ctx, batch);
    std::vector<llama_pos> positions;
    try {
        positions = take_tokens(*context, batch);
    } catch (const std::exception& error) {
        return cannot_begin(error);
    }
    llama_batch copy = batch;
    if (batch.pos == nullptr) copy.pos = positions.data();
    return serve_decode(*context, [&] { return KVAQ_REAL(llama_decode)(ctx, copy); });
}

}  // extern "C"
