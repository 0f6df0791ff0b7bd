"""Waiting for MPI without burning a core.

MPI libraries spin in their blocking calls. With more ranks than cores the spinning ranks keep the
working ones off the processor, so everything here polls: a few quick tests, then the rest of the
time slice is given away, then short sleeps.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import numpy as np

from pdadmm.arrays import Array, Scalar
from pdadmm.comm.where import Where, stopped_ranks
from pdadmm.comm.witness import FORWARDING
from pdadmm.errors import RunError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Request

__all__ = [
    "ALL_RANKS",
    "MAX_BYTES",
    "PATIENT",
    "Waiter",
    "end_all",
    "pieces",
    "place_on_node",
    "poll",
    "ranks_on_node",
    "usable_cores",
]

T = TypeVar("T")

#: largest single MPI message; counts are C ints, so they must stay below 2^31
MAX_BYTES = 1 << 30
#: patience of a wait for all ranks
ALL_RANKS = 1.5
#: patience of a wait while ranks start, or read or write files
PATIENT = 20.0


def end_all(comm: Intracomm, code: int) -> None:
    """Abort all ranks with an exit code, once the launcher has forwarded what this rank has said."""
    sys.stderr.flush()
    time.sleep(FORWARDING)
    comm.Abort(code)


def pieces(buffer: Array) -> list[Array]:
    """Views of at most `MAX_BYTES` of a contiguous uint8 buffer, in order."""
    return [buffer[i : i + MAX_BYTES] for i in range(0, len(buffer), MAX_BYTES)] or [buffer]


def poll(
    done: Callable[[], bool], spins: int = sys.maxsize, between: Callable[[], None] | None = None
) -> None:
    """Test until it holds, giving the processor away in between.

    Parameters
    ----------
    spins
        Tests after which only the rest of the time slice is given away; then naps follow, from 20 to
        500 us. By default there are none, so that nobody waits for a nap to end.
    between
        Called after every test that fails.
    """
    pause = 2e-5
    while not done():
        if between is not None:
            between()
        if spins > 0:
            spins -= 1
            os.sched_yield()
        else:
            time.sleep(pause)
            pause = min(pause * 1.25, 5e-4)


class Settles(Protocol):
    """A backend: what waits for its device."""

    def settle(self, wait: Callable[[Callable[[], bool], str], object]) -> None: ...

    def floats(
        self, values: Sequence[Scalar], wait: Callable[[Callable[[], bool], str], object]
    ) -> list[float]: ...


@dataclass
class _Manner:
    """How long the waiters of a process wait, and what they do meanwhile."""

    timeout: float
    #: tests before the first sleep; a rank with a core of its own may spin longer
    spins: int
    background: Callable[[], None] | None = None
    patient: bool = False  #: whether `timeout` is longer for now


class Waiter:
    """Polls requests politely; one a process, and one for each part of its ranks (:meth:`within`).

    Parameters
    ----------
    comm
        The communicator of the run.
    timeout
        Seconds after which a wait gives up with :class:`RunError`; 0 waits for ever.
    where
        Kept up to date for the line about a failure.
    sleeps
        False: only give the processor away, so that nobody waits for a nap to end, and wait for ever.

    Attributes
    ----------
    seconds
        Time spent in waits so far: the exposed communication when only messages are waited for.
    """

    def __init__(
        self, comm: Intracomm, timeout: float = 0.0, where: Where | None = None, sleeps: bool = True
    ) -> None:
        self.comm = comm
        self.where = where or Where()
        self.seconds = 0.0
        if sleeps:
            crowded = ranks_on_node(comm) > usable_cores()
            self._manner = _Manner(timeout, 20 if crowded else 2000)
        else:
            self._manner = _Manner(0.0, sys.maxsize)

    def within(self, comm: Intracomm) -> Waiter:
        """A waiter for some of the ranks, in this one's manner at any time."""
        inner = copy.copy(self)
        inner.comm, inner.seconds = comm, 0.0
        return inner

    @property
    def timeout(self) -> float:
        """Seconds after which a wait gives up; 0: never."""
        return self._manner.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._manner.timeout = seconds

    @property
    def background(self) -> Callable[[], None] | None:
        """Called while polling, to move on what does not move by itself; None: nothing to do."""
        return self._manner.background

    @background.setter
    def background(self, call: Callable[[], None] | None) -> None:
        self._manner.background = call

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Wait longer than for a message: others read or write files. Once within another is as long."""
        manner = self._manner
        factor = 1.0 if manner.patient else PATIENT
        before, timeout = manner.patient, manner.timeout
        manner.patient, manner.timeout = True, factor * timeout
        try:
            yield
        finally:
            manner.patient, manner.timeout = before, timeout

    @contextlib.contextmanager
    def limit(self, what: str) -> Iterator[None]:
        """A call of this rank that cannot be interrupted, such as reading a file, has the timeout too."""
        if self.timeout:
            with self.where.limit(self.timeout, what):
                yield
        else:
            yield

    def settle(self, backend: Settles) -> None:
        """Wait for a device to do all it was given; no exposed communication."""
        seconds = self.seconds
        backend.settle(self.until)
        self.seconds = seconds

    def floats(self, backend: Settles, values: Sequence[Scalar]) -> list[float]:
        """Numbers that may be on a device, on the host; no exposed communication."""
        seconds = self.seconds
        found = backend.floats(values, self.until)
        self.seconds = seconds
        return found

    def until(self, done: Callable[[], bool], what: str, patience: float = 1.0) -> float:
        """Poll `done` until it holds, for `patience` times the timeout; returns the seconds waited."""
        if done():
            return 0.0
        start = time.perf_counter()
        background, limit = self._manner.background, self._manner.timeout * patience

        def between() -> None:
            if background is not None:
                background()
            if limit and time.perf_counter() - start > limit:
                raise RunError(
                    f"no answer within {limit:g} s while waiting for {what}; "
                    + (stopped_ranks() or "that process hangs or is slow: look at its host")
                    + ", or give a longer --timeout"
                )

        # where ranks share cores, what is done between tests is taken from the ranks that compute
        poll(done, self._manner.spins, between if background is not None or limit else None)
        waited = time.perf_counter() - start
        self.seconds += waited
        return waited

    def all(self, requests: Sequence[Request], what: str, patience: float = 1.0) -> float:
        """Wait until every MPI request is complete; returns the seconds waited.

        Waits for all ranks have more `patience` than those for a neighbour, so that of all that wait
        for a hung rank its neighbours, who know it, speak first.
        """
        if not requests:
            return 0.0
        if len(requests) == 1:
            return self.until(requests[0].Test, what, patience)
        from mpi4py import MPI

        return self.until(lambda: MPI.Request.Testall(requests), what, patience)

    def barrier(self) -> None:
        """Barrier over the communicator."""
        if self.comm.size > 1:
            self.all([self.comm.Ibarrier()], "a barrier of all ranks", ALL_RANKS)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of a float64 array over all ranks, on all ranks.

        Where all ranks but one hold zeros in a place, the result there is that rank's value bit for
        bit, however many ranks there are.
        """
        if self.comm.size == 1:
            return values.copy()
        from mpi4py import MPI

        total = np.empty_like(values)
        self.all([self.comm.Iallreduce(values, total, MPI.SUM)], "a sum over all ranks", ALL_RANKS)
        return total

    def broadcast(self, value: T | None, root: int = 0) -> T:
        """Python object of rank `root`, on all ranks; the others need give none."""
        if self.comm.size == 1:
            return cast(T, value)
        import pickle

        size = np.zeros(1, np.int64)
        data = np.empty(0, np.uint8)
        if self.comm.rank == root:
            data = np.frombuffer(pickle.dumps(value), np.uint8).copy()
            size[0] = len(data)
        what = f"a broadcast from rank {root}"
        self.all([self.comm.Ibcast(size, root)], what, ALL_RANKS)
        if self.comm.rank != root:
            data = np.empty(int(size[0]), np.uint8)
        self.all([self.comm.Ibcast(data, root)], what, ALL_RANKS)
        found: T = pickle.loads(data.tobytes())
        return found

    def gather(self, value: T, root: int = 0) -> list[T] | None:
        """Python objects of all ranks in rank order, on rank `root`; None elsewhere."""
        if self.comm.size == 1:
            return [value]
        import pickle

        data = np.frombuffer(pickle.dumps(value), np.uint8).copy()
        sizes = np.zeros(self.comm.size, np.int64)
        what = f"a gather on rank {root}"
        self.all([self.comm.Iallgather(np.array([len(data)], np.int64), sizes)], what, ALL_RANKS)
        if self.comm.rank != root:
            self.all([self.comm.Igatherv(data, None, root)], what, ALL_RANKS)
            return None
        out = np.empty(int(sizes.sum()), np.uint8)
        from mpi4py import MPI

        into = [out, sizes.tolist(), None, MPI.BYTE]
        self.all([self.comm.Igatherv(data, into, root)], what, ALL_RANKS)
        ends = np.cumsum(sizes)
        return [
            pickle.loads(out[e - n : e].tobytes()) for e, n in zip(ends.tolist(), sizes.tolist(), strict=True)
        ]

    def scatter(self, values: Sequence[T] | None, root: int = 0) -> T:
        """This rank's of the Python objects that rank `root` has for all, in rank order."""
        if self.comm.size == 1:
            assert values is not None
            return values[0]
        import pickle

        from mpi4py import MPI

        sizes, out = np.zeros(self.comm.size, np.int64), None
        if self.comm.rank == root:
            assert values is not None
            pickled = [np.frombuffer(pickle.dumps(value), np.uint8) for value in values]
            sizes[:] = [len(data) for data in pickled]
            out = [np.concatenate(pickled), sizes.tolist(), None, MPI.BYTE]
        what = f"rank {root} to give out what all want"
        self.all([self.comm.Ibcast(sizes, root)], what, ALL_RANKS)
        data = np.empty(int(sizes[self.comm.rank]), np.uint8)
        self.all([self.comm.Iscatterv(out, data, root)], what, ALL_RANKS)
        found: T = pickle.loads(data.tobytes())
        return found

    def send(self, array: np.ndarray, to: int, tag: int) -> list[Request]:
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
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_on_node(comm: Intracomm) -> int:
    """How many ranks share this rank's node; collective."""
    return place_on_node(comm)[1]


def place_on_node(comm: Intracomm) -> tuple[int, int]:
    """Number of this rank among those of its node, and how many they are; collective."""
    if comm.size == 1:
        return 0, 1
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    place = node.rank, node.size
    node.Free()
    return place
