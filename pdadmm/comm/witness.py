"""The witness: one small process a node that outlives the ranks, to say what they cannot.

It is forked by the first rank of a node that starts; every rank is connected with it. It waits in one
``epoll``, whose list of events is in the order in which they happened, so that of many ranks that
fall together it knows the first. It

- names the first rank that dies without a word;
- lets only one rank of the node speak of a failure;
- ends the job when a rank is longer in a call that cannot be interrupted than it may be;
- ends ranks whose launcher is gone;
- removes what MPICH and its launcher leave in /dev/shm and /tmp when a job does not end as it should.

Messages from a rank are packets of a letter, or of the one byte of a signal that the rank has just received::

    h   hello, with the descriptors of the rank's numbers (see :func:`place`) and of a pipe that ends with it;
        answered with the bytes that were free in /dev/shm when the first rank came, the same for all
    l   "l SECONDS what": ends the job if it takes so long; with the descriptor of the rank's launcher
    r   it is done
    c   may I speak? answered y or n        m   I shall end, and stay silent; answered y
    q   all is well, I end
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["FORWARDING", "NUMBERS", "hire", "launched", "place", "rank_of"]

#: rank, first layer, last layer, iteration, stage: 64-bit integers in memory that rank and witness share
NUMBERS = 5

#: seconds that a launcher gets to forward a rank's words before an abort makes it drop them
FORWARDING = 0.5

_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
#: seconds that a rank of a signal's gets to leave MPI_Init, and ranks that a launcher is to end
_GRACE = 1.0
#: seconds that a new witness gets to answer
_ANSWER = 10.0
#: seconds between two looks for who has something mapped
_LOOK_AGAIN = 0.1
#: seconds that a witness without ranks waits for one
_EXPECTED = 10.0
#: seconds that a launcher gets to end after its ranks
_LAUNCHER = 5.0
#: the namespace in which all processes of the machine are seen
_ALL_PROCESSES = 0xEFFFFFFC
_TITLE = "pdadmm witness: speaks for ranks that are killed"


def place(numbers: tuple[int, ...]) -> str:
    """Where a rank is, in words, from its NUMBERS."""
    rank, first, last, iteration, stage = numbers
    layers = "" if not first else f", layer {first}" if first == last else f", layers {first}-{last}"
    when = ", before the first iteration"
    if iteration:
        when = f", iteration {iteration} (stage {stage})" if stage else f", epoch {iteration}"
    return f"rank {rank}{layers}{when}"


def launched() -> bool:
    """Whether a launcher of MPI programs has started this process."""
    return any(name in os.environ for name in (*_RANK_VARIABLES[:-1], "SLURM_STEP_ID"))


def rank_of(environment: Mapping[str, str]) -> int:
    """A process's rank as its launcher tells it; 0 without one."""
    return int(next((environment[name] for name in _RANK_VARIABLES if name in environment), "0"))


# ---- a rank's side ----------------------------------------------------------------------------------


def hire(numbers: int, pipe: int) -> tuple[socket.socket, int]:
    """Connect this rank with its node's witness, forking it if there is none; before MPI starts.

    Parameters
    ----------
    numbers
        Descriptor of the rank's NUMBERS.
    pipe
        To read from: its end is the rank's.

    Returns
    -------
    connection
        For messages to the witness; does not block.
    room
        Bytes that were free in /dev/shm when the first rank came.

    Raises
    ------
    OSError
        When there can be none.
    """
    # launchers are the parent of all ranks of a node, or number their job steps
    step = os.environ.get("SLURM_STEP_ID")
    group = f"{os.environ.get('SLURM_JOB_ID')}.{step}" if step else f"{_processes()}-{os.getppid()}"
    alone = f"alone-{_processes()}-{os.getpid()}"
    name = f"\0pdadmm-{os.getuid()}-{group if launched() else alone}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener, contextlib.suppress(OSError):  # there is one
        listener.bind(name)
        listener.listen(socket.SOMAXCONN)
        _fork(listener)
    rank = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _connect(rank, name)
        if _peer(rank)[1] != os.getuid():
            raise PermissionError("the witness is another user's")
        socket.send_fds(rank, [b"h"], [numbers, pipe])
        rank.settimeout(_ANSWER)
        room = int(rank.recv(64))
    except (OSError, ValueError):  # it ended with the ranks that it knew
        rank.close()
        raise OSError("no witness answers") from None
    rank.setblocking(False)
    return rank, room


