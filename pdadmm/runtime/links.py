"""Latency and bandwidth between neighbouring ranks: for ``bench links``, and for a run that measures first.

The conventions are those of the OSU micro-benchmarks (osu_latency, osu_bw): warm-up rounds are
dropped; latency is half a round trip of one message; bandwidth has a window of 64 messages under
way, closed by a short acknowledgement. Requests are non-blocking, as in a run, but waited for
without sleeping.

Measured is every way that messages can take between the ranks: ``mpi`` between arrays on the host,
``nccl`` and ``staged`` (MPI through pinned host memory) between the ranks' GPUs.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pdadmm.arrays import DeviceArray
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.comm.channel import Channel, Ends
from pdadmm.comm.nccl import Device, NCCLTransport
from pdadmm.comm.rounds import Round, Rounds
from pdadmm.comm.staged import StagedOutgoing, StagedTransport
from pdadmm.comm.waiter import Waiter, poll
from pdadmm.files import Record
from pdadmm.runtime.devices import ON_CPUS, Choice, make_transport
from pdadmm.runtime.sections import Run

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Request

__all__ = ["FEW_SIZES", "SIZES", "measure_neighbours", "measure_pair"]

#: message sizes in bytes
SIZES = (*(4**i for i in range(12)), 16 << 20)
#: those that tell latency and bandwidth, for a run that measures its links first
FEW_SIZES = (1, 1 << 12, 1 << 16, 1 << 20, 4 << 20)
_TAG = 20020
_WINDOW = 64
_WINDOW_BYTES = 16 << 20  #: a window of large messages is cut to this
_WARM_UP = 5


def _spin(requests: Sequence[Request]) -> None:
    """Wait without sleeping, but let others have the processor."""
    from mpi4py import MPI

    poll(lambda: MPI.Request.Testall(requests))


Once = AbstractContextManager[Callable[[], None]]


class Way(Protocol):
    """A way to a neighbour. Within the contexts, every call is a round: the same on both ranks."""

    def ping_pong(self, first: bool, peer: int, size: int) -> Once:
        """A message there and, from the rank that is not `first`, one back."""
        ...

    def windowed(self, first: bool, peer: int, size: int, window: int) -> Once:
        """A window of messages from the `first` rank, and an acknowledgement."""
        ...


class HostWay:
    """MPI between arrays on the host."""

    def __init__(self, comm: Intracomm) -> None:
        self._comm = comm

    @contextmanager
    def ping_pong(self, first: bool, peer: int, size: int) -> Iterator[Callable[[], None]]:
        comm = self._comm
        out, into = np.zeros(size, np.uint8), np.zeros(size, np.uint8)

        def once() -> None:
            receive = comm.Irecv(into, peer, _TAG)
            if first:
                _spin([comm.Isend(out, peer, _TAG)])
                _spin([receive])
            else:
                _spin([receive])
                _spin([comm.Isend(out, peer, _TAG)])

        yield once

    @contextmanager
    def windowed(self, first: bool, peer: int, size: int, window: int) -> Iterator[Callable[[], None]]:
        comm = self._comm
        out, into = np.zeros(size, np.uint8), np.zeros((window, size), np.uint8)
        answer = np.zeros(1, np.uint8)

        def once() -> None:
            if first:
                _spin([comm.Isend(out, peer, _TAG) for _ in range(window)])
                _spin([comm.Irecv(answer, peer, _TAG + 1)])
            else:
                _spin([comm.Irecv(into[i], peer, _TAG) for i in range(window)])
                _spin([comm.Isend(answer, peer, _TAG + 1)])

        yield once


class NCCLWay:
    """NCCL between GPUs: groups on the communication stream, whose end the host sees by an event."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def _buffer(self, size: int) -> DeviceArray:
        buffer = self._device.buffer(size)
        self._device.transfers_after(self._device.mark_compute())  # which zeroes it
        return buffer

    def _finish(self) -> None:
        end = self._device.mark_transfers()
        poll(lambda: end.done)

    @contextmanager
    def ping_pong(self, first: bool, peer: int, size: int) -> Iterator[Callable[[], None]]:
        out, into = [(self._buffer(size), peer)], [(self._buffer(size), peer)]
        group = self._device.group

        def once() -> None:
            if first:
                group(out, [])
                group([], into)
            else:
                group([], into)
                group(out, [])
            self._finish()

        yield once

    @contextmanager
    def windowed(self, first: bool, peer: int, size: int, window: int) -> Iterator[Callable[[], None]]:
        out, into = self._buffer(size), self._buffer(window * size if not first else 1)
        sends = [(out, peer)] * window
        receives = [(into[i * size : (i + 1) * size], peer) for i in range(window if not first else 0)]
        answer = [(self._buffer(1), peer)]
        group = self._device.group

        def once() -> None:
            if first:
                group(sends, [])
                group([], answer)
            else:
                group([], receives)
                group(answer, [])
            self._finish()

        yield once


