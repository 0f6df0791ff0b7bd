"""Writing the file of a graph that is cut into parts. The format of the file is in docs/data.md."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from pdadmm.errors import InputError
from pdadmm.files import replacing, reserve, write_at
from pdadmm.files.target import target_of
from pdadmm.inputs.graph_file import KIND, SCHEMA, GraphArrays, index_type

__all__ = ["write_graph"]

_BLOCK_BYTES = 64 << 20  # of what is written at once
_SLACK_BYTES = 1 << 20  # more than the metadata of a file take

Report = Callable[[str, int, int], None]
"""Told what is done, how much of it and of how much."""


def write_graph(path: str | os.PathLike[str], graph: GraphArrays, report: Report | None = None) -> None:
    """Write a graph file; the same graph gives the same bytes.

    The file is written under a temporary name in the same folder and renamed when complete, so that nobody
    sees half a file and a failure leaves nothing behind; it takes the place of another graph file, of nothing
    else. Blocks of rows are made one after the other: besides the graph little memory is needed.

    Parameters
    ----------
    path : str or Path
    graph : GraphArrays
    report : callable, optional
        Told about the rows.

    Raises
    ------
    InputError
        When the file cannot be written, or something else is in its place.
    """
    target = target_of(path, SCHEMA, KIND)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            layout = _layout(graph)
            size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
            # A full disk shows here, and as an error of the system: HDF5 does not survive it.
            reserve(temporary, size + _SLACK_BYTES)
            offsets = _create(temporary, graph, layout)
            last = max(layout, key=lambda name: offsets[name])
            shape, dtype = layout[last]
            reserve(temporary, offsets[last] + math.prod(shape) * dtype.itemsize)
            with temporary.open("r+b", buffering=0) as file:
                _write(file.fileno(), graph, layout, offsets, report)
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else str(exc).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); choose another place with --out") from None


Layout = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and type of every array."""


def _layout(graph: GraphArrays) -> Layout:
    nodes, long = graph.num_nodes, np.dtype("<i8")
    layout: Layout = {
        "part_ptr": ((graph.parts + 1,), long),
        "node_id": ((nodes,), long),
        "degree": ((nodes,), long),
        "y": ((nodes, graph.num_classes), np.dtype("u1")) if graph.multilabel else ((nodes,), long),
        "split": ((nodes,), np.dtype("i1")),
        "indptr": ((nodes + 1,), long),
        "indices": ((2 * graph.num_edges,), np.dtype(index_type(nodes)).newbyteorder("<")),
        **{name: (array.shape, array.dtype) for name, array in graph.norm.arrays.items()},
    }
    if graph.sparse:
        layout["x/indptr"] = ((nodes + 1,), long)
        layout["x/indices"] = ((graph.entries,), np.dtype("<i4"))
        layout["x/data"] = ((graph.entries,), np.dtype("<f4"))
    else:
        layout["x"] = ((nodes, graph.num_features), np.dtype("<f4"))
    return layout


def _create(path: Path, graph: GraphArrays, layout: Layout) -> dict[str, int]:
    """Make the file complete but for the values of the arrays; returns where in the file those belong."""
    offsets = {}
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs.update(graph.attrs)
        if graph.sparse:
            file.create_group("x")
        for name, (shape, dtype) in layout.items():
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_obj_track_times(False)  # a time would make the bytes differ
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            kind, space = h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape)
            made = h5py.h5d.create(file.id, name.encode(), kind, space, plist)
            offsets[name] = int(made.get_offset() or 0)  # none where there is nothing to hold
    return offsets


def _write(
    descriptor: int, graph: GraphArrays, layout: Layout, offsets: dict[str, int], report: Report | None
) -> None:
    """Write the values of all arrays, block of rows after block of rows."""
    places = dict(offsets)

    def append(name: str, values: np.ndarray) -> None:
        content = np.ascontiguousarray(values, layout[name][1])
        if content.size:
            write_at(descriptor, content.data.cast("B"), places[name])
        places[name] += content.nbytes

    for name, array in {"part_ptr": graph.part_ptr, **graph.norm.arrays}.items():
        append(name, array)
    pointers = ("indptr", "x/indptr") if graph.sparse else ("indptr",)
    ends = dict.fromkeys(pointers, 0)

    def append_pointers(name: str, indptr: np.ndarray) -> None:
        append(name, indptr[1:] + ends[name])
        ends[name] += int(indptr[-1])

    for name in pointers:
        append(name, np.zeros(1, dtype=np.int64))
    nodes = graph.num_nodes
    step = max(1, _BLOCK_BYTES * nodes // (nodes * (4 * graph.num_features + 64) + 32 * graph.num_edges))
    for first in range(0, nodes, step):
        last = min(first + step, nodes)
        append("node_id", graph.node_id(slice(first, last)))
        append("degree", graph.degree(slice(first, last)))
        append("y", graph.labels(first, last))
        append("split", graph.split(first, last))
        indptr, indices = graph.adjacency(first, last)
        append_pointers("indptr", indptr)
        append("indices", indices)
        features = graph.features(first, last)
        if graph.sparse:
            append_pointers("x/indptr", features.indptr.astype(np.int64))
            append("x/indices", features.indices)
            append("x/data", features.data)
        else:
            append("x", features)
        if report is not None:
            report("rows", last, nodes)
