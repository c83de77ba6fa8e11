/* use_c_api MODEL.gguf PLAN: the estimate of a plan, and what a wrong plan is told. */
#include <kvaq.h>
#include <stdio.h>

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    char* json = kvaq_estimate(argv[1], argv[2], 4096, 0, 0);
    if (json == NULL) {
        fprintf(stderr, "%s\n", kvaq_last_error());
        return 1;
    }
    printf("%s\n", json);
    kvaq_free(json);
    if (kvaq_attach("k9v9") == 0 || kvaq_last_error()[0] == '\0') return 3;
    if (kvaq_attach(argv[2]) != 0 || kvaq_last_error()[0] != '\0') return 4;
    kvaq_detach();
    return 0;
}