class StagedWay:
    """The messages of a run between GPUs over MPI, one a channel under way."""

    def __init__(self, transport: StagedTransport) -> None:
        self._transport = transport

    def _open(self, *channels: Channel) -> Ends:
        return self._transport.open(Rounds((Round("measured", channels),)))

    def _finish(self, ends: Ends) -> None:
        """Until all has left, and what came is on the device."""
        streams, until = self._transport.streams, self._transport.waiter.until
        senders = [end for end in ends.outgoing.values() if isinstance(end, StagedOutgoing)]
        until(lambda: all(sender.left() for sender in senders), "messages to leave")
        copied = streams.mark_compute()
        until(lambda: copied.done, "a message's copy")
        streams.idle.forget()

    @contextmanager
    def ping_pong(self, first: bool, peer: int, size: int) -> Iterator[Callable[[], None]]:
        ends = self._open(
            Channel("there", peer, 0, size, sends=first), Channel("back", peer, 1, size, sends=not first)
        )
        (sender,), (receiver,) = ends.outgoing.values(), ends.incoming.values()

        def once() -> None:
            receiver.post()
            if first:
                sender.start()
                receiver.wait()
            else:
                receiver.wait()
                sender.start()
            self._finish(ends)

        yield once
        ends.close()

    @contextmanager
    def windowed(self, first: bool, peer: int, size: int, window: int) -> Iterator[Callable[[], None]]:
        ends = self._open(
            *(Channel(f"there {i}", peer, i, size, sends=first) for i in range(window)),
            Channel("answer", peer, window, 1, sends=not first),
        )

        def once() -> None:
            for receiver in ends.incoming.values():
                receiver.post()
            if first:
                for sender in ends.outgoing.values():
                    sender.start()
            for receiver in ends.incoming.values():
                receiver.wait()
            if not first:
                ends.outgoing["answer"].start()
            self._finish(ends)

        yield once
        ends.close()


