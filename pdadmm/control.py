"""Stopping and saving together: signals and limits that all ranks act on after the same iteration."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import numpy as np

from pdadmm.comm.waiting import Waiter

__all__ = ["CONTINUE", "SAVE", "STOP", "STOPPED_EARLY", "Control"]

CONTINUE, SAVE, STOP = 0, 1, 2

#: exit code of a run that stopped early with a checkpoint (EX_TEMPFAIL: try again, with --resume)
STOPPED_EARLY = 75


class Control:
    """Decides, once an iteration and the same on all ranks, whether to save or to stop.

    SIGUSR1 asks for a checkpoint, SIGTERM for a checkpoint and the end; a second SIGTERM ends the
    rank at once. The ranks agree by a sum that is started before an iteration and read after it, so
    that it hides behind the work.

    Parameters
    ----------
    waiter
        Waits for MPI.
    every
        Iterations between checkpoints; 0: none.
    every_seconds
        Seconds between checkpoints, by the clock of rank 0; 0: none.
    max_seconds
        Seconds after which the run saves and stops; 0: never.
    started
        :func:`time.monotonic` when the run began.
    """

    def __init__(
        self, waiter: Waiter, every: int, every_seconds: float, max_seconds: float, started: float
    ) -> None:
        self.active = bool(every or every_seconds or max_seconds)
        self._waiter = waiter
        self._every, self._every_seconds, self._max_seconds = every, every_seconds, max_seconds
        self._started = started
        self._saved_at = time.monotonic()
        self._asked = CONTINUE
        self._votes = np.zeros(2)
        self._total = np.zeros(2)
        self._request: Any = None
        if self.active:
            signal.signal(signal.SIGUSR1, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and self._asked == STOP:
            os._exit(128 + number)
        self._asked = max(self._asked, STOP if number == signal.SIGTERM else SAVE)

    def before(self) -> None:
        """Cast this rank's vote; called before every iteration."""
        if not self.active:
            return
        now = time.monotonic()
        asked = self._asked
        if self._waiter.comm.rank == 0:
            if self._every_seconds and now - self._saved_at >= self._every_seconds:
                asked = max(asked, SAVE)
            if self._max_seconds and now - self._started >= self._max_seconds:
                asked = STOP
        self._votes[:] = asked == SAVE, asked == STOP
        if self._waiter.comm.size == 1:
            self._total[:] = self._votes
        else:
            self._request = self._waiter.comm.Iallreduce(self._votes, self._total)

    def after(self, iteration: int) -> int:
        """What to do now that `iteration` (from 1, over all stages) is done; the same on all ranks."""
        if not self.active:
            return CONTINUE
        if self._request is not None:
            self._waiter.all([self._request], "the other ranks to finish an iteration")
            self._request = None
        if self._total[1]:
            return STOP
        if self._total[0] or (self._every and iteration % self._every == 0):
            return SAVE
        return CONTINUE

    def saved(self) -> None:
        """A checkpoint was written: a request for one is fulfilled."""
        self._saved_at = time.monotonic()
        if self._asked == SAVE:
            self._asked = CONTINUE
