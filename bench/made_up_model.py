#!/usr/bin/env python3
"""Writes a model of another one's vocabulary with random Q4_0 weights in the shape of an 8B Llama: for measuring speed, which does not depend on what the
weights are, where no such model is at hand. Usage: made_up_model.py FROM.gguf TO.gguf [n_layers]"""
import struct
import sys

import numpy as np

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
EMBD, HEADS, KV_HEADS, HEAD_DIM, FF = 4096, 32, 8, 128, 14336
F32, Q4_0 = 0, 2


def string(data, at):
    n = struct.unpack_from("<Q", data, at)[0]
    return at + 8 + n


def value_end(data, at, kind):
    if kind == 8:
        return string(data, at)
    if kind != 9:
        return at + SIZES[kind]
    inner, n = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != 8:
        return at + n * SIZES[inner]
    for _ in range(n):
        at = string(data, at)
    return at


def metadata(path):
    """Keys that say something of the tokenizer, as they are in the file; the vocabulary's size."""
    data = open(path, "rb").read(32 << 20)
    n_keys = struct.unpack_from("<Q", data, 16)[0]
    at, kept, n_vocab = 24, [], 0
    for _ in range(n_keys):
        first = at
        end = string(data, at)
        key = data[at + 8:end].decode()
        kind = struct.unpack_from("<I", data, end)[0]
        at = value_end(data, end + 4, kind)
        if key == "tokenizer.ggml.tokens":
            n_vocab = struct.unpack_from("<Q", data, end + 8)[0]
        if key.startswith("tokenizer."):
            kept.append(data[first:at])
    return kept, n_vocab


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def main():
    source, target = sys.argv[1:3]
    n_layers = int(sys.argv[3]) if len(sys.argv) > 3 else 32
    keys, n_vocab = metadata(source)
    keys += [text("general.architecture") + struct.pack("<I", 8) + text("llama"), text("general.name") + struct.pack("<I", 8) + text("made up 8B")]
    numbers = {"block_count": n_layers, "context_length": 131072, "embedding_length": EMBD, "feed_forward_length": FF, "attention.head_count": HEADS,
               "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_DIM, "vocab_size": n_vocab}
    keys += [text("llama." + k) + struct.pack("<II", 4, v) for k, v in numbers.items()]
    keys += [text("llama." + k) + struct.pack("<If", 6, v) for k, v in {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500000.0}.items()]
    tensors = [("token_embd.weight", [EMBD, n_vocab]), ("output_norm.weight", [EMBD]), ("output.weight", [EMBD, n_vocab])]
    for i in range(n_layers):
        for name, shape in {"attn_norm": [EMBD], "attn_q": [EMBD, HEADS * HEAD_DIM], "attn_k": [EMBD, KV_HEADS * HEAD_DIM],
                            "attn_v": [EMBD, KV_HEADS * HEAD_DIM], "attn_output": [HEADS * HEAD_DIM, EMBD], "ffn_norm": [EMBD],
                            "ffn_gate": [EMBD, FF], "ffn_up": [EMBD, FF], "ffn_down": [FF, EMBD]}.items():
            tensors.append((f"blk.{i}.{name}.weight", shape))

    def size(shape):
        n = int(np.prod(shape))
        return n * 4 if len(shape) == 1 else n // 32 * 18

    random = np.random.default_rng(1)
    pool = random.integers(0, 256, 64 << 20, dtype=np.uint8)  # codes; blocks take pieces of it
    with open(target, "wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys))
        offset = 0
        for name, shape in tensors:
            out.write(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) +
                      struct.pack("<IQ", F32 if len(shape) == 1 else Q4_0, offset))
            offset += (size(shape) + 31) // 32 * 32
        out.write(b"\0" * (-out.tell() % 32))
        for name, shape in tensors:
            if len(shape) == 1:
                data = np.ones(shape[0], np.float32).tobytes()
            else:
                n_blocks = int(np.prod(shape)) // 32
                blocks = np.empty((n_blocks, 18), np.uint8)
                blocks[:, :2] = np.frombuffer(np.float16(0.2 / np.sqrt(shape[0])).tobytes(), np.uint8)
                first = int(random.integers(0, 1 << 20))
                codes = n_blocks * 16
                blocks[:, 2:] = np.resize(pool[first:], codes).reshape(n_blocks, 16)
                data = blocks.tobytes()
            out.write(data + b"\0" * (-len(data) % 32))


main()
