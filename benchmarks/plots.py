"""Pictures of what benchmarks leave: accuracy by bytes and by seconds, growth; pdadmm.plot draws runs.

    python benchmarks/plots.py pareto      [accuracy.jsonl] --out FILE.svg
    python benchmarks/plots.py growth      [speed.json] --out FILE.svg
    python benchmarks/plots.py accuracy    [speed.json] --out FILE.svg     accuracy by seconds

The ending of FILE chooses the format: svg, png or pdf.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pdadmm.codec import Codec, make_codec
from pdadmm.errors import InputError

RESULTS = Path(__file__).parent / "results"
# the same file for the same numbers
matplotlib.rcParams.update({"svg.hashsalt": "pdadmm", "svg.fonttype": "none", "font.size": 9})


def codec_of(method: str) -> Codec:
    """The codec that benchmarks/accuracy.py calls by that name."""
    match = re.fullmatch(r"(grid|affine|delta)([1248])", method)
    name, bits = (match[1], int(match[2])) if match else ("float32", 32)
    return make_codec(name, bits, (0.0, 1.0))


def pareto(files: list[Path]) -> Any:
    """Test accuracy over the bytes of an entry, a panel a data set, mean of the seeds."""
    scores: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in (files[0] if files else RESULTS / "accuracy.jsonl").read_text().splitlines():
        record = json.loads(line)
        dataset, hidden, method = record["key"][:3]
        if method == "float32" or method[-1:].isdigit():
            scores[dataset, hidden][method].append(100 * record["test_accuracy"])
    panels = sorted(k for k in scores if k[1] == min(h for _, h in scores))
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.2), squeeze=False, sharex=True)
    for axis, panel in zip(axes.flat, panels, strict=False):
        of: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for method, found in scores[panel].items():
            # 140 nodes: the share of the heads does not depend on their number
            share = codec_of(method).nbytes(140, panel[1]) / (4 * 140 * panel[1])
            of[method.rstrip("0123456789")].append((share, mean(found)))
        reference = mean(scores[panel]["float32"]) if "float32" in scores[panel] else None
        for name, points in of.items():
            points.sort()
            if name != "float":
                axis.plot(*zip(*points, strict=True), "o-", label=name, lw=1, ms=4)
        if reference is not None:
            axis.plot([1.0], [reference], "ks", label="float32", ms=4)
            axis.axhspan(reference - 0.5, reference + 0.5, color="0.92", zorder=0)
        axis.set_xscale("log", base=2)
        axis.set_title(f"{panel[0]}, {panel[1]} neurons", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("bytes, of float32's")
    for row in axes:
        row[0].set_ylabel("test accuracy, %")
    axes[0][0].legend()
    return figure


def _speed(files: list[Path], part: str) -> Any:
    path = files[0] if files else RESULTS / "speed.json"
    found = json.loads(path.read_text())
    if part not in found:
        raise InputError(f"{path} has no {part}; run benchmarks/speed.py {part} first")
    return found[part]


def growth(files: list[Path]) -> Any:
    """Seconds per iteration over V, n and L with their fits, and the speedup of two ranks."""
    found = _speed(files, "scaling")
    rows = _speed(files, "ranks")["rows"]
    figure, axes = plt.subplots(1, 4, figsize=(11, 3))
    for axis, (name, text) in zip(axes, (("nodes", "V"), ("hidden", "n"), ("layers", "L")), strict=False):
        x, y = ([row[key] for row in found[name]["points"]] for key in (name, "seconds"))
        axis.loglog(x, y, "o-", lw=1)
        axis.set_xlabel(f"{text}   (fit: {text}^{found[name]['exponent']:.2f})")
    axes[0].set_ylabel("seconds per iteration")
    labels = [f"L {row['layers']}\nn {row['hidden']}" for row in rows]
    axes[3].bar(labels, [row["speedup"] for row in rows], width=0.5)
    axes[3].axhline(2, color="0.6", lw=0.8, ls="--")
    axes[3].set_ylabel("speedup of 2 ranks over 1")
    return figure


def accuracy(files: list[Path]) -> Any:
    """Validation accuracy by seconds of training, a panel a data set."""
    found = {k: v for k, v in _speed(files, "accuracy").items() if isinstance(v, dict)}
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3), squeeze=False)
    for axis, (name, row) in zip(axes[0], found.items(), strict=True):
        for method, curve in row["curves"].items():
            axis.plot([s for s, _ in curve], [100 * a for _, a in curve], label=method, lw=1.2)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("seconds of training")
    axes[0][0].set_ylabel("validation accuracy, %")
    axes[0][0].legend()
    return figure


PICTURES = {"pareto": pareto, "growth": growth, "accuracy": accuracy}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    o = parser.parse_args()
    figure = PICTURES[o.picture](o.paths)
    figure.tight_layout()
    o.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(o.out, metadata={"Date": None} if o.out.suffix == ".svg" else None)
    print(o.out)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"plots: {error}", file=sys.stderr)
        sys.exit(2)
