// A program that links libkvaq-llama.so and serves its own llama.cpp context from a packed cache:
//   example_attach MODEL.gguf "The capital of France is" [plan]
#include <llama.h>

#include <cstdio>
#include <string>
#include <vector>

#include "kvaq/llama/kvaq.h"

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s MODEL.gguf PROMPT [PLAN]\n", argv[0]);
        return 1;
    }
    if (kvaq_attach(argc > 3 ? argv[3] : "k4v2-rot-w64-s4") != 0) {  // before the context is made
        std::fprintf(stderr, "%s\n", kvaq_last_error());
        return 1;
    }
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        std::fprintf(stderr, "cannot load %s\n", argv[1]);
        return 1;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 2048;
    llama_context* ctx = llama_init_from_model(model, params);
    if (ctx == nullptr) return 1;  // kvaq has said why

    const llama_vocab* vocab = llama_model_get_vocab(model);
    const std::string prompt = argv[2];
    std::vector<llama_token> tokens(prompt.size() + 8);
    const int n = llama_tokenize(vocab, prompt.data(), static_cast<int>(prompt.size()), tokens.data(),
                                 static_cast<int>(tokens.size()), true, false);
    if (n <= 0) return 1;
    tokens.resize(static_cast<size_t>(n));
    std::printf("%s", prompt.c_str());
    llama_sampler* greedy = llama_sampler_init_greedy();
    for (int i = 0; i < 64; ++i) {
        if (llama_decode(ctx, llama_batch_get_one(tokens.data(), static_cast<int>(tokens.size()))) != 0) break;
        const llama_token next = llama_sampler_sample(greedy, ctx, -1);
        if (llama_vocab_is_eog(vocab, next)) break;
        char piece[128];
        const int length = llama_token_to_piece(vocab, next, piece, sizeof piece, 0, false);
        std::printf("%.*s", length, piece);
        tokens = {next};
    }
    std::printf("\n[cache: %zu bytes]\n", kvaq_cache_bytes(ctx));
    llama_sampler_free(greedy);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
