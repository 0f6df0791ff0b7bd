"""Making the augmented features of a graph: in memory, or as the file that training reads.

The format of the file is in docs/data.md.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np

from pdadmm.datasets.graph import Graph
from pdadmm.errors import InputError, one_line
from pdadmm.files import Record, read_at, replacing, reserve, write_at
from pdadmm.files.names import safe_name
from pdadmm.files.target import target_of
from pdadmm.inputs.augment import Augmentation, Piece, Plan
from pdadmm.inputs.feature_file import KIND, SCHEMA, SCHEMA_VERSION, X_SHA256, FeatureArrays, hops_of
from pdadmm.inputs.feature_norm import FeatureNorm

__all__ = ["in_memory", "write_features"]

_HASHED_BYTES = 1 << 20  # at once
_SHORT = 128  # columns of a panel that are not worth a write each: rows are read and written again
_ROWS_BYTES = 32 << 20  # of rows that are written at once
_SLACK_BYTES = 1 << 20  # more than the metadata of a file take


def _attributes(
    work: Augmentation, seed: int, title: str, licence: str, citation: str, dataset: str | None
) -> Record:
    graph, hops = work.graph, hops_of(work.operators)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "dataset": safe_name(dataset or graph.name),
        "title": title or one_line(graph.name),
        "licence": licence or "unknown",
        "citation": citation,
        "operators": work.operators,
        **({} if hops is None else {"hops": hops}),
        "features_per_hop": graph.num_features,
        "feature_norm": work.norm.name,
        "seed": seed,
        "num_nodes": graph.num_nodes,
        "num_classes": graph.num_classes,
        **{f"n_{name}": size for name, size in work.sizes.items()},
        "nodes": work.nodes,
    }


def in_memory(
    graph: Graph,
    hops: int = 4,
    feature_norm: str | FeatureNorm = "none",
    *,
    operators: str | None = None,
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
        V nodes with F features.
    hops : int
        K of I, Ã, …, Ã^K; taken as 0 when there is no graph.
    feature_norm : {"none", "row", "standard"}, or FeatureNorm
        What is done to the features first: each row divided by its L1 norm, or each column standardised.
    operators : str, optional
        Others, as in ``--operators`` of pdadmm.prepare; taken as ``powers:0`` when there is no graph.
    nodes : {"split", "all"}
        Rows: the nodes in a split, or every node.
    seed : int
        Recorded in the attributes; the graph's splits are made already.
    title, licence, citation : str
        Recorded in the attributes.

    Raises
    ------
    InputError
        When an argument is none of these, or X is more than float32 can hold.
    """
    work = Augmentation(graph, hops, feature_norm, nodes, operators=operators)
    x = np.empty(work.shape, dtype=np.float32)
    for number, start, values in _finite(work.pieces(), graph):
        first = number * graph.num_features + start
        x[:, first : first + values.shape[1]] = values
    attrs = _attributes(work, seed, title, licence, citation, None)
    return FeatureArrays(attrs, x, work.labels, work.node_id, work.norm)


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
    that nobody sees half a file and a failure leaves nothing behind. It may take the place of another
    feature file, of nothing else.

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
        When the file cannot be written, something else is in its place, or X is more than float32 can hold.
    """
    target = target_of(path, SCHEMA, KIND)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            # A full disk shows here, and as an error of the system: HDF5 does not survive it.
            small = 16 * work.node_id.size + sum(array.nbytes for array in work.norm.arrays.values())
            reserve(temporary, 4 * math.prod(work.shape) + small + _SLACK_BYTES)
            attrs = _attributes(work, seed, title, licence, citation, dataset)
            offset = _create(temporary, attrs, work)
            reserve(temporary, offset + 4 * math.prod(work.shape))
            with temporary.open("r+b", buffering=0) as file:
                checked = _finite(work.pieces() if pieces is None else pieces, work.graph)
                _write_panels(file.fileno(), offset, work.plan, checked)
            _note_sum(temporary, offset, 4 * math.prod(work.shape))
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else str(exc).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); choose another place with --out") from None


def _finite(pieces: Iterable[Piece], graph: Graph) -> Iterator[Piece]:
    """The pieces; InputError where sums over neighbours are more than float32 can hold: features are not."""
    for piece in pieces:
        if not np.isfinite(piece[2]).all():
            raise InputError(
                f"{graph.origin}: features are so large that sums over neighbours exceed float32; "
                "scale them, or give --feature-norm row or standard"
            )
        yield piece


def _create(path: Path, attrs: Record, work: Augmentation) -> int:
    """Make the file complete but for the values of /x; returns where in the file they belong."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs.update(attrs)
        file.attrs[X_SHA256] = np.bytes_("0" * 64)  # its place; there is room for it later
        file.create_dataset("y", data=work.labels)
        file.create_dataset("node_id", data=work.node_id)
        for name, array in work.norm.arrays.items():
            file.create_dataset(name, data=array)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_obj_track_times(False)  # a time would make the bytes differ
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(work.shape)
        return int(h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist).get_offset())


def _write_panels(descriptor: int, offset: int, plan: Plan, pieces: Iterable[Piece]) -> None:
    """Write the values of /x, row-major from `offset` on.

    Pieces are gathered into panels of many columns: a write of long row segments is far faster.
    """
    panel = np.empty((plan.rows, plan.operators, plan.panel), dtype="<f4")
    start, filled = 0, 0

    def flush() -> None:
        if start == 0 and filled == plan.features == plan.panel:
            write_at(descriptor, panel.reshape(-1).data.cast("B"), offset)
            return
        if filled - start < _SHORT:
            _fill_rows(descriptor, offset, plan, panel[:, :, : filled - start], start)
            return
        segments = panel.reshape(-1, plan.panel)  # row-major: an operator of a row each
        for number in range(plan.rows * plan.operators):
            place = offset + 4 * (number * plan.features + start)
            write_at(descriptor, segments[number, : filled - start].data.cast("B"), place)

    for operator, column, values in pieces:
        if column >= start + plan.panel:
            flush()
            start = filled
        filled = column + values.shape[1]
        panel[:, operator, column - start : filled - start] = values
    flush()


def _fill_rows(descriptor: int, offset: int, plan: Plan, panel: np.ndarray, start: int) -> None:
    """Write some columns of every operator, from `start` on, by whole rows: those before are read again.

    Millions of short writes take many times as long.
    """
    step = max(1, _ROWS_BYTES // (4 * plan.operators * plan.features))
    rows = np.zeros((min(step, plan.rows), plan.operators, plan.features), dtype="<f4")
    for first in range(0, plan.rows, step):
        part = panel[first : first + step]
        block = rows[: len(part)]
        content = block.reshape(-1).data.cast("B")
        place = offset + 4 * first * plan.operators * plan.features
        if start:
            read_at(descriptor, content, place)
        block[:, :, start : start + part.shape[2]] = part
        write_at(descriptor, content, place)


def _note_sum(path: Path, offset: int, size: int) -> None:
    """Fill in the SHA-256 of the values of /x: they came in column blocks and are hashed in rows."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while size:
            chunk = file.read(min(size, _HASHED_BYTES))
            digest.update(chunk)
            size -= len(chunk)
    with h5py.File(path, "r+", libver="earliest") as file:
        file.attrs.modify(X_SHA256, np.bytes_(digest.hexdigest()))
