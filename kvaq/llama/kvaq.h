#ifndef KVAQ_H
#define KVAQ_H

/* C API of libkvaq-llama.so for programs that link it (before libllama, so that its functions are the ones called):
 *
 *     if (kvaq_attach("k4v2-rot") != 0) { fprintf(stderr, "%s\n", kvaq_last_error()); return 1; }
 *     struct llama_context * ctx = llama_init_from_model(model, params);    // served by the packed cache
 *
 * Programs that cannot be relinked use LD_PRELOAD=libkvaq-llama.so and KVAQ_PLAN=<preset or file> instead. See examples/.
 *
 * Stable: functions are only added. Text is UTF-8; a path is taken as it is. Functions may be called from any thread. */

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

/* Why the last call of this thread failed, in one line: what was wanted, what was found, what to do. "" if it did not fail. */
const char* kvaq_last_error(void);

/* Bytes that the context's cache holds now (packed tiles, f16 pages, sink tokens); 0 if it is plain llama.cpp. */
size_t kvaq_cache_bytes(const struct llama_context* ctx);

/* "0.1.0" */
const char* kvaq_version(void);

/* What caches of a model take, from its header only: the JSON of `kvaq estimate --json`, freed with kvaq_free().
 *   plans    presets or *.plan.gguf files, separated by commas
 *   n_ctx    tokens of one sequence; 0 = the model's training context
 *   memory   bytes for which the largest contexts are asked; 0 = not asked
 * NULL: see kvaq_last_error(). */
char* kvaq_estimate(const char* model, const char* plans, size_t n_ctx, size_t memory, int swa_full);
void kvaq_free(char* text);

/* A plan, statistics or model file, read and checked whole. NULL: see kvaq_last_error(). */
struct kvaq_file;
struct kvaq_file* kvaq_file_open(const char* path);
/* The JSON of `kvaq inspect --json`; lives as long as the file. */
const char* kvaq_file_json(const struct kvaq_file* file);
/* Values of an f64, f32 or f16 tensor, such as "l0.h2.k2" of statistics (docs/formats.md), as doubles: at most `capacity` of them to `out`
 * (may be NULL when capacity is 0). Returns how many the tensor has; 0 and kvaq_last_error() if there is none of that name and type. */
size_t kvaq_file_array(const struct kvaq_file* file, const char* name, double* out, size_t capacity);
void kvaq_file_close(struct kvaq_file* file);

#ifdef __cplusplus
}
#endif

#endif /* KVAQ_H */
