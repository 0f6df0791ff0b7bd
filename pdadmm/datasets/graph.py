"""The graph every reader returns, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import InputError
from .registry import SPLITS

__all__ = [
    "UNLABELLED",
    "Graph",
    "Matrix",
    "as_csr",
    "as_features",
    "as_ids",
    "as_label_matrix",
    "as_labels",
    "class_sizes",
    "clean_adjacency",
    "csr_from_parts",
    "is_directed",
    "mask_ids",
]

#: stands in files for a label that is not known
UNLABELLED = -1

_EMPTY_COLUMNS = 1 << 16  # that a sparse matrix may have in any case

Matrix: TypeAlias = Any
"""A row a node, float32: a scipy.sparse.csr_matrix, for which there are no types, or an array."""


@dataclass(eq=False, repr=False)
class Graph:
    """A node classification problem.

    Attributes
    ----------
    name : str
        What the user called it: a registry name or that of a file (see `pdadmm.datasets.called`).
    adjacency : scipy.sparse.csr_matrix (N, N) float32, or None
        Symmetric, entries 1, no self-loops; None where the samples have no graph (MNIST).
    features : scipy.sparse.csr_matrix or ndarray
        (N, F) float32.
    labels : ndarray (N,) int64, or (N, C) uint8
        One class a node; or zeros and ones where a node has several, or none.
    train : ndarray int64
        Ids of the training nodes.
    val : ndarray int64
        Ids of the validation nodes.
    test : ndarray int64
        Ids of the test nodes; no node is in two of the three.
    num_classes : int
        C.
    origin : str
        The file or folder that messages name.
    directed : bool
        Whether the edges had directions, which are dropped.
    weighted : bool
        Whether the edges had weights, which are dropped.
    unlabelled : ndarray int64
        Ids of nodes whose label is not known and stands as 0; they are in no split.
    complete : bool
        Whether every class and every split must have a node, as training needs them.
    drawn : bool
        Whether the split was drawn from a seed, since nobody gave one.

    Raises
    ------
    InputError
        From the constructor: sizes that disagree, labels that are not 0 to C-1 (or a matrix of 0 and 1),
        NaN or Inf features, ids out of range, a node that is in two splits, or in one without a label; where
        it is to be complete, classes without a node and an empty split.
    """

    name: str
    adjacency: Matrix
    features: Matrix
    labels: np.ndarray
    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    num_classes: int
    origin: str = ""
    directed: bool = False
    unlabelled: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    complete: bool = True
    drawn: bool = False
    weighted: bool = False

    def __post_init__(self) -> None:
        self.origin = self.origin or self.name
        self._check()

    def __repr__(self) -> str:
        edges = "no graph" if self.adjacency is None else f"{self.adjacency.nnz // 2} edges"
        sizes = ", ".join(f"{self.split(name).size} {name}" for name in SPLITS)
        return (
            f"<Graph {self.name!r}: {self.num_nodes} nodes, {edges}, {self.num_features} features, "
            f"{self.num_classes} classes; {sizes}>"
        )

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return int(self.features.shape[0])

    @property
    def num_features(self) -> int:
        """Number of features F of a node, before any hop is added."""
        return int(self.features.shape[1])

    @property
    def multilabel(self) -> bool:
        """Whether a node may have several classes."""
        return self.labels.ndim == 2

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Node ids of `train`, `val` or `test`, int64."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @property
    def untrained(self) -> list[int]:
        """Classes without a training node."""
        labels = self.labels[self.train]
        counts = labels.sum(axis=0) if self.multilabel else np.bincount(labels, minlength=self.num_classes)
        return [int(c) for c in np.flatnonzero(counts == 0)]

    def _check(self) -> None:
        n, where = self.num_nodes, self.origin
        if n == 0 or self.num_features == 0:
            raise InputError(
                f"{where}: the feature matrix is empty ({n} x {self.num_features}); give nodes some numbers"
            )
        if self.labels.shape != ((n, self.num_classes) if self.multilabel else (n,)):
            raise InputError(f"{where}: {len(self.labels)} labels for {n} feature rows; they must agree")
        if self.adjacency is not None and self.adjacency.shape != (n, n):
            rows, columns = self.adjacency.shape
            raise InputError(
                f"{where}: adjacency is {rows} x {columns} for {n} feature rows; they must agree"
            )
        values = self.features.data if sp.issparse(self.features) else self.features
        if not np.isfinite(values).all():
            raise InputError(
                f"{where}: features hold NaN or Inf, or more than float32 can; replace them before preparing"
            )
        self._check_labels()
        self._check_splits()

    def _check_labels(self) -> None:
        where = self.origin
        if self.multilabel:
            ones = as_label_matrix(self.labels, where).sum(axis=1)
            if self.complete and (ones == 1).all():
                raise InputError(
                    f"{where}: labels are rows of zeros and a one; give the numbers of the classes, "
                    "labels.argmax(axis=1)"
                )
            found = self.num_classes
        elif self.complete:
            found = class_sizes(self.labels, where, self.num_classes).size
        else:
            found = _require_labels(self.labels, where) + 1
        if self.num_classes < 2:
            raise InputError(f"{where}: {self.num_classes} class in the labels; at least 2 are needed")
        if found > self.num_classes:
            raise InputError(
                f"{where}: label {found - 1} is out of range; labels must be 0 to {self.num_classes - 1}"
            )

    def _check_splits(self) -> None:
        n, where = self.num_nodes, self.origin
        seen, unknown = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        unknown[self.unlabelled] = True
        for name in SPLITS:
            ids = self.split(name)
            if ids.size == 0:
                if not self.complete:
                    continue
                raise InputError(f"{where}: the {name} split is empty; every split needs a node")
            if int(ids.min()) < 0 or int(ids.max()) >= n:
                bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise InputError(f"{where}: node {bad} of the {name} split is out of range 0 to {n - 1}")
            before = np.count_nonzero(seen)
            seen[ids] = True
            if np.count_nonzero(seen) != before + ids.size:
                raise InputError(f"{where}: the {name} split repeats a node or shares one with another split")
            if unknown[ids].any():
                node = ids[unknown[ids]].min()
                raise InputError(
                    f"{where}: node {node} of the {name} split has no label; take it out of the split"
                )


def class_sizes(labels: npt.NDArray[np.int64], where: str, classes: int = 0) -> npt.NDArray[np.int64]:
    """Number of nodes of every class, (C,) int64; `classes` is the least that C may be.

    Raises
    ------
    InputError
        When a label is negative or a class has no node, so that C is at most the number of nodes.
    """
    largest = _require_labels(labels, where)
    if labels.size and largest >= labels.size:
        raise InputError(
            f"{where}: label {largest} is out of range for {labels.size} nodes; number the classes "
            "0 to C-1 without gaps"
        )
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        empty = int(np.flatnonzero(counts == 0)[0])
        raise InputError(f"{where}: class {empty} has no node; number the classes 0 to C-1 without gaps")
    return counts


def _require_labels(labels: npt.NDArray[np.int64], where: str) -> int:
    """The largest label, -1 where there is none; InputError when one is negative."""
    if labels.size and int(labels.min()) < 0:
        raise InputError(f"{where}: label {int(labels.min())} is out of range; labels must be 0 or more")
    return int(labels.max()) if labels.size else -1


def csr_from_parts(parts: Sequence[object], where: str) -> Matrix:
    """A checked `csr_matrix` from data, indices, indptr and shape that came out of a file.

    Every index is checked before SciPy's compiled code sees it, since that code trusts them.

    Raises
    ------
    InputError
        When the arrays do not describe a CSR matrix of that shape, or nearly all of its columns are empty:
        nothing else in a file bounds their number.
    """
    try:
        data, indices, indptr, dimensions = (np.asarray(part) for part in parts)
        shape = tuple(int(s) for s in dimensions.ravel())
        if len(shape) != 2 or min(shape) < 0:
            raise ValueError(f"shape {shape}")
        if data.dtype.kind not in "biuf" or indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
            raise ValueError(f"types {data.dtype}, {indices.dtype}, {indptr.dtype}")
        if data.ndim != 1 or indices.shape != data.shape or indptr.shape != (shape[0] + 1,):
            raise ValueError("array lengths disagree")
        # Compared, not subtracted: a difference can overflow and look like a rise.
        if indptr[0] != 0 or indptr[-1] != data.size or (indptr[1:] < indptr[:-1]).any():
            raise ValueError("row pointers do not rise from 0 to the number of entries")
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= shape[1]):
            raise ValueError("a column index is out of range")
        if shape[1] > data.size + shape[0] + _EMPTY_COLUMNS:
            raise ValueError(f"{shape[1]} columns for {data.size} entries")
    except (ValueError, TypeError, OverflowError, IndexError) as exc:
        raise InputError(
            f"{where}: not a valid sparse matrix ({exc}); fetch the file again, or save the parts of a "
            "scipy.sparse.csr_matrix"
        ) from None
    return sp.csr_matrix((data, indices, indptr), shape=shape)


def clean_adjacency(adjacency: Matrix, where: str) -> Matrix:
    """Make an adjacency matrix undirected, unweighted and free of self-loops.

    Parameters
    ----------
    adjacency : scipy sparse (N, N)
        An entry that is not 0 is an edge, in whichever direction.

    Returns
    -------
    scipy.sparse.csr_matrix (N, N) float32
        Sorted indices, entries 1.

    Raises
    ------
    InputError
        When it is not square, or holds NaN.
    """
    rows, columns = adjacency.shape
    if rows != columns:
        raise InputError(f"{where}: adjacency is {rows} x {columns}; it must be square")
    if np.isnan(adjacency.data).any():
        raise InputError(f"{where}: the adjacency holds NaN, which is neither an edge nor none; replace it")
    edges = _pattern(adjacency)
    clean = edges + edges.T.tocsr()
    clean.sort_indices()
    clean.data = np.ones(clean.nnz, dtype=np.float32)
    return clean


def is_directed(adjacency: Matrix, cleaned: Matrix) -> bool:
    """Whether an adjacency matrix has an edge in one direction only.

    Parameters
    ----------
    adjacency, cleaned : scipy sparse (N, N)
        Before and after `clean_adjacency`.
    """
    return bool(_pattern(adjacency).nnz < cleaned.nnz)


def _pattern(adjacency: Matrix) -> Matrix:
    """Where entries are not 0, without the diagonal: a CSR matrix of booleans, each entry once."""
    edges = adjacency.tocsr()
    rows = np.repeat(np.arange(edges.shape[0], dtype=edges.indices.dtype), np.diff(edges.indptr))
    keep = (edges.data != 0) & (edges.indices != rows)
    del rows
    indptr = np.concatenate([[0], np.cumsum(keep)])[edges.indptr].astype(edges.indptr.dtype)
    indices = edges.indices[keep]
    found = sp.csr_matrix((np.ones(indices.size, dtype=bool), indices, indptr), shape=edges.shape)
    found.sum_duplicates()
    return found


def as_csr(matrix: Matrix) -> Matrix:
    """Sparse features as float32 CSR with duplicates summed and indices sorted."""
    with np.errstate(over="ignore"):  # an overflow to Inf is reported with the other bad values
        matrix = matrix.tocsr().astype(np.float32)
    matrix.sum_duplicates()
    matrix.sort_indices()
    return matrix


def as_features(values: object, where: str) -> npt.NDArray[np.float32]:
    """Dense features (N, F) as C-contiguous float32, or InputError."""
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise InputError(f"{where}: features are {array.dtype} {array.shape}; a 2-D numeric array is needed")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def as_labels(values: object, where: str) -> npt.NDArray[np.int64]:
    """Labels (N,) as int64, NaN as `UNLABELLED`, or InputError when they are not whole numbers."""
    array = np.asarray(values)
    if array.ndim == 2 and 1 in array.shape:
        array = array.ravel()
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        numbered = "; numpy.unique(..., return_inverse=True) numbers them" if array.dtype.kind in "US" else ""
        raise InputError(
            f"{where}: labels are {array.dtype} {array.shape}; one integer a node is needed{numbered}"
        )
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), UNLABELLED, array)
        if not (np.isfinite(array).all() and (array == np.floor(array)).all()):
            raise InputError(f"{where}: a label is not a whole number; every node needs one integer label")
    if array.dtype == np.uint64:  # those beyond int64 would be negative, and -1 be no label
        array = np.minimum(array, np.iinfo(np.int64).max)
    with np.errstate(invalid="ignore"):  # a float beyond int64 becomes a label that is out of range
        return array.astype(np.int64)


def as_label_matrix(values: object, where: str) -> npt.NDArray[np.uint8]:
    """Labels (N, C) of nodes with several classes each as uint8, or InputError when they are not 0 and 1."""
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise InputError(f"{where}: labels are {array.dtype} {array.shape}; a matrix of 0 and 1 is needed")
    return array.astype(np.uint8)


def as_ids(values: object, where: str) -> npt.NDArray[np.int64]:
    """Node ids as a sorted int64 vector, or InputError."""
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{where}: node ids are {array.dtype} {array.shape}; a vector of integers is needed")
    return np.sort(array.astype(np.int64))


def mask_ids(mask: np.ndarray, nodes: int, where: str) -> npt.NDArray[np.int64]:
    """Ids of the nodes in a mask (nodes,) of booleans, or of 0 and 1.

    Raises
    ------
    InputError
        When it is none, such as a vector of node ids.
    """
    if mask.shape != (nodes,) or not np.isin(mask, (0, 1)).all():
        raise InputError(
            f"{where}: is {mask.dtype} {mask.shape}; a mask is true or false for each of {nodes} nodes"
        )
    return np.flatnonzero(mask)
