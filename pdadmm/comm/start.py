"""Starting MPI: in little shared memory, within a time, leaving no names behind."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType

from pdadmm.comm.where import Where
from pdadmm.comm.witness import FORWARDING
from pdadmm.errors import InputError
from pdadmm.process import end_job

__all__ = ["leave", "no_library", "separate_worlds", "start_alone", "start_mpi"]

#: bytes of /dev/shm that MPICH takes a rank, once UCX takes none; measured, and a bit
_BYTES_A_RANK = 1.2e6
_SHARED_MEMORY = "/dev/shm"


def start_mpi(where: Where, seconds: float) -> ModuleType:
    """Load mpi4py's MPI, which starts MPI; every rank must come within `seconds` (0: whenever).

    Raises
    ------
    ImportError, RuntimeError
        Without mpi4py, or without an MPI library.
    InputError
        On all ranks of a node without enough shared memory; :func:`leave` then.
    """
    if not any(name.startswith(("OMPI_", "PMIX_")) for name in os.environ):
        # MPICH has its own way between the ranks of a node; UCX's second one, unused, would take 4.3 MB of
        # /dev/shm a rank
        os.environ.setdefault("UCX_TLS", "^posix")
        _require_shared_memory(where.room)
    with where.limit(seconds, "MPI starts, for which all ranks must come"):
        from mpi4py import MPI
    _forget_names()
    return MPI


def start_alone() -> ModuleType:
    """The same in a process of a user's, which waits for nobody.

    Raises
    ------
    InputError
        Without an MPI library, or enough shared memory.
    """
    try:
        return start_mpi(Where(), 0.0)
    except (ImportError, RuntimeError) as error:
        raise InputError(no_library(error)) from None


def no_library(error: ImportError | RuntimeError) -> str:
    """What to say of an error of :func:`start_mpi`."""
    reason = str(error).splitlines()[0]
    return f"no MPI library could be loaded ({reason}); pip install 'pdadmm[mpich]'"


def separate_worlds(size: int) -> str:
    """What to say where srun, without a matching --mpi, started a world of one rank for each task; else "".

    Parameters
    ----------
    size
        Ranks of this world.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1") or 1)
    of_launcher = any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if size > 1 or tasks <= 1 or of_launcher:
        return ""
    return (
        f"srun started {tasks} tasks, but each sees an MPI world of one rank; give srun the --mpi that "
        "matches the MPI library (srun --mpi=list), or use mpirun"
    )


def _require_shared_memory(room: int | None) -> None:
    """Touching memory that /dev/shm does not have would kill a rank with SIGBUS.

    `room`: bytes that were free before any rank started; None: as many as are now.
    """
    ranks = int(os.environ.get("MPI_LOCALNRANKS", "1"))
    needed = ranks * _BYTES_A_RANK
    if room is None:
        with contextlib.suppress(OSError):
            found = os.statvfs(_SHARED_MEMORY)
            room = found.f_bavail * found.f_frsize
    if room is not None and room < needed:
        of = f"the messages of a node's {ranks} ranks take" if ranks > 1 else "MPI takes"
        raise InputError(
            f"{_SHARED_MEMORY} has {room / 1e6:.1f} MB free, and {of} "
            f"{needed / 1e6:.1f} MB; give the container more (docker run --shm-size="
            f"{max(64, 2 * needed / 1e6):.0f}m), remove what ended jobs have left there, or start fewer ranks"
        )


def _forget_names() -> None:
    """Remove the names of MPICH's shared memory, which a job that is killed would leave behind.

    All ranks of the node have it mapped now, and it is freed with the last of them. MPICH does not mind that
    there is nothing to remove when it ends.
    """
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")  # of any encoding
        for name in set(re.findall(rf"{_SHARED_MEMORY}/mpich_shm_\w+$", maps, re.MULTILINE)):
            with contextlib.suppress(OSError):
                os.unlink(name)


def leave(where: Where, error: InputError, name: str = "pdadmm") -> int:
    """End before MPI has started, as all ranks of this node do; returns the exit code.

    One of them says why. Where there are other nodes the launcher ends their ranks, which would wait.
    """
    first = os.environ.get("MPI_LOCALRANKID", "0") == "0"
    where.claim(speaks=first)
    if first:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
    if os.environ.get("MPI_LOCALNRANKS") != os.environ.get("PMI_SIZE"):
        time.sleep(FORWARDING)
        end_job(2)
    return 2
