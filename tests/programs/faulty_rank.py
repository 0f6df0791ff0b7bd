"""Runs pdadmm.run with a fault in a rank (-1: in all): faulty_rank.py KIND RANK ITERATION OPTIONS…

The time of the fault, seconds since the epoch, is left in the file that $FAULT_TIME names.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.admm import trainer
from pdadmm.admm.stage import Stage
from pdadmm.run import main
from pdadmm.runtime import checkpoint


def _later(seconds: float, number: int) -> None:
    def send() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def _fault(kind: str, stage: Stage) -> None:
    if "FAULT_TIME" in os.environ:
        Path(os.environ["FAULT_TIME"]).write_text(str(time.time()))
    if kind == "kill":  # anywhere in this iteration, its evaluation, its checkpoint or before the next
        _later(random.uniform(0, 0.03), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "raise":
        raise ZeroDivisionError("injected")
    elif kind == "nan":
        stage.layers[-1].z[0, 0] = np.nan
        stage.layers[-1].M[0, 0] = np.nan
    elif kind == "memory":
        np.empty((1 << 40, 1 << 10), np.float32)
    elif kind == "disk":  # a file may grow to a kilobyte, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    elif kind == "diverge":
        trainer.DIVERGED = 1e-9
    elif kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "usr1":
        os.kill(os.getpid(), signal.SIGUSR1)
    elif kind == "term-twice":  # the second while the checkpoint is written
        checkpoint._write_rank = lambda *_: time.sleep(60)  # type: ignore[assignment,return-value]
        os.kill(os.getpid(), signal.SIGTERM)
        _later(2, signal.SIGTERM)


if __name__ == "__main__":
    kind, victim, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    iterations = itertools.count(1)
    original = Stage.iterate

    def iterate(self: Stage, *arguments: Any, **keywords: Any) -> Any:
        from mpi4py import MPI  # loaded by now, and not before the command forks its witness

        number = next(iterations)
        if victim in (-1, MPI.COMM_WORLD.rank):
            if number == at:
                _fault(kind, self)
            elif number == at + 1 and kind == "kill":  # a fast run does not end before it comes
                time.sleep(60)
        return original(self, *arguments, **keywords)

    Stage.iterate = iterate  # type: ignore[method-assign]
    sys.exit(main(sys.argv[4:]))
