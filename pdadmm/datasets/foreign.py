"""Graphs of other libraries, taken over from memory, and the `.npz` that they are kept in.

None of those libraries is imported, and no pickle is read: the user's process has the graph already.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import scipy.sparse as sp

from ..errors import InputError
from ..files import replacing
from .graph import UNLABELLED, Graph, Matrix, as_csr, as_features, mask_ids
from .splits import assemble, check_seed

__all__ = ["from_networkx", "from_pyg", "write_npz"]

Foreign: TypeAlias = Any
"""An object of a library that is not imported."""


def from_pyg(
    data: Foreign,
    *,
    name: str = "graph",
    split: int | Mapping[str, Foreign] = 0,
    seed: int = 0,
    classes: int = 0,
) -> Graph:
    """A graph of PyTorch Geometric, or of OGB in that form.

    Parameters
    ----------
    data
        A ``torch_geometric.data.Data``, or anything with `x` (N, F), `edge_index` (2, E) and `y` (N,) or
        (N, 1), -1 or NaN where a node has no label, or (N, C) of 0 and 1; tensors or arrays, and of `x`
        sparse ones, too. `train_mask`,
        `val_mask` and `test_mask` (N,) or (N, S) are its splits. Weights of edges are not used.
    name
        What files and reports call it.
    split
        Which of S splits; or a mapping of node ids, ``dataset.get_idx_split()`` of OGB.
    seed
        Draws the split where there is none.
    classes
        C, where the graph is to be predicted on, as of `pdadmm.datasets.load`: it needs no `y`.

    Raises
    ------
    InputError
        Where something is missing, or is no graph.
    """
    where = f"{name} (from_pyg)"
    seed, classes = _whole(seed, "seed", where), _whole(classes, "classes", where)
    with contextlib.suppress(TypeError):
        split = operator.index(cast(Any, split))  # of NumPy, too
    needed = ("x", "edge_index") if classes else ("x", "edge_index", "y")
    missing = [field for field in needed if getattr(data, field, None) is None]
    if missing:
        raise InputError(f"{where}: has no {', '.join(missing)}; give an object with {' and '.join(needed)}")
    edges = _array(data.edge_index, f"{where} (edge_index)")
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise InputError(f"{where}: edge_index is {edges.dtype} {edges.shape}; it must be integers (2, E)")
    x = _matrix(data.x, where)
    ids = None
    if isinstance(split, Mapping):
        names = ("train", "valid" if "valid" in split else "val", "test")
        lacking = [part for part in names if part not in split]
        if lacking:
            raise InputError(f"{where}: the split has no {', '.join(lacking)}; give train, valid and test")
        ids = [_array(split[part], f"{where} ({part})") for part in names]
    else:
        masks = [getattr(data, f"{part}_mask", None) for part in ("train", "val", "test")]
        called = [f"{where} ({part}_mask)" for part in ("train", "val", "test")]
        if all(mask is not None for mask in masks):
            ids = [
                mask_ids(_of_split(_array(mask, of), split, where), x.shape[0], of)
                for of, mask in zip(called, masks, strict=True)
            ]
        elif any(mask is not None for mask in masks):
            raise InputError(f"{where}: has some of train_mask, val_mask, test_mask; give all three or none")
        elif not _first(split):
            raise InputError(
                f"{where}: has no masks, of which `split` would choose; give it a mapping of ids"
            )
    y = getattr(data, "y", None)
    labels = np.full(x.shape[0], UNLABELLED) if y is None else _array(y, f"{where} (y)")
    return _graph(name, where, edges, x, labels, ids, seed, classes)


def from_networkx(
    graph: Foreign,
    *,
    features: str = "x",
    label: str = "y",
    name: str = "graph",
    seed: int = 0,
    classes: int = 0,
) -> Graph:
    """A graph of NetworkX whose nodes have their features and label as attributes.

    Parameters
    ----------
    graph
        A ``networkx.Graph`` or its kin. Node i of the result is the i-th of ``graph.nodes``. Attributes
        `train_mask`, `val_mask` and `test_mask` of all nodes, true or false, are the split.
        Weights of edges are not used.
    features
        Name of the attribute that has a node's features: F numbers, or one.
    label
        Name of the attribute that has its label, an integer from 0 to C-1, or -1 where it is not known.
    name
        What files and reports call the graph.
    seed
        Draws the split where there is none.
    classes
        C, where the graph is to be predicted on, as of `pdadmm.datasets.load`: nodes need no label.

    Raises
    ------
    InputError
        Where a node lacks an attribute, or what `from_pyg` refuses.
    """
    where = f"{name} (from_networkx)"
    seed, classes = _whole(seed, "seed", where), _whole(classes, "classes", where)
    if not hasattr(graph, "nodes"):
        raise InputError(f"{where}: {type(graph).__name__} is no networkx.Graph; give one")
    nodes = list(graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}

    def column(attribute: str) -> list[Foreign]:
        found = [values.get(attribute) for _, values in graph.nodes(data=True)]
        for node, value in zip(nodes, found, strict=True):
            if value is None:
                raise InputError(
                    f"{where}: node {node!r} has no attribute {attribute!r}; give it to all nodes"
                )
        return found

    rows = [np.atleast_1d(_array(value, f"{where} ({features})")) for value in column(features)]
    if len({row.shape for row in rows}) > 1:
        raise InputError(f"{where}: nodes have different numbers of features {features!r}; give all as many")
    x = _matrix(np.stack(rows) if rows else np.zeros((0, 0)), where)
    edges = np.array([(number[a], number[b]) for a, b, *_ in graph.edges], np.int64).reshape(-1, 2).T
    if not graph.is_directed():
        edges = np.concatenate([edges, edges[::-1]], axis=1)
    masks = [f"{part}_mask" for part in ("train", "val", "test")]
    known = any(mask in values for _, values in graph.nodes(data=True) for mask in masks)
    ids = None
    if known:
        called = [f"{where} ({mask})" for mask in masks]
        ids = [
            mask_ids(_array(column(mask), of), len(nodes), of) for mask, of in zip(masks, called, strict=True)
        ]
    if classes and not any(label in values for _, values in graph.nodes(data=True)):
        labels = np.full(len(nodes), UNLABELLED)
    else:
        labels = _array(column(label), f"{where} ({label})")
    return _graph(name, where, edges, x, labels, ids, seed, classes)


def write_npz(path: str | os.PathLike[str], graph: Graph) -> None:
    """Write a graph, with the split that it was given, as the `.npz` that the commands read.

    The file appears when it is complete.

    Raises
    ------
    InputError
        When the name does not end in .npz, or there is no adjacency.
    OSError
        When the file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise InputError(f"{target}: the commands know a graph by .npz; give such a name")
    if graph.adjacency is None:
        raise InputError(f"{graph.name}: has no edges to write; samples without a graph need no .npz")
    labels = graph.labels.copy()
    if graph.unlabelled.size:
        labels[graph.unlabelled] = UNLABELLED
    arrays: dict[str, np.ndarray] = {"labels": labels}
    matrices = {"adj": graph.adjacency}
    if sp.issparse(graph.features):
        matrices["attr"] = graph.features
    else:
        arrays["attr_matrix"] = graph.features
    for prefix, matrix in matrices.items():
        for part in ("data", "indices", "indptr", "shape"):
            arrays[f"{prefix}_{part}"] = np.asarray(getattr(matrix, part))
    if not graph.drawn:  # one that was drawn is drawn again, from whatever seed
        arrays.update({f"{part}_idx": graph.split(part) for part in ("train", "val", "test")})
    with replacing(target) as temporary, open(temporary, "wb") as file:
        np.savez(file, **cast(Any, arrays))  # stubs take a keyword for allow_pickle


