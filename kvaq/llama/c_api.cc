#include <exception>
#include <string>

#include "kvaq/llama/attach.h"
#include "kvaq/llama/kvaq.h"

namespace {

std::string& last_error() {
    thread_local std::string message;
    return message;
}

}  // namespace

int kvaq_attach(const char* preset_or_file) {
    try {
        kvaq::attach(kvaq::plan_factory(preset_or_file != nullptr ? preset_or_file : ""));
        last_error().clear();
        return 0;
    } catch (const std::exception& error) {
        last_error() = error.what();
        return -1;
    }
}

void kvaq_detach(void) { kvaq::attach({}); }

const char* kvaq_last_error(void) { return last_error().c_str(); }

size_t kvaq_cache_bytes(const struct llama_context* ctx) {
    const kvaq::KvCache* cache = kvaq::cache_of(ctx);
    if (cache == nullptr) return 0;
    const kvaq::CacheUse use = cache->use();
    return use.packed + use.open + use.sinks + use.tables;
}

const char* kvaq_version(void) { return KVAQ_VERSION; }
