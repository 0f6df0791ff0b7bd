"""Where a rank is: for the one line that says which rank, layer and iteration failed.

A rank that is killed (kill -9, the kernel's out-of-memory killer, a crash) cannot speak, and one in a
call that does not come back cannot give up. Its node's *witness* (:mod:`pdadmm.comm.witness`) can: both
share a few numbers in memory and a socket. It costs nothing while all is well.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from pdadmm.comm.witness import NUMBERS, hire, place, rank_of

__all__ = ["Where", "stopped_ranks"]

_RANK, _FIRST, _LAST, _ITERATION, _STAGE = range(NUMBERS)
_SIZE = struct.calcsize(f"{NUMBERS}q")
#: seconds that the witness gets to answer
_ANSWER = 2.0
#: where the launcher's descriptor moves, and from where on the pipe's is
_MIDDLE, _HIGH = 64, 128


class Where:
    """A rank's place in the run, shown by ``str``.

    Numbers are plain 64-bit stores into shared memory, cheap enough for every iteration.

    Attributes
    ----------
    room
        Bytes that were free in /dev/shm before any rank of the node took of it; None: nobody knows.
    """

    def __init__(self) -> None:
        self._share(mmap.mmap(-1, _SIZE))
        self._socket: socket.socket | None = None
        self._pipe = -1
        self.room: int | None = None

    def _share(self, memory: mmap.mmap) -> None:
        self._numbers = memoryview(memory).cast("q")

    def __str__(self) -> str:
        return place(tuple(self._numbers))

    def set_rank(self, rank: int) -> None:
        self._numbers[_RANK] = rank

    def set_layers(self, first: int, last: int) -> None:
        """Positions of the rank's first and last layer."""
        self._numbers[_FIRST], self._numbers[_LAST] = first, last

    def set_iteration(self, iteration: int, stage: int = 0) -> None:
        """The iteration under way, over all stages, and its stage, both from 1; or an epoch alone."""
        self._numbers[_ITERATION], self._numbers[_STAGE] = iteration, stage

    # ---- the witness --------------------------------------------------------------------------------

    def watch(self) -> None:
        """Let the witness watch; call before MPI starts, as MPI libraries dislike forks. Linux only."""
        if self._socket is not None or not sys.platform.startswith("linux") or "mpi4py.MPI" in sys.modules:
            return
        with contextlib.suppress(OSError):  # without one where there can be none
            descriptor, (end, pipe) = os.memfd_create("pdadmm-where"), os.pipe()
            try:
                os.ftruncate(descriptor, _SIZE)
                self._share(mmap.mmap(descriptor, _SIZE))
                self.set_rank(rank_of(os.environ))
                self._socket, self.room = hire(descriptor, end)
                self._pipe = _between(self._socket.fileno(), pipe)
            finally:
                for number in (descriptor, end, pipe):
                    os.close(number)
            # the system itself tells the witness of a signal, even where Python cannot run
            signal.set_wakeup_fd(self._socket.fileno(), warn_on_full_buffer=False)

    def claim(self, speaks: bool = True) -> bool:
        """This rank ends the job; returns whether it is the one of its node to say why.

        Parameters
        ----------
        speaks
            False: another rank says why.
        """
        if self._socket is None:
            return True
        with contextlib.suppress(OSError):
            self._socket.send(b"c" if speaks else b"m")
            if select.select([self._socket], [], [], _ANSWER)[0]:
                return self._socket.recv(1) != b"n"
        return True

    @contextlib.contextmanager
    def limit(self, seconds: float, what: str) -> Iterator[None]:
        """A call that cannot be interrupted: the witness ends the job when it takes longer; 0: no limit."""
        if self._socket is None:
            yield
            return
        with contextlib.suppress(OSError):
            launcher = os.environ.get("PMI_FD", "")
            descriptors = [int(launcher)] if launcher.isdigit() else []
            socket.send_fds(self._socket, [f"l {seconds} {what}".encode()[:1024]], descriptors)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._socket.send(b"r")

    def close(self) -> None:
        """The rank ends as it should."""
        if self._socket is not None:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.set_wakeup_fd(-1)
            with contextlib.suppress(OSError):
                self._socket.send(b"q")
            self._socket.close()
            os.close(self._pipe)
            self._socket = None


def _between(connection: int, pipe: int) -> int:
    """Move the launcher's descriptor between those of the witness; returns a copy of the pipe's.

    The system closes the descriptors of a dead process in their order, older ones upwards and newer ones
    downwards, and a launcher that hears of the death kills the other ranks: the witness is to hear first.
    """
    launcher = os.environ.get("PMI_FD", "")
    if launcher.isdigit() and int(launcher) < connection:
        with contextlib.suppress(OSError):
            middle = fcntl.fcntl(int(launcher), fcntl.F_DUPFD, max(_MIDDLE, connection + 1))
            os.environ["PMI_FD"] = str(middle)
            os.close(int(launcher))
    try:
        return fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:  # there are no such numbers here (ulimit -n)
        return fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, connection + 1)


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
            rank = rank_of({name: value for name, _, value in pairs})
            found.append(f"rank {rank} (process {folder.name}) is stopped: send it SIGCONT")
    return " and ".join(found)
