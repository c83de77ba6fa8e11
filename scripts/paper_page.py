#!/usr/bin/env python3
"""The paper's tables and figures on our models: norms and spectra (Figs 2, 3, 5 to 7), errors by bits and head (Figs 8, 9; Tables 4 to 6), rotation
(Fig 4, Tables 11 to 15), group sizes (Fig 11) and the KiVj grid (Tables 2, 3, 7 to 10), with the paper's own numbers beside them.

usage: scripts/paper_page.py OUT.md NAME=ANALYSIS.json,GRID.json[,GROUPS.json] ...      (scripts/paper_page.sh calls it)
ANALYSIS.json: kvaq analyze --json; GRID.json: scripts/kivj_table.sh; GROUPS.json: kvaq eval of K4V2 presets with other group sizes.
Writes OUT.md and a figure OUT-NAME-*.svg for each model and kind.
"""

import json
import math
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "kvaq"  # the same bytes every time
matplotlib.rcParams["svg.fonttype"] = "none"
import matplotlib.pyplot as plt  # noqa: E402

KEY, VALUE = "#c4501b", "#1f6fb2"
COLOURS = {"key": KEY, "value": VALUE}
WORDS = {"key": "keys", "value": "values"}

# arXiv 2502.15075v3, Tables 4 to 6 (C4): mean squared errors of K / V at 2, 3, 4 bits. No grouping, symmetric.
PAPER_MSE = {
    "Llama3.2-1B": ((4.885, 0.207), (1.074, 0.03), (0.233, 0.006)),
    "Llama3.2-1B-it": ((4.524, 0.193), (0.925, 0.028), (0.201, 0.006)),
    "Llama3.2-3B": ((3.885, 0.282), (0.909, 0.042), (0.194, 0.009)),
    "Llama3.2-3B-it": ((4.135, 0.274), (0.912, 0.039), (0.195, 0.009)),
    "Llama2-7B": ((6.337, 0.456), (1.054, 0.071), (0.213, 0.015)),
    "Llama3.1-8B-it": ((6.262, 0.254), (1.128, 0.036), (0.247, 0.008)),
    "Llama3.3-70B-it": ((4.391, 0.121), (0.847, 0.017), (0.186, 0.004)),
    "Nemotron3.1-it": ((5.367, 0.127), (1.049, 0.018), (0.231, 0.004)),
    "Phi3-Medium-128K": ((4.831, 0.788), (1.022, 0.109), (0.22, 0.023)),
    "Phi4": ((5.715, 0.85), (1.316, 0.124), (0.291, 0.027)),
    "Mistral0.3-7B": ((5.027, 0.543), (1.014, 0.079), (0.223, 0.017)),
    "Qwen2.5-14B": ((4.382, 1.544), (0.846, 0.22), (0.187, 0.048)),
    "R1-Llama-8B": ((4.575, 0.204), (0.817, 0.03), (0.179, 0.006)),
    "R1-Qwen-14B": ((4.832, 1.651), (0.927, 0.232), (0.201, 0.051)),
}
# Table 2, GSM8K accuracy: K2V2, K2V4, K4V2, K4V4.
PAPER_TWO_FOUR = {
    "Llama-3.2-1B-it, 1-shot": (0.033, 0.035, 0.338, 0.357), "8-shot": (0.031, 0.031, 0.289, 0.369),
    "Llama-3.1-8B-it, 1-shot": (0.511, 0.547, 0.752, 0.754), "8B, 8-shot": (0.408, 0.441, 0.770, 0.782),
    "Phi-4-14B, 1-shot": (0.759, 0.783, 0.913, 0.923), "Phi-4, 8-shot": (0.771, 0.815, 0.927, 0.931),
    "R1-Qwen-14B, 1-shot": (0.772, 0.775, 0.865, 0.867), "R1-Qwen, 8-shot": (0.763, 0.792, 0.876, 0.875)}
