"""Multi-hop augmented features, X = [H, ÃH, …, ÃᴷH], in HDF5 files and in memory.

Ã = D^(-1/2) (A + I) D^(-1/2) is the normalised adjacency of Kipf and Welling; the augmentation is
that of GA-MLP (Chen et al., 2019), as pdADMM-G uses it. The format of the files is in docs/data.md.
"""

from __future__ import annotations

import errno
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pdadmm.datasets.graph import SPLITS, Graph
from pdadmm.errors import InputError

__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "FeatureArrays",
    "FeatureFile",
    "Features",
    "Hops",
    "Piece",
    "Plan",
    "in_memory",
    "normalised_adjacency",
    "write_features",
]

SCHEMA = "pdadmm-features"
SCHEMA_VERSION = 1
FEATURE_NORMS = ("none", "row")

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Piece = tuple[int, int, Floats]
"""Hop, first feature column, values (rows, columns): a part of X."""

# Bounds on working memory, in bytes. They hold for any number of hops.
_BLOCK_BYTES = 64 << 20  # one column block of the whole graph
_HOPS_BYTES = 256 << 20  # all hops of a column block
_PANEL_BYTES = 448 << 20  # columns gathered before they are written
_BLOCK_COLUMNS = 64
_WRITE_BYTES = 1 << 30  # in one call; Linux ends at 2 GiB
_SLACK_BYTES = 1 << 20  # more than the metadata of a file take


# ----------------------------------------------------------------------------- augmentation


def normalised_adjacency(adjacency: Any) -> Any:
    """Ã = D^(-1/2) (A + I) D^(-1/2), D the degrees of A + I.

    Parameters
    ----------
    adjacency : scipy.sparse.csr_matrix (N, N)
        Symmetric, entries 1, no self-loops.

    Returns
    -------
    scipy.sparse.csr_matrix (N, N) float32
        Weights are formed in float64 and rounded once.
    """
    looped = (adjacency.astype(np.float64) + sp.identity(adjacency.shape[0], format="csr")).tocsr()
    looped.sort_indices()
    scale = 1.0 / np.sqrt(np.diff(looped.indptr).astype(np.float64))
    rows = np.repeat(np.arange(looped.shape[0]), np.diff(looped.indptr))
    weights = (scale[rows] * scale[looped.indices]).astype(np.float32)
    return sp.csr_matrix((weights, looped.indices, looped.indptr), shape=looped.shape)


