"""Cora, Citeseer and Pubmed in the raw format of Planetoid (Yang et al., ICML 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import InputError
from .graph import Graph, Matrix, as_csr, as_ids, clean_adjacency
from .raw import read_whole
from .registry import PLANETOID_PARTS
from .safe_pickle import load_pickle

__all__ = ["read_planetoid"]

_VALIDATION = 500


def read_planetoid(files: Mapping[str, Path], name: str) -> Graph:
    """Read the eight files `ind.NAME.*`.

    Nodes 0 to len(allx)-1 come from `allx`, the rest from `tx` in the order of `test.index`. Test
    nodes that the files leave out (15 in Citeseer) keep their edges, if any, get a zero feature
    row and class 0, and are in no split. Public split: the nodes of `x` train (20 a class), the
    next 500 are for validation, those of `test.index` (1000) for test.

    Parameters
    ----------
    files : mapping from the part (`x`, `graph`, `test.index`, …) to its path

    Raises
    ------
    InputError
        For damaged files, pickles that hold anything but arrays, sizes that disagree.
    """
    parts = {part: load_pickle(files[part]) for part in PLANETOID_PARTS if part != "test.index"}
    x, tx, allx = (_sparse(parts[p], files[p]) for p in ("x", "tx", "allx"))
    y, ty, ally = (_one_hot(parts[p], files[p]) for p in ("y", "ty", "ally"))
    for matrix, classes, part in ((x, y, "y"), (tx, ty, "ty"), (allx, ally, "ally")):
        if classes.shape[0] != matrix.shape[0]:
            raise InputError(
                f"{files[part]}: {classes.shape[0]} label rows for {matrix.shape[0]} feature rows; "
                "fetch the files again"
            )
    if not x.shape[1] == tx.shape[1] == allx.shape[1] or not y.shape[1] == ty.shape[1] == ally.shape[1]:
        raise InputError(f"{files['allx']}: widths differ between x, tx and allx; fetch the files again")

    adjacency = _adjacency(parts["graph"], files["graph"])
    n, known = adjacency.shape[0], allx.shape[0]
    if n < known:
        raise InputError(f"{files['graph']}: {n} nodes for {known} rows of allx; fetch the files again")
    test = _test_index(files["test.index"])
    if test.size != tx.shape[0]:
        raise InputError(
            f"{files['test.index']}: {test.size} ids for {tx.shape[0]} rows of tx; fetch the files again"
        )
    if test.size and (int(test.min()) < known or int(test.max()) >= n):
        bad = int(test.min()) if int(test.min()) < known else int(test.max())
        raise InputError(f"{files['test.index']}: test node {bad} is out of range {known} to {n - 1}")

    stacked = sp.vstack([allx, tx, sp.csr_matrix((1, allx.shape[1]), dtype=np.float32)], format="csr")
    source = np.full(n, known + test.size, dtype=np.int64)  # the zero row
    source[:known] = np.arange(known)
    source[test] = known + np.arange(test.size)
    train = np.arange(x.shape[0], dtype=np.int64)
    val = np.arange(x.shape[0], min(x.shape[0] + _VALIDATION, known), dtype=np.int64)
    labels = np.full(n, -1, dtype=np.int64)
    labels[:known] = _classes(ally)
    labels[test] = _classes(ty)
    unused = np.ones(n, dtype=bool)
    unused[np.concatenate([train[:n], val, test])] = False
    unlabelled = np.flatnonzero(unused & (labels < 0))
    labels[unlabelled] = 0
    return Graph(
        name=name,
        adjacency=adjacency,
        features=as_csr(stacked[source]),
        labels=labels,
        train=train,
        val=val,
        test=as_ids(test, str(files["test.index"])),
        num_classes=int(y.shape[1]),
        origin=str(files["x"].parent / f"ind.{name}"),
        unlabelled=unlabelled,
    )


def _sparse(value: object, path: Path) -> Matrix:
    if not sp.issparse(value):
        raise InputError(f"{path}: holds {type(value).__name__}, not a sparse matrix; fetch the file again")
    return as_csr(value)


def _one_hot(value: object, path: Path) -> np.ndarray:
    if (
        not isinstance(value, np.ndarray)
        or value.ndim != 2
        or value.dtype.kind not in "biuf"
        or not value.size
    ):
        raise InputError(f"{path}: not a numeric one-hot label matrix; fetch the file again")
    if ((value != 0) & (value != 1)).any():
        raise InputError(f"{path}: labels are not one-hot (values other than 0 and 1)")
    if int(value.sum(axis=1).max()) > 1:
        raise InputError(f"{path}: labels are not one-hot (a node with several classes)")
    return value


def _classes(one_hot: np.ndarray) -> npt.NDArray[np.int64]:
    """The class of every row, -1 where it has none."""
    return np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)


def _adjacency(graph: object, path: Path) -> Matrix:
    """Adjacency from {node: [neighbours]}; every node is a key, those without edges too."""
    if not isinstance(graph, dict) or not graph:
        raise InputError(f"{path}: not a dictionary of neighbour lists; fetch the file again")
    n, lists = len(graph), list(graph.values())
    # A list that stands at many nodes takes no room in the file, whatever its length.
    if {type(v) for v in lists} != {list} or len({id(v) for v in lists}) < n:
        raise InputError(f"{path}: not a dictionary of neighbour lists; fetch the file again")
    if {type(v) for v in chain(graph, chain.from_iterable(lists))} != {int}:
        raise InputError(f"{path}: holds something other than node ids; fetch the file again")
    degrees = np.fromiter((len(v) for v in lists), dtype=np.int64, count=n)
    nodes = np.fromiter(graph, dtype=np.int64, count=n)
    neighbours = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=int(degrees.sum()))
    for ids in (nodes, neighbours):
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= n):
            raise InputError(f"{path}: a node id is out of range 0 to {n - 1}; fetch the file again")
    edges = (np.ones(neighbours.size, dtype=np.float32), (np.repeat(nodes, degrees), neighbours))
    return clean_adjacency(sp.coo_matrix(edges, shape=(n, n)), str(path))


def _test_index(path: Path) -> npt.NDArray[np.int64]:
    try:
        return np.array([int(word) for word in read_whole(path).decode("ascii").split()], dtype=np.int64)
    except (ValueError, OverflowError):
        raise InputError(f"{path}: holds something other than node ids; fetch the file again") from None
