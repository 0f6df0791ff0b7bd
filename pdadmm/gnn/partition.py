"""Which part of a graph every node belongs to: by METIS, without it, at random, or by the user's vector.

METIS: G. Karypis, V. Kumar: A fast and high quality multilevel scheme for partitioning irregular graphs, SIAM
J. Sci. Comput. 20, 1998. Parts are balanced in numbers of nodes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pdadmm.datasets import Graph
from pdadmm.datasets.npy import load_npy
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.gnn.blocks import balanced, cut_into_blocks
from pdadmm.gnn.metis import metis
from pdadmm.inputs.feature_norm import FeatureNorm
from pdadmm.inputs.graph_file import GraphArrays

__all__ = ["PARTITIONERS", "cut", "partition"]

PARTITIONERS = ("auto", "metis", "blocks", "random")

Parts = npt.NDArray[np.int32]


def cut(
    graph: Graph, parts: int, partitioner: str = "auto", seed: int = 0, **facts: str | FeatureNorm
) -> GraphArrays:
    """A graph in memory, cut into parts: what the file of `pdadmm.gnn.prepare` would hold.

    Parameters
    ----------
    graph : Graph
        With an adjacency.
    parts : int
        At least 1, at most one a node.
    partitioner : str
        One of `PARTITIONERS`, or the name of a file as in `partition`.
    seed : int
        Of the partitioner; recorded as that of the preparation, too.
    **facts
        Other attributes of the file, and the feature norm, as in `GraphArrays`.

    Raises
    ------
    InputError
        When there is no graph, or as `partition`.
    """
    if graph.adjacency is None:
        raise InputError(
            f"{graph.origin}: samples without a graph cannot be cut; python -m pdadmm.prepare takes them"
        )
    method = _chosen(partitioner)
    part = partition(graph.adjacency, parts, method, seed)
    recorded: Record = {"seed": seed, "partition_seed": seed, **facts}
    return GraphArrays(graph, part, partitioner=method if method in PARTITIONERS else "file", **recorded)


def partition(adjacency: sp.csr_matrix, parts: int, method: str = "auto", seed: int = 0) -> Parts:
    """Give every node a part; the same arguments give the same parts.

    Parameters
    ----------
    adjacency : scipy.sparse.csr_matrix (V, V)
        Symmetric, entries 1, no self-loops.
    parts : int
        At least 1, at most V.
    method : str
        `metis`; `blocks`, see :mod:`pdadmm.gnn.blocks`; `auto`, METIS where it is installed and else blocks;
        `random`; or the name of an .npy file, a vector of part numbers in the order of the nodes.
    seed : int
        Draws random parts and is METIS's seed.

    Returns
    -------
    ndarray (V,) int32
        0 to parts - 1, each at least once.

    Raises
    ------
    InputError
        For numbers of parts and methods that do not exist, METIS where it is not installed, and vectors of
        another length, with an empty part or numbers out of range.
    """
    nodes = int(adjacency.shape[0])
    if parts < 1:
        raise InputError(f"--parts {parts} is too few; give 1 or more")
    if parts > nodes:
        raise InputError(f"--parts {parts} is more than the {nodes} nodes; every part needs one")
    method = _chosen(method)
    if method not in PARTITIONERS:
        return _read(Path(method), nodes, parts)
    if parts == 1:
        return np.zeros(nodes, dtype=np.int32)
    if method == "random":
        return np.random.default_rng(seed).permutation(np.arange(nodes) % parts).astype(np.int32)
    if method == "metis":
        made = balanced(adjacency, metis(adjacency, parts, seed), parts, seed)
    else:
        made = cut_into_blocks(adjacency, parts, seed)
    return _without_empty(made, parts)


def _chosen(method: str) -> str:
    """The method that `auto` is here; others as they are, found to exist."""
    if method == "auto":
        return "metis" if importlib.util.find_spec("pymetis") else "blocks"
    if method not in PARTITIONERS and not method.endswith(".npy"):
        raise InputError(
            f"--partitioner {method} is unknown; choose {', '.join(PARTITIONERS)} or name an .npy file"
        )
    return method


def _without_empty(part: Parts, parts: int) -> Parts:
    """Give every empty part a node of the largest one."""
    sizes = np.bincount(part, minlength=parts)
    for empty in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        part[np.flatnonzero(part == largest)[-1]] = empty
        sizes[largest] -= 1
        sizes[empty] = 1
    return part


def _read(path: Path, nodes: int, parts: int) -> Parts:
    """The vector of a file, checked."""
    found = load_npy(path, "save the part of every node with numpy.save")
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(
            f"{path}: holds {found.dtype} {found.shape}; a vector of one integer a node is needed"
        )
    if found.size != nodes:
        raise InputError(f"{path}: {found.size} parts for {nodes} nodes; give one for every node")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= parts:
        bad = low if low < 0 else high
        raise InputError(f"{path}: part {bad} is out of range 0 to {parts - 1}; correct it, or --parts")
    sizes = np.bincount(found.astype(np.int64), minlength=parts)
    if (sizes == 0).any():
        empty = int(sizes.argmin())
        raise InputError(f"{path}: part {empty} has no node; number the parts 0 to {parts - 1} without gaps")
    return found.astype(np.int32)
