"""A part of the graph as the rank that trains it sees it: its rows, its halo, and who needs which of them.

The adjacency is symmetric, so a part knows from its own rows alone what its neighbours need: a row goes to
every part in which it has a neighbour, and what comes from there are the neighbours in it. A part's rows
are kept *central* ones first, whose neighbours are all here, then *marginal* ones, in the order of the
graph file both; the halo, copies of remote neighbours, follows them in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays.backend import Backend
from pdadmm.gnn.equations import gcn_weights, mean_weights
from pdadmm.gnn.passes.protocol import Sparse

if TYPE_CHECKING:
    from pdadmm.inputs.graph_file import GraphSource

__all__ = ["MODELS", "Part", "parts_of_rank"]

#: GCN weighs an edge by both degrees, loops included; GraphSAGE takes the mean of the neighbours
MODELS = ("gcn", "sage")


def parts_of_rank(parts: int, ranks: int, rank: int) -> range:
    """The parts of a rank: as many as of any other, or one more or less, in order."""
    return range(rank * parts // ranks, (rank + 1) * parts // ranks)


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes
    ----------
    number
        Of the part.
    rows
        (n,) int64, rows of the graph file, central ones first.
    central
        How many of them are.
    halo
        (h,) int64, rows of the graph file, ascending.
    nodes
        (n,) int64, numbers of the own nodes in the data set.
    forward, backward
        Rows of the aggregation matrix and of its transpose; columns are own rows, then the halo.
    sends
        By part, (k,) int32: own rows that it needs, in the order of the graph file.
    receives
        By part, (k,) int32: columns that come from it, in that order.
    halo_nodes
        (h,) int64, numbers of the halo's nodes in the data set.
    reach_forward, reach_backward
        (h,) float64: sums over own rows of the squared weights of a halo row, by which the variance of
        its message enters (AdaQP's alpha).
    """

    number: int
    rows: np.ndarray
    central: int
    halo: np.ndarray
    nodes: np.ndarray
    forward: Sparse
    backward: Sparse
    sends: dict[int, np.ndarray]
    receives: dict[int, np.ndarray]
    halo_nodes: np.ndarray
    reach_forward: np.ndarray
    reach_backward: np.ndarray

    @property
    def size(self) -> int:
        """Own rows n."""
        return len(self.rows)

    @property
    def extent(self) -> int:
        """Own rows and halo."""
        return len(self.rows) + len(self.halo)

    def to(self, backend: Backend) -> Part:
        """The same with what an epoch reads where a backend computes; rows and halos stay on the host."""
        forward = self.forward.to(backend)
        backward = forward if self.backward is self.forward else self.backward.to(backend)
        nodes, halo_nodes = backend.asarray(self.nodes), backend.asarray(self.halo_nodes)
        return replace(self, nodes=nodes, halo_nodes=halo_nodes, forward=forward, backward=backward)

    @classmethod
    def of(cls, source: GraphSource, number: int, model: str, dtype: type = np.float32) -> Part:
        """Read a part.

        Parameters
        ----------
        model
            One of :data:`MODELS`.
        dtype
            Of the weights.
        """
        first, last = (int(end) for end in source.part_ptr[number : number + 2])
        indptr, columns = source.adjacency(first, last)
        indptr, columns = np.asarray(indptr, np.int64), np.asarray(columns, np.int64)
        row = np.repeat(np.arange(first, last), np.diff(indptr))
        remote = (columns < first) | (columns >= last)
        halo = np.unique(columns[remote])
        marginal = np.zeros(last - first, bool)
        marginal[row[remote] - first] = True
        order = np.argsort(marginal, kind="stable")
        place = np.empty(last - first, np.int64)
        place[order] = np.arange(last - first)
        sends = _sends(_owners(source, columns[remote]), row[remote] - first, place)
        receives = _by_part(_owners(source, halo), last - first + np.arange(len(halo)))

        degree = np.concatenate([source.degree(slice(first, last)), source.degree(halo)])
        if model == "gcn":
            row, columns = _with_loops(row, columns, first, last)
            degree = degree + 1
        counts = np.bincount(row - first, minlength=last - first)
        inside = (columns >= first) & (columns < last)
        local = np.empty(len(columns), np.int64)
        local[inside] = columns[inside] - first
        local[~inside] = last - first + np.searchsorted(halo, columns[~inside])
        of_row, of_column = degree[row - first], degree[local]
        if model == "gcn":
            forward = backward = gcn_weights(of_row, of_column)
        else:
            forward, backward = mean_weights(of_row), mean_weights(of_column)
        local[inside] = place[local[inside]]

        # rows into their order, central first
        starts = np.concatenate([[0], np.cumsum(counts)])
        new_indptr = np.concatenate([[0], np.cumsum(counts[order])])
        within = np.arange(len(local)) - np.repeat(new_indptr[:-1], counts[order])
        entries = np.repeat(starts[:-1][order], counts[order]) + within
        indices = local[entries].astype(np.int32)

        def matrix(weights: np.ndarray) -> Sparse:
            return Sparse(new_indptr, indices, weights[entries].astype(dtype))

        def reach(weights: np.ndarray) -> np.ndarray:
            return np.bincount(local[~inside] - (last - first), weights[~inside] ** 2, minlength=len(halo))

        whole = matrix(forward)
        return cls(
            number,
            first + order,
            int(np.count_nonzero(~marginal)),
            halo,
            np.asarray(source.node_id(slice(first, last)), np.int64)[order],
            whole,
            whole if model == "gcn" else matrix(backward),
            sends,
            receives,
            np.asarray(source.node_id(halo), np.int64),
            reach(forward),
            reach(backward),
        )


def _owners(source: GraphSource, rows: np.ndarray) -> np.ndarray:
    """Parts of some rows of the graph file."""
    return np.searchsorted(source.part_ptr, rows, side="right") - 1


def _sends(owners: np.ndarray, own: np.ndarray, place: np.ndarray) -> dict[int, np.ndarray]:
    """Own rows that other parts need, from the edges that leave: parts of their far ends, their near ends."""
    # a pair of a part and a row, each once; ascending, so rows are within a part
    pairs = np.unique(owners * len(place) + own)
    return _by_part(pairs // len(place), place[pairs % len(place)])


def _with_loops(row: np.ndarray, columns: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges, ascending, with the loop of every row from `first` on in the place that its number has."""
    loops, n = np.arange(first, last), last - first
    counts = np.bincount(row - first, minlength=n)
    before = np.bincount(row[columns < row] - first, minlength=n)
    places = np.cumsum(counts) - counts + before
    return np.repeat(loops, counts + 1), np.insert(columns, places, loops)


def _by_part(owners: np.ndarray, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Rows by the part that owns or needs them; `owners` ascend."""
    parts, starts = np.unique(owners, return_index=True)
    pieces = np.split(rows.astype(np.int32), starts[1:])
    return {int(part): piece for part, piece in zip(parts, pieces, strict=False)}  # a part alone has none
