"""How far apart the ranks' clocks are, by ping-pong as in the Network Time Protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.comm.waiter import Waiter, poll

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["Alignment", "Reading", "read_offset"]

_TAG = 20010
_ROUNDS = 30
_GOOD_NS = 100_000  #: a round trip short enough to stop at


@dataclass(frozen=True)
class Reading:
    """Difference of two clocks at one time.

    Attributes
    ----------
    at
        Nanoseconds of this rank's :func:`time.perf_counter_ns`.
    offset
        Nanoseconds to add to this rank's clock for that of rank 0.
    round_trip
        Nanoseconds of the best round trip; the offset is within half of it.
    """

    at: int
    offset: int
    round_trip: int


def read_offset(waiter: Waiter) -> Reading:
    """Offset of this rank's clock to that of rank 0; collective.

    The ranks take turns. Of several round trips the shortest counts, whose two ways are the most
    alike.
    """
    comm = waiter.comm
    mine = Reading(time.perf_counter_ns(), 0, 0)
    with waiter.patient(), waiter.limit("the clocks of all ranks are compared with that of rank 0"):
        for rank in range(1, comm.size):
            if comm.rank == 0:
                _answer(comm, rank)
            elif comm.rank == rank:
                mine = _ask(comm)
    return mine


def _ask(comm: Intracomm) -> Reading:
    there = np.zeros(1, np.int64)
    _receive(comm, there, 0, patient=True)  # rank 0 comes to this rank
    best: Reading | None = None
    for i in range(_ROUNDS):
        sent = time.perf_counter_ns()
        comm.Send(np.array([i], np.int64), 0, _TAG)
        _receive(comm, there, 0)
        now = time.perf_counter_ns()
        trip = now - sent
        if best is None or trip < best.round_trip:
            best = Reading(now, int(there[0]) - (sent + trip // 2), trip)
        if trip < _GOOD_NS and i >= 5:
            break
    comm.Send(np.array([-1], np.int64), 0, _TAG)
    assert best is not None
    return best


def _answer(comm: Intracomm, rank: int) -> None:
    question = np.zeros(1, np.int64)
    comm.Send(question, rank, _TAG)
    while True:
        _receive(comm, question, rank)
        if question[0] < 0:
            return
        comm.Send(np.array([time.perf_counter_ns()], np.int64), rank, _TAG)


def _receive(comm: Intracomm, buffer: np.ndarray, source: int, patient: bool = False) -> None:
    """Receive, giving the processor away while waiting, but sleeping only when `patient`."""
    request = comm.Irecv(buffer, source, _TAG)
    if patient:
        poll(request.Test, spins=0)
    else:
        poll(request.Test)


@dataclass(frozen=True)
class Alignment:
    """Takes a rank's clock to that of rank 0: an offset with a linear drift between two readings."""

    start: Reading
    end: Reading

    def __call__(self, nanoseconds: int) -> float:
        """A time of this rank in nanoseconds of rank 0's clock."""
        span = self.end.at - self.start.at
        # over a short run the drift is less than the error of the readings
        slope = (self.end.offset - self.start.offset) / span if span > 1_000_000_000 else 0.0
        if not slope:
            best = min(self.start, self.end, key=lambda reading: reading.round_trip)
            return nanoseconds + best.offset
        return nanoseconds + self.start.offset + slope * (nanoseconds - self.start.at)
