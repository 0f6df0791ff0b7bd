"""``mpirun -n 2 python -m pdadmm.bench links``: latency and bandwidth between neighbouring ranks.

The conventions are those of the OSU micro-benchmarks (osu_latency, osu_bw): warm-up rounds are
dropped; latency is half a round trip of one message; bandwidth has a window of 64 messages under
way, closed by a short acknowledgement. Requests are non-blocking, as in a run, but waited for
without sleeping.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pdadmm.comm.waiting import Waiter
from pdadmm.errors import InputError
from pdadmm.launch import agree, main_under_mpi
from pdadmm.metrics import write_json

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


def measure_pair(
    comm: Any, lower: int, sizes: Sequence[int] = SIZES, seconds: float = 0.1
) -> list[dict[str, float]]:
    """Latency and bandwidth between ranks `lower` and `lower` + 1; called on both.

    Parameters
    ----------
    seconds
        Time to spend on every size and measurement, about; at least one round is made.

    Returns
    -------
    list of dict
        ``bytes``, ``latency_seconds``, ``bandwidth`` (bytes/s, one direction) of every size, as
        measured by the lower rank, on both.
    """
    first = comm.rank == lower
    peer = lower + 1 if first else lower
    found = []
    for size in sizes:
        latency = _rounds(comm, first, peer, seconds, _ping_pong(comm, first, peer, size))
        window = max(1, min(_WINDOW, _WINDOW_BYTES // max(size, 1)))
        took = _rounds(comm, first, peer, seconds, _windowed(comm, first, peer, size, window))
        found.append({"bytes": size, "latency_seconds": latency / 2, "bandwidth": size * window / took})
    return found


def _ping_pong(comm: Any, first: bool, peer: int, size: int) -> Callable[[], None]:
    out, into = np.zeros(size, np.uint8), np.zeros(size, np.uint8)

    def once() -> None:
        receive = comm.Irecv(into, peer, _TAG)
        if first:
            _spin([comm.Isend(out, peer, _TAG)])
            _spin([receive])
        else:
            _spin([receive])
            _spin([comm.Isend(out, peer, _TAG)])

    return once


def _windowed(comm: Any, first: bool, peer: int, size: int, window: int) -> Callable[[], None]:
    out, into = np.zeros(size, np.uint8), np.zeros((window, size), np.uint8)
    answer = np.zeros(1, np.uint8)

    def once() -> None:
        if first:
            _spin([comm.Isend(out, peer, _TAG) for _ in range(window)])
            _spin([comm.Irecv(answer, peer, _TAG + 1)])
        else:
            _spin([comm.Irecv(into[i], peer, _TAG) for i in range(window)])
            _spin([comm.Isend(answer, peer, _TAG + 1)])

    return once


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


def measure_neighbours(
    waiter: Waiter, sizes: Sequence[int] = FEW_SIZES, seconds: float = 0.02
) -> dict[str, Any] | None:
    """Measure every pair of neighbouring ranks, one pair after another; collective.

    Returns
    -------
    dict or None
        On rank 0: ``transports``, by name a list of links with ``lower`` (rank), ``upper``, their
        hosts and ``results`` of :func:`measure_pair`. None elsewhere.
    """
    comm = waiter.comm
    mine: dict[int, list[dict[str, float]]] = {}
    for lower in range(comm.size - 1):
        waiter.barrier()
        if comm.rank in (lower, lower + 1):
            mine[lower] = measure_pair(comm, lower, sizes, seconds)
    gathered = waiter.gather((platform.node(), mine))
    if gathered is None:
        return None
    links = [
        {
            "lower": lower,
            "upper": lower + 1,
            "hosts": [gathered[lower][0], gathered[lower + 1][0]],
            "results": gathered[lower][1][lower],
        }
        for lower in range(comm.size - 1)
    ]
    return {"schema": "pdadmm-links", "window": _WINDOW, "transports": {"mpi": links}}


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


def _bench(waiter: Waiter, arguments: list[str]) -> None:
    def check() -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            prog="python -m pdadmm.bench links",
            description="Latency and bandwidth between neighbouring ranks.",
        )
        parser.add_argument("--json", metavar="FILE", help="write the results there")
        parser.add_argument(
            "--seconds", type=float, default=0.2, help="time for every size and measurement (default: 0.2)"
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
    measured = measure_neighbours(waiter, SIZES, options.seconds)
    if measured is not None:
        _table(measured)
        if options.json:
            write_json(Path(options.json), measured)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``bench links``; returns the exit code."""
    return main_under_mpi(_bench, arguments)


if __name__ == "__main__":
    sys.exit(main())
