"""``mpirun -n 2 python -m pdadmm.bench links``: latency and bandwidth between neighbouring ranks.

The conventions are those of the OSU micro-benchmarks (osu_latency, osu_bw): warm-up rounds are
dropped; latency is half a round trip of one message; bandwidth has a window of 64 messages under
way, closed by a short acknowledgement. Requests are non-blocking, as in a run, but waited for
without sleeping.

Measured is every way that messages can take between the ranks: ``mpi`` between arrays on the host,
``nccl`` and ``staged`` (MPI through pinned host memory) between the ranks' GPUs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from pdadmm.admm.options import Run
from pdadmm.arrays.backend import NUMPY
from pdadmm.comm.transport import Edge, StagedTransport
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.runtime.devices import ON_CPUS, Choice, choose, make_backend, make_transport
from pdadmm.runtime.files import write_json
from pdadmm.runtime.launch import agree, main_under_mpi

__all__ = ["SIZES", "main", "measure_neighbours", "measure_pair"]

#: message sizes in bytes
SIZES = (*(4**i for i in range(12)), 16 << 20)
#: those that tell latency and bandwidth, for a run that measures its links first
FEW_SIZES = (1, 1 << 12, 1 << 16, 1 << 20, 4 << 20)
_TAG = 20020
_WINDOW = 64
_WINDOW_BYTES = 16 << 20  #: a window of large messages is cut to this
_WARM_UP = 5


def _spin(requests: Sequence[Any]) -> None:
    """Wait without sleeping, but let others have the processor."""
    from mpi4py import MPI

    while not MPI.Request.Testall(list(requests)):
        os.sched_yield()


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

    def __init__(self, comm: Any) -> None:
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

    def __init__(self, device: Any) -> None:
        self._device = device

    def _buffer(self, size: int) -> Any:
        buffer = self._device.buffer(size)
        self._device.communication_after(self._device.mark_compute())  # which zeroes it
        return buffer

    def _finish(self) -> None:
        end = self._device.mark_communication()
        while not end.done:
            os.sched_yield()

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
    """The links of a run between GPUs over MPI, one a message under way."""

    def __init__(self, transport: StagedTransport) -> None:
        self._transport = transport

    def _link(self, first: bool, peer: int, index: int, size: int) -> Any:
        edge = Edge(peer, index, size)
        below, above = self._transport.links(None if first else edge, edge if first else None)
        return above if first else below

    def _finish(self, links: Sequence[Any]) -> None:
        """Until all has left, and what came is on the device."""
        copier, until = self._transport.copier, self._transport.waiter.until
        until(lambda: all(link.sent() for link in links), "messages to leave")
        copied = copier.mark_compute()
        until(lambda: copied.done, "a message's copy")
        copier.idle.forget()

    @contextmanager
    def ping_pong(self, first: bool, peer: int, size: int) -> Iterator[Callable[[], None]]:
        link = self._link(first, peer, 0, size)

        def once() -> None:
            link.post_receive()
            if first:
                link.start_send()
                link.wait_received()
            else:
                link.wait_received()
                link.start_send()
            self._finish([link])

        yield once
        link.close()

    @contextmanager
    def windowed(self, first: bool, peer: int, size: int, window: int) -> Iterator[Callable[[], None]]:
        links = [self._link(first, peer, i, size) for i in range(window)]
        answer = self._link(first, peer, window, 1)

        def once() -> None:
            if first:
                answer.post_receive()
                for link in links:
                    link.start_send()
                answer.wait_received()
            else:
                for link in links:
                    link.post_receive()
                for link in links:
                    link.wait_received()
                answer.start_send()
            self._finish([*links, answer])

        yield once
        for link in (*links, answer):
            link.close()


def measure_pair(
    comm: Any, lower: int, sizes: Sequence[int] = SIZES, seconds: float = 0.1, way: Way | None = None
) -> list[dict[str, float]]:
    """Latency and bandwidth between ranks `lower` and `lower` + 1; called on both.

    Parameters
    ----------
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
    first = comm.rank == lower
    peer = lower + 1 if first else lower
    found = []
    for size in sizes:
        with way.ping_pong(first, peer, size) as once:
            latency = _rounds(comm, first, peer, seconds, once)
        window = max(1, min(_WINDOW, _WINDOW_BYTES // max(size, 1)))
        with way.windowed(first, peer, size, window) as once:
            took = _rounds(comm, first, peer, seconds, once)
        found.append({"bytes": size, "latency_seconds": latency / 2, "bandwidth": size * window / took})
    return found


def _rounds(comm: Any, first: bool, peer: int, seconds: float, once: Callable[[], None]) -> float:
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


@contextmanager
def _opened(name: str, waiter: Waiter, choice: Choice, backend: Any, run: Run) -> Iterator[Way]:
    """A way by its name, with all that a run would make for it; collective."""
    comm = waiter.comm
    if name == "mpi":
        yield HostWay(comm)
        return
    below, above = comm.rank - 1 if comm.rank else None, comm.rank + 1 if comm.rank + 1 < comm.size else None
    transport = make_transport(
        replace(choice, transport="nccl" if name == "nccl" else "mpi"),
        backend,
        Waiter(comm, where=waiter.where, sleeps=False),
        run,
        None,
        [(below, above)],
    )
    yield NCCLWay(transport.device) if name == "nccl" else StagedWay(transport)
    transport.close()


def measure_neighbours(
    waiter: Waiter,
    sizes: Sequence[int] = FEW_SIZES,
    seconds: float = 0.02,
    ways: Sequence[str] = ("mpi",),
    choice: Choice = ON_CPUS,
    backend: Any = NUMPY,
    run: Run | None = None,
) -> dict[str, Any] | None:
    """Measure every pair of neighbouring ranks, one pair after another; collective.

    Parameters
    ----------
    ways
        Of those of `choice`.
    choice, backend, run
        Where the messages are, and the options they travel with.

    Returns
    -------
    dict or None
        On rank 0: ``transports``, by way a list of links with ``lower`` (rank), ``upper``, their
        hosts and ``results`` of :func:`measure_pair`. None elsewhere.
    """
    comm = waiter.comm
    mine: dict[str, dict[int, list[dict[str, float]]]] = {}
    for name in ways:
        mine[name] = {}
        with _opened(name, waiter, choice, backend, run or Run()) as way:
            for lower in range(comm.size - 1):
                waiter.barrier()
                if comm.rank in (lower, lower + 1):
                    mine[name][lower] = measure_pair(comm, lower, sizes, seconds, way)
            waiter.barrier()  # what a rank does next must not disturb the last pair
    gathered = waiter.gather((platform.node(), mine))
    if gathered is None:
        return None
    transports = {
        name: [
            {
                "lower": lower,
                "upper": lower + 1,
                "hosts": [gathered[lower][0], gathered[lower + 1][0]],
                "results": gathered[lower][1][name][lower],
            }
            for lower in range(comm.size - 1)
        ]
        for name in ways
    }
    return {"schema": "pdadmm-links", "window": _WINDOW, "transports": transports}


def _table(measured: dict[str, Any]) -> None:
    for transport, links in measured["transports"].items():
        for link in links:
            table = Table(title=f"{transport}: rank {link['lower']} to {link['upper']}")
            for column in ("bytes", "latency", "bandwidth"):
                table.add_column(column, justify="right")
            for row in link["results"]:
                table.add_row(
                    f"{row['bytes']:,}",
                    f"{row['latency_seconds'] * 1e6:,.1f} µs",
                    f"{row['bandwidth'] / 1e6:,.1f} MB/s",
                )
            Console(width=100 if not sys.stdout.isatty() else None).print(table)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _bench(waiter: Waiter, arguments: list[str]) -> None:
    def check() -> argparse.Namespace:
        parser = _Parser(
            prog="python -m pdadmm.bench links",
            description="Latency and bandwidth between neighbouring ranks.",
        )
        parser.add_argument("--json", metavar="FILE", help="write the results there")
        parser.add_argument(
            "--seconds", type=float, default=0.2, help="time for every size and measurement (default: 0.2)"
        )
        parser.add_argument(
            "--backend",
            choices=("auto", "numpy", "cupy"),
            default="auto",
            help="numpy: only between arrays on the host; cupy: between GPUs too; auto: as found (default)",
        )
        found = parser.parse_args(arguments)
        if waiter.comm.size < 2:
            raise InputError("bench links needs two ranks: mpirun -n 2 python -m pdadmm.bench links")
        if not 0 < found.seconds < float("inf"):
            raise InputError(f"--seconds is {found.seconds:g}; it must be positive")
        if found.json and not Path(found.json).absolute().parent.is_dir():
            raise InputError(f"cannot write {found.json}: there is no such folder")
        return found

    options = agree(waiter, check)
    run = Run(backend=options.backend)
    choice = choose(run, waiter)
    if choice.why_not_nccl and waiter.comm.rank == 0:
        print(f"pdadmm: NCCL is not measured: {choice.why_not_nccl}", file=sys.stderr, flush=True)
    backend = make_backend(choice, waiter.comm.rank, run.precision)
    measured = measure_neighbours(waiter, SIZES, options.seconds, choice.ways, choice, backend, run)
    if measured is not None:
        _table(measured)
        if options.json:
            write_json(Path(options.json), measured)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``bench links``; returns the exit code."""
    return main_under_mpi(_bench, arguments)


if __name__ == "__main__":
    sys.exit(main())
