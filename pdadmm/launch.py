"""How a command starts and ends under MPI: one line for bad input, no rank left hanging."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from pdadmm.comm.waiting import Waiter
from pdadmm.errors import InputError, RunError

__all__ = ["agree", "main_under_mpi"]


def main_under_mpi(command: Callable[[Waiter, list[str]], None], arguments: list[str] | None = None) -> int:
    """Run a command on every rank; returns the exit code.

    0: done. 2: bad input; all ranks raise the same :class:`InputError` (see :func:`agree`) and rank 0
    prints it. Anything else that a rank raises aborts all ranks with code 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        print(
            f"pdadmm: no MPI library could be loaded ({reason}); pip install 'pdadmm[mpich]'", file=sys.stderr
        )
        return 2
    comm = MPI.COMM_WORLD
    rank = comm.rank
    waiter = Waiter(comm)
    try:
        _require_one_world(comm.size)
        command(waiter, arguments)
        waiter.barrier()
        return 0
    except SystemExit as stop:  # argparse after --help
        waiter.barrier()
        return int(stop.code or 0)
    except InputError as error:
        if rank == 0:
            print(f"pdadmm: {error}", file=sys.stderr, flush=True)
        waiter.barrier()
        return 2
    except KeyboardInterrupt:
        comm.Abort(130)
    except RunError as error:
        print(f"pdadmm: rank {rank}: {error}", file=sys.stderr, flush=True)
        comm.Abort(1)
    except MemoryError:
        print(
            f"pdadmm: rank {rank}: out of memory; use more ranks or fewer nodes", file=sys.stderr, flush=True
        )
        comm.Abort(1)
    except BaseException:
        print(f"pdadmm: rank {rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        comm.Abort(1)
    return 1


def agree(waiter: Waiter, work: Callable[[], Any]) -> Any:
    """Do `work` on every rank; when it raises InputError or SystemExit on any, raise the first one on all.

    Returns
    -------
    What `work` returned on this rank.
    """
    value, problem = None, None
    try:
        value = work()
    except (InputError, SystemExit) as error:  # SystemExit: argparse after --help
        problem = error
    problems = waiter.gather(problem)
    first = next((p for p in problems if p is not None), None) if problems else None
    first = waiter.broadcast(first)
    if first is not None:
        raise first
    return value


def _require_one_world(size: int) -> None:
    """srun without a matching --mpi starts separate worlds of one rank: refuse to train N times."""
    steps = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1") or 1)
    if size == 1 and steps > 1 and "PMI_SIZE" not in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        if os.environ.get("SLURM_PROCID", "0") != "0":
            raise SystemExit(2)
        raise InputError(
            f"srun started {steps} tasks, but each sees an MPI world of one rank; "
            "give srun the --mpi that matches the MPI library (srun --mpi=list), or use mpirun"
        )
