// A libllama that says it is another version: preloaded behind the drop-in, its answer is the one that the drop-in finds.
extern "C" const char* llama_version() { return "0.4.2"; }
