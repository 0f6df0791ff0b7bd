"""Node property prediction data of the Open Graph Benchmark (Hu et al., NeurIPS 2020), as csv.gz."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import InputError
from .graph import Graph, as_ids, as_labels, clean_adjacency, is_directed
from .raw import allowance, open_regular, too_much

__all__ = ["read_ogb"]

_LINE = 4 << 20  # characters


def read_ogb(files: Mapping[str, Path], name: str) -> Graph:
    """Read a node-property folder: raw/{edge,node-feat,node-label}.csv.gz and the split by time.

    Directed edges become undirected, as is usual for ogbn-arxiv.

    Parameters
    ----------
    files : mapping from the path inside the folder to the path on disk

    Raises
    ------
    InputError
        For damaged files and anything `Graph` refuses.
    """
    edges = _csv(files["raw/edge.csv.gz"], np.int64)
    features = _csv(files["raw/node-feat.csv.gz"], np.float32)
    where = files["raw/node-label.csv.gz"]
    labels = as_labels(_csv(where, np.float64), str(where))
    n = features.shape[0]
    if edges.shape[1] != 2:
        raise InputError(f"{files['raw/edge.csv.gz']}: {edges.shape[1]} columns, not 2; fetch it again")
    if edges.size and (int(edges.min()) < 0 or int(edges.max()) >= n):
        bad = int(edges.min()) if int(edges.min()) < 0 else int(edges.max())
        raise InputError(f"{files['raw/edge.csv.gz']}: node {bad} is out of range 0 to {n - 1}")
    ones = np.ones(edges.shape[0], dtype=np.float32)
    adjacency = sp.coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(n, n))
    cleaned = clean_adjacency(adjacency, str(files["raw/edge.csv.gz"]))
    split = {}
    for part in ("train", "valid", "test"):
        path = files[f"split/time/{part}.csv.gz"]
        split[part] = as_ids(_csv(path, np.int64).ravel(), str(path))
    return Graph(
        name=name,
        adjacency=cleaned,
        features=features,
        labels=labels,
        train=split["train"],
        val=split["valid"],
        test=split["test"],
        num_classes=int(labels.max()) + 1 if labels.size else 0,
        origin=str(files["raw/node-feat.csv.gz"].parent.parent),
        directed=is_directed(adjacency, cleaned),
    )


def _csv(path: Path, dtype: npt.DTypeLike) -> np.ndarray:
    """A csv.gz without header as a 2-D array."""
    try:
        with open_regular(path) as file, gzip.open(file, "rt", encoding="ascii") as stream:
            lines = _lines(stream, allowance(file), path)
            first = next(lines, None)
            if first is None:
                return np.zeros((0, 2), dtype=dtype)
            return np.loadtxt(_chain(first, lines), dtype=dtype, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise InputError(f"{path}: damaged ({reason}); fetch it again") from None


def _lines(stream: TextIO, room: int, path: Path) -> Iterator[str]:
    """Lines with something on them; no more of them than there is room for."""
    while line := stream.readline(_LINE):
        room -= len(line)
        if room < 0:
            raise too_much(path, "fetch it again")
        if len(line) == _LINE:
            raise ValueError(f"a line of {_LINE} characters")
        if line.strip():
            yield line


def _chain(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest
