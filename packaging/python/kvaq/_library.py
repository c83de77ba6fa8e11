"""The shared library and its C functions."""

import ctypes
import functools
import os
from pathlib import Path

# From a prefix (this package's own, or that of `cmake --install`, or a build tree) to the library as llama-cpp-python wants it named.
PLACE = Path("lib/kvaq/llama-cpp-python")


class Error(Exception):
    """What was wanted, what was found, what to do: one line."""


def prefixes() -> list[Path]:
    """Where to look: KVAQ_PREFIX alone if it is set, else this package's own copy, else an installation around a `kvaq` in PATH."""
    given = os.environ.get("KVAQ_PREFIX")
    if given:
        return [Path(given)]
    found = [Path(__file__).resolve().parent / "prefix"]
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        program = Path(folder) / "kvaq"
        if folder and program.is_file():
            found.append(program.resolve().parent.parent)
    return found


@functools.cache
def folder() -> Path:
    """The folder for LLAMA_CPP_LIB_PATH: its libllama.so is libkvaq-llama.so."""
    looked_in = [prefix / PLACE for prefix in prefixes()]
    for place in looked_in:
        if (place / "libllama.so").is_file():
            return place
    raise Error(f"no kvaq library: wanted libllama.so, found none in {' or '.join(map(str, looked_in))}. "
                "Install the wheel or the Debian package, or set KVAQ_PREFIX to a prefix or build tree of kvaq")


@functools.cache
def library() -> ctypes.CDLL:
    """Loaded once. The very file that llama_cpp loads, so both share one state."""
    path = folder() / "libllama.so"
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise Error(f"cannot load {path}: {error}") from error
    if not hasattr(lib, "kvaq_file_open"):
        raise Error(f"{path} is not kvaq's library, or of another version: wanted the function kvaq_file_open, found none")
    text, pointer, size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in [
        ("kvaq_attach", ctypes.c_int, [text]),
        ("kvaq_detach", None, []),
        ("kvaq_last_error", text, []),
        ("kvaq_cache_bytes", size, [pointer]),
        ("kvaq_version", text, []),
        ("kvaq_estimate", pointer, [text, text, size, size, ctypes.c_int]),
        ("kvaq_free", None, [pointer]),
        ("kvaq_file_open", pointer, [text]),
        ("kvaq_file_json", text, [pointer]),
        ("kvaq_file_array", size, [pointer, text, ctypes.POINTER(ctypes.c_double), size]),
        ("kvaq_file_close", None, [pointer]),
    ]:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def last_error() -> Error:
    return Error(library().kvaq_last_error().decode(errors="replace"))


def version() -> str:
    return library().kvaq_version().decode()