def _processes() -> int:
    """The namespace of the processes that are seen here, of which containers have one each; 0: unknown."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def _connect(rank: socket.socket, name: str) -> None:
    until = time.monotonic() + _GRACE
    while True:
        try:
            return rank.connect(name)
        except ConnectionRefusedError:  # bound, but not listening yet
            if time.monotonic() > until:
                raise
            time.sleep(1e-3)


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end."""
    form = struct.Struct("3i")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    process, user, _ = form.unpack(data)
    return process, user


def _fork(listener: socket.socket) -> None:
    """Start the witness, twice forked so that it is nobody's child to wait for."""
    launcher = os.getppid() if launched() else 0
    sys.stderr.flush()
    with warnings.catch_warnings():
        # BLAS has threads already; the child touches nothing of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()  # what ends the rank's process group spares the witness
        if os.fork() == 0:
            _become_witness(listener)
            _Witness(listener, launcher).run()
    finally:
        os._exit(0)


# ---- the witness's side -----------------------------------------------------------------------------


def _become_witness(listener: socket.socket) -> None:
    """Keep nothing of the rank but its stderr, and look like what it is."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # to speak before ranks that fall with it, if it may
        os.nice(-20)
    # launchers watch the ranks through inherited descriptors
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in (2, listener.fileno()):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    with contextlib.suppress(OSError, ValueError, IndexError):
        _set_title()


def _set_title() -> None:
    """Show the title in ps: over the memory of the arguments, and as the process's name."""
    # fields 48 and 49 of proc_pid_stat(5); the second, the name, may hold blanks
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if start < end:
        ctypes.memset(start, 0, end - start)
        title = _TITLE.encode()[: end - start - 1]
        ctypes.memmove(start, title, len(title))
    PR_SET_NAME = 15
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"pdadmm-witness", 0, 0, 0)