# Tables 7 and 10, means over 7 models by (bits of keys, bits of values): CoQA F1, GSM8K strict. f16 (BF16 there): .778, .655.
PAPER_GRID = {
    (1, 1): (0.192, 0.0), (1, 2): (0.281, 0.0), (1, 4): (0.292, 0.0), (1, 6): (0.288, 0.0), (1, 8): (0.289, 0.0),
    (2, 1): (0.483, 0.005), (2, 2): (0.668, 0.139), (2, 4): (0.675, 0.179), (2, 6): (0.677, 0.179), (2, 8): (0.677, 0.182),
    (4, 1): (0.721, 0.428), (4, 2): (0.77, 0.592), (4, 4): (0.776, 0.604), (4, 6): (0.774, 0.606), (4, 8): (0.773, 0.605),
    (6, 1): (0.745, 0.457), (6, 2): (0.775, 0.642), (6, 4): (0.777, 0.654), (6, 6): (0.778, 0.659), (6, 8): (0.776, 0.66),
    (8, 1): (0.746, 0.459), (8, 2): (0.775, 0.644), (8, 4): (0.778, 0.658), (8, 6): (0.777, 0.66), (8, 8): (0.777, 0.657),
}
WIDTHS = (1, 2, 4, 6, 8)
# Fig 4, means over 7 models, GSM8K: by rotation, K2V2, K2V4, K4V2, K4V4 (per cent).
PAPER_ROTATION = {"": (4.91, 7.06, 57.79, 58.92), "rotk": (19.39, 23.05, 63.65, 65.13), "rotv": (5.44, 7.05, 58.23, 59.11),
                  "rot": (19.96, 22.70, 64.64, 65.32)}
# Fig 11, CoQA, K4V2: by (g_K, g_V).
PAPER_GROUPS = {(128, 128): 0.580, (128, 32): 0.579, (128, 64): 0.582, (32, 128): 0.633, (32, 32): 0.635, (32, 64): 0.636, (64, 128): 0.593,
                (64, 32): 0.595, (64, 64): 0.597}
BITS = ("k2v2", "k2v4", "k4v2", "k4v4")


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def number(x):
    return f"{x:.3g}"


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def band(axis, x, rows, side, **style):
    """Mean line and the least and largest of each entry."""
    axis.fill_between(x, [min(r) for r in rows], [max(r) for r in rows], color=COLOURS[side], alpha=0.2, linewidth=0)
    axis.plot(x, [statistics.fmean(r) for r in rows], color=COLOURS[side], label=WORDS[side], **style)


def layers_of(analysis):
    return [layer["layer"] for layer in analysis["cache"]["layers"]]


def per_head(analysis, side, field):
    return [[head[side][field] for head in layer["heads"]] for layer in analysis["cache"]["layers"]]


def draw_norms(analysis, path):
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    layers = [layer["layer"] for layer in analysis["weights"]["layers"]]
    for axis, norm in zip(axes[0], ("frobenius", "spectral")):
        for side, letter in (("key", "k"), ("value", "v")):
            axis.plot(layers, [layer[f"w_{letter}_{norm}"] for layer in analysis["weights"]["layers"]], color=COLOURS[side], label=f"W_{letter.upper()}")
        axis.set(title=f"weights, {norm} norm (Figs 2, 5)", xlabel="layer", ylim=(0, None))
        axis.legend()
    for axis, norm in zip(axes[1], ("frobenius", "spectral")):
        for side in COLOURS:
            band(axis, layers_of(analysis), per_head(analysis, side, norm), side)
        axis.set(title=f"cache, {norm} norm of the heads (Figs 1, 7)", xlabel="layer", ylim=(0, None))
        axis.legend()
    save(figure, path)


