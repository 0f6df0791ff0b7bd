"""``mpirun -n 2 python -m pdadmm.bench links``: the table of :mod:`pdadmm.runtime.links`.

Measured is every way that messages can take between the ranks: ``mpi`` between arrays on the host,
``nccl`` and ``staged`` (MPI through pinned host memory) between the ranks' GPUs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.table import Table

from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.files import Record, write_json
from pdadmm.files.target import report_target
from pdadmm.runtime.console import plain_console
from pdadmm.runtime.devices import choose, make_backend
from pdadmm.runtime.launch import agree, main_under_mpi, parse
from pdadmm.runtime.links import SIZES, measure_neighbours
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.sections import Run

__all__ = ["main"]


def _table(measured: Record) -> None:
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
            plain_console(100).print(table)


def _bench(waiter: Waiter, arguments: list[str]) -> None:
    parser = Parser(
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
    options = parse(waiter, parser, arguments)

    def check() -> None:
        if waiter.comm.size < 2:
            raise InputError("bench links needs two ranks: mpirun -n 2 python -m pdadmm.bench links")
        if not 0 < options.seconds < float("inf"):
            raise InputError(f"--seconds is {options.seconds:g}; it must be positive")
        if options.json:
            report_target(options.json, "--json", '{"schema": "pdadmm-links"')

    agree(waiter, check)
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
