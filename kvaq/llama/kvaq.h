#ifndef KVAQ_H
#define KVAQ_H

/* C API of libkvaq-llama.so for programs that link it (before libllama, so that its functions are the ones called):
 *
 *     if (kvaq_attach("k4v2-rot") != 0) { fprintf(stderr, "%s\n", kvaq_last_error()); return 1; }
 *     struct llama_context * ctx = llama_init_from_model(model, params);    // served by the packed cache
 *
 * Programs that cannot be relinked use LD_PRELOAD=libkvaq-llama.so and KVAQ_PLAN=<preset or file> instead. See examples/. */

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;

/* Contexts created from now on in this process use the plan: a preset ("k4v2", "k4v4-rot-w64-s4", "q8_0", "f16") or a
 * *.plan.gguf file. Overrides KVAQ_PLAN. Returns 0, or -1 with a message in kvaq_last_error(). */
int kvaq_attach(const char* preset_or_file);

/* Contexts created from now on are plain llama.cpp, whatever KVAQ_PLAN says. */
void kvaq_detach(void);

/* Why the last kvaq_attach() of this thread failed, "" if it did not. */
const char* kvaq_last_error(void);

/* Bytes that the context's cache holds now (packed tiles, f16 pages, sink tokens); 0 if it is plain llama.cpp. */
size_t kvaq_cache_bytes(const struct llama_context* ctx);

/* "0.1.0" */
const char* kvaq_version(void);

#ifdef __cplusplus
}
#endif

#endif /* KVAQ_H */