def draw_spectra(analysis, path):
    layers = analysis["cache"]["layers"]
    chosen = sorted({round(i * (len(layers) - 1) / 7) for i in range(8)})
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.5), sharex=True)
    for axis, index in zip(axes.flat, chosen):
        for side in COLOURS:
            columns = list(zip(*(head[side]["singular_values"] for head in layers[index]["heads"])))
            band(axis, range(1, len(columns) + 1), columns, side)
        axis.set(title=f"layer {layers[index]['layer']}", yscale="log")
    for axis in axes[1]:
        axis.set_xlabel("index, largest first")
    axes.flat[0].legend()
    figure.suptitle("Singular values of each head's cache: mean, least and largest over heads (Figs 3, 6)")
    save(figure, path)
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.5), sharex=True)
    for axis, index in zip(axes.flat, chosen):
        for side in COLOURS:
            columns = list(zip(*(head[side]["singular_values"][4:] for head in layers[index]["heads"])))
            band(axis, range(5, 5 + len(columns)), columns, side)
        axis.set(title=f"layer {layers[index]['layer']}", ylim=(0, None))
    for axis in axes[1]:
        axis.set_xlabel("index, largest first")
    axes.flat[0].legend()
    figure.suptitle("Singular values from the 5th on")
    save(figure, path.with_name(path.name.replace("-spectra", "-spectra5")))


def draw_errors(analysis, path):
    bits = analysis["cache"]["bits"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8))
    for side in COLOURS:
        for field, line in (("mse", "-"), ("mse_rotated", "--")):
            heads = [head for layer in per_head(analysis, side, field) for head in layer]
            axes[0].plot(bits, [statistics.fmean(h[i] for h in heads) for i in range(len(bits))], line, color=COLOURS[side],
                         label=WORDS[side] + (", rotated" if line == "--" else ""))
    axes[0].set(title="MSE by bits (Fig 8)", xlabel="bits", yscale="log")
    axes[0].legend()
    for axis, wanted in zip(axes[1:], (2, 4)):
        at = bits.index(wanted)
        for side in COLOURS:
            band(axis, layers_of(analysis), [[mse[at] for mse in layer] for layer in per_head(analysis, side, "mse")], side)
        axis.set(title=f"MSE at {wanted} bits by layer, heads as band (Fig 9)", xlabel="layer", yscale="log")
    save(figure, path)


def section_norms(analysis):
    rows = []
    for what, source in (("weights", analysis["weights"]), ("cache", analysis["cache"])):
        for norm in ("frobenius", "spectral"):
            n = source[norm]
            rows.append((f"{what}, {norm}", number(n["ratio_k_over_v"]), f"{n['n_layers'] - len(n['layers_with_smaller_k'])} of {n['n_layers']}"))
    return table(("norm", "K / V, geometric mean over layers", "layers with K larger"), rows)


def section_errors(analysis):
    bits = analysis["cache"]["bits"]
    rows = []
    for field, words in (("mse", "plain"), ("mse_rotated", "rotated")):
        means = {}
        for side in COLOURS:
            heads = [head for layer in per_head(analysis, side, field) for head in layer]
            means[side] = [(statistics.fmean(h[i] for h in heads), statistics.pstdev(h[i] for h in heads)) for i in range(len(bits))]
        for i, wanted in enumerate(bits):
            (k, k_sd), (v, v_sd) = means["key"][i], means["value"][i]
            rows.append((words, wanted, f"{number(k)} ± {number(k_sd)}", f"{number(v)} ± {number(v_sd)}", number(k / v), f"{math.log2(k / v) / 2:+.2f}"))
    return table(("codec", "bits", "MSE of K", "MSE of V", "K / V", "bits that make them equal"), rows)


def geometric(values):
    return math.exp(statistics.fmean(math.log(v) for v in values))


def section_bounds(analysis):
    """Theorems 3 and 4: measured errors of the whole sample beside the bounds, geometric means over heads."""
    rows = []
    for side in COLOURS:
        heads = [bounds for layer in per_head(analysis, side, "bounds") for bounds in layer]
        for i, first in enumerate(heads[0]):
            at = [bounds[i] for bounds in heads]
            rows.append((WORDS[side], first["bits"], *(number(geometric(b[key] for b in at)) for key in (
                "error_spectral", "bound_theorem_3", "error_frobenius", "bound_theorem_4", "bound_max")), f"{sum(b['holds'] for b in at)} of {len(at)}"))
    return table(("side", "bits", "error, spectral norm", "Theorem 3's bound", "error, Frobenius norm", "Theorem 4's bound", "by the largest entry", "holds in"), rows)


