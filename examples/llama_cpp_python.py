"""llama-cpp-python, unmodified, served from kvaq's packed cache:

    scripts/fetch_llama_cpp_python.sh
    .deps/venv/bin/python examples/llama_cpp_python.py MODEL.gguf "The capital of France is" [PLAN]

llama-cpp-python asks dlsym for the functions of one library, which LD_PRELOAD does not change. So LLAMA_CPP_LIB_PATH names a folder
of the build tree whose libllama.so is libkvaq-llama.so: what kvaq replaces is found there first, the rest in the real libllama that
it depends on. Without PLAN (and KVAQ_PLAN) the same library is plain llama.cpp.
"""

import ctypes
import os
import sys
from pathlib import Path

N_TOKENS = 96


def library_folder() -> Path:
    """LLAMA_CPP_LIB_PATH if it is set, else that of this source tree's build."""
    build = Path(__file__).resolve().parent.parent / "build"
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    folders = [Path(given)] if given else [build / preset / "lib/kvaq/llama-cpp-python" for preset in ("release", "dev")]
    for folder in folders:
        if (folder / "libllama.so").exists():
            return folder
    sys.exit(f"kvaq: error: no kvaq library for llama-cpp-python in {' or '.join(map(str, folders))}. "
             "Build it with: cmake --preset release && cmake --build --preset release")


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: {sys.argv[0]} MODEL.gguf PROMPT [PLAN]")
    model, prompt = sys.argv[1:3]
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library_folder())  # both before the import
    if len(sys.argv) == 4:
        os.environ["KVAQ_PLAN"] = sys.argv[3]
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        sys.exit(f"kvaq: error: {error}. Run scripts/fetch_llama_cpp_python.sh, then use .deps/venv/bin/python")
    kvaq = llama_cpp.llama_cpp._lib
    if not hasattr(kvaq, "kvaq_cache_bytes"):
        sys.exit(f"kvaq: error: libllama.so in {os.environ['LLAMA_CPP_LIB_PATH']} is not kvaq's. Unset LLAMA_CPP_LIB_PATH")
    kvaq.kvaq_cache_bytes.argtypes = [ctypes.c_void_p]
    kvaq.kvaq_cache_bytes.restype = ctypes.c_size_t

    try:  # flash_attn: llama-cpp-python's default is off, which kvaq refuses
        llama = llama_cpp.Llama(model, n_ctx=2048, flash_attn=True, verbose=False)
    except ValueError as error:
        sys.exit(1 if "llama_context" in str(error) else f"error: {error}")  # 1: kvaq has said why
    text = llama.create_completion(prompt, max_tokens=N_TOKENS, temperature=0)["choices"][0]["text"]
    print(prompt + text)
    print(f"[cache: {kvaq.kvaq_cache_bytes(llama.ctx)} bytes]")
    llama.close()  # before Python unloads things: kvaq says what the cache held


if __name__ == "__main__":
    main()
