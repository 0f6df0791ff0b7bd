"""Stopping and saving together: signals and limits that all ranks act on after the same iteration."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pdadmm.comm.waiter import ALL_RANKS, Waiter
from pdadmm.errors import one_line
from pdadmm.process import launched

if TYPE_CHECKING:
    from mpi4py.MPI import Request

__all__ = ["CONTINUE", "SAVE", "STOP", "STOPPED_EARLY", "Control", "stop_early"]

CONTINUE, SAVE, STOP = 0, 1, 2

#: exit code of a run that stopped early with a checkpoint (EX_TEMPFAIL: try again, with --resume)
STOPPED_EARLY = 75

#: seconds in which a second SIGTERM is the same one, sent by the launcher and by the batch system
_ECHO = 0.25
#: bytes a second that a rank is taken to write before it has saved once
_ASSUMED_RATE = 1e8


class Control:
    """Decides, once an iteration and the same on all ranks, whether to save or to stop.

    SIGUSR1 asks for a checkpoint, SIGTERM for a checkpoint and the end; a second SIGTERM ends all
    ranks at once with code 143. The ranks agree by a sum that is started before an iteration and read
    after it, so that it hides behind the work.

    Parameters
    ----------
    waiter
        Waits for MPI.
    every
        Iterations between checkpoints; 0: none.
    every_seconds
        Seconds between checkpoints, by the clock of rank 0; 0: none.
    max_seconds
        Seconds from the launch of the process within which the run has saved and stopped; 0: no limit.
    started
        :func:`time.monotonic` when the run began.
    listen
        Heed the signals.
    """

    def __init__(
        self,
        waiter: Waiter,
        every: int,
        every_seconds: float,
        max_seconds: float,
        started: float,
        listen: bool = False,
    ) -> None:
        self.active = bool(every or every_seconds or max_seconds or listen)
        self._waiter = waiter
        self._every, self._every_seconds, self._max_seconds = every, every_seconds, max_seconds
        self._started = started
        self._limit_from = launched() or started  # ranks on many nodes may take long to start
        self._saved_at = time.monotonic()
        self._iteration_at: float | None = None
        self._decided_at = 0.0
        self._iteration_seconds = 0.0
        self._save_seconds = 0.0
        self._asked = CONTINUE
        self._told_to_stop_at = 0.0
        self._votes = np.zeros(2)
        self._total = np.zeros(2)
        self._request: Request | None = None
        if listen:
            signal.signal(signal.SIGUSR1, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            now = time.monotonic()
            if self._asked != STOP:
                self._told_to_stop_at = now
            elif now - self._told_to_stop_at > _ECHO:
                self._waiter.where.claim()
                self._waiter.comm.Abort(128 + number)
        self._asked = max(self._asked, STOP if number == signal.SIGTERM else SAVE)

    def expect(self, nbytes: int) -> None:
        """A checkpoint of this rank will have so many bytes; tells how long before a limit to stop."""
        self._save_seconds = max(self._save_seconds, nbytes / _ASSUMED_RATE)

    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    def before(self) -> None:
        """Cast this rank's vote; called before every iteration."""
        if not self.active:
            return
        now = time.monotonic()
        asked = self._asked
        if self._waiter.comm.rank == 0:
            if self._iteration_at is not None:  # slow iterations, such as evaluated ones, count for a while
                self._iteration_seconds = max(now - self._iteration_at, 0.95 * self._iteration_seconds)
            if self._every_seconds and now - self._saved_at >= self._every_seconds:
                asked = max(asked, SAVE)
            if self._max_seconds and now + self._needed() - self._limit_from >= self._max_seconds:
                asked = STOP
        self._iteration_at = now
        self._votes[:] = asked == SAVE, asked == STOP
        if self._waiter.comm.size == 1:
            self._total[:] = self._votes
        else:
            self._request = self._waiter.comm.Iallreduce(self._votes, self._total)

    def _needed(self) -> float:
        """Seconds that an iteration and a checkpoint take, at most half of the limit."""
        return min(self._iteration_seconds + 1.2 * self._save_seconds, 0.5 * self._max_seconds)

    def after(self, iteration: int) -> int:
        """What to do now that `iteration` (from 1, over all stages) is done; the same on all ranks."""
        if not self.active:
            return CONTINUE
        if self._request is not None:
            self._waiter.all([self._request], "the other ranks to begin an iteration", ALL_RANKS)
            self._request = None
        self._decided_at = time.monotonic()
        if self._total[1]:
            return STOP
        if self._total[0] or (self._every and iteration % self._every == 0):
            return SAVE
        return CONTINUE

    def saved(self) -> None:
        """A checkpoint was written: a request for one is fulfilled."""
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - self._decided_at
        self._iteration_at = None
        if self._asked == SAVE:
            self._asked = CONTINUE


def stop_early(waiter: Waiter, done: str, folder: Path) -> NoReturn:
    """End a run that has saved itself: say after what (epoch 30), and how to go on."""
    if waiter.comm.rank == 0:
        print(
            f"pdadmm: stopped after {done} with a checkpoint; go on with --resume --out {one_line(folder)}",
            file=sys.stderr,
        )
    raise SystemExit(STOPPED_EARLY)
