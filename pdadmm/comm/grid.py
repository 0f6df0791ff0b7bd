"""The ranks of a job as blocks of layers times shards of the nodes.

Rank ``block * shards + shard`` has a shard of the nodes in a block of the layers. Neighbours above and
below have the same shard. Sums over nodes go over the shards of a block, and are what a rank has where
there is one shard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from pdadmm.arrays import Array, Scalar
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.comm import waiter as waiting
from pdadmm.comm.reduction import tree_sum
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.files import Record

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["ALONE", "Alone", "Axis", "Grid", "Shards"]


#: bytes of an array from which its slices are added up by one shard each
_LARGE = 1 << 14


class Axis(Protocol):
    """The ranks along an axis of the grid; what they do together is collective along it."""

    size: int
    #: whether what takes all nodes at once may be computed here
    whole: bool

    @property
    def bytes(self) -> int:
        """Sent along the axis by this rank so far."""
        ...

    @property
    def seconds(self) -> float:
        """Waited for the others so far."""
        ...

    @property
    def last(self) -> str:
        """Name of the last sum, the same for all sums of as many bytes."""
        ...

    @property
    def facts(self) -> dict[str, Record]:
        """Of every sum by its name: ``bytes`` to each of the others, and then ``sum_bytes`` to each."""
        ...

    def sum(self, value: Array) -> Array:
        """Sum of an array over the axis, by a fixed tree, in its dtype; it may stand in `value`."""
        ...

    def sums(self, *values: Scalar) -> tuple[Scalar, ...]:
        """Sums of numbers, float64, in one message."""
        ...

    def span(self, low: float, high: float) -> tuple[float, float]:
        """The smallest `low` and the largest `high`."""
        ...


class Alone:
    """An axis of one rank, which has all nodes; without `whole` it computes as if it had not."""

    size = 1
    bytes = 0
    seconds = 0.0
    last = ""

    def __init__(self, whole: bool = True) -> None:
        self.whole = whole

    @property
    def facts(self) -> dict[str, Record]:
        return {}

    def sum(self, value: Array) -> Array:
        return value

    def sums(self, *values: Scalar) -> tuple[Scalar, ...]:
        return values

    def span(self, low: float, high: float) -> tuple[float, float]:
        return low, high


ALONE = Alone()


class Shards:
    """The shards of a block, each on a rank.

    Parts are added by a fixed binary tree over the shards, so that all have the same bits, and again in the
    next run. Of a large array every shard adds up a slice and gives it to all; of a small one it gets all
    parts. Arrays on a device travel through the host, for which a rank waits for its device first; that is no
    wait for the others.

    Parameters
    ----------
    waiter
        On the communicator of the block's ranks, in the order of their shards.

    Attributes
    ----------
    backend
        Where the arrays are; the host if nobody says so.
    """

    whole = False

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self.backend: Backend = NUMPY
        self.size = waiter.comm.size
        self._bytes = 0
        self.last = ""
        self.facts: dict[str, Record] = {}
        self._room = np.empty(0, np.uint8)  # what the others send of the slice of this shard

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def seconds(self) -> float:
        return self._waiter.seconds

    def sum(self, value: Array) -> Array:
        if not isinstance(value, np.ndarray):
            self._waiter.settle(self.backend)
            return self.backend.asarray(self.sum(self.backend.to_host(value)))
        value = np.ascontiguousarray(value)
        if value.nbytes >= _LARGE and value.dtype.kind == "f":
            return self._sum_of_slices(value)
        self._note(value, value.nbytes, 0)
        parts = self._gather(value)
        total: Array = tree_sum((0, self.size), {(i, i + 1): part for i, part in enumerate(parts)})
        return total

    def _sum_of_slices(self, value: np.ndarray) -> np.ndarray:
        """The sum in place of `value`, of which nobody makes a copy."""
        from mpi4py import MPI

        comm, mine = self._waiter.comm, self._waiter.comm.rank
        ends = [value.size * shard // self.size for shard in range(self.size + 1)]
        counts = np.diff(ends).tolist()
        entries, starts, n = value.reshape(-1), ends[:-1], counts[mine]
        kind = MPI.FLOAT if value.itemsize == 4 else MPI.DOUBLE
        if self._room.size < n * self.size * value.itemsize:
            self._room = np.empty(n * self.size * value.itemsize, np.uint8)
        parts = self._room[: n * self.size * value.itemsize].view(value.dtype).reshape(self.size, n)
        request = comm.Ialltoallv(
            [entries, counts, starts, kind], [parts, [n] * self.size, [n * i for i in range(self.size)], kind]
        )
        self._waiter.all([request], "the other shards of the nodes", waiting.ALL_RANKS)
        known = {(shard, shard + 1): part for shard, part in enumerate(parts)}
        entries[ends[mine] : ends[mine + 1]] = tree_sum((0, self.size), known)
        request = comm.Iallgatherv(MPI.IN_PLACE, [entries, counts, starts, kind])
        self._waiter.all([request], "the sums of the other shards", waiting.ALL_RANKS)
        others, its_sum = value.nbytes - n * value.itemsize, n * value.itemsize
        self._bytes += others + (self.size - 1) * its_sum
        self._note(value, others // (self.size - 1), its_sum)
        return value

    def _note(self, value: Array, first: int, then: int) -> None:
        self.last = f"sum of {value.nbytes} bytes"
        self.facts[self.last] = {"bytes": first, "sum_bytes": then}

    def sums(self, *values: Scalar) -> tuple[Scalar, ...]:
        if not values:
            return ()
        return tuple(self.sum(np.array(self._waiter.floats(self.backend, values))).tolist())

    def span(self, low: float, high: float) -> tuple[float, float]:
        ends = self._gather(np.array((low, high), np.float64))
        return float(ends[:, 0].min()), float(ends[:, 1].max())

    def _gather(self, value: Array) -> Array:
        """Every shard's array, (shards, ...)."""
        mine = value.reshape(-1).view(np.uint8)
        parts = np.empty((self.size, mine.size), np.uint8)
        self._bytes += mine.size * (self.size - 1)
        for start in range(0, mine.size, waiting.MAX_BYTES):
            piece = mine[start : start + waiting.MAX_BYTES]
            everyones = np.empty((self.size, piece.size), np.uint8)
            request = self._waiter.comm.Iallgather(piece, everyones)
            self._waiter.all([request], "the other shards of the nodes", waiting.ALL_RANKS)
            parts[:, start : start + piece.size] = everyones
        return parts.view(value.dtype).reshape(self.size, *value.shape)


