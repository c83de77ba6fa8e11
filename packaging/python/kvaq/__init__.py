"""KV-AdaQuant from Python: a packed KV cache for llama-cpp-python, and its files as NumPy arrays.

    import kvaq
    kvaq.attach("k4v4-rot")                    # or a *.plan.gguf; before llama_cpp is imported
    from llama_cpp import Llama
    llama = Llama("M.gguf", n_ctx=4096, flash_attn=True)
    print(llama.create_completion("The capital of France is")["choices"][0]["text"], kvaq.cache_bytes(llama))

    kvaq.estimate("M.gguf", ["f16", "k4v4-rot"], n_ctx=32768, memory="4GiB")
    kvaq.read_plan("M.plan.gguf").key_bits     # [n_layers, n_kv_heads]
    kvaq.read_stats("M.stats.gguf").key_norm
    kvaq.read_eval("E.json").mean_kl

Everything is ctypes over the C API of libkvaq-llama.so (kvaq.h), which is in this package together with llama.cpp and the program kvaq.
"""

from kvaq._attach import attach, cache_bytes, detach, library_path
from kvaq._files import Estimate, Eval, Metric, Plan, Stats, Suite, estimate, read_eval, read_plan, read_stats, read_suite
from kvaq._library import Error, version

__version__ = version()
__all__ = ["Error", "Estimate", "Eval", "Metric", "Plan", "Stats", "Suite", "attach", "cache_bytes", "detach", "estimate", "library_path", "read_eval",
           "read_plan", "read_stats", "read_suite", "version"]
