"""llama-cpp-python on the packed cache."""

import ctypes
import os
import sys
from pathlib import Path

from kvaq._library import Error, folder, last_error, library


def library_path() -> str:
    """The folder that LLAMA_CPP_LIB_PATH must name."""
    return str(folder())


def _check_llama_cpp() -> None:
    module = sys.modules.get("llama_cpp")
    if module is None:
        return
    loaded = Path(getattr(module.llama_cpp._lib, "_name", "?"))
    if not hasattr(module.llama_cpp._lib, "kvaq_attach"):
        raise Error(f"llama_cpp is imported already, with a library of its own: wanted {folder()}/libllama.so, found {loaded}. "
                    "Call kvaq.attach before the first import of llama_cpp (in a notebook: restart the kernel)")
    if not loaded.samefile(folder() / "libllama.so"):
        raise Error(f"llama_cpp was imported with another copy of kvaq: wanted {folder()}/libllama.so, found {loaded}. "
                    "Unset LLAMA_CPP_LIB_PATH, or set KVAQ_PREFIX to its prefix")


def attach(plan: str | os.PathLike) -> None:
    """Contexts made from now on (llama_cpp.Llama(..., flash_attn=True)) keep their cache as the plan says.

    plan: a preset ("k4v4-rot", "q8_0", "f16") or a *.plan.gguf. Sets LLAMA_CPP_LIB_PATH for the import of llama_cpp, and KVAQ_PLAN for
    programs started from here. May be called again, with another plan. Raises Error for a plan that does not exist or is damaged, and if
    llama_cpp is imported already with a library that is not kvaq's.
    """
    _check_llama_cpp()
    plan = os.fspath(plan)
    if library().kvaq_attach(os.fsencode(plan)) != 0:
        raise last_error()
    os.environ["LLAMA_CPP_LIB_PATH"] = library_path()
    os.environ["KVAQ_PLAN"] = os.path.abspath(plan) if os.path.exists(plan) else plan


def detach() -> None:
    """Contexts made from now on are plain llama.cpp."""
    library().kvaq_detach()
    os.environ.pop("KVAQ_PLAN", None)


def cache_bytes(llama) -> int:
    """Bytes that the cache of a llama_cpp.Llama (or of a llama_context pointer) holds now; 0 if it is plain llama.cpp."""
    context = getattr(llama, "ctx", llama)
    if not isinstance(context, int):
        context = ctypes.cast(context, ctypes.c_void_p).value
    return library().kvaq_cache_bytes(context)
