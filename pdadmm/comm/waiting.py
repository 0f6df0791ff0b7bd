"""Waiting for MPI without burning a core.

MPI libraries spin in their blocking calls. With more ranks than cores the spinning ranks keep the
working ones off the processor, so everything here polls: a few quick tests, then the rest of the
time slice is given away, then short sleeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pdadmm.errors import RunError

__all__ = ["MAX_BYTES", "Waiter", "pieces", "ranks_on_node", "usable_cores"]

#: largest single MPI message; counts are C ints, so they must stay below 2^31
MAX_BYTES = 1 << 30


def pieces(buffer: Any) -> list[Any]:
    """Views of at most `MAX_BYTES` of a contiguous uint8 buffer, in order."""
    return [buffer[i : i + MAX_BYTES] for i in range(0, len(buffer), MAX_BYTES)] or [buffer]


class Waiter:
    """Polls requests politely; one a process.

    Parameters
    ----------
    comm
        The communicator of the run.
    timeout
        Seconds after which a wait gives up with :class:`RunError`; 0 waits for ever.

    Attributes
    ----------
    seconds
        Time spent in waits so far: the exposed communication when only messages are waited for.
    """

    def __init__(self, comm: Any, timeout: float = 0.0) -> None:
        self.comm = comm
        self.timeout = timeout
        self.seconds = 0.0
        local = ranks_on_node(comm)
        #: tests before the first sleep; a rank with a core of its own may spin longer
        self._spins = 20 if local > usable_cores() else 2000

    def until(self, done: Callable[[], bool], what: str) -> float:
        """Poll `done` until it holds; returns the seconds waited."""
        if done():
            return 0.0
        start = time.perf_counter()
        spins = 0
        pause = 2e-5
        while not done():
            spins += 1
            if spins < self._spins:
                os.sched_yield()
                continue
            time.sleep(pause)
            pause = min(pause * 1.25, 5e-4)
            if self.timeout and time.perf_counter() - start > self.timeout:
                raise RunError(f"no answer within {self.timeout:g} s while waiting for {what}")
        waited = time.perf_counter() - start
        self.seconds += waited
        return waited

    def all(self, requests: Sequence[Any], what: str) -> float:
        """Wait until every MPI request is complete; returns the seconds waited."""
        if not requests:
            return 0.0
        if len(requests) == 1:
            return self.until(requests[0].Test, what)
        from mpi4py import MPI

        return self.until(lambda: MPI.Request.Testall(requests), what)

    def barrier(self) -> None:
        """Barrier over the communicator."""
        if self.comm.size > 1:
            self.all([self.comm.Ibarrier()], "a barrier of all ranks")

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of a float64 array over all ranks, on all ranks.

        Where all ranks but one hold zeros in a place, the result there is that rank's value bit for
        bit, however many ranks there are.
        """
        if self.comm.size == 1:
            return values.copy()
        from mpi4py import MPI

        total = np.empty_like(values)
        self.all([self.comm.Iallreduce(values, total, MPI.SUM)], "a sum over all ranks")
        return total

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Python object of rank `root`, on all ranks."""
        if self.comm.size == 1:
            return value
        import pickle

        size = np.zeros(1, np.int64)
        data = np.empty(0, np.uint8)
        if self.comm.rank == root:
            data = np.frombuffer(pickle.dumps(value), np.uint8).copy()
            size[0] = len(data)
        self.all([self.comm.Ibcast(size, root)], "a broadcast")
        if self.comm.rank != root:
            data = np.empty(int(size[0]), np.uint8)
        self.all([self.comm.Ibcast(data, root)], "a broadcast")
        return pickle.loads(data.tobytes())

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """Python objects of all ranks in rank order, on rank `root`; None elsewhere."""
        if self.comm.size == 1:
            return [value]
        import pickle

        data = np.frombuffer(pickle.dumps(value), np.uint8).copy()
        sizes = np.zeros(self.comm.size, np.int64)
        self.all([self.comm.Iallgather(np.array([len(data)], np.int64), sizes)], "a gather")
        if self.comm.rank != root:
            self.all([self.comm.Igatherv(data, None, root)], "a gather")
            return None
        out = np.empty(int(sizes.sum()), np.uint8)
        from mpi4py import MPI

        self.all([self.comm.Igatherv(data, [out, sizes.tolist(), None, MPI.BYTE], root)], "a gather")
        ends = np.cumsum(sizes)
        return [
            pickle.loads(out[e - n : e].tobytes()) for e, n in zip(ends.tolist(), sizes.tolist(), strict=True)
        ]

    def send(self, array: np.ndarray, to: int, tag: int) -> list[Any]:
        """Start sending a C-contiguous array in pieces; returns the requests to wait for."""
        data = array.reshape(-1).view(np.uint8)
        return [self.comm.Isend(part, to, tag) for part in pieces(data)]

    def receive(self, array: np.ndarray, source: int, tag: int) -> None:
        """Receive a C-contiguous array sent by :meth:`send`."""
        data = array.reshape(-1).view(np.uint8)
        self.all(
            [self.comm.Irecv(part, source, tag) for part in pieces(data)],
            f"an array from rank {source}",
        )


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_on_node(comm: Any) -> int:
    if comm.size == 1:
        return 1
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    size = node.size
    node.Free()
    return int(size)