def balance_line(analysis):
    layers = analysis["cache"]["layers"]
    parts = []
    for norm in ("frobenius", "spectral"):
        b = [layer[f"balance_bits_{norm}"] for layer in layers]
        parts.append(f"{statistics.fmean(b):+.2f} ({min(b):+.2f} to {max(b):+.2f}) by {'Frobenius' if norm == 'frobenius' else norm} norms")
    bound = analysis["weights"]["propagation_bound_log10_4_bits"]
    tail = {}
    for side in COLOURS:
        tail[side] = statistics.fmean(1 - e for layer in per_head(analysis, side, "energy_of_first_4") for e in layer)
    return (f"The balance rule b_K - b_V = log2(|K| / |V|) asks for " + ", ".join(parts) + " (mean and range over layers). "
            f"Singular values from the 5th on hold {100 * tail['key']:.0f} % of the energy of keys, {100 * tail['value']:.0f} % of values. "
            f"The bound on error propagation that holds (a product over layers) is 10^{bound['w_k']:.0f} for W_K and 10^{bound['w_v']:.0f} for W_V at 4 bits: true, and of no use for choosing bits.")


def paper_errors():
    rows = []
    for model, values in PAPER_MSE.items():
        for b, (k, v) in zip((2, 3, 4), values):
            rows.append((model, b, k, v, number(k / v), f"{math.log2(k / v) / 2:+.2f}"))
    return table(("paper, C4", "bits", "MSE of K", "MSE of V", "K / V", "bits that make them equal"), rows)


def kl_by_name(grid):
    return {row["name"]: row for row in grid["rows"] if row["kind"] == "plan"}


def kl_text(row):
    return f"{row['mean_kl']['value']:.4f} ± {row['mean_kl']['standard_error']:.4f}"


def section_grid(grid):
    rows = kl_by_name(grid)
    out = []
    for rotation, words in (("", "none"), ("rotk", "K"), ("rotv", "V"), ("rot", "K and V")):
        names = [b + (f"-{rotation}" if rotation else "") + "-s4" for b in BITS]
        out.append([words] + [kl_text(rows[n]) for n in names] + [f"{v:.1f}" for v in PAPER_ROTATION[rotation]])
    return table(["rotation"] + [b.upper() for b in BITS] + [f"paper {b.upper()}" for b in BITS], out)


def cell(rows, k, v):
    return rows[f"k{k}v{v}-s4"]


def share(row):
    return 100 * row["same_top"]["value"]


def section_pairs(grid):
    """All pairs of widths, and Table 3: means over the other side's widths."""
    rows = kl_by_name(grid)
    if any(f"k{k}v{v}-s4" not in rows for k in WIDTHS for v in WIDTHS):
        return "(Not all pairs are in this table: scripts/kivj_table.sh makes them.)"
    pairs = [[f"K{k}"] + [f"{cell(rows, k, v)['mean_kl']['value']:.3g}; {share(cell(rows, k, v)):.0f} %; {PAPER_GRID[k, v][0]:.3f}, {PAPER_GRID[k, v][1]:.3f}" for v in WIDTHS]
             for k in WIDTHS]
    means = []
    for i in WIDTHS:
        ours = [statistics.fmean(share(cell(rows, *((i, j) if side == "key" else (j, i)))) for j in WIDTHS) for side in COLOURS]
        paper = [[statistics.fmean(PAPER_GRID[(i, j) if side == "key" else (j, i)][which] for j in WIDTHS) for side in COLOURS] for which in (0, 1)]
        means.append((i, f"{ours[0]:.1f} %", f"{ours[1]:.1f} %", *(f"{v:.3f}" for pair in paper for v in pair)))
    return (table(["KL here; same top token; paper's CoQA, GSM8K"] + [f"V{v}" for v in WIDTHS], pairs) + "\n\nMeans over the other side's widths (Table 3):\n\n"
            + table(("bits", "KiVx: same top token", "KxVi", "paper, CoQA: KiVx", "KxVi", "GSM8K strict: KiVx", "KxVi"), means))


