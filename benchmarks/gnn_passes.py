"""The passes of graph networks: compiled, in NumPy and SciPy, and a copy of as many bytes as they must move.

    python benchmarks/gnn_passes.py [--data NAME] [--raw DIR] [--cols 256] [--threads 1] [--json FILE]

The graph's adjacency is multiplied by a matrix of that many columns, the other passes take matrices of as
many rows; messages are of half the rows, chosen at random. What is compared is timed by turns, the least of
several is taken. ``ratio`` is NumPy's time by the compiled one's, ``copies`` the compiled one's by the
copy's.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from pdadmm.codec.rows import FLOAT32, WIDTHS, row_message_bytes
from pdadmm.datasets import load
from pdadmm.gnn.passes.host import HostPasses
from pdadmm.gnn.passes.protocol import Drop, Passes, Sparse
from pdadmm.gnn.passes.reference import ReferencePasses

REPEATS = 15


def least_seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least seconds of each call, made by turns after one round to warm up."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                took[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in took.items()}


def matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return rng.standard_normal(shape, np.float32)


class Call(NamedTuple):
    """A pass with its arguments, and the bytes of arrays that it reads and writes."""

    method: str
    arguments: tuple[Any, ...]
    moved: int

    def by(self, passes: Passes) -> None:
        """Run it."""
        getattr(passes, self.method)(*self.arguments)


def calls(adjacency: sp.csr_matrix, cols: int, classes: int) -> dict[str, Call]:
    """Every pass by its name."""
    rng = np.random.default_rng(0)
    n = adjacency.shape[0]
    indptr, indices = adjacency.indptr.astype(np.int64), adjacency.indices.astype(np.int32)
    product, entries = Sparse(indptr, indices, adjacency.data), adjacency.nnz
    X, out, N, H = (matrix(rng, n, cols) for _ in range(4))
    bias, gamma, beta = (matrix(rng, cols) for _ in range(3))
    inverse, nodes = np.ones(n, np.float32), np.arange(n)
    sums, column = np.zeros((3, cols)), np.zeros(cols)
    late, early = Drop(0.5, 7, False), Drop(0.5, 7, True)
    found = {}
    for width in (cols, 64, 40, classes):
        arguments = (product, matrix(rng, n, width), matrix(rng, n, width))
        moved = entries * (12 + 4 * width) + 4 * n * width
        found[f"aggregate, {width} columns"] = Call("aggregate", arguments, moved)
    for name, drop in (("hidden", late), ("hidden, dropout first", early)):
        found[name] = Call("hidden", (X, bias, gamma, beta, nodes, drop, N, inverse, H), 3 * X.nbytes)
    backward = (out, N, inverse, gamma, beta, nodes, late, sums)
    found["hidden_backward"] = Call("hidden_backward", backward, 3 * X.nbytes)
    found["column_sums"] = Call("column_sums", (X, column), X.nbytes)
    chosen = np.sort(rng.permutation(n)[: n // 2]).astype(np.int32)
    for width in (cols, classes):
        Y = matrix(rng, n, width)
        for bits in (FLOAT32, *WIDTHS):
            message = np.empty(row_message_bytes(len(chosen), width, bits), np.uint8)
            moved = 4 * len(chosen) * width + message.nbytes
            ending = f"{width} columns at {bits} bits"
            found[f"encode_rows, {ending}"] = Call("encode_rows", (Y, chosen, bits, 3, message), moved)
            found[f"decode_rows, {ending}"] = Call("decode_rows", (message, bits, chosen, Y), moved)
    Z, G = matrix(rng, n, classes), matrix(rng, n, classes)
    labels, none = rng.integers(0, classes, n), np.zeros(classes, np.float32)
    found["softmax_loss"] = Call("softmax_loss", (Z, none, labels, 1.0, G), 3 * Z.nbytes)
    x, gradient, first = (matrix(rng, cols * cols) for _ in range(3))
    found["adam"] = Call("adam", (x, gradient, first, np.abs(x), 10, 1e-3, 0.0), 7 * x.nbytes)
    return found


def measure(o: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of every pass, of its NumPy form and of the copy, and their ratios."""
    graph = load(o.data, raw=o.raw)
    adjacency = sp.csr_matrix(graph.adjacency, dtype=np.float32)
    compiled, plain = HostPasses(o.threads), ReferencePasses()
    rows: dict[str, dict[str, float]] = {}
    for name, call in calls(adjacency, o.cols, graph.num_classes).items():
        source = np.ones(call.moved // 2, np.uint8)  # a copy reads and writes
        seconds = least_seconds(
            {
                "compiled": partial(call.by, compiled),
                "numpy": partial(call.by, plain),
                "copy": partial(np.copyto, np.ones_like(source), source),
            }
        )
        rows[name] = {
            **seconds,
            "ratio": seconds["numpy"] / seconds["compiled"],
            "copies": seconds["compiled"] / seconds["copy"],
        }
        print(
            f"{name:40} {1e3 * seconds['compiled']:8.3f} ms  NumPy {rows[name]['ratio']:6.1f} x  "
            f"{rows[name]['copies']:5.2f} copies",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="amazon-computers")
    parser.add_argument("--raw")
    parser.add_argument("--cols", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    o = parser.parse_args()
    rows = measure(o)
    if o.json:
        found = {"data": o.data, "cols": o.cols, "threads": o.threads, "passes": rows}
        o.json.write_text(json.dumps(found, indent=1) + os.linesep)


if __name__ == "__main__":
    main()
