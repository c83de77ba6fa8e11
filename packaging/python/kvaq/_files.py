"""Plans, statistics, comparisons and estimates as values with NumPy arrays."""

import ctypes
import dataclasses
import json
import os
from collections.abc import Iterable

import numpy as np

from kvaq._library import Error, last_error, library

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class _File:
    """A file opened by kvaq_file_open."""

    def __init__(self, path: str | os.PathLike):
        self._handle = library().kvaq_file_open(os.fsencode(os.fspath(path)))
        if not self._handle:
            raise last_error()
        self.json = json.loads(library().kvaq_file_json(self._handle))

    def array(self, name: str) -> np.ndarray:
        lib = library()
        n = lib.kvaq_file_array(self._handle, name.encode(), None, 0)
        if n == 0:
            raise last_error()
        out = np.empty(n)
        if lib.kvaq_file_array(self._handle, name.encode(), out.ctypes.data_as(ctypes.POINTER(ctypes.c_double)), n) != n:
            raise last_error()
        return out

    def __del__(self):
        if getattr(self, "_handle", None):
            library().kvaq_file_close(self._handle)


def _open(path: str | os.PathLike, kind: str, verb: str) -> _File:
    file = _File(path)
    if file.json.get("kind") != kind:
        raise Error(f"'{os.fspath(path)}' is of another kind: wanted {kind}, found {file.json.get('kind')}. Make one with: {verb}")
    return file


def _per_head(layers: list, key: str) -> np.ndarray:
    """[n_layers, most KV heads of a layer], NaN where a layer has fewer."""
    out = np.full((len(layers), max(len(layer["heads"]) for layer in layers)), np.nan)
    for i, layer in enumerate(layers):
        out[i, : len(layer["heads"])] = [head[key] for head in layer["heads"]]
    return out


@dataclasses.dataclass(frozen=True)
class Plan:
    """A *.plan.gguf. Rows are the layers that own a cache, in ascending order; heads are KV heads."""

    name: str
    architecture: str
    model_name: str
    fingerprint: str  # of the model; "" fits any
    tile_tokens: int
    window: int  # newest tokens in f16
    sinks: int  # first tokens in f16
    predicted_kl: float  # nats per token; NaN: not predicted
    bytes_per_token: float  # of further tokens, once the f16 part is full
    layer: np.ndarray  # [n_layers] the model's layer numbers
    key_bits: np.ndarray  # [n_layers, n_kv_heads] mean code bits, NaN beyond a layer's heads
    value_bits: np.ndarray
    json: dict = dataclasses.field(repr=False)  # all of `kvaq inspect --json -`, codec texts too


def read_plan(path: str | os.PathLike) -> Plan:
    """Raises Error for a file that is missing, damaged or no plan."""
    found = _open(path, "plan", "kvaq plan").json
    predicted = found["predicted_kl"]
    return Plan(layer=np.array([layer["layer"] for layer in found["layers"]]), key_bits=_per_head(found["layers"], "key_bits"),
                value_bits=_per_head(found["layers"], "value_bits"), predicted_kl=np.nan if predicted is None else predicted, json=found,
                **{key: found[key] for key in ("name", "architecture", "model_name", "fingerprint", "tile_tokens", "window", "sinks",
                                               "bytes_per_token")})


@dataclasses.dataclass(frozen=True)
class Stats:
    """A *.stats.gguf of kvaq calibrate."""

    model_name: str
    architecture: str
    fingerprint: str
    n_tokens: int
    layer: np.ndarray  # [n_layers]
    key_norm: np.ndarray  # [n_layers, n_kv_heads] sqrt of the mean over tokens of |k|^2
    value_norm: np.ndarray
    key_damage: np.ndarray  # [n_layers] KL in nats that probing the layer's keys added; NaN: not measured
    value_damage: np.ndarray
    joint_probes: np.ndarray  # [n, 4] bits of keys, bits of values, window, KL
    length_probes: np.ndarray  # [n, 4] long context, short context, KL added at either
    json: dict = dataclasses.field(repr=False)
    _file: _File = dataclasses.field(repr=False)

    def tensor(self, layer: int, head: int, name: str) -> np.ndarray:
        """One head's tensor, in doubles. name: k2, q2, k_metric [dk, dk] and v2, v_metric [dv, dv] (second moments, what errors do),
        k1 [dk] and v1 [dv] (means), k_tiles [n, 64, dk] and v_tiles [n, 64, dv] (sample tiles). docs/formats.md."""
        row = next((row for row in self.json["layers"] if row["layer"] == layer), None)
        if row is None:
            raise Error(f"no layer {layer} in these statistics: wanted one of {self.layer.tolist()}")
        values = self._file.array(f"l{layer}.h{head}.{name}")
        dim = row["head_dim_v" if name.startswith("v") else "head_dim_k"]
        return values.reshape({"1": (dim,), "tiles": (-1, 64, dim)}.get(name[1:].lstrip("_"), (dim, dim)))


