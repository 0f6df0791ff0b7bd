"""Sums over the parts of a graph, with the same bits on any number of ranks.

Parts are added by a fixed binary tree: the left half of n of them is the largest power of two below n. A
rank adds up the subtrees that it has whole, every rank finishes the tree for its slice of the vector, and
all give the slices to all: what a ring would send where parts and ranks are powers of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays import Array, copy_into
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.comm.waiter import ALL_RANKS, Waiter

if TYPE_CHECKING:
    from mpi4py.MPI import Request

__all__ = ["Reduction", "tree_sum"]

Node = tuple[int, int]


def _split(node: Node) -> int:
    """Where the right half of a node of the tree begins."""
    first, last = node
    return first + (1 << (last - first - 1).bit_length() - 1)


def _whole(node: Node, mine: range) -> list[Node]:
    """The largest subtrees of a node whose leaves are all among `mine`, in order."""
    first, last = node
    if mine.start <= first and last <= mine.stop:
        return [node]
    if last <= mine.start or mine.stop <= first:
        return []
    middle = _split(node)
    return [*_whole((first, middle), mine), *_whole((middle, last), mine)]


def tree_sum(node: Node, known: Mapping[Node, Array]) -> Array:
    """The sum of a node from those of nodes in or below it."""
    if node in known:
        return known[node]
    middle = _split(node)
    return tree_sum((node[0], middle), known) + tree_sum((middle, node[1]), known)


class Reduction:
    """The sum of a vector of every part, on all ranks; made once, collective to use.

    :meth:`start`, :meth:`launch`, :meth:`combine` and :meth:`finish` follow each other, with other work
    between them; all ranks call them in the same order. Vectors on a device are added up there within the
    rank, and travel through the host.

    Parameters
    ----------
    waiter
        Of all ranks.
    owners
        The parts of every rank, in order, together all parts.
    size
        Entries of the vector, float32.
    backend
        Where the vectors are.

    Attributes
    ----------
    nbytes
        What this rank sends to others in a sum.
    piece, slice_bytes
        Of it, to each of the others: subtrees of its slice, on average, and then the sum of this rank's.
    """

    def __init__(self, waiter: Waiter, owners: Sequence[range], size: int, backend: Backend = NUMPY) -> None:
        self._waiter, self._backend = waiter, backend
        self._of_rank: list[Array] = []  # sums of the rank's subtrees, on a device
        self._tree = (0, owners[-1].stop)
        self._trees = [_whole(self._tree, mine) for mine in owners]
        self._mine = owners[waiter.comm.rank]
        ranks, rank = len(owners), waiter.comm.rank
        self._ends = [size * r // ranks for r in range(ranks + 1)]
        sizes = np.diff(self._ends)
        self._slice = slice(self._ends[rank], self._ends[rank + 1])
        self._sizes = sizes.tolist()
        own = len(self._trees[rank])
        self._send_counts = [own * n for n in self._sizes]
        self._receive_counts = [len(trees) * self._sizes[rank] for trees in self._trees]
        self._sent = np.empty(sum(self._send_counts), np.float32)
        self._received = np.empty(sum(self._receive_counts), np.float32)
        self._part = np.empty(self._sizes[rank], np.float32)
        self._total: np.ndarray = np.empty(size, np.float32)
        self._found: Array = backend.empty(size, np.float32) if backend.on_device else self._total
        self._requests: list[Request] = []
        away = sum(self._send_counts) - self._send_counts[rank] + (ranks - 1) * self._sizes[rank]
        self.nbytes = away * self._total.itemsize
        self.slice_bytes = self._sizes[rank] * self._total.itemsize if ranks > 1 else 0
        self.piece = self.nbytes // (ranks - 1) - self.slice_bytes if ranks > 1 else 0

    def start(self, vectors: Mapping[int, Array]) -> None:
        """Begin with this rank's vectors by part.

        They may change as soon as this returns, on a device after :meth:`launch`.
        """
        known: dict[Node, Array] = {(i, i + 1): vectors[i] for i in self._mine}
        rank = self._waiter.comm.rank
        sums = [tree_sum(node, known) for node in self._trees[rank]]
        if len(self._trees) == 1:
            self._found[:] = sums[0]
        elif self._backend.on_device:
            self._of_rank = sums
        else:
            self._send(sums)

    def launch(self) -> None:
        """Begin to send what is still on a device, once it has been computed.

        The host waits for the device here, so that it should have nothing else to give it.
        """
        if self._of_rank:
            self._waiter.settle(self._backend)
            sums, self._of_rank = self._of_rank, []
            self._send([self._backend.to_host(found) for found in sums])

    def _send(self, sums: Sequence[np.ndarray]) -> None:
        place = 0
        for first, last in zip(self._ends, self._ends[1:], strict=False):
            for found in sums:
                self._sent[place : place + last - first] = found[first:last]
                place += last - first
        from mpi4py import MPI

        self._requests = [
            self._waiter.comm.Ialltoallv(
                [self._sent, self._send_counts, _starts(self._send_counts), MPI.FLOAT],
                [self._received, self._receive_counts, _starts(self._receive_counts), MPI.FLOAT],
            )
        ]

    def combine(self) -> None:
        """Add up this rank's slice and begin to give it to all."""
        if len(self._trees) == 1:
            return
        self._waiter.all(self._requests, "the gradients of the other ranks", ALL_RANKS)
        known: dict[Node, np.ndarray] = {}
        n, place = self._sizes[self._waiter.comm.rank], 0
        for trees in self._trees:
            for node in trees:
                known[node] = self._received[place : place + n]
                place += n
        self._part[:] = tree_sum(self._tree, known)
        self._requests = [
            self._waiter.comm.Iallgatherv(self._part, [self._total, self._sizes, self._ends[:-1], None])
        ]

    def finish(self) -> Array:
        """The sum, (size,), where the vectors are; the next one writes over it."""
        if len(self._trees) > 1:
            self._waiter.all(self._requests, "the sums of the other ranks", ALL_RANKS)
            if self._backend.on_device:
                copy_into(self._found, self._total)
        return self._found


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts)[:-1].tolist()]