def _graph(
    name: str,
    where: str,
    edges: np.ndarray,
    x: Matrix,
    y: np.ndarray,
    ids: list[np.ndarray] | None,
    seed: int,
    classes: int,
) -> Graph:
    """From arrays: edges (2, E), x (N, F), y, and the ids of the nodes of each split."""
    nodes = x.shape[0]
    if edges.size and not (edges.min() >= 0 and edges.max() < nodes):
        raise InputError(f"{where}: an edge leads to node {edges.max()} or {edges.min()} of {nodes} nodes")
    check_seed(seed)
    values = np.ones(edges.shape[1], np.float32)
    adjacency = sp.csr_matrix((values, (edges[0], edges[1])), shape=(nodes, nodes))
    adjacency.data[:] = 1  # an edge that is there twice is one
    features = as_csr(x) if sp.issparse(x) else as_features(x, f"{where} (x)")
    return assemble(name, where, adjacency, features, y, ids, seed, ("y", "train", "val", "test"), classes)


def _matrix(value: Foreign, where: str) -> Matrix:
    """Features, a CSR matrix where they are sparse: a matrix of SciPy, or a tensor in any sparse layout."""
    layout = str(getattr(value, "layout", ""))
    if not sp.issparse(value) and not layout.startswith("torch.sparse"):
        found = _array(value, f"{where} (x)")
        if found.ndim != 2:
            raise _no_matrix(found, where)
        return found
    if len(value.shape) != 2:
        raise _no_matrix(value, where)
    if sp.issparse(value):
        entries, found = value.dtype, sp.csr_matrix(value)
    else:
        tensor = value.detach().cpu().to_sparse_coo().coalesce()
        values = _array(tensor.values(), where)
        if values.ndim != 1:
            raise InputError(f"{where}: the features are a sparse tensor of blocks; give to_dense() of it")
        entries, found = (
            values.dtype,
            sp.csr_matrix((values, _array(tensor.indices(), where)), tuple(value.shape)),
        )
    if entries.kind not in "biuf":
        raise InputError(f"{where}: the features are {entries}; they must be numbers")
    return found


def _no_matrix(x: Foreign, where: str) -> InputError:
    kind = f" {type(x.item()).__name__}" if not x.shape and x.dtype == object else ""
    return InputError(
        f"{where}: the features are{kind} {tuple(x.shape)}; they must be an array (nodes, features)"
    )


def _whole(value: object, what: str, where: str) -> int:
    """A whole number of any library."""
    try:
        return operator.index(cast(Any, value))
    except TypeError:
        raise InputError(f"{where}: {what} is {value!r}; give a whole number") from None


def _array(value: Foreign, where: str) -> np.ndarray:
    """An array of a tensor, or of what NumPy knows."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # which NumPy has not
        half = str(getattr(value, "dtype", "")) == "torch.bfloat16"
        value = (value.float() if half else value).numpy()
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{where}: its rows are of different lengths; give all as many entries") from None


def _first(split: object) -> bool:
    """Whether it is the default of `split`."""
    return isinstance(split, int) and split == 0


def _of_split(mask: np.ndarray, split: object, where: str) -> np.ndarray:
    """A mask (N,), or one of S of them, (N, S)."""
    if mask.ndim != 2:
        if not _first(split):
            raise InputError(f"{where}: the masks are one split; leave `split` out, or give it node ids")
        return mask
    if not isinstance(split, int) or not 0 <= split < mask.shape[1]:
        raise InputError(f"{where}: there is no split {split!r}; the masks have {mask.shape[1]}, from 0")
    return np.asarray(mask[:, split])
