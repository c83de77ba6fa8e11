// libllama's memory functions, interposed: they act on our cache. llama.cpp's own memory only ever holds the batch in progress.
#include <llama.h>

#include "kvaq/llama/real.h"
#include "kvaq/llama/served_context.h"

namespace kvaq {
namespace {

/// These functions cannot report failure, and going on would give wrong text: the next decode is refused instead.
void poison(ServedContext& context, const std::string& why) {
    if (context.poisoned.empty()) context.poisoned = why;
    print_error(why);
}

bool touches(const ServedContext& context, llama_seq_id seq, llama_pos p0, llama_pos p1) {
    const int32_t n = context.handler->seq_pos_max(seq) + 1;
    return std::max(p0, 0) < n && (p1 < 0 || p1 > std::max(p0, 0));
}

}  // namespace
}  // namespace kvaq

using namespace kvaq;

extern "C" {

void llama_memory_clear(llama_memory_t mem, bool data) {
    if (ServedContext* context = Registry::instance().find(mem)) {
        context->handler->clear();
        context->poisoned.clear();
    }
    KVAQ_REAL(llama_memory_clear)(mem, data);
}

bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) return KVAQ_REAL(llama_memory_seq_rm)(mem, seq_id, p0, p1);
    return context->handler->seq_rm(seq_id, p0, p1);
}

void llama_memory_seq_cp(llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_cp)(mem, src, dst, p0, p1);
    } else if (!context->handler->seq_cp(src, dst, p0, p1)) {
        poison(*context, "cannot copy sequence " + std::to_string(src) + " to " + std::to_string(dst) +
                             ": wanted an empty target and a range from position 0, found [" + std::to_string(p0) +
                             ", " + std::to_string(p1) + ") and " +
                             std::to_string(context->handler->seq_pos_max(dst) + 1) + " tokens in the target");
    }
}

void llama_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_keep)(mem, seq_id);
    } else {
        context->handler->seq_keep(seq_id);
    }
}

void llama_memory_seq_add(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_add)(mem, seq_id, p0, p1, delta);
    } else if (delta != 0 && touches(*context, seq_id, p0, p1)) {
        poison(*context,
               "context shift (K-shift) is not served by the packed cache; llama_memory_can_shift says so. Use a "
               "larger context (-c)");
    }
}

void llama_memory_seq_div(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_div)(mem, seq_id, p0, p1, d);
    } else if (d != 1 && touches(*context, seq_id, p0, p1)) {
        poison(*context, "self-extend (position division) is not served by the packed cache");
    }
}

llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id) {
    const ServedContext* context = Registry::instance().find(mem);
    return context != nullptr ? context->handler->seq_pos_min(seq_id)
                              : KVAQ_REAL(llama_memory_seq_pos_min)(mem, seq_id);
}

llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id) {
    const ServedContext* context = Registry::instance().find(mem);
    return context != nullptr ? context->handler->seq_pos_max(seq_id)
                              : KVAQ_REAL(llama_memory_seq_pos_max)(mem, seq_id);
}

bool llama_memory_can_shift(llama_memory_t mem) {
    return Registry::instance().find(mem) == nullptr && KVAQ_REAL(llama_memory_can_shift)(mem);
}

}  // extern "C"
