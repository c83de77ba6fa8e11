#include "kvaq/llama/served_context.h"

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "kvaq/llama/real.h"

namespace kvaq {

void* real_symbol(const char* name) noexcept {
    void* symbol = dlsym(RTLD_NEXT, name);
    if (symbol == nullptr) {  // loaded by dlopen (ctypes): look in libllama itself
        if (void* library = dlopen("libllama.so.0", RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(library, name);
    }
    if (symbol == nullptr) {
        std::fprintf(stderr,
                     "kvaq: error: libllama has no function %s: wanted llama.cpp " KVAQ_LLAMA_VERSION
                     ", found another version or none. Build llama.cpp from the pinned source (scripts/bootstrap.sh)\n",
                     name);
        std::abort();
    }
    return symbol;
}

void SpinBarrier::wait(uint32_t n_threads) noexcept {
    if (n_threads == 1) return;
    const uint32_t generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.fetch_add(1, std::memory_order_release);
        return;
    }
    for (uint32_t spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
        if (spins > 4096) {
            std::this_thread::yield();
        } else {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    }
}

void ServedContext::fail(int32_t code, std::string_view why) noexcept {
    const std::lock_guard lock(failure_mutex);
    if (failed.load()) return;
    fail_code = code;
    try {
        failure = why;
    } catch (const std::exception&) {  // no memory for the message: the code says enough
        failure.clear();
    }
    failed.store(true);
}

ServedContext::~ServedContext() {
    for (const auto& [device, gpu] : gpus) {
        if (gpu.event != nullptr) ggml_backend_event_free(gpu.event);
    }
}

std::string ServedContext::why_no_shift() const {
    if (frees_windows)
        return "sliding-window layers have given up tokens that a shift could bring back into view; start with "
               "--swa-full "
               "to keep them";
    for (const auto& [layer, rope] : ropes) {
        if (!rope.why_not.empty()) return "layer " + std::to_string(layer) + ": " + rope.why_not;
    }
    return "";
}

Registry& Registry::instance() {
    static Registry& registry =
        *new Registry();  // never destroyed: a program may exit() while its threads still decode
    return registry;
}

void Registry::add(std::unique_ptr<ServedContext> context, llama_memory_t memory) {
    const std::unique_lock lock(mutex_);
    by_memory_[memory] = context.get();
    const llama_context* ctx = context->ctx;
    by_context_[ctx] = std::move(context);
}

ServedContext* Registry::find(const llama_context* ctx) const {
    const std::shared_lock lock(mutex_);
    const auto found = by_context_.find(ctx);
    return found == by_context_.end() ? nullptr : found->second.get();
}

ServedContext* Registry::find(llama_memory_t memory) const {
    const std::shared_lock lock(mutex_);
    const auto found = by_memory_.find(memory);
    return found == by_memory_.end() ? nullptr : found->second;
}

std::unique_ptr<ServedContext> Registry::remove(const llama_context* ctx) {
    const std::unique_lock lock(mutex_);
    const auto found = by_context_.find(ctx);
    if (found == by_context_.end()) return nullptr;
    std::unique_ptr<ServedContext> context = std::move(found->second);
    by_context_.erase(found);
    std::erase_if(by_memory_, [&](const auto& entry) { return entry.second == context.get(); });
    return context;
}

void print_error(const std::string& message) { std::fprintf(stderr, "kvaq: error: %s\n", message.c_str()); }

}  // namespace kvaq