def _normalise_rows(features: Any, feature_norm: str) -> Any:
    """Divide every row by its L1 norm (`row`) or leave the features alone (`none`)."""
    if feature_norm == "none":
        return features
    if feature_norm != "row":
        raise InputError(
            f"feature norm {feature_norm!r} is unknown; choose one of {', '.join(FEATURE_NORMS)}"
        )
    sums = np.asarray(abs(features).sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    if sp.issparse(features):
        weights = np.repeat(scale, np.diff(features.indptr))
        data = (features.data * weights).astype(np.float32)
        return sp.csr_matrix((data, features.indices, features.indptr), shape=features.shape)
    return (features * scale[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """How X is cut into column blocks. Depends on sizes only, never on the number of processes.

    Since every block is computed by the same code whoever computes it, X has the same bits however
    the blocks are shared.
    """

    nodes: int
    features: int
    rows: int
    hops: int

    @property
    def block(self) -> int:
        """Columns of H in a block."""
        by_graph = _BLOCK_BYTES // (4 * max(self.nodes, 1))
        by_hops = _HOPS_BYTES // (4 * max(self.rows, 1) * (self.hops + 1))
        return max(1, min(_BLOCK_COLUMNS, by_graph, by_hops))

    @property
    def panel(self) -> int:
        """Columns of H that are gathered, with all their hops, before they are written."""
        budget = max(_PANEL_BYTES, 4 * self.nodes * self.features)
        columns = budget // (4 * max(self.rows, 1) * (self.hops + 1))
        return min(self.features, max(1, columns // self.block) * self.block)

    def blocks(self) -> list[tuple[int, int]]:
        """First and past-the-last column of every block."""
        step = self.block
        return [(c, min(c + step, self.features)) for c in range(0, self.features, step)]


class Hops:
    """Planned once for a graph and a choice of rows; then computes the hops of column blocks.

    Parameters
    ----------
    normalised : scipy.sparse.csr_matrix (N, N) float32, or None when hops is 0
    rows : ndarray (R,) int64
        The nodes whose features are wanted, in the order of the output.
    hops : int
    """

    def __init__(self, normalised: Any, rows: Ids, hops: int) -> None:
        self.normalised, self.rows, self.hops = normalised, rows, hops
        # The last hop is needed at these rows only.
        self._last: Any = normalised[rows] if hops else None

    def of(self, block: Floats) -> Iterator[Floats]:
        """Yield hop 0 to K of a dense block (N, w) float32 at the rows: K+1 arrays (R, w) float32."""
        yield block[self.rows]
        for hop in range(1, self.hops + 1):
            if hop == self.hops:
                yield self._last @ block
            else:
                block = self.normalised @ block
                yield block[self.rows]


class ColumnBlocks:
    """Dense column blocks (N, w) of H, which is CSR or dense."""

    def __init__(self, features: Any) -> None:
        self._features = features.tocsc() if sp.issparse(features) else features

    def __call__(self, start: int, stop: int) -> Floats:
        """Columns start to stop, C-contiguous float32."""
        block = self._features[:, start:stop]
        return np.ascontiguousarray(block.toarray() if sp.issparse(block) else block, dtype=np.float32)


class Augmentation:
    """X of a graph, piece by piece: what is to be computed, in which order, with which labels."""

    def __init__(self, graph: Graph, hops: int, feature_norm: str = "none", nodes: str = "split") -> None:
        if hops < 0:
            raise InputError(f"hops {hops} is negative; give 0 or more")
        if nodes not in ("split", "all"):
            raise InputError(f"nodes {nodes!r} is unknown; choose split or all")
        if graph.adjacency is None:
            hops = 0  # samples without a graph have themselves for a neighbourhood
        self.graph, self.hops, self.feature_norm, self.nodes = graph, hops, feature_norm, nodes
        self.sizes = {name: int(graph.split(name).size) for name in SPLITS}
        order = np.concatenate([graph.split(name) for name in SPLITS])
        if nodes == "all":
            rest = np.ones(graph.num_nodes, dtype=bool)
            rest[order] = False
            order = np.concatenate([order, np.flatnonzero(rest)])
        self.node_id: Ids = order.astype(np.int64)
        self.plan = Plan(graph.num_nodes, graph.num_features, self.node_id.size, hops)
        self.columns = ColumnBlocks(_normalise_rows(graph.features, feature_norm))
        self.kernel = Hops(normalised_adjacency(graph.adjacency) if hops else None, self.node_id, hops)

    @property
    def labels(self) -> Ids:
        """Labels (R,) int64 in the order of the rows."""
        return self.graph.labels[self.node_id]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of X."""
        return self.node_id.size, (self.hops + 1) * self.graph.num_features

    def pieces(self) -> Iterator[Piece]:
        """Compute X in this process: blocks in ascending order, each with all its hops."""
        for start, stop in self.plan.blocks():
            for hop, values in enumerate(self.kernel.of(self.columns(start, stop))):
                yield hop, start, values


# ----------------------------------------------------------------------------- reading


class Features(ABC):
    """What the trainer reads: rows ordered train, val, test(, rest), so that a split is a slice.

    Attributes
    ----------
    dataset : str
    num_classes, num_features : int
        Classes; columns of X (all hops).
    n_train, n_val, n_test, rows : int
    attrs : dict
        The attributes of the schema.
    """

    dataset: str
    num_classes: int
    num_features: int
    n_train: int
    n_val: int
    n_test: int
    rows: int
    attrs: dict[str, Any]
    where: str

    def _adopt(self, attrs: dict[str, Any], where: str) -> None:
        self.attrs, self.where = attrs, where
        self.dataset, self.num_classes = attrs["dataset"], attrs["num_classes"]
        self.num_features = (attrs["hops"] + 1) * attrs["features_per_hop"]
        self.n_train, self.n_val, self.n_test = (attrs[f"n_{name}"] for name in SPLITS)
        n_split = self.n_train + self.n_val + self.n_test
        self.rows = attrs["num_nodes"] if attrs["nodes"] == "all" else n_split

    def slice_of(self, split: str) -> tuple[int, int]:
        """First and past-the-last row of `train`, `val`, `test` or `all`."""
        train, val, test = self.n_train, self.n_val, self.n_test
        bounds = {
            "train": (0, train),
            "val": (train, train + val),
            "test": (train + val, train + val + test),
            "all": (0, self.rows),
        }
        if split not in bounds:
            raise ValueError(f"split {split!r} is not one of {', '.join(bounds)}")
        return bounds[split]

    def _range(self, split: str, start: int, stop: int | None) -> tuple[int, int]:
        first, last = self.slice_of(split)
        stop = last - first if stop is None else stop
        if not 0 <= start <= stop <= last - first:
            raise ValueError(f"rows {start} to {stop} are outside the {split} split of {last - first}")
        return first + start, first + stop

    def x(self, split: str, start: int = 0, stop: int | None = None) -> Floats:
        """Features of rows start to stop of a split.

        Returns
        -------
        ndarray (stop - start, num_features) float32, C-contiguous
            Not to be written to.

        Raises
        ------
        InputError
            When they hold NaN or Inf, or cannot be read.
        """
        first, last = self._range(split, start, stop)
        values = self._rows_x(first, last)
        if not np.isfinite(values).all():
            row = first + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise InputError(f"{self.where}: /x holds NaN or Inf in row {row}; prepare the file again")
        return values

    def y(self, split: str, start: int = 0, stop: int | None = None) -> Ids:
        """Labels (stop - start,) int64 of rows start to stop of a split."""
        return self._rows_y(*self._range(split, start, stop))

    @abstractmethod
    def _rows_x(self, first: int, last: int) -> Floats: ...

    @abstractmethod
    def _rows_y(self, first: int, last: int) -> Ids: ...

    @abstractmethod
    def close(self) -> None:
        """Close the file, where there is one."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FeatureArrays(Features):
    """Features held in memory; see `in_memory`."""

    def __init__(self, attrs: dict[str, Any], x: Floats, y: Ids, node_id: Ids) -> None:
        self._adopt(attrs, attrs["dataset"])
        self._x, self._y, self.node_id = x, y, node_id

    def _rows_x(self, first: int, last: int) -> Floats:
        return self._x[first:last]

    def _rows_y(self, first: int, last: int) -> Ids:
        return self._y[first:last]

    def close(self) -> None:
        """Nothing to close."""


class FeatureFile(Features):
    """A file that `pdadmm.prepare` wrote, open for reading; rows are read when asked for.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    InputError
        When the file is missing, truncated, no HDF5, of another schema or version, or its sizes,
        types or labels are inconsistent.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        where = str(path)
        if not Path(path).is_file():
            raise InputError(f"{where}: no such file; make it with python -m pdadmm.prepare")
        try:
            self._file = h5py.File(path, "r")
        except OSError as exc:
            reason = str(exc)
            if isinstance(exc, PermissionError) or exc.errno == 13:
                raise InputError(f"{where}: cannot be read (permission denied)") from None
            kind = "truncated" if "truncated" in reason else "not a readable HDF5 file"
            raise InputError(f"{where}: {kind}; prepare it again") from None
        try:
            self._adopt(_checked_attributes(self._file, where), where)
            self._check()
        except (OSError, KeyError, RuntimeError) as exc:
            self._file.close()
            raise InputError(f"{where}: damaged ({type(exc).__name__}); prepare it again") from None
        except BaseException:
            self._file.close()
            raise

    def _check(self) -> None:
        wanted = {
            "x": ((self.rows, self.num_features), np.dtype("<f4")),
            "y": ((self.rows,), np.dtype(np.int64)),
            "node_id": ((self.rows,), np.dtype(np.int64)),
        }
        for name, (shape, dtype) in wanted.items():
            found = self._file.get(name)
            if not isinstance(found, h5py.Dataset):
                raise InputError(f"{self.where}: lacks /{name}; prepare it again")
            if found.shape != shape or found.dtype != dtype:
                raise InputError(
                    f"{self.where}: /{name} is {found.dtype} {found.shape}, not {dtype} {shape}; "
                    "prepare it again"
                )
        y = self._file["y"][...]
        if y.size and (int(y.min()) < 0 or int(y.max()) >= self.num_classes):
            bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
            raise InputError(f"{self.where}: label {bad} is out of range 0 to {self.num_classes - 1}")
        ids = self._file["node_id"][...]
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.attrs["num_nodes"]):
            raise InputError(f"{self.where}: /node_id is out of range; prepare it again")

    @property
    def node_id(self) -> Ids:
        """The node of every row, (rows,) int64."""
        return np.asarray(self._file["node_id"][...])

    def _read(self, name: str, first: int, last: int) -> Any:
        try:
            return self._file[name][first:last]
        except OSError as exc:
            raise InputError(f"{self.where}: /{name} cannot be read ({exc}); prepare it again") from None

    def _rows_x(self, first: int, last: int) -> Floats:
        return np.asarray(self._read("x", first, last))

    def _rows_y(self, first: int, last: int) -> Ids:
        return np.asarray(self._read("y", first, last))

    def close(self) -> None:
        """Close the file; reading again is then an error."""
        self._file.close()


_ATTRIBUTES: dict[str, type] = {
    "schema": str,
    "schema_version": int,
    "dataset": str,
    "title": str,
    "licence": str,
    "citation": str,
    "hops": int,
    "features_per_hop": int,
    "feature_norm": str,
    "seed": int,
    "num_nodes": int,
    "num_classes": int,
    "n_train": int,
    "n_val": int,
    "n_test": int,
    "nodes": str,
}


def _checked_attributes(file: Any, where: str) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    for name, kind in _ATTRIBUTES.items():
        if name not in file.attrs:
            if name == "schema":
                raise InputError(f"{where}: not a file of pdadmm.prepare (no schema); prepare the data set")
            raise InputError(f"{where}: lacks the attribute {name}; prepare it again")
        value = file.attrs[name]
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, kind):
            raise InputError(f"{where}: attribute {name} is {value!r}, not of type {kind.__name__}")
        attrs[name] = value
        if name == "schema" and value != SCHEMA:
            raise InputError(f"{where}: schema {value!r}, not {SCHEMA!r}; prepare the data set")
        if name == "schema_version" and value != SCHEMA_VERSION:
            raise InputError(
                f"{where}: schema version {value}, this program reads {SCHEMA_VERSION}; prepare it again"
            )
    for name in ("hops", "seed"):
        if attrs[name] < 0:
            raise InputError(f"{where}: attribute {name} is {attrs[name]}; prepare it again")
    if attrs["features_per_hop"] < 1 or attrs["num_classes"] < 2:
        raise InputError(f"{where}: no features or fewer than 2 classes; prepare it again")
    for name in ("n_train", "n_val", "n_test"):
        if attrs[name] < 1:
            raise InputError(f"{where}: {name} is {attrs[name]}; every split needs a node")
    if attrs["nodes"] not in ("split", "all"):
        raise InputError(f"{where}: attribute nodes is {attrs['nodes']!r}, not split or all")
    if attrs["num_nodes"] < attrs["n_train"] + attrs["n_val"] + attrs["n_test"]:
        raise InputError(f"{where}: splits hold more nodes than the graph; prepare it again")
    return attrs


# ----------------------------------------------------------------------------- making


def _attributes(
    work: Augmentation, seed: int, title: str, licence: str, citation: str, dataset: str | None
) -> dict[str, Any]:
    graph = work.graph
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset or graph.name,
        "title": title or graph.name,
        "licence": licence or "unknown",
        "citation": citation,
        "hops": work.hops,
        "features_per_hop": graph.num_features,
        "feature_norm": work.feature_norm,
        "seed": seed,
        "num_nodes": graph.num_nodes,
        "num_classes": graph.num_classes,
        **{f"n_{name}": size for name, size in work.sizes.items()},
        "nodes": work.nodes,
    }


def in_memory(
    graph: Graph,
    hops: int = 4,
    feature_norm: str = "none",
    *,
    nodes: str = "split",
    seed: int = 0,
    title: str = "",
    licence: str = "",
    citation: str = "",
) -> FeatureArrays:
    """X of a graph without a file, bit for bit what the file would hold.

    Parameters
    ----------
    graph : Graph
    hops : int
        K; taken as 0 when there is no graph.
    feature_norm : {"none", "row"}
    nodes : {"split", "all"}
        Rows: the nodes in a split, or every node.
    seed : int
        Recorded in the attributes; the graph's splits are made already.
    """
    work = Augmentation(graph, hops, feature_norm, nodes)
    x = np.empty(work.shape, dtype=np.float32)
    for hop, start, values in work.pieces():
        first = hop * graph.num_features + start
        x[:, first : first + values.shape[1]] = values
    attrs = _attributes(work, seed, title, licence, citation, None)
    return FeatureArrays(attrs, x, work.labels, work.node_id)


def write_features(
    path: str | os.PathLike[str],
    work: Augmentation,
    *,
    pieces: Iterable[Piece] | None = None,
    seed: int = 0,
    title: str = "",
    licence: str = "",
    citation: str = "",
    dataset: str | None = None,
) -> None:
    """Write the feature file of a graph; the same input gives the same bytes.

    The file is written under a temporary name in the same folder and renamed when complete, so
    that nobody sees half a file and a failure leaves nothing behind.

    Parameters
    ----------
    path : str or Path
    work : Augmentation
    pieces : iterable of Piece, optional
        X from elsewhere (other processes), in the order of `Augmentation.pieces`; by default it is
        computed here.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: cannot be written (it is a folder); name a file with --out")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A full disk shows here, and as an error of the system: HDF5 does not survive it.
            _reserve(temporary, 4 * math.prod(work.shape) + 16 * work.node_id.size + _SLACK_BYTES)
            attrs = _attributes(work, seed, title, licence, citation, dataset)
            offset = _create(temporary, attrs, work)
            _reserve(temporary, offset + 4 * math.prod(work.shape))
            with temporary.open("r+b", buffering=0) as file:
                _write_panels(file.fileno(), offset, work.plan, work.pieces() if pieces is None else pieces)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else str(exc).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); choose another place with --out") from None


def _reserve(path: Path, size: int) -> None:
    """Take disk space for a file, or raise OSError."""
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot
                raise


def _create(path: Path, attrs: dict[str, Any], work: Augmentation) -> int:
    """Make the file complete but for the values of /x; returns where in the file they belong."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs.update(attrs)
        file.create_dataset("y", data=work.labels)
        file.create_dataset("node_id", data=work.node_id)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_obj_track_times(False)  # a time would make the bytes differ
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(work.shape)
        return int(h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist).get_offset())


def _write_at(descriptor: int, values: Any, offset: int) -> None:
    """Write a contiguous array at a place in a file."""
    content = memoryview(values).cast("B")
    while content:
        written = os.pwrite(descriptor, content[:_WRITE_BYTES], offset)
        content, offset = content[written:], offset + written


def _write_panels(descriptor: int, offset: int, plan: Plan, pieces: Iterable[Piece]) -> None:
    """Write the values of /x, row-major from `offset` on.

    Pieces are gathered into panels of many columns: a write of long row segments is far faster.
    """
    panel = np.empty((plan.rows, plan.hops + 1, plan.panel), dtype="<f4")
    start, filled = 0, 0

    def flush() -> None:
        if start == 0 and filled == plan.features == plan.panel:
            _write_at(descriptor, panel.reshape(-1), offset)
            return
        segments = panel.reshape(-1, plan.panel)  # row-major: a hop of a row each
        for number in range(plan.rows * (plan.hops + 1)):
            place = offset + 4 * (number * plan.features + start)
            _write_at(descriptor, segments[number, : filled - start], place)

    for hop, column, values in pieces:
        if column >= start + plan.panel:
            flush()
            start = filled
        filled = column + values.shape[1]
        panel[:, hop, column - start : filled - start] = values
    flush()