def preset_of(g_k, g_v):
    """The name that the preset has in results."""
    if g_k == g_v:
        return "k4v2" + ("" if g_k == 64 else f"-g{g_k}") + "-s4"
    return "k4v2" + ("" if g_k == 64 else f"-gk{g_k}") + ("" if g_v == 64 else f"-gv{g_v}") + "-s4"


def section_groups(analysis, groups):
    rows = []
    sizes = analysis["cache"]["groups"]
    energy = {side: [[h["mean_square"] for h in (head[side] for head in layer["heads"])] for layer in analysis["cache"]["layers"]] for side in COLOURS}
    relative = {}
    for side in COLOURS:
        errors = per_head(analysis, side, "mse_grouped")
        for i, size in enumerate(sizes):
            relative[side, size] = statistics.fmean(e[i] / m for es, ms in zip(errors, energy[side]) for e, m in zip(es, ms))
    kl = kl_by_name(groups) if groups else {}
    for g_k in sizes:
        for g_v in sizes:
            row = kl.get(preset_of(g_k, g_v))
            rows.append((g_k, g_v, f"{(4 + 2 + 32 / g_k + 32 / g_v) / 2:.2f}", f"{100 * relative['key', g_k]:.2f} %", f"{100 * relative['value', g_v]:.1f} %",
                         kl_text(row) if row else "", PAPER_GROUPS.get((g_k, g_v), "")))
    head = ("g_K", "g_V", "bits/element", "error of K", "error of V", "KL here", "paper, CoQA")
    if not kl:
        rows = [r[:5] + r[6:] for r in rows]
        head = head[:5] + head[6:]
    return table(head, rows)


