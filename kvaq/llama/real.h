#pragma once

// PRIVATE header of kvaq/llama: the functions of the real libllama behind our interposed ones.

#include <dlfcn.h>
#include <llama.h>

namespace kvaq {

/// Address of libllama's own function of that name (the next one in symbol search order after ours). Aborts the program if
/// there is none: then libllama is not loaded and nothing could work.
[[nodiscard]] void* real_symbol(const char* name) noexcept;

}  // namespace kvaq

/// KVAQ_REAL(llama_decode)(ctx, batch) calls the real function.
#define KVAQ_REAL(name)                                                                               \
    ([]() noexcept {                                                                                  \
        static const auto function = reinterpret_cast<decltype(&::name)>(::kvaq::real_symbol(#name)); \
        return function;                                                                              \
    }())
