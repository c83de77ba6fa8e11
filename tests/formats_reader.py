"""Reads kvaq's files by docs/formats.md alone (no code of kvaq's). For tests, and as a start for readers in other languages."""

import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TENSORS = {0: "<f4", 1: "<f2", 24: "i1", 28: "<f8"}
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        assert self.at + n <= len(self.data), "truncated"
        self.at += n
        return self.data[self.at - n : self.at]

    def get(self, form):
        values = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))
        return values[0] if len(values) == 1 else values

    def string(self):
        return self.take(self.get("Q")).decode()

    def array(self, dtype, *shape):
        return np.frombuffer(self.take(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)


def read_gguf(path):
    """(keys, tensors)"""
    data = Bytes(Path(path).read_bytes())
    assert data.take(4) == b"GGUF" and data.get("I") == 3
    n_tensors, n_keys = data.get("QQ")

    def value(kind):
        if kind == 8:
            return data.string()
        if kind == 9:
            of, n = data.get("IQ")
            return [value(of) for _ in range(n)]
        return data.get(SCALARS[kind])

    keys = {}
    for _ in range(n_keys):
        name = data.string()
        keys[name] = value(data.get("I"))
    entries = []
    for _ in range(n_tensors):
        name = data.string()
        dims = [data.get("Q") for _ in range(data.get("I"))]
        entries.append((name, dims, *data.get("IQ")))
    start = (data.at + 31) // 32 * 32
    tensors = {}
    for name, dims, kind, offset in entries:
        assert len(dims) == 1 and offset % 32 == 0
        data.at = start + offset
        tensors[name] = data.array(TENSORS[kind], dims[0])
    return keys, tensors


def read_fit(raw):
    data = Bytes(raw.tobytes())
    version, side, dim, basis = data.get("IIII")
    assert version == (2 if basis == 2 else 1)
    fit = {"side": "kv"[side], "dim": dim, "bytes": raw.tobytes()}
    if basis != 2:
        fit["row_scale"] = data.array("<f4", dim).astype(float)
    fit["scale"], fit["offset"] = (data.array("<f4", dim).astype(float) for _ in range(2))
    if basis == 1:
        fit["U"] = hadamard_matrix(dim)
    elif basis == 2:
        unit = 8 if side == 0 else 16
        order = data.array("<u2", dim)
        assert sorted(order) == list(range(dim))
        fit["U"] = np.zeros((dim, dim))
        for a in range(0, dim, unit):
            n = min(unit, dim - a)
            fit["U"][a : a + n, order[a : a + n]] = hadamard_matrix(n)
    else:
        assert basis == 0
        matrix = data.array("i1", dim, dim).astype(float)
        fit["U"] = fit["row_scale"][:, None] * (matrix.T if side == 0 else matrix)
    fit["levels"] = {bits: data.array("i1", 2**bits).astype(float) for bits in range(1, 7)}
    assert data.at == len(data.data)
    return fit


def hadamard_matrix(dim):
    block = dim & -dim
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    return np.kron(np.eye(dim // block), h / np.sqrt(block))


def read_rope(raw):
    data = Bytes(raw.tobytes())
    interleaved, first_channel, n_dims, zero = data.get("IIII")
    assert interleaved <= 1 and zero == 0
    rule = {"interleaved": interleaved == 1, "first_channel": first_channel, "frequencies": data.array("<f8", n_dims // 2)}
    assert data.at == len(data.data)
    return rule


def turned(x, rule, positions):
    """[..., channel] turned by so many positions."""
    n = len(rule["frequencies"])
    first = rule["first_channel"] + np.arange(n) * (2 if rule["interleaved"] else 1)
    second = first + (1 if rule["interleaved"] else n)
    c, s = np.cos(rule["frequencies"] * positions), np.sin(rule["frequencies"] * positions)
    out = x.copy()
    out[..., first], out[..., second] = c * x[..., first] - s * x[..., second], s * x[..., first] + c * x[..., second]
    return out


def read_codec(text, fits):
    """A codec of a plan file."""
    if text.startswith(("klt:", "tcq:")):
        kind, fit, digits = text.split(":")
        fit = fits[int(fit)]
        bits = [int(digit) for digit in digits]
        unit = 8 if fit["side"] == "k" else 16
        mean = sum(b * min(unit, fit["dim"] - i * unit) for i, b in enumerate(bits)) / fit["dim"]
        digest = hashlib.sha256(fit["bytes"] + bytes(bits) + (b"trellis\0" if kind == "tcq" else b"")).hexdigest()[:16]
        return {"fit": fit, "unit": unit, "bits": bits, "trellis": kind == "tcq", "text": f"{kind}-{mean:.2f}b-{digest}"}
    if text == "f16":
        return {"text": text}
    bits, group, axis, symmetric, _, basis = text.split("-")
    return {"text": text, "bits": bits.removesuffix("b"), "group": int(group[1:]), "chan": axis == "chan", "sym": symmetric == "sym",
            "had": basis == "had"}


def read_plan(path):
    keys, tensors = read_gguf(path)
    assert keys["general.type"] == "kvaq-plan"
    plan = {key.removeprefix("kvaq.plan."): value for key, value in keys.items() if key.startswith("kvaq.plan.")}
    assert plan["schema_version"] == (2 if "key_period" in plan else 1)
    fits = {int(name.removeprefix("fit")): read_fit(tensor) for name, tensor in tensors.items() if name.startswith("fit")}
    codecs = [read_codec(text, fits) for text in plan["codecs"]]
    layers, head, at = [], 0, range(len(plan["layer"]))
    for i in at:
        n = plan["n_kv_heads"][i]
        shape = {key: plan[key][i] for key in ("layer", "n_heads", "n_kv_heads", "head_dim_k", "head_dim_v", "sliding_window")}
        layers.append({**shape, "heads": [{"key": codecs[plan["key_codec"][h]], "value": codecs[plan["value_codec"][h]]}
                                          for h in range(head, head + n)]})
        if "key_period" in plan:
            layers[-1]["key_turn"] = read_rope(tensors[f"key_turn{shape['layer']}"])
        head += n
    plan["layers"] = layers
    return plan


def canonical_text(plan):
    head = ("schema_version", "name", "architecture", "model_name", "fingerprint", "tile_tokens", "window", "sinks", "key_period", "predicted_kl",
            "measured_how")
    layers = [{**layer, "heads": [{side: codec[side]["text"] for side in ("key", "value")} for codec in layer["heads"]]}
              for layer in plan["layers"]]
    for layer in layers:
        turn = layer.pop("key_turn", None)
        if turn is not None and len(turn["frequencies"]) > 0:
            layer["key_turn"] = {**turn, "frequencies": turn["frequencies"].tolist()}
    return json.dumps({**{key: plan[key] for key in head if key in plan}, "layers": layers}, separators=(",", ":"), ensure_ascii=True)


def up(n, to):
    return -(-n // to) * to


def codes_bytes(bits, n):
    if bits == "1.58":
        return up(-(-n // 5), 64)
    return sum(up(n * plane // 8, 64) for plane in PLANES[int(bits)])


def trellis_tables():
    """[bits - 1][window]; the page points to the file."""
    text = (Path(__file__).resolve().parent.parent / "kvaq/quant/trellis_tables.cc").read_text()
    text = text[text.index("kTables") : text.index("kErrors")]
    numbers = [int(word) for word in re.findall(r"-?\d+(?=[,}])", text[text.index("{{") :])]
    level = np.array(numbers, float).reshape(6, 256) / (1 - np.array([0.2838, 0.0752, 0.01968, 0.00525, 0.00153, 0.000506]))[:, None]
    return np.clip(np.sign(level) * np.floor(np.abs(level) + 0.5), -127, 127)


def trellis_levels(bits, ordered):
    cells = ordered.reshape(-1, 64)
    window = cells.copy()
    for j in range(1, 9 - bits):
        window |= (np.roll(cells, j, axis=1) & 1) << (bits + j - 1)
    return trellis_tables()[bits - 1][window].reshape(-1)


def read_codes(data, bits, side, n_tokens, n_channels, trellis=False):
    """[token, channel] of one band: codes, or levels of trellis codes."""
    padded = n_channels if side == "k" else up(n_channels, 16)
    n = padded * n_tokens
    raw = data.array("u1", codes_bytes(bits, n))
    if bits == "1.58":
        ordered = np.concatenate([raw // 3**digit % 3 for digit in range(5)])[:n]
    else:
        ordered, first, low = np.zeros(n, int), 0, 0
        for plane in PLANES[int(bits)]:
            size = up(n * plane // 8, 64)
            blocks = raw[first : first + size].reshape(-1, 64)
            cells = np.stack([blocks >> shift & (2**plane - 1) for shift in range(0, 8, plane)], 1).reshape(-1)
            ordered += cells[:n].astype(int) << low
            first, low = first + size, low + plane
    if trellis:
        ordered = trellis_levels(int(bits), ordered)
    token, channel = np.arange(n_tokens)[:, None], np.arange(n_channels)[None]
    if side == "k":
        lane, quad, cell = token % 16, channel % 4, channel // 4 * (n_tokens // 16) + token // 16
    else:
        lane, quad, cell = channel % 16, token % 4, token // 4 * (padded // 16) + channel // 16
    return ordered[cell * 64 + lane * 4 + quad]


def read_tile(data, codec, side, n_tokens, dim):
    """[token, channel] in the model's basis."""
    start = data.at
    if codec["text"] == "f16":
        x = data.array("<f2", dim, n_tokens).T if side == "k" else data.array("<f2", n_tokens, dim)
    elif "fit" in codec:
        fit, z, first = codec["fit"], np.tile(codec["fit"]["offset"], (n_tokens, 1)), 0
        bands = []
        while first < len(codec["bits"]):
            end = first
            while end < len(codec["bits"]) and codec["bits"][end] == codec["bits"][first]:
                end += 1
            channels = slice(first * codec["unit"], min(end * codec["unit"], dim))
            bits = codec["bits"][first]
            if bits:
                trellis = codec["trellis"] and bits <= 6
                codes = read_codes(data, bits, side, n_tokens, channels.stop - channels.start, trellis)
                bands.append((channels, codes if trellis else codes - 128 if bits == 8 else fit["levels"][bits][codes]))
            first = end
        gain = 2 ** ((data.array("u1", n_tokens).astype(float) - 128) / 16)
        for channels, level in bands:
            z[:, channels] += gain[:, None] * fit["scale"][channels] * level
        x = z @ fit["U"]
    else:
        codes = read_codes(data, codec["bits"], side, n_tokens, dim)
        g = codec["group"]
        if codec["chan"]:
            block = (g, 1)
        elif g > dim and g % dim == 0 and n_tokens % (g // dim) == 0:
            block = (g // dim, dim)
        else:
            block = (1, min(g, dim))
        shape = (n_tokens // block[0], -(-dim // block[1]))
        spread = lambda params: np.repeat(np.repeat(params.astype(float), block[0], 0), block[1], 1)[:, :dim]  # noqa: E731
        scale = spread(data.array("<f2", *shape))
        middle = {"1": 0.5, "1.58": 1}.get(codec["bits"]) or 2 ** (int(float(codec["bits"])) - 1)
        x = codes * scale + (-middle * scale if codec["sym"] else spread(data.array("<f2", *shape)))
        if codec["had"]:
            x = x @ hadamard_matrix(dim)
    data.at = start + up(data.at - start, 64)
    return np.asarray(x, float)


def read_rows(data, layer, n_slots):
    """f16 rows: (keys [head, slot, channel], values [head, slot, channel])"""
    keys = data.array("<f2", layer["n_kv_heads"], layer["head_dim_k"], n_slots).transpose(0, 2, 1)
    return keys.astype(float), data.array("<f2", layer["n_kv_heads"], n_slots, layer["head_dim_v"]).astype(float)


def plan_digest(plan):
    text = f"{plan['fingerprint']}|{plan['tile_tokens']}|{plan['window']}|{plan['sinks']}"
    for layer in plan["layers"]:
        text += f"|{layer['layer']}:{layer['head_dim_k']}:{layer['head_dim_v']}"
        if "key_period" in plan:
            rule = layer["key_turn"]
            text += f":{plan['key_period']}{'i' if rule['interleaved'] else 'n'}{rule['first_channel']}"
            text += "".join(f":{bits}" for bits in rule["frequencies"].view("<u8"))
        text += "".join(f",{head['key']['text']}/{head['value']['text']}" for head in layer["heads"])
    return hashlib.sha256(text.encode()).digest()


def read_slot(path, plan):
    """(token ids, pages, segments, layers): layers[i][page] = {"tiles": (keys, values), "sinks": ..., "rows": ...}, each [head, slot, channel]."""
    raw = Path(path).read_bytes()
    data = Bytes(raw)
    assert data.take(8) == b"KVAQSLT2"
    tokens = data.array("<i4", data.get("Q"))
    own = raw[: data.at]
    digest = data.take(32)
    snapshot = raw[data.at :]
    assert hashlib.sha256(own + snapshot[-32:]).digest() == digest
    assert hashlib.sha256(snapshot[:-32]).digest() == snapshot[-32:]
    assert data.take(8) == b"KVAQSEQ2" and data.take(32) == plan_digest(plan)
    n_pages, n_segments, n_reaches, zero = data.get("IIII")
    assert zero == 0
    pages = [dict(zip(("frame", "filled", "flags", "kept", "zero"), data.get("iiBBH"))) for _ in range(n_pages)]
    segments = [dict(zip(("page", "base", "begin", "end", "kept", "dropped", "zero"), data.get("IihhBBH"))) for _ in range(n_segments)]
    windows = sorted({layer["sliding_window"] for layer in plan["layers"]} - {0}) if n_reaches > 1 else []
    layers = []
    for layer in plan["layers"]:
        reach = windows.index(layer["sliding_window"]) + 1 if layer["sliding_window"] in windows else 0
        found = []
        for page in pages:
            content = {}
            if page["kept"] >> reach & 1:
                if page["flags"] & 1:
                    content["tiles"] = tuple(
                        np.stack([read_tile(data, head[name], side, plan["tile_tokens"], layer["head_dim_" + side]) for head in layer["heads"]])
                        for name, side in (("key", "k"), ("value", "v")))
                    if "key_period" in plan:
                        back = page["frame"] // plan["key_period"] * plan["key_period"]
                        content["tiles"] = (turned(content["tiles"][0], layer["key_turn"], back), content["tiles"][1])
                    if page["frame"] == 0 and plan["sinks"]:
                        content["sinks"] = read_rows(data, layer, plan["sinks"])
                if page["flags"] & 2:
                    content["rows"] = read_rows(data, layer, plan["tile_tokens"])
            found.append(content)
        layers.append(found)
    assert data.at == len(raw) - 32, (data.at, len(raw))
    return tokens, pages, segments, layers
