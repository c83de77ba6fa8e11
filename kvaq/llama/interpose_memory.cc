// libllama's memory functions, interposed: they act on our cache. llama.cpp's own memory only ever holds the batch in progress.
#include <llama.h>

#include <algorithm>
#include <exception>
#include <string>

#include "kvaq/llama/real.h"
#include "kvaq/llama/served_context.h"

namespace kvaq {
namespace {

/// These functions cannot report failure, and going on would give wrong text: the next decode is refused instead.
void poison(ServedContext& context, const std::string& why) {
    if (context.poisoned.empty()) context.poisoned = why;
    print_error(why);
}

/// As AttentionHandler::seq_cp and the like; an exception (of memory) poisons and counts as done.
template <typename Edit>
bool edit_or_poison(ServedContext& context, const char* what, Edit edit) {
    try {
        return edit(*context.handler);
    } catch (const std::exception& error) {
        poison(context, std::string("cannot ") + what + ": " + error.what());
        return true;
    }
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
        context->publish();
    }
    KVAQ_REAL(llama_memory_clear)(mem, data);
}

bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) return KVAQ_REAL(llama_memory_seq_rm)(mem, seq_id, p0, p1);
    bool done = false;
    try {
        done = context->handler->seq_rm(seq_id, p0, p1);
    } catch (const std::exception& error) {
        print_error("cannot remove tokens of sequence " + std::to_string(seq_id) + ": " + error.what());
        return false;
    }
    context->publish();
    if (!done) {
        print_error("cannot remove [" + std::to_string(p0) + ", " + std::to_string(p1) + ") of sequence " +
                    std::to_string(seq_id) +
                    ": wanted what the next token sees before it, found sliding-window layers " +
                    "with positions from " + std::to_string(context->handler->seq_pos_min(seq_id)) +
                    " on (llama_memory_seq_pos_min). Remove the whole sequence, restore a checkpoint, or start with " +
                    "--swa-full");
    }
    return done;
}

void llama_memory_seq_cp(llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_cp)(mem, src, dst, p0, p1);
    } else if (!edit_or_poison(*context, "copy a sequence",
                               [&](AttentionHandler& handler) { return handler.seq_cp(src, dst, p0, p1); })) {
        poison(*context, "cannot copy sequence " + std::to_string(src) + " to " + std::to_string(dst) +
                             ": wanted an empty target and a source whose sliding windows still hold what the next "
                             "token sees, found [" +
                             std::to_string(p0) + ", " + std::to_string(p1) + "), a target up to position " +
                             std::to_string(context->handler->seq_pos_max(dst)) + " and a source with windows from " +
                             std::to_string(context->handler->seq_pos_min(src)) + " on");
    } else {
        context->publish();
    }
}

void llama_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_keep)(mem, seq_id);
    } else {
        context->handler->seq_keep(seq_id);
        context->publish();
    }
}

void llama_memory_seq_add(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_add)(mem, seq_id, p0, p1, delta);
    } else if (delta != 0 && touches(*context, seq_id, p0, p1)) {
        const std::string why = context->why_no_shift();
        if (!why.empty()) {
            poison(*context, "context shift (K-shift) is not served here, as llama_memory_can_shift says: " + why);
        } else if (context->ropes.size() < context->shape.layers.size()) {
            poison(*context,
                   "cannot shift positions yet: wanted a batch decoded in this context, which tells how each layer "
                   "rotates "
                   "its keys, found none");
        } else if (!edit_or_poison(*context, "shift positions",
                                   [&](AttentionHandler& handler) { return handler.seq_add(seq_id, p0, p1, delta); })) {
            poison(*context, "cannot shift positions [" + std::to_string(p0) + ", " + std::to_string(p1) +
                                 ") of sequence " + std::to_string(seq_id) + " by " + std::to_string(delta) +
                                 ": wanted free positions from 0 on, found others there");
        }
    }
}

void llama_memory_seq_div(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    ServedContext* context = Registry::instance().find(mem);
    if (context == nullptr) {
        KVAQ_REAL(llama_memory_seq_div)(mem, seq_id, p0, p1, d);
    } else if (d != 1 && touches(*context, seq_id, p0, p1)) {
        poison(*context,
               "self-extend (llama_memory_seq_div) is not served by the packed cache: wanted positions that are "
               "shifted or kept, found a division by " +
                   std::to_string(d) + ". Use a larger context (-c)");
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
    const ServedContext* context = Registry::instance().find(mem);
    // llama.cpp's own memory, one batch long and with full windows, says whether the model's positions can be shifted at all.
    return KVAQ_REAL(llama_memory_can_shift)(mem) && (context == nullptr || context->why_no_shift().empty());
}

}  // extern "C"
