"""What a process sees to before it loads what takes long: its streams never fail, its signals end it quietly.

For the ``__main__`` of a command, before anything else. Only the standard library's quick modules are loaded.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["begin", "end_job", "heed", "heed_interrupts", "launched", "lost", "quit_with"]

#: seconds that a reader who is behind may keep a writer waiting, where its pipe does not block
_SLOW_READER = 1.0
#: seconds until an interrupt that was swallowed comes again
_MOMENT = 0.01
#: signals that end a process from its first line on
_ENDING = (signal.SIGINT, signal.SIGTERM)
_launched: float | None = None
_lost = ""


def begin() -> None:
    """Make the streams safe, and let SIGINT and SIGTERM end the process quietly until :func:`heed`.

    SIGUSR1, which asks a run for a checkpoint, is not to end it while there is nothing to save.
    """
    global _launched
    _launched = time.monotonic() - _age()
    _fill_closed()
    sys.stdout, sys.stderr = _steady(sys.stdout, 1), _steady(sys.stderr, 2)
    for number in _ENDING:
        # a signal that whoever started this process ignores (nohup) stays ignored
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, quit_with)
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def launched() -> float | None:
    """:func:`time.monotonic` when this process was launched; None where another program calls a command."""
    return _launched


def _age() -> float:
    """Seconds since this process was launched; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        with open("/proc/self/stat", "rb") as file:
            launched = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - launched)
    return 0.0


def quit_with(number: int, frame: FrameType | None = None) -> None:
    """Signal handler: end at once with the signal's exit code, while there is nothing to tidy up.

    An exception could come up within an import and be made another one, or be swallowed.
    """
    end_job(128 + number)
    os._exit(128 + number)


def end_job(code: int) -> None:
    """Have MPICH's launcher end all ranks with an exit code.

    It takes no notice of a rank that ends before it has been in MPI_Init, where the others would wait for it.
    """
    launcher = os.environ.get("PMI_FD", "")
    if "MPI_LOCALNRANKS" in os.environ and launcher.isdigit():
        with contextlib.suppress(OSError):
            os.write(int(launcher), f"cmd=abort exitcode={code}\n".encode())


def heed(number: int, handler: Callable[[int, FrameType | None], object]) -> None:
    """Give a signal that :func:`quit_with` has handled until now to another handler."""
    if signal.getsignal(number) is quit_with:
        signal.signal(number, handler)


def heed_interrupts() -> None:
    """From here on SIGINT raises KeyboardInterrupt, where :func:`quit_with` has handled it until now.

    What comes up within a destructor Python swallows, with a word about it: then it is raised again a moment
    later, without.
    """
    if signal.getsignal(signal.SIGINT) is not quit_with:
        return
    unraisable = sys.unraisablehook

    def again(error: sys.UnraisableHookArgs) -> None:
        if error.exc_type is KeyboardInterrupt:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, _MOMENT)
        else:
            unraisable(error)

    sys.unraisablehook = again
    heed(signal.SIGINT, signal.default_int_handler)


def _fill_closed() -> None:
    """Open /dev/null for a standard stream that is closed: a file opened later would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


class _Steady(io.FileIO):
    """A stream whose writes never fail: what a full disk or a closed pipe does not take is lost."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write or lose bytes; returns how many."""
        global _lost
        try:
            done = super().write(data)
            if done is None:  # a pipe that does not block is full
                select.select([], [self], [], _SLOW_READER)
                done = super().write(data)
            if done is not None:
                return done
        except OSError as error:
            if self.fileno() == 1 and error.errno != errno.EPIPE:  # who closes a pipe has read enough
                _lost = os.strerror(error.errno or 0)
        return memoryview(data).nbytes


def lost() -> str:
    """Why standard output has not taken all that was printed, in words; empty where it has."""
    sys.stdout.flush()
    return _lost


def _steady(stream: TextIO | None, number: int) -> TextIO:
    """A text stream like `stream`, on descriptor `number`, which cannot fail; None: it was closed."""
    encoding = "utf-8" if stream is None else stream.encoding
    by_line = number == 2 or os.isatty(number)
    raw = io.BufferedWriter(_Steady(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=by_line)