def measure_pair(
    comm: Intracomm,
    pair: tuple[int, int],
    sizes: Sequence[int] = SIZES,
    seconds: float = 0.1,
    way: Way | None = None,
) -> list[dict[str, float]]:
    """Latency and bandwidth between two ranks; called on both.

    Parameters
    ----------
    pair
        The ranks, the lower one first.
    seconds
        Time to spend on every size and measurement, about; at least one round is made.
    way
        Of the messages; None: between arrays on the host.

    Returns
    -------
    list of dict
        ``bytes``, ``latency_seconds``, ``bandwidth`` (bytes/s, one direction) of every size, as
        measured by the lower rank, on both.
    """
    way = way or HostWay(comm)
    first = comm.rank == pair[0]
    peer = pair[first]
    found = []
    for size in sizes:
        with way.ping_pong(first, peer, size) as once:
            latency = _rounds(comm, first, peer, seconds, once)
        window = max(1, min(_WINDOW, _WINDOW_BYTES // max(size, 1)))
        with way.windowed(first, peer, size, window) as once:
            took = _rounds(comm, first, peer, seconds, once)
        found.append({"bytes": size, "latency_seconds": latency / 2, "bandwidth": size * window / took})
    return found


def _rounds(comm: Intracomm, first: bool, peer: int, seconds: float, once: Callable[[], None]) -> float:
    """Mean seconds of `once`, warm-up dropped; the lower rank says how often."""
    once()
    start = time.perf_counter()
    once()
    estimate = time.perf_counter() - start
    count = np.array([max(1, min(1000, int(seconds / max(estimate, 1e-9))))], np.int64)
    if first:
        _spin([comm.Isend(count, peer, _TAG + 2)])
    else:
        _spin([comm.Irecv(count, peer, _TAG + 2)])
    for _ in range(min(_WARM_UP, int(count[0]) // 10)):
        once()
    start = time.perf_counter()
    for _ in range(int(count[0])):
        once()
    return (time.perf_counter() - start) / int(count[0])


def _pairs(rank: int, pairs: Sequence[tuple[int, int]]) -> Rounds:
    """A message to every rank that this one is measured with: all go down first, then up."""

    def channels(way: str, number: int, down: bool) -> tuple[Channel, ...]:
        return tuple(
            Channel(f"{way} {low} {high}", low if rank == high else high, number, 1, (rank == high) is down)
            for low, high in pairs
            if rank in (low, high)
        )

    return Rounds((Round("down", channels("down", 0, True)), Round("up", channels("up", 1, False))))


@contextmanager
def _opened(
    name: str,
    waiter: Waiter,
    choice: Choice,
    backend: Backend,
    run: Run,
    pairs: Sequence[tuple[int, int]],
) -> Iterator[Way]:
    """A way by its name, with all that a run would make for it; collective."""
    comm = waiter.comm
    if name == "mpi":
        yield HostWay(comm)
        return
    transport = make_transport(
        replace(choice, transport="nccl" if name == "nccl" else "mpi"),
        backend,
        Waiter(comm, where=waiter.where, sleeps=False),
        run,
        [_pairs(comm.rank, pairs)],
    )
    if isinstance(transport, NCCLTransport):
        yield NCCLWay(transport.device)
    elif isinstance(transport, StagedTransport):
        yield StagedWay(transport)
    transport.close()


def measure_neighbours(
    waiter: Waiter,
    sizes: Sequence[int] = FEW_SIZES,
    seconds: float = 0.02,
    ways: Sequence[str] = ("mpi",),
    choice: Choice = ON_CPUS,
    backend: Backend = NUMPY,
    run: Run | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Record | None:
    """Measure every pair of neighbouring ranks, one pair after another; collective.

    Parameters
    ----------
    ways
        Of those of `choice`.
    choice, backend, run
        Where the messages are, and the options they travel with.
    pairs
        Of ranks, the lower one first, the same on all; None: r and r + 1.

    Returns
    -------
    dict or None
        On rank 0: ``transports``, by way a list of links with ``lower`` (rank), ``upper``, their
        hosts and ``results`` of :func:`measure_pair`. None elsewhere.
    """
    comm = waiter.comm
    pairs = [(rank, rank + 1) for rank in range(comm.size - 1)] if pairs is None else pairs
    mine: dict[str, dict[tuple[int, int], list[dict[str, float]]]] = {}
    with waiter.patient(), waiter.limit("the links between the ranks are measured"):
        for name in ways:
            mine[name] = {}
            with _opened(name, waiter, choice, backend, run or Run(), pairs) as way:
                for pair in pairs:
                    waiter.barrier()
                    if comm.rank in pair:
                        mine[name][pair] = measure_pair(comm, pair, sizes, seconds, way)
                waiter.barrier()  # what a rank does next must not disturb the last pair
    gathered = waiter.gather((platform.node(), mine))
    if gathered is None:
        return None
    transports = {
        name: [
            {
                "lower": lower,
                "upper": upper,
                "hosts": [gathered[lower][0], gathered[upper][0]],
                "results": gathered[lower][1][name][lower, upper],
            }
            for lower, upper in pairs
        ]
        for name in ways
    }
    return {"schema": "pdadmm-links", "window": _WINDOW, "transports": transports}