def read_stats(path: str | os.PathLike) -> Stats:
    """Raises Error for a file that is missing, damaged or no statistics."""
    file = _open(path, "stats", "kvaq calibrate")
    found = file.json
    layers = found["layers"]
    joint = found.get("joint_probes", [])
    lengths = found.get("length_probes", [])
    return Stats(model_name=found["model"], architecture=found["architecture"], fingerprint=found["fingerprint"],
                 n_tokens=found["n_tokens"], layer=np.array([layer["layer"] for layer in layers]),
                 key_norm=_per_head(layers, "key_norm"), value_norm=_per_head(layers, "value_norm"),
                 key_damage=np.array([layer.get("probe_key_kl", np.nan) for layer in layers]),
                 value_damage=np.array([layer.get("probe_value_kl", np.nan) for layer in layers]),
                 joint_probes=np.array([[p["key_bits"], p["value_bits"], p["window"], p["kl"]] for p in joint]).reshape(-1, 4),
                 length_probes=np.array([[p["n_ctx"], p["short_ctx"], p["kl"], p["short_kl"]] for p in lengths]).reshape(-1, 4),
                 json=found, _file=file)


@dataclasses.dataclass(frozen=True)
class Eval:
    """JSON of kvaq eval --json or kvaq plan --frontier; one entry per row."""

    name: list[str]
    kind: list[str]  # reference, control, llama.cpp, plan
    effective_bits: np.ndarray
    bytes: np.ndarray
    perplexity: np.ndarray
    perplexity_error: np.ndarray  # standard error
    mean_kl: np.ndarray  # nats per token
    mean_kl_error: np.ndarray  # standard error
    same_top: np.ndarray  # share of tokens with f16's most probable token
    same_top_error: np.ndarray
    predicted_kl: np.ndarray
    json: dict = dataclasses.field(repr=False)


def _numbers(rows: list, *path: str) -> np.ndarray:
    out = []
    for row in rows:
        value = row
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        out.append(np.nan if value is None else float(value))
    return np.array(out)