class Grid:
    """Where this rank is in the grid; collective to make.

    Parameters
    ----------
    waiter
        Of the job.
    shards
        Into which the nodes are cut; the number of ranks is a multiple of it.
    as_sharded
        Whether one shard computes as several do.

    Attributes
    ----------
    blocks, shards
        Of the grid.
    block, shard
        Of this rank.
    nodes
        The shards of this rank's block.

    Raises
    ------
    InputError
        When the ranks do not fill the grid.
    """

    def __init__(self, waiter: Waiter, shards: int = 1, as_sharded: bool = False) -> None:
        comm = waiter.comm
        if shards < 1 or comm.size % shards:
            raise InputError(
                f"--shards {shards} does not divide the {comm.size} ranks; start a multiple of {shards} ranks"
            )
        self.blocks, self.shards = comm.size // shards, shards
        self.block, self.shard = divmod(comm.rank, shards)
        self.nodes: Axis = Alone(whole=False) if as_sharded else ALONE
        self._of_block: Intracomm | None = None
        if shards > 1:
            self._of_block = cast("Intracomm", comm.Split(self.block, self.shard))
            self.nodes = Shards(waiter.within(self._of_block))

    def compute_on(self, backend: Backend) -> None:
        """Where the arrays are that the shards sum up."""
        if isinstance(self.nodes, Shards):
            self.nodes.backend = backend

    def rank_of(self, block: int) -> int:
        """The rank that has this rank's shard in another block."""
        return block * self.shards + self.shard

    @property
    def neighbours(self) -> list[tuple[int, int]]:
        """Ranks of neighbouring blocks with the same shard, and of neighbouring shards of a block; sorted."""
        ranks = self.blocks * self.shards
        above = [(rank, rank + self.shards) for rank in range(ranks - self.shards)]
        beside = [(rank, rank + 1) for rank in range(ranks - 1) if (rank + 1) % self.shards]
        return sorted({*above, *beside})

    def close(self) -> None:
        """Free the communicator of the block; collective."""
        if self._of_block is not None:
            self._of_block.Free()
            self._of_block = None
