"""Tiny raw files in every format, written by the tests themselves, and a way to run the command."""

from __future__ import annotations

import collections
import gzip
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

ROOT = Path(__file__).resolve().parents[1]


def random_graph(
    nodes: int, features: int, classes: int, seed: int = 0, edges: int | None = None
) -> dict[str, Any]:
    """A random directed edge list with repeats and self-loops, bag-of-words features and labels."""
    rng = np.random.default_rng(seed)
    count = 3 * nodes if edges is None else edges
    return {
        "edges": rng.integers(0, nodes, (count, 2)),
        "features": (rng.random((nodes, features)) < 0.3).astype(np.float32)
        * rng.integers(1, 4, (nodes, features)),
        "labels": np.arange(nodes) % classes,
    }


def dense_adjacency(edges: Any, nodes: int) -> Any:
    """Undirected, unweighted, without self-loops, float64: written independently of the package."""
    a = np.zeros((nodes, nodes))
    for i, j in edges:
        if i != j:
            a[i, j] = a[j, i] = 1.0
    return a


def dense_hops(adjacency: Any, features: Any, hops: int) -> Any:
    """[H, ÃH, …] by dense float64 products."""
    a = adjacency + np.eye(len(adjacency))
    d = np.diag(1 / np.sqrt(a.sum(axis=1)))
    blocks = [np.asarray(features, dtype=np.float64)]
    for _ in range(hops):
        blocks.append(d @ a @ d @ blocks[-1])
    return np.hstack(blocks)


def npz_with_feature(path: Path, value: float) -> None:
    """A graph of 60 nodes, 8 features and 3 classes, of which one feature of one node is `value`."""
    arrays = {name: x for name, x in npz_arrays(60, 8, 3).items() if not name.startswith("attr_")}
    features = np.random.default_rng(0).random((60, 8)).astype(np.float32)
    features[7, 0] = value
    np.savez(path, **arrays, attr_matrix=features)


def npz_arrays(nodes: int = 60, features: int = 7, classes: int = 3, seed: int = 0) -> dict[str, Any]:
    """The arrays of a graph in the gnn-benchmark keys."""
    graph = random_graph(nodes, features, classes, seed)
    i, j = graph["edges"].T
    a = sp.csr_matrix((np.ones(len(i), dtype=np.float32), (i, j)), shape=(nodes, nodes))
    a.data[:] = 1  # of edges that were drawn more than once, too
    x = sp.csr_matrix(graph["features"])
    return {
        "adj_data": a.data,
        "adj_indices": a.indices,
        "adj_indptr": a.indptr,
        "adj_shape": np.array(a.shape),
        "attr_data": x.data.astype(np.float32),
        "attr_indices": x.indices,
        "attr_indptr": x.indptr,
        "attr_shape": np.array(x.shape),
        "labels": graph["labels"].astype(np.int32),
    }


def write_npz(path: Path, **changes: Any) -> Path:
    """Write those arrays, changed as said; None leaves a key out."""
    arrays = {**npz_arrays(), **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def write_planetoid(folder: Path, name: str = "cora") -> dict[str, Any]:
    """Eight Planetoid files of 30 nodes: 6 train, 20 known, test ids 20..29 without 24 and 27.

    Nodes 24 and 27 are isolated and left out of `tx`, like 15 nodes of Citeseer; the test ids are
    not in order. Returns what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = random_graph(30, 11, 3, seed=4)
    missing = {24, 27}
    edges = [(int(i), int(j)) for i, j in graph["edges"] if not {int(i), int(j)} & missing]
    test = [26, 20, 29, 22, 21, 28, 23, 25]
    one_hot = np.eye(3, dtype=np.int32)[graph["labels"]]
    x = graph["features"]
    neighbours: dict[int, list[int]] = collections.defaultdict(list)
    for node in range(30):
        neighbours[node] = []
    for i, j in edges:
        neighbours[i].append(j)
    parts = {
        "x": sp.csr_matrix(x[:6]),
        "allx": sp.csr_matrix(x[:20]),
        "tx": sp.csr_matrix(x[test]),
        "y": one_hot[:6],
        "ally": one_hot[:20],
        "ty": one_hot[test],
        "graph": neighbours,
    }
    for part, value in parts.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / f"ind.{name}.test.index").write_text("".join(f"{t}\n" for t in test))
    features, labels = x.copy(), graph["labels"].copy()
    for node in missing:
        features[node] = 0
        labels[node] = 0
    return {"edges": edges, "features": features, "labels": labels, "test": sorted(test)}


def write_ogb(folder: Path) -> dict[str, Any]:
    """An OGB node-property folder of 12 nodes, split by time."""
    graph = random_graph(12, 4, 3, seed=5)
    graph["features"] = np.random.default_rng(6).standard_normal((12, 4)).astype(np.float32)
    split = {"train": [0, 1, 2, 7, 8, 9], "valid": [3, 4, 11], "test": [5, 6, 10]}
    texts = {
        "raw/edge": "\n".join(f"{i},{j}" for i, j in graph["edges"]),
        "raw/node-feat": "\n".join(",".join(repr(float(v)) for v in row) for row in graph["features"]),
        "raw/node-label": "\n".join(str(v) for v in graph["labels"]),
        **{f"split/time/{part}": "\n".join(str(v) for v in ids) for part, ids in split.items()},
    }
    for name, text in texts.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress((text + "\n").encode()))
    return {**graph, "split": split}


def write_graphsaint(folder: Path) -> dict[str, Any]:
    """A GraphSAINT folder of 12 nodes."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = random_graph(12, 4, 3, seed=7)
    i, j = graph["edges"].T
    sp.save_npz(folder / "adj_full.npz", sp.csr_matrix((np.ones(len(i), dtype=bool), (i, j)), shape=(12, 12)))
    np.save(folder / "feats.npy", graph["features"].astype(np.float64))
    (folder / "class_map.json").write_text(
        json.dumps({str(n): int(c) for n, c in enumerate(graph["labels"])})
    )
    split = {"tr": [0, 1, 2, 7, 8, 9], "va": [3, 4, 11], "te": [5, 6, 10]}
    (folder / "role.json").write_text(json.dumps(split))
    return {**graph, "split": split}


def idx_bytes(array: Any) -> bytes:
    """An array of unsigned bytes in IDX format."""
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_arrays() -> dict[str, Any]:
    """60 + 10 images of 4 x 4."""
    rng = np.random.default_rng(8)
    return {
        "x_train": rng.integers(0, 256, (60, 4, 4), dtype=np.uint8),
        "y_train": (np.arange(60) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (10, 4, 4), dtype=np.uint8),
        "y_test": np.arange(10).astype(np.uint8),
    }


def write_idx(folder: Path, compress: bool) -> dict[str, Any]:
    """The four IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = mnist_arrays()
    names = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    for key, name in names.items():
        content = idx_bytes(arrays[key])
        (folder / f"{name}.gz" if compress else folder / name).write_bytes(
            gzip.compress(content) if compress else content
        )
    return arrays


def mpirun() -> str | None:
    """The mpirun of this environment, or of the PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def prepare(
    *arguments: str, cwd: Path, ranks: int = 0, timeout: float = 120, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m pdadmm.prepare`, under mpirun when ranks > 0."""
    command = [sys.executable, "-m", "pdadmm.prepare", *arguments]
    if ranks:
        command = [str(mpirun()), "-n", str(ranks), *command]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