class _Rank:
    """A rank as its witness sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.process, self.user = _peer(connection)
        self.memory = self.pipe = -1
        self.launcher = -1  #: descriptor to the launcher, while a limit stands
        self.silent = False  #: speaks for itself, or ends as it should
        self.deadline = float("inf")
        self.seconds = 0.0
        self.what = ""
        self.limited = False  #: in a call that cannot be interrupted
        self.code = 1  #: of the job if the deadline passes

    @property
    def numbers(self) -> tuple[int, ...]:
        form = struct.Struct(f"{NUMBERS}q")
        return form.unpack(os.pread(self.memory, form.size, 0)) if self.memory >= 0 else (0,) * NUMBERS

    def limit(self, seconds: float, what: str, launcher: int) -> None:
        self.release()
        self.limited, self.what, self.seconds, self.launcher, self.code = True, what, seconds, launcher, 1
        self.deadline = time.monotonic() + seconds if seconds else float("inf")

    def release(self) -> None:
        """The limit is over."""
        self.limited, self.deadline = False, float("inf")
        self.launcher = _close(self.launcher)

    def close(self) -> None:
        self.release()
        self.memory, self.pipe = _close(self.memory), _close(self.pipe)
        self.connection.close()

    def stopped(self) -> bool:
        """Whether a signal has stopped it."""
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        return False


class _Witness:
    """Waits for what the ranks say, and for their ends.

    Parameters
    ----------
    listener
        Where ranks connect.
    launcher
        Process that started the ranks; 0: none.
    """

    def __init__(self, listener: socket.socket, launcher: int) -> None:
        self._listener = listener
        self._ranks: dict[int, _Rank] = {}  #: by the descriptors of connection and pipe
        self._hushed = False  #: somebody has spoken, or is going to
        self._ended = False  #: the job is over, and not as it should be
        self._kill_at = float("inf")
        self._accepted = 0
        self._topologies: list[Path] | None = None  #: of this job's launcher, or of one that started with it
        self._came: set[int] = set()  #: ranks that have been in MPI_Init
        self._started = time.time()
        self._launcher = -1
        self._launcher_process = launcher
        room = os.statvfs("/dev/shm")
        self._room = room.f_bavail * room.f_frsize
        self._events = select.epoll()
        self._events.register(listener, select.EPOLLIN)
        listener.setblocking(False)
        if launcher > 1:
            with contextlib.suppress(OSError):  # older kernels cannot
                self._launcher = os.pidfd_open(launcher)
                self._events.register(self._launcher, select.EPOLLIN)

    def run(self) -> None:
        """Until no rank is left, nor expected."""
        while self._ranks or self._expects():
            events = self._events.poll(self._patience())
            if not events and not self._ranks:
                break
            # a rank with words to read is on the list since those came, perhaps before another's end
            ends: list[_Rank] = []
            late: list[_Rank] = []
            for descriptor, _ in events:
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._launcher:
                    self._orphaned()
                else:
                    rank = self._ranks[descriptor]
                    words, ended = self._listen(rank)
                    if ended or descriptor == rank.pipe:
                        (late if words else ends).append(rank)
            for rank in ends + late:
                if rank.connection.fileno() in self._ranks:  # not told by the pipe and the connection
                    self._bury(rank)
            self._enforce()
        if self._ended:
            self._clean()

    def _patience(self) -> float:
        """Seconds until something is due."""
        due = min([self._kill_at, *(rank.deadline for rank in self._ranks.values())])
        if due == float("inf"):
            return -1.0 if self._ranks else _EXPECTED
        return max(0.0, due - time.monotonic())

    def _expects(self) -> bool:
        """Whether a rank may still come, which is not to find another witness after a failure."""
        if not self._accepted:
            return True
        expected = int(os.environ.get("MPI_LOCALNRANKS", "1"))
        return self._ended and self._launcher >= 0 and self._accepted < expected

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            rank = _Rank(self._listener.accept()[0])
            if rank.user != os.getuid():
                rank.close()
                return
            rank.connection.setblocking(False)
            self._ranks[rank.connection.fileno()] = rank
            self._events.register(rank.connection, select.EPOLLIN | select.EPOLLRDHUP)
            self._accepted += 1

    def _listen(self, rank: _Rank) -> tuple[int, bool]:
        """Read what a rank says; returns the number of its messages and whether it has ended."""
        words = 0
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(rank.connection, 4096, 2)
            except BlockingIOError:
                return words, False
            except OSError:
                return words, True
            if not message:
                return words, True
            words += 1
            self._heed(rank, message, descriptors)

    def _heed(self, rank: _Rank, message: bytes, descriptors: list[int]) -> None:
        letter = message[:1]
        if letter == b"h":
            rank.pipe, rank.memory = descriptors.pop(), descriptors.pop()
            self._ranks[rank.pipe] = rank
            self._events.register(rank.pipe, select.EPOLLIN)
            with contextlib.suppress(OSError):
                rank.connection.send(str(self._room).encode())
        elif letter == b"l":
            _, seconds, what = message.decode().split(" ", 2)
            rank.limit(float(seconds), what, descriptors.pop() if descriptors else -1)
            self._came.add(rank.numbers[0])
        elif letter == b"r":
            if self._topologies is None:  # MPI has started
                self._topologies = self._left("/tmp", "hydra_hwloc_xmlfile_*")
            rank.release()
        elif letter in b"cm":
            answer = b"y" if letter == b"m" or not self._hushed else b"n"
            rank.silent = self._ended = True
            self._hush(letter == b"c")
            with contextlib.suppress(OSError):
                rank.connection.send(answer)
        elif letter == b"q":
            rank.silent = True
        elif message[0] in (signal.SIGINT, signal.SIGTERM) and not rank.numbers[3]:
            # it ends, and no other is to wait in MPI_Init for it; once iterations run it saves and stops
            rank.silent = self._ended = True
            if rank.limited:
                rank.what, rank.code = "", 128 + message[0]
                rank.deadline = time.monotonic() + _GRACE
        for descriptor in descriptors:
            os.close(descriptor)

    def _bury(self, rank: _Rank) -> None:
        """A rank is gone: say so unless it ended as it should or fell with another."""
        if not rank.silent:
            self._say(rank, "the process died without a word: killed, out of memory or crashed")
        elif self._ended:
            self._hush(True)
        self._ended = self._ended or not rank.silent
        del self._ranks[rank.connection.fileno()]
        self._ranks.pop(rank.pipe, None)
        rank.close()

    def _say(self, rank: _Rank, text: str) -> None:
        self._speak(f"{place(rank.numbers)}: {text}")

    def _speak(self, text: str) -> None:
        if not self._hushed:
            with contextlib.suppress(OSError):
                os.write(2, f"pdadmm: {text}\n".encode())
            self._hush(True)

    def _hush(self, hushed: bool) -> None:
        """All is said; whoever reads stderr to its end need not wait."""
        if hushed and not self._hushed:
            self._hushed = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)

    # ---- ending the job -----------------------------------------------------------------------------

    def _enforce(self) -> None:
        """End the job when a deadline has passed."""
        now = time.monotonic()
        for rank in list(self._ranks.values()):
            if rank.deadline <= now:
                if rank.what and not self._hushed:
                    self._say(
                        rank,
                        f"no answer within {rank.seconds:g} s while {rank.what}; {self._suspects()}, "
                        "or give a longer --timeout",
                    )
                    time.sleep(FORWARDING)
                self._ended = True
                self._tell_launcher(rank)
                rank.release()
                self._kill_at = min(self._kill_at, now + _GRACE)
        if self._kill_at <= now:
            self._kill()

    def _suspects(self) -> str:
        """Who or what a limit was passed for, in words."""
        stopped = [
            f"rank {rank.numbers[0]} (process {rank.process}) is stopped: send it SIGCONT"
            for rank in self._ranks.values()
            if rank.stopped()
        ]
        size = int(next((os.environ[name] for name in _SIZE_VARIABLES if name in os.environ), "1"))
        missing = sorted(set(range(size)) - self._came)
        one_node = os.environ.get("MPI_LOCALNRANKS") == str(size)
        if not stopped and missing and one_node:
            stopped = [f"rank {', '.join(map(str, missing))} did not come: look for what keeps it"]
        return " and ".join(stopped) or "the file system or a process hangs or is slow: look at its host"

    def _tell_launcher(self, rank: _Rank) -> None:
        """Ask hydra, MPICH's launcher, to end all ranks of the job with an exit code."""
        if rank.launcher >= 0 and "HYDI_CONTROL_FD" in os.environ:
            with contextlib.suppress(OSError):
                os.write(rank.launcher, f"cmd=abort exitcode={rank.code}\n".encode())

    def _kill(self) -> None:
        self._kill_at = float("inf")
        for rank in self._ranks.values():
            with contextlib.suppress(OSError):
                os.kill(rank.process, signal.SIGKILL)

    def _orphaned(self) -> None:
        """The launcher is gone: nobody else would end its ranks."""
        self._events.unregister(self._launcher)
        self._launcher = _close(self._launcher)
        if self._ranks:
            self._speak(f"the launcher, process {self._launcher_process}, is gone: its ranks here end")
            self._ended = True
            self._kill()

    # ---- tidying up ---------------------------------------------------------------------------------

    def _clean(self) -> None:
        """Remove what the library and the launcher left behind."""
        self._listener.close()
        self._hush(True)
        left = self._left("/dev/shm", "mpich_shm_*") + self._left("/dev/shm", "ucx_shm_*")
        # others than those that are seen here may have mapped it
        if left and _processes() in (0, _ALL_PROCESSES):
            mapped = "".join(_maps())
            time.sleep(_LOOK_AGAIN)
            mapped += "".join(_maps())
            _unlink(path for path in left if str(path) not in mapped)
        if self._launcher_process:
            if self._launcher >= 0:
                select.select([self._launcher], [], [], _LAUNCHER)
            if self._topologies is not None and len(self._topologies) == 1:
                _unlink(self._topologies)

    def _left(self, folder: str, pattern: str) -> list[Path]:
        """This user's files that were made since the witness started."""
        found = []
        for path in Path(folder).glob(pattern):
            with contextlib.suppress(OSError):
                status = path.lstat()
                # made by the first rank to reach MPI_Init, after all ranks' launcher
                if status.st_uid == os.getuid() and status.st_mtime >= self._started - _GRACE:
                    found.append(path)
        return found


def _close(descriptor: int) -> int:
    """Close a descriptor, if it is one; returns -1."""
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def _unlink(paths: Iterator[Path] | list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _maps() -> Iterator[str]:
    """What this user's processes have mapped."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid():
                yield (folder / "maps").read_text(errors="surrogateescape")  # of any encoding