def verdicts(name, analysis, grid, groups):
    """What reproduces, from the numbers."""
    says = []
    for what, source, paper in (("weights", analysis["weights"], "Theorem 1"), ("cache", analysis["cache"], "its corollary")):
        n = source["frobenius"]
        larger = n["n_layers"] - len(n["layers_with_smaller_k"])
        word = "holds" if larger == n["n_layers"] else ("holds in most layers" if 2 * larger > n["n_layers"] else "does not hold")
        says.append(f"{paper[0].upper() + paper[1:]} (Frobenius, {what}) {word}: K larger in {larger} of {n['n_layers']} layers.")
    if analysis["qk_norm"]:
        says.append("The model normalises queries and keys after their projections, so the norms of W_K say nothing about its keys.")
    rows = kl_by_name(grid)
    kl = {b: rows[f"{b}-s4"]["mean_kl"]["value"] for b in BITS}
    says.append(f"\"More for keys\": K4V2 has KL {kl['k4v2']:.3f}, K2V4 {kl['k2v4']:.3f}, {kl['k2v4'] / kl['k4v2']:.1f} times as much: "
                + ("reproduces." if kl["k2v4"] > kl["k4v2"] else "does not reproduce."))
    says.append(f"\"K4V2 keeps most of K4V4\": its KL is {kl['k4v2'] / kl['k4v4']:.1f} times K4V4's ({kl['k4v4']:.3f}).")
    worse = [f"K{k}V{v}" for k in WIDTHS for v in WIDTHS if k > v and f"k{k}v{v}-s4" in rows and f"k{v}v{k}-s4" in rows and cell(rows, k, v)["mean_kl"]["value"] > cell(rows, v, k)["mean_kl"]["value"]]
    says.append("\"Key-first never underperforms value-first in any configuration\": " + (f"not so for {', '.join(worse)} (of 10 pairs; the paper's own tables have 28 of 280)." if worse else "so in all 10 pairs here (not in 28 of the paper's own 280)."))
    turned = rows["k4v2-rotk-s4"]["mean_kl"]["value"]
    says.append(f"\"Rotate keys\": at K4V2 KL {kl['k4v2']:.3f} to {turned:.3f}; rotating values too, {rows['k4v2-rot-s4']['mean_kl']['value']:.3f}: "
                + ("rotating values helps here, against the paper's advice." if rows["k4v2-rot-s4"]["mean_kl"]["value"] < turned else "as the paper says."))
    if groups:
        kl = kl_by_name(groups)
        fine, coarse = (kl[preset_of(g, 128)]["mean_kl"]["value"] for g in (32, 128))
        values = kl[preset_of(128, 32)]["mean_kl"]["value"]
        says.append(f"\"Small groups for keys\": g_K 128 to 32 takes KL from {coarse:.3f} to {fine:.3f}, g_V 128 to 32 to {values:.3f}, for the same bytes: "
                    + ("keys gain more, as in the paper." if fine < values else "values gain more, against the paper."))
    return "\n".join(f"- {s}" for s in says)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    parts = ["# The paper's tables and figures on our models",
             "\"Quantize What Counts: More for Keys, Less for Values\" (arXiv 2502.15075, v3). Made by `scripts/paper_page.sh`. The paper's models are other ones, its errors are "
             "of ungrouped symmetric codes and its quality is task accuracy; ours are groups of 64 along the head with scale and offset, and KL to the f16 cache (nats, less is "
             "better), so signs and ratios compare, numbers do not.", "Errors in the paper, for comparison:", paper_errors(),
             "Its accuracy by bits (Table 2, GSM8K; more is better):",
             table(["paper"] + [b.upper() for b in BITS], [(m, *v) for m, v in PAPER_TWO_FOUR.items()])]
    for argument in sys.argv[2:]:
        name, files = argument.split("=", 1)
        analysis, grid, *groups = (json.loads(pathlib.Path(f).read_text()) for f in files.split(","))
        groups = groups[0] if groups else None
        title = f"{name} ({analysis['name']})"
        parts += [f"## {title}", "What reproduces:", verdicts(name, analysis, grid, groups), "### Norms and spectra", f"`{analysis['command']}`", section_norms(analysis)]
        for kind, draw, words in (("norms", draw_norms, "Norms of weights and cache by layer"), ("spectra", draw_spectra, "Singular values"),
                                  ("spectra5", None, "Singular values from the 5th on"), ("errors", draw_errors, "Quantization errors by bits and by layer")):
            path = out.with_name(f"{out.stem}-{name}-{kind}.svg")
            if draw:  # draw_spectra makes both
                draw(analysis, path)
            parts.append(f"![{words} of {name}]({path.name})")
        parts += ["### Theorems 3 and 4, the balance rule", "The paper's quantizer, one symmetric scale for a head's whole matrix [tokens, channels]; geometric means over heads.", section_bounds(analysis), balance_line(analysis),
                  "### Errors (Figs 8, 9; Tables 4 to 6)", "Mean ± standard deviation over layers and heads, groups of 64.", section_errors(analysis),
                  "### KiVj and rotation (Tables 2, 3, 7 to 15; Fig 4)",
                  f"KL to f16, mean ± standard error; the paper's: mean GSM8K accuracy of 7 models, per cent. `{grid['command']}`", section_grid(grid),
                  "All pairs of 1, 2, 4, 6 and 8 bits without rotation (Tables 2, 3, 7, 10; the paper's: means over 7 models, HQQ along channels; ours groups of 64 along the head):", section_pairs(grid),
                  "### Group sizes at K4V2, no rotation (Fig 11)",
                  "Errors relative to the side's energy, mean over heads." + (f" KL: `{groups['command']}`" if groups else ""), section_groups(analysis, groups)]
    out.write_text("\n\n".join(parts) + "\n")
    print(f"paper_page: {out}")


if __name__ == "__main__":
    main()
