"""How a command starts and ends under MPI: one line for bad input, no rank left hanging."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from pdadmm.comm.start import leave, no_library, separate_worlds, start_mpi
from pdadmm.comm.waiter import PATIENT, Waiter, end_all
from pdadmm.comm.where import Where
from pdadmm.errors import InputError, RunError, denied, one_line
from pdadmm.process import heed_interrupts
from pdadmm.runtime.parser import Parser

__all__ = ["agree", "main_under_mpi", "parse"]

Result = TypeVar("Result")

#: seconds that all ranks wait for rank 0 to speak for them
_LAST_WORDS = 3.0


def main_under_mpi(command: Callable[[Waiter, list[str]], None], arguments: list[str] | None = None) -> int:
    """Run a command on every rank; returns the exit code.

    0: done. 2: bad input; all ranks raise the same :class:`InputError` (see :func:`agree`) and rank 0
    prints it. Anything else that a rank raises aborts all ranks with code 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    where = Where()
    where.watch()
    try:
        return _main(command, arguments, where)
    finally:
        where.close()


def _main(command: Callable[[Waiter, list[str]], None], arguments: list[str], where: Where) -> int:
    timeout = _timeout(arguments)
    try:
        MPI = start_mpi(where, PATIENT * timeout)
    except InputError as error:
        return leave(where, error)
    except (ImportError, RuntimeError) as error:
        return leave(where, InputError(no_library(error)))
    comm = MPI.COMM_WORLD
    rank = comm.rank
    where.set_rank(rank)
    waiter = Waiter(comm, where=where)
    waiter.timeout = timeout
    heed_interrupts()
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a crash in compiled code shows where Python was
    try:
        code = _carried_out(command, waiter, arguments)
        with waiter.patient():  # one of them may be writing yet
            waiter.barrier()
        return code
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        everywhere = isinstance(error, RunError) and error.everywhere
        speaks = where.claim(speaks=not everywhere or rank == 0)
        if everywhere:
            if rank == 0:
                _say(where, error)
            # the others would end rank 0 before it has spoken
            waiter.timeout = _LAST_WORDS
            with contextlib.suppress(RunError):
                waiter.barrier()
        elif code == 1 and speaks:
            _say(where, error)
        end_all(comm, code)
    return 1


def _carried_out(command: Callable[[Waiter, list[str]], None], waiter: Waiter, arguments: list[str]) -> int:
    """Do what a command does; returns the exit code of ends that all ranks have agreed on."""
    try:
        _require_one_world(waiter.comm.size)
        command(waiter, arguments)
    except SystemExit as stop:  # argparse after --help, a run that stopped early
        return int(stop.code or 0)
    except InputError as error:
        if waiter.comm.rank == 0:
            print(f"pdadmm: {one_line(error)}", file=sys.stderr, flush=True)
        return 2
    return 0


def _timeout(arguments: Sequence[str]) -> float:
    """--timeout of the command line, which counts before the ranks can read their options together."""
    value = ""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, given = argument.partition("=")
        if name == "--timeout":
            value = given if equals else following
    try:
        return max(0.0, float(value))
    except ValueError:  # none, or bad input, which parsing says
        return 0.0


def _say(where: Where, error: BaseException) -> None:
    """One line on stderr: rank, layers, iteration and why; a traceback before it for the unforeseen."""
    reason = str(error)
    if isinstance(error, MemoryError):
        reason = f"out of memory ({reason or 'no size given'}); use more ranks or hosts, or fewer nodes"
    elif isinstance(error, OSError):
        reason = f"{error.strerror or reason}{f': {error.filename}' if error.filename else ''}"
    elif not isinstance(error, RunError):
        print("".join(traceback.format_exception(error)), file=sys.stderr)
        reason = f"{type(error).__name__}: {reason}"
    print(f"pdadmm: {where}: {one_line(' '.join(reason.split()))}", file=sys.stderr, flush=True)


def agree(waiter: Waiter, work: Callable[[], Result]) -> Result:
    """Do `work` on every rank; when it raises InputError or SystemExit on any, raise the first one on all.

    Missing permissions and a full disk are taken for bad input.

    Returns
    -------
    What `work` returned on this rank.
    """
    problem: InputError | SystemExit | None = None
    try:
        value = work()
    except (InputError, SystemExit) as error:  # SystemExit: argparse after --help
        problem = error
    except OSError as error:
        problem = denied(error)
        if problem is None:
            raise
    problems = waiter.gather(problem)
    first: BaseException | None = next((p for p in problems if p is not None), None) if problems else None
    first = waiter.broadcast(first)
    if first is not None:
        raise first
    return value


def parse(waiter: Waiter, parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """What a command line says, the same on all ranks; one of them prints --help or --version.

    Raises
    ------
    InputError, SystemExit
        On all ranks.
    """
    first = waiter.comm.rank == 0
    options = agree(waiter, lambda: parser.parse_args(arguments) if first else None)
    return waiter.broadcast(options)


def _require_one_world(size: int) -> None:
    """srun without a matching --mpi starts separate worlds of one rank: refuse to train N times."""
    if said := separate_worlds(size):
        if os.environ.get("SLURM_PROCID", "0") != "0":
            raise SystemExit(2)
        raise InputError(said)
