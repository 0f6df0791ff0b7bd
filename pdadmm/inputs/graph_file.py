"""Graphs cut into parts as training reads them: from HDF5 files and from memory.

The format of the files is in docs/data.md. Rows are the nodes renumbered by part, so that a part is a slice;
inside a part they are in the order of the data set.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pdadmm.datasets.graph import Graph, Matrix
from pdadmm.datasets.registry import SPLITS
from pdadmm.errors import InputError, one_line
from pdadmm.files import Record
from pdadmm.files.hdf5 import PlainFile
from pdadmm.files.names import safe_name
from pdadmm.inputs import Ids
from pdadmm.inputs.feature_norm import FeatureNorm

if TYPE_CHECKING:
    import h5py

__all__ = ["KIND", "SCHEMA", "SCHEMA_VERSION", "GraphArrays", "GraphFile", "GraphSource"]

SCHEMA = "pdadmm-graph"
SCHEMA_VERSION = 1
KIND = "graph file"  # what messages call it

_BLOCK_BYTES = 64 << 20  # of features, or of neighbours, at once
_BLOCK_ROWS = 1 << 20  # of what is one number a row

AnySource = TypeVar("AnySource", bound="GraphSource")


class GraphSource(ABC):
    """What the trainer reads of a graph that is cut into parts.

    Attributes
    ----------
    attrs : dict
        The attributes of the schema.
    dataset : str
    num_nodes, num_edges, num_features, num_classes : int
        Edges are undirected and without self-loops.
    multilabel : bool
        Whether a node may have several classes.
    parts : int
    part_ptr : ndarray (parts + 1,) int64
        First row of every part, and the number of rows.
    sizes : dict
        Numbers of nodes by split: train, val, test.
    sparse : bool
        Whether features are CSR matrices.
    norm : FeatureNorm
        What preparing did to the features.
    """

    attrs: Record
    dataset: str
    num_nodes: int
    num_edges: int
    num_features: int
    num_classes: int
    multilabel: bool
    parts: int
    part_ptr: Ids
    sizes: dict[str, int]
    sparse: bool
    norm: FeatureNorm
    where: str

    def _adopt(self, attrs: Record, where: str) -> None:
        self.attrs, self.where = {**attrs, "dataset": safe_name(attrs["dataset"])}, where
        self.dataset, self.parts = self.attrs["dataset"], attrs["parts"]
        self.num_nodes, self.num_edges = attrs["num_nodes"], attrs["num_edges"]
        self.num_features, self.num_classes = attrs["num_features"], attrs["num_classes"]
        self.multilabel, self.sparse = bool(attrs["multilabel"]), attrs["features"] == "csr"
        self.sizes = {name: attrs[f"n_{name}"] for name in SPLITS}

    @abstractmethod
    def adjacency(self, first: int, last: int) -> tuple[Ids, npt.NDArray[np.integer]]:
        """Neighbours of rows first to last - 1.

        Returns
        -------
        indptr : ndarray (last - first + 1,) int64
            From 0.
        indices : ndarray int32, or int64 where there are 2^31 nodes
            Rows of the neighbours, ascending, without the row itself; symmetric.

        Raises
        ------
        InputError
            When they are not like that, or cannot be read.
        """

    def degree(self, ids: slice | Ids) -> Ids:
        """Numbers of neighbours of rows, (n,) int64."""
        return self._numbers("degree", ids)

    def node_id(self, ids: slice | Ids) -> Ids:
        """The nodes of the data set that rows are, (n,) int64."""
        found = self._numbers("node_id", ids)
        self._demand((found >= 0) & (found < self.num_nodes), "/node_id is out of range")
        return found

    def cut(self) -> str:
        """SHA-256 of which nodes every part has, and in which order; the numbers of all nodes are read.

        Raises
        ------
        InputError
            When some node is no row, and so another is several.
        """
        digest = hashlib.sha256(self.part_ptr.astype("<i8").data)
        seen = np.zeros(self.num_nodes, dtype=bool)
        for start in range(0, self.num_nodes, _BLOCK_ROWS):
            nodes = self.node_id(slice(start, min(start + _BLOCK_ROWS, self.num_nodes)))
            seen[nodes] = True
            digest.update(nodes.astype("<i8").data)
        self._demand(seen, "/node_id does not have every node once")
        return digest.hexdigest()

    def features(self, first: int, last: int) -> Matrix:
        """Features of rows first to last - 1.

        Returns
        -------
        scipy.sparse.csr_matrix (last - first, F) float32 where `sparse`, else a C-contiguous ndarray
            Sorted indices.

        Raises
        ------
        InputError
            When they hold NaN or Inf, or cannot be read.
        ValueError
            When rows are outside of the graph.
        """
        self._check_range(first, last)
        found = self._features(first, last)
        values = found.data if self.sparse else found
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values).reshape(values.shape[0], -1).all(axis=1))[0]
            row = int(np.searchsorted(found.indptr, bad, side="right") - 1 if self.sparse else bad)
            raise InputError(
                f"{self.where}: features hold NaN or Inf in row {first + row}; prepare the file again"
            )
        return found

    def features_of(self, ids: Ids) -> Matrix:
        """Features of rows `ids`, which ascend; as `features`.

        Rows in between are read, too, but no more than a block of them.
        """
        step = max(1, _BLOCK_BYTES // (4 * self.num_features))
        pieces: list[Matrix] = []
        done = 0
        while done < ids.size or not pieces:
            first = int(ids[done]) if done < ids.size else 0
            stop = int(np.searchsorted(ids, first + step))
            last = int(ids[stop - 1]) + 1 if stop > done else first
            pieces.append(self.features(first, last)[ids[done:stop] - first])
            done = stop
        if self.sparse:
            return sp.vstack(pieces, format="csr", dtype=np.float32)
        return np.concatenate(pieces) if len(pieces) > 1 else np.ascontiguousarray(pieces[0])

    def labels(self, first: int, last: int) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
        """Labels of rows first to last - 1: (n,) int64, or (n, C) uint8 of 0 and 1 where `multilabel`.

        Raises as `features`.
        """
        self._check_range(first, last)
        found = self._rows("y", first, last)
        highest = 1 if self.multilabel else self.num_classes - 1
        self._demand((found >= 0) & (found <= highest), f"a label is out of range 0 to {highest}")
        return found

    def split(self, first: int, last: int) -> npt.NDArray[np.int8]:
        """Splits of rows first to last - 1, (n,) int8: 0 none, 1 train, 2 val, 3 test.

        Raises as `features`.
        """
        self._check_range(first, last)
        found = self._rows("split", first, last)
        self._demand((found >= 0) & (found <= len(SPLITS)), f"/split is out of range 0 to {len(SPLITS)}")
        return found

    @abstractmethod
    def _features(self, first: int, last: int) -> Matrix: ...

    @abstractmethod
    def _rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of one of the arrays degree, node_id, y and split."""

    def _numbers(self, name: str, ids: slice | Ids) -> Ids:
        if isinstance(ids, slice):
            first, last, step = ids.indices(self.num_nodes)
            if step != 1:
                raise ValueError(f"rows with a step of {step} are not read")
            return self._rows(name, first, max(first, last))
        if ids.size == 0:
            return np.zeros(0, dtype=np.int64)
        first, last = int(ids.min()), int(ids.max()) + 1
        self._check_range(first, last)
        if last - first <= _BLOCK_ROWS:
            return self._rows(name, first, last)[ids - first]
        found = np.empty(ids.size, dtype=np.int64)
        for start in range(first, last, _BLOCK_ROWS):
            here = np.flatnonzero((ids >= start) & (ids < start + _BLOCK_ROWS))
            if here.size:
                found[here] = self._rows(name, start, min(start + _BLOCK_ROWS, last))[ids[here] - start]
        return found

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last <= self.num_nodes:
            raise ValueError(f"rows {first} to {last} are outside the graph of {self.num_nodes}")

    def _demand(self, right: npt.NDArray[np.bool_], reason: str) -> None:
        if not right.all():
            raise InputError(f"{self.where}: {reason}; prepare the file again")

    @abstractmethod
    def close(self) -> None:
        """Close the file, where there is one."""

    def __enter__(self: AnySource) -> AnySource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GraphArrays(GraphSource):
    """A graph in memory, seen as cut into parts: rows are gathered from it when they are asked for.

    Parameters
    ----------
    graph : Graph
        With an adjacency.
    part : ndarray (N,) int32
        Part of every node, 0 to P - 1, each at least once.
    partitioner : str
        How it was made: metis, blocks, random, file.
    partition_seed, seed : int
        Of the partitioner; of everything else that was drawn.
    feature_norm : {"none", "row", "standard"}, or FeatureNorm
        What is done to the features: every row divided by its L1 norm, or every column standardised.
    split : {"public", "random"}
        The data set's own rule, or shuffled and cut by `fractions`.
    fractions : str
        Of training, validation and test nodes where `split` is random.
    title, licence, citation : str

    Attributes
    ----------
    entries : int
        Features that are not zero.
    """

    def __init__(
        self,
        graph: Graph,
        part: npt.NDArray[np.int32],
        *,
        partitioner: str,
        partition_seed: int,
        seed: int,
        feature_norm: str | FeatureNorm = "none",
        split: str = "public",
        fractions: str = "",
        title: str = "",
        licence: str = "",
        citation: str = "",
    ) -> None:
        self._graph = graph
        self.norm = FeatureNorm.of(feature_norm, graph.features, graph.origin)
        self._order: Ids = np.argsort(part, kind="stable").astype(np.int64)
        self._number = np.empty(graph.num_nodes, dtype=np.int64)
        self._number[self._order] = np.arange(graph.num_nodes)
        self._degree: Ids = np.diff(graph.adjacency.indptr).astype(np.int64)
        self._split = np.zeros(graph.num_nodes, dtype=np.int8)
        for code, name in enumerate(SPLITS, 1):
            self._split[graph.split(name)] = code
        counts = np.bincount(part)
        self.part_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        cut_edges, halo_rows = self._count(part)
        nodes, features = graph.num_nodes, graph.num_features
        given = graph.features
        self.entries = int(given.nnz if sp.issparse(given) else np.count_nonzero(given))
        fills = self.norm.name == "standard"
        sparse = not fills and 8 * self.entries + 8 * (nodes + 1) < 4 * nodes * features
        attrs: Record = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "dataset": graph.name,
            "title": title or one_line(graph.name),
            "licence": licence or "unknown",
            "citation": citation,
            "num_nodes": nodes,
            "num_edges": graph.adjacency.nnz // 2,
            "num_features": features,
            "num_classes": graph.num_classes,
            "multilabel": int(graph.multilabel),
            "features": "csr" if sparse else "dense",
            "feature_norm": self.norm.name,
            **{f"n_{name}": int(graph.split(name).size) for name in SPLITS},
            "split": split,
            "fractions": fractions,
            "seed": seed,
            "parts": len(counts),
            "partitioner": partitioner,
            "partition_seed": partition_seed,
            "edge_cut": cut_edges,
            "halo_rows": halo_rows,
        }
        self._adopt(attrs, graph.origin)
        self.attrs["content"] = self._content()

    def adjacency(self, first: int, last: int) -> tuple[Ids, npt.NDArray[np.integer]]:
        """As `GraphSource.adjacency`."""
        self._check_range(first, last)
        rows = self._graph.adjacency[self._order[first:last]]
        renumbered = sp.csr_matrix((rows.data, self._number[rows.indices], rows.indptr), shape=rows.shape)
        renumbered.has_sorted_indices = False
        renumbered.sort_indices()
        return renumbered.indptr.astype(np.int64), renumbered.indices.astype(index_type(self.num_nodes))

    def _features(self, first: int, last: int) -> Matrix:
        return self._stored(self._graph.features[self._order[first:last]])

    def _stored(self, rows: Matrix) -> Matrix:
        """Rows of the graph's features, normalised, in the form that takes less room."""
        if self.sparse:
            return self.norm.applied(sp.csr_matrix(rows))
        return self.norm.applied(rows.toarray() if sp.issparse(rows) else np.ascontiguousarray(rows))

    def _rows(self, name: str, first: int, last: int) -> np.ndarray:
        nodes = self._order[first:last]
        if name == "node_id":
            return nodes.copy()
        return {"degree": self._degree, "y": self._graph.labels, "split": self._split}[name][nodes]

    def close(self) -> None:
        """Nothing to close."""

    def _count(self, part: npt.NDArray[np.int32]) -> tuple[int, int]:
        """Edges between parts, and remote neighbours of the parts, each counted once a part."""
        across = halo = 0
        adjacency = self._graph.adjacency
        for number, (first, last) in enumerate(zip(self.part_ptr[:-1], self.part_ptr[1:], strict=True)):
            seen = np.zeros(part.size, dtype=bool)
            for start, stop in self._row_blocks(int(first), int(last)):
                neighbours = adjacency[self._order[start:stop]].indices
                remote = neighbours[part[neighbours] != number]
                seen[remote] = True
                across += remote.size
            halo += int(np.count_nonzero(seen))
        return across // 2, halo

    def _row_blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows whose neighbours together fit into a block, or of one row."""
        ends = np.concatenate([[0], np.cumsum(self._degree[self._order[first:last]])])
        start = 0
        while start < last - first:
            stop = int(np.searchsorted(ends, ends[start] + _BLOCK_BYTES // 8, side="right")) - 1
            stop = min(max(stop, start + 1), last - first)
            yield first + start, first + stop
            start = stop

    def _content(self) -> str:
        """SHA-256 of edges, features, labels and splits in the order of the data set, whatever the parts."""
        graph = self._graph
        digest = hashlib.sha256(
            np.array([graph.num_nodes, graph.num_features, graph.num_classes], "<i8").data
        )
        for array in (graph.adjacency.indptr, graph.adjacency.indices):
            for start in range(0, array.size, _BLOCK_ROWS):
                digest.update(array[start : start + _BLOCK_ROWS].astype("<i8").data)
        places, columns = hashlib.sha256(), hashlib.sha256()  # of CSR features, whose blocks interleave
        step = max(1, _BLOCK_BYTES // (4 * graph.num_features))
        for start in range(0, graph.num_nodes, step):
            rows = self._stored(graph.features[start : start + step])
            if self.sparse:
                places.update(np.diff(rows.indptr).astype("<i8").data)
                columns.update(rows.indices.astype("<i8").data)
                rows = rows.data
            digest.update(np.ascontiguousarray(rows, "<f4").data)
        digest.update(np.ascontiguousarray(graph.labels).data)
        digest.update(self._split.data)
        digest.update(places.digest() + columns.digest())
        return digest.hexdigest()


class GraphFile(GraphSource):
    """A file that `pdadmm.gnn.prepare` wrote, open for reading; rows are read when asked for.

    Parameters
    ----------
    path : str or Path
        Of the file.

    Raises
    ------
    InputError
        When the file is missing, truncated, no HDF5, of another schema or version, its sizes and types are
        inconsistent, its arrays are not contiguous within the file, a part is empty, or its splits are not of
        the sizes that it says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = PlainFile(path, "make it with python -m pdadmm.gnn.prepare", "prepare it again")
        with self._file.reading():
            self._adopt(_checked_attributes(self._file), self._file.where)
            self._arrays = {name: self._array(name, *wanted) for name, wanted in self._wanted().items()}
            self.norm = FeatureNorm.read(self._file, self.attrs["feature_norm"], self.num_features)
            self.part_ptr = np.asarray(self._arrays["part_ptr"][...])
            self._check()

    def _wanted(self) -> dict[str, tuple[tuple[int | None, ...], np.dtype]]:
        """Shapes, None where only the file tells, and types of the arrays."""
        nodes, long = self.num_nodes, np.dtype("<i8")
        index = np.dtype(index_type(nodes)).newbyteorder("<")
        wanted: dict[str, tuple[tuple[int | None, ...], np.dtype]] = {
            "part_ptr": ((self.parts + 1,), long),
            "node_id": ((nodes,), long),
            "degree": ((nodes,), long),
            "indptr": ((nodes + 1,), long),
            "indices": ((2 * self.num_edges,), index),
            "y": ((nodes, self.num_classes), np.dtype("u1")) if self.multilabel else ((nodes,), long),
            "split": ((nodes,), np.dtype("i1")),
        }
        if self.sparse:
            wanted["x/indptr"] = ((nodes + 1,), long)
            wanted["x/indices"] = ((None,), np.dtype("<i4"))
            wanted["x/data"] = ((None,), np.dtype("<f4"))
        else:
            wanted["x"] = ((nodes, self.num_features), np.dtype("<f4"))
        return wanted

    def _array(self, name: str, shape: tuple[int | None, ...], dtype: np.dtype) -> h5py.Dataset:
        found = self._file.array(name)
        alike = [wanted in (None, length) for wanted, length in zip(shape, found.shape, strict=False)]
        if len(shape) != len(found.shape) or not all(alike) or found.dtype != dtype:
            raise self._file.wrong(f"/{name} is {found.dtype} {found.shape}, not {dtype} {shape}")
        return found

    def _check(self) -> None:
        if self.part_ptr[0] != 0 or self.part_ptr[-1] != self.num_nodes:
            raise self._file.wrong("/part_ptr does not go from 0 to the number of nodes")
        if (self.part_ptr[1:] <= self.part_ptr[:-1]).any():
            raise self._file.wrong("/part_ptr does not rise: a part is empty")
        if self.sparse and self._arrays["x/indices"].shape != self._arrays["x/data"].shape:
            raise self._file.wrong("/x/indices and /x/data are of different lengths")
        pointers = {"indptr": "indices", "x/indptr": "x/indices"} if self.sparse else {"indptr": "indices"}
        for name, entries in pointers.items():
            first, last = int(self._arrays[name][0]), int(self._arrays[name][-1])
            if (first, last) != (0, self._arrays[entries].shape[0]):
                raise self._file.wrong(f"/{name} does not go from 0 to the length of /{entries}")
        counts = np.zeros(len(SPLITS) + 1, dtype=np.int64)
        for start in range(0, self.num_nodes, _BLOCK_ROWS):
            codes = self.split(start, min(start + _BLOCK_ROWS, self.num_nodes))
            counts += np.bincount(codes, minlength=counts.size)
        if dict(zip(SPLITS, counts[1:].tolist(), strict=True)) != self.sizes:
            raise self._file.wrong("/split is not of the sizes n_train, n_val, n_test")

    def adjacency(self, first: int, last: int) -> tuple[Ids, npt.NDArray[np.integer]]:
        """As `GraphSource.adjacency`, but for the symmetry, which a slice cannot show."""
        self._check_range(first, last)
        indptr, indices = self._csr_rows("indptr", ("indices",), first, last, self.num_nodes)
        self._demand(np.diff(indptr) == self._rows("degree", first, last), "/degree is not that of /indptr")
        rows = np.repeat(np.arange(first, last), np.diff(indptr))
        self._demand(indices != rows, "/indices holds a self-loop")
        return indptr, indices

    def check_symmetry(self) -> None:
        """Read all neighbours, block by block, and refuse an adjacency that is not symmetric.

        Every edge adds a hash of its ends in one direction and takes it away in the other.

        Raises
        ------
        InputError
        """
        total = 0
        step = max(1, _BLOCK_BYTES * self.num_nodes // (32 * self.num_edges + 8 * self.num_nodes))
        for first in range(0, self.num_nodes, step):
            last = min(first + step, self.num_nodes)
            indptr, columns = self.adjacency(first, last)
            rows = np.repeat(np.arange(first, last), np.diff(indptr))
            low, high = (ends(rows, columns).astype(np.uint64) for ends in (np.minimum, np.maximum))
            mixed = _mix(_mix(low) + high)
            up = rows < columns
            total += int(mixed[up].sum(dtype=np.uint64)) - int(mixed[~up].sum(dtype=np.uint64))
        if total % 2**64:
            raise self._file.wrong("/indices is not symmetric")

    def _features(self, first: int, last: int) -> Matrix:
        if not self.sparse:
            return self._rows("x", first, last)
        arrays = ("x/indices", "x/data")
        indptr, indices, data = self._csr_rows("x/indptr", arrays, first, last, self.num_features)
        return sp.csr_matrix((data, indices, indptr), shape=(last - first, self.num_features))

    def _csr_rows(
        self, pointers: str, arrays: tuple[str, ...], first: int, last: int, columns: int
    ) -> tuple[np.ndarray, ...]:
        """Rows of a CSR matrix: pointers from 0, columns and what else there is an entry; checked."""
        indptr = self._rows(pointers, first, last + 1)
        entries = self._arrays[arrays[0]].shape[0]
        right = (indptr[1:] >= indptr[:-1]).all() and indptr[0] >= 0 and indptr[-1] <= entries
        self._demand(np.array(right), f"/{pointers} does not rise within /{arrays[0]}")
        found = [self._rows(name, int(indptr[0]), int(indptr[-1])) for name in arrays]
        indptr = indptr - indptr[0]
        indices = found[0]
        self._demand((indices >= 0) & (indices < columns), f"/{arrays[0]} is out of range 0 to {columns - 1}")
        # ascending but where a row begins
        rises = np.diff(indices) > 0
        begins = indptr[1:-1]
        rises[begins[(begins > 0) & (begins < indices.size)] - 1] = True
        self._demand(rises, f"/{arrays[0]} does not ascend in every row")
        return (indptr, *found)

    def _rows(self, name: str, first: int, last: int) -> np.ndarray:
        try:
            return np.asarray(self._arrays[name][first:last])
        except OSError as exc:
            raise self._file.wrong(f"/{name} cannot be read ({exc})") from None

    def close(self) -> None:
        """Close the file; reading again is then an error."""
        self._file.close()


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of every value, the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def index_type(nodes: int) -> type[np.int32] | type[np.int64]:
    """Type of the numbers of neighbours."""
    return np.int32 if nodes < 1 << 31 else np.int64


_ATTRIBUTES: dict[str, type] = {
    "schema": str,
    "schema_version": int,
    "dataset": str,
    "title": str,
    "licence": str,
    "citation": str,
    "num_nodes": int,
    "num_edges": int,
    "num_features": int,
    "num_classes": int,
    "multilabel": int,
    "features": str,
    "feature_norm": str,
    "n_train": int,
    "n_val": int,
    "n_test": int,
    "split": str,
    "fractions": str,
    "seed": int,
    "parts": int,
    "partitioner": str,
    "partition_seed": int,
    "edge_cut": int,
    "halo_rows": int,
    "content": str,
}


def _checked_attributes(file: PlainFile) -> Record:
    others = {
        "pdadmm-features": "a feature file, not a graph file",
        "pdadmm-model": "a model of layers, not a graph file",
        "pdadmm-gnn-model": "a model, not a graph file",
        "pdadmm-predictions": "a file of predictions, not a graph file",
    }
    attrs = file.attributes(_ATTRIBUTES, SCHEMA, SCHEMA_VERSION, "pdadmm.gnn.prepare", others)
    least = dict.fromkeys(
        ("num_edges", "seed", "edge_cut", "halo_rows", *(f"n_{split}" for split in SPLITS)), 0
    )
    least |= dict.fromkeys(("num_features", "parts"), 1)
    for name, bound in {**least, "num_classes": 2}.items():
        if attrs[name] < bound:
            raise file.wrong(f"attribute {name} is {attrs[name]}, less than {bound}")
    if attrs["multilabel"] not in (0, 1):
        raise file.wrong(f"attribute multilabel is {attrs['multilabel']}, not 0 or 1")
    if attrs["features"] not in ("dense", "csr"):
        raise file.wrong(f"attribute features is {attrs['features']!r}, not dense or csr")
    if attrs["num_nodes"] < sum(attrs[f"n_{name}"] for name in SPLITS):
        raise file.wrong("splits hold more nodes than the graph")
    if attrs["parts"] > attrs["num_nodes"]:
        raise file.wrong("more parts than nodes")
    if attrs["edge_cut"] > attrs["num_edges"]:
        raise file.wrong("more edges are cut than there are")
    return attrs
