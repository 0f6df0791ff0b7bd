"""Where a rank is: for the one line that says which rank, layer and iteration failed.

A rank that is killed (kill -9, the kernel's out-of-memory killer, a crash) cannot speak. Its
*witness*, a child forked before MPI starts, can: both share a few numbers in memory, and the end of
the rank closes the witness's socket. The witness costs nothing while all is well.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import struct
import sys
import time
import warnings
from pathlib import Path

__all__ = ["Where", "stopped_ranks"]

_RANK, _FIRST, _LAST, _ITERATION, _STAGE = range(5)
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
_INT = struct.calcsize("q")
#: seconds that the first to speak on a node keeps the others silent
_SILENCE = 2.0


class Where:
    """A rank's place in the run, shown by ``str``.

    Numbers are plain 64-bit stores into shared memory, cheap enough for every iteration.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 5 * _INT)
        self._numbers = memoryview(self._memory).cast("q")
        self._socket: socket.socket | None = None
        self._child = 0

    def __str__(self) -> str:
        rank, first, last, iteration, stage = self._numbers
        layers = "" if not first else f", layer {first}" if first == last else f", layers {first}-{last}"
        when = f", iteration {iteration} (stage {stage})" if iteration else ", before the first iteration"
        return f"rank {rank}{layers}{when}"

    def set_rank(self, rank: int) -> None:
        self._numbers[_RANK] = rank

    def set_layers(self, first: int, last: int) -> None:
        """Positions of the rank's first and last layer."""
        self._numbers[_FIRST], self._numbers[_LAST] = first, last

    def set_iteration(self, iteration: int, stage: int) -> None:
        """The iteration under way, over all stages, and its stage; both from 1."""
        self._numbers[_ITERATION], self._numbers[_STAGE] = iteration, stage

    # ---- the witness --------------------------------------------------------------------------------

    def watch(self) -> None:
        """Fork the witness; call before MPI starts, as MPI libraries dislike forks. Linux only."""
        if self._socket is not None or not sys.platform.startswith("linux") or "mpi4py.MPI" in sys.modules:
            return
        # launchers are the parent of all ranks of a node, or number their job steps: one claim for each
        step = os.environ.get("SLURM_STEP_ID")
        group = f"{os.environ.get('SLURM_JOB_ID')}.{step}" if step else os.getppid()
        ours, theirs = socket.socketpair()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # BLAS has threads already; the child touches nothing of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            self._child = os.fork()
        if self._child:
            theirs.close()
            self._socket = ours
            return
        try:
            self._bear_witness(theirs, f"\0pdadmm-{os.getuid()}-{group}")
        finally:
            os._exit(0)

    def claim(self) -> None:
        """This rank speaks for itself: the witnesses on this node stay silent when MPI ends the others."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.settimeout(0.5)
                self._socket.send(b"c")
                self._socket.recv(1)

    def close(self) -> None:
        """The rank ends as it should; the witness goes."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(b"q")
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                os.waitpid(self._child, 0)

    def _bear_witness(self, rank: socket.socket, name: str) -> None:
        """The child: wait for the end of the rank and say where it was unless it said so itself."""
        os.setsid()  # what ends the rank's process group spares the witness
        with contextlib.suppress(OSError):  # to speak before ranks that fall with it, if it may
            os.nice(-20)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # launchers watch the ranks through inherited descriptors: keep none but stderr open
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor not in (2, rank.fileno()):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        said = rank.recv(1)
        if said == b"q":
            return
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(name)
        except OSError:
            return  # another rank of this node spoke first; this one fell with it
        if said == b"c":
            rank.send(b"c")
            os.close(2)
            if rank.recv(1) == b"q":
                return
        else:
            line = f"pdadmm: {self}: the process died without a word: killed, out of memory or crashed\n"
            os.write(2, line.encode())
            os.close(2)  # whoever reads stderr to its end need not wait
        time.sleep(_SILENCE)


def stopped_ranks() -> str:
    """Ranks of this node that a signal has stopped, in words; empty when none is found.

    Looked up in /proc among the processes that the launcher started beside this one.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "Tt" or int(parent) != os.getppid():
                continue
            pairs = (item.partition("=") for item in (folder / "environ").read_text().split("\0"))
            environment = {name: value for name, _, value in pairs}
            rank = next((environment[name] for name in _RANK_VARIABLES if name in environment), "?")
            found.append(f"rank {rank} (process {folder.name}) is stopped: send it SIGCONT")
    return " and ".join(found)