def _read_json(path: str | os.PathLike, kind: str, what: str, command: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise Error(f"cannot read '{os.fspath(path)}': {error}. Make one with: {command}") from error
    found_kind = found.get("kind") if isinstance(found, dict) else None
    if found_kind != kind:
        raise Error(f"'{os.fspath(path)}' is no {what}: wanted kind {kind}, found {found_kind}. Make one with: {command}")
    return found


def read_eval(path: str | os.PathLike) -> Eval:
    """Raises Error for a file that is missing or of another kind."""
    found = _read_json(path, "kvaq.eval", "comparison", "kvaq eval --json FILE")
    rows = found["rows"]
    return Eval(name=[row["name"] for row in rows], kind=[row["kind"] for row in rows],
                effective_bits=_numbers(rows, "effective_bits"), bytes=_numbers(rows, "bytes"),
                perplexity=_numbers(rows, "perplexity", "value"), perplexity_error=_numbers(rows, "perplexity", "standard_error"),
                mean_kl=_numbers(rows, "mean_kl", "value"),
                mean_kl_error=_numbers(rows, "mean_kl", "standard_error"), same_top=_numbers(rows, "same_top", "value"),
                same_top_error=_numbers(rows, "same_top", "standard_error"), predicted_kl=_numbers(rows, "predicted_kl"), json=found)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of one group (a context length, a kind of copy; "" where a task has one) of a task; one entry per cache."""

    task: str
    metric: str
    group: str
    unit: str
    larger_is_better: bool
    mean: np.ndarray  # NaN: the metric says how far from the reference a cache is, and this is the reference
    mean_error: np.ndarray  # standard error
    difference: np.ndarray  # from the reference on the same items; NaN for the reference
    difference_error: np.ndarray
    p: np.ndarray  # of the paired test against the reference


@dataclasses.dataclass(frozen=True)
class Suite:
    """JSON of kvaq eval --task; the first cache is the reference, llama.cpp with f16."""

    cache: list[str]
    effective_bits: dict[str, np.ndarray]  # of each task, at its context
    metrics: list[Metric]
    json: dict = dataclasses.field(repr=False)


def read_suite(path: str | os.PathLike) -> Suite:
    """Raises Error for a file that is missing or of another kind."""
    found = _read_json(path, "kvaq.suite", "suite", "kvaq eval --task NAMES --json FILE")
    names = [cache["name"] for cache in found["caches"]]
    metrics = []
    for task in found["tasks"]:
        for metric in task["metrics"]:
            for group in metric["groups"]:
                by_name = {one["cache"]: one for one in group["caches"]}
                rows = [by_name.get(name, {}) for name in names]
                metrics.append(Metric(
                    task=task["name"], metric=metric["name"], group=group["group"], unit=metric["unit"],
                    larger_is_better=metric["larger_is_better"], mean=_numbers(rows, "mean", "value"),
                    mean_error=_numbers(rows, "mean", "standard_error"), difference=_numbers(rows, "difference", "value"),
                    difference_error=_numbers(rows, "difference", "standard_error"), p=_numbers(rows, "p")))
    return Suite(cache=names, effective_bits={task["name"]: np.array(task["effective_bits"]) for task in found["tasks"]}, metrics=metrics,
                 json=found)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What caches of one sequence take; one entry per plan."""

    n_ctx: int
    name: list[str]
    bytes: np.ndarray
    effective_bits: np.ndarray
    bytes_per_token: np.ndarray
    largest_context: np.ndarray | None  # tokens that fit in `memory`; None if it was not given
    llama_cpp: dict[str, int]  # bytes of llama.cpp's own cache types
    json: dict = dataclasses.field(repr=False)


def _bytes(memory: int | str) -> int:
    """512, "512MiB", "4GiB" (powers of 1024, as kvaq's flags mean them)."""
    if isinstance(memory, int):
        return memory
    text = memory.strip()
    number = text.rstrip("iBbKkMmGg")
    unit = text[len(number):].upper().removesuffix("B").removesuffix("I")
    try:
        return int(float(number) * _UNITS[unit])
    except (KeyError, ValueError) as error:
        raise Error(f"unreadable size: wanted e.g. 512MiB or 4GiB, found '{memory}'") from error


def estimate(model: str | os.PathLike, plans: str | Iterable[str] = ("f16", "k4v4-rot", "k4v2-rot"), n_ctx: int = 0,
             memory: int | str = 0, swa_full: bool = False) -> Estimate:
    """From the model's header only. n_ctx 0: the model's training context. Raises Error."""
    lib = library()
    names = [plans] if isinstance(plans, str) else list(plans)
    text = lib.kvaq_estimate(os.fsencode(os.fspath(model)), os.fsencode(",".join(map(os.fspath, names))), n_ctx, _bytes(memory), swa_full)
    if not text:
        raise last_error()
    try:
        found = json.loads(ctypes.string_at(text))
    finally:
        lib.kvaq_free(text)
    rows = found["plans"]
    return Estimate(n_ctx=found["n_ctx"], name=[row["name"] for row in rows], bytes=np.array([row["bytes"] for row in rows]),
                    effective_bits=_numbers(rows, "effective_bits"), bytes_per_token=_numbers(rows, "bytes_per_token"),
                    largest_context=np.array([row["largest_context"] for row in rows]) if memory else None,
                    llama_cpp={row["type"]: row["bytes"] for row in found["llama.cpp"]}, json=found)
