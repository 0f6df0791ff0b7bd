"""A training run, and what it holds between iterations.

    mpirun -n 2 python held.py 1000,2000 ARGUMENTS OF pdadmm.run

Prints one line a rank, in JSON: after each of these iterations the bytes that the rank's trainer leads to,
and how many objects Python's collector knows.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from pdadmm.admm import command
from pdadmm.admm.trainer import Trainer
from pdadmm.comm.waiter import Waiter
from pdadmm.runtime.launch import main_under_mpi

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import held_bytes

AT = [int(word) for word in sys.argv.pop(1).split(",")]


class Watched(Trainer):
    """Measures what it leads to after some iterations."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.found: list[tuple[int, int]] = []
        after = self.control.after

        def measure(iteration: int) -> int:
            if iteration in AT:
                gc.collect()
                self.found.append((held_bytes(self), len(gc.get_objects())))
            return after(iteration)

        self.control.after = measure  # type: ignore[method-assign]


def train(waiter: Waiter, arguments: list[str]) -> None:
    trainers: list[Watched] = []

    def make(*arguments: Any, **keywords: Any) -> Watched:
        trainers.append(Watched(*arguments, **keywords))
        return trainers[0]

    command.Trainer = make  # type: ignore[assignment, misc]
    command.train(waiter, arguments)
    sys.stdout.write(json.dumps(trainers[0].found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main_under_mpi(train))
