"""What the always-on accounts cost: iterations with and without them, in turn, in one process.

    python benchmarks/accounting.py FILE.h5 [--layers 4] [--hidden 500] [--pairs 20] [--json FILE]

Of a long stage every eighth iteration is noted. Every second block of eight runs with a clock that notes
nothing; the medians of the blocks are compared, of processor time, so that other processes on the
machine do not count. Start it with one BLAS thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

from pdadmm.admm import options as configuration
from pdadmm.admm.command import open_features, resolve
from pdadmm.admm.stage import Plan, Stage
from pdadmm.admm.trainer import Sizes, Trainer
from pdadmm.comm.waiter import Waiter
from pdadmm.files import write_json
from pdadmm.trace.clock import Clock

#: iterations of which one is noted
BLOCK = 8


class Silent(Clock):
    """A clock that notes nothing."""

    def begin_iteration(self, iteration: int, now: int = 0) -> None: ...

    def part(self, name: str, layer: int) -> None: ...

    def lap(self, phase: str, layer: int, now: int = 0) -> None: ...

    def message(self, kind: str, name: str, sequence: int, start: int, now: int = 0) -> None: ...

    def end_iteration(self, layer: int, now: int = 0) -> None: ...


def use(stage: Stage, clock: Clock) -> None:
    """Let a stage, its layers and its couplings note into `clock`."""
    stage.clock = clock
    for layer in stage.layers:
        layer.clock = clock
    for end in stage.couplings:
        end._clock = clock


def note_a_layer(clock: Clock, sequence: int) -> None:
    """What a layer with neighbours on both sides notes in an iteration."""
    clock.part("p", 1)
    for phase in ("products", "wait", "updates", "wait", "products", "updates", "send", "updates"):
        if phase == "send" or phase == "wait":
            clock.message("sent", "q 1", sequence, 0)
        clock.lap(phase, 1)
    clock.part("W", 1)
    for phase in ("products", "products", "updates"):
        clock.lap(phase, 1)
    clock.part("z", 1)
    for phase in ("wait", "updates", "send", "updates"):
        if phase == "send" or phase == "wait":
            clock.message("sent", "q 1", sequence, 0)
        clock.lap(phase, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=20, help="of blocks of 8 iterations")
    parser.add_argument("--json")
    o = parser.parse_args()
    options = [o.features, "--layers", str(o.layers), "--stages", str(o.layers), "--hidden", str(o.hidden)]
    config = configuration.parse(options)
    resolve(config, 1)
    with open_features(config.features) as features:
        sizes = Sizes.of(features)
    trainer = Trainer(config, sizes, lambda: open_features(config.features), Waiter(MPI.COMM_SELF))
    plan = Plan(o.layers, o.layers, trainer.blocks, 0)
    trainer.layers = {position: trainer._new_layer(position) for position in plan.mine}
    if trainer.in_row_space:
        X = trainer.splits["train"].x
        assert X is not None
        trainer.layers[1].keep_in_row_space(X)
    stage = Stage(plan, list(trainer.layers.values()), trainer.waiter, trainer.clock)
    train = trainer.splits["train"]
    t = config.training
    stage.start(train.x, train.y, train.rows, trainer._codec, trainer.hyper, trainer.passes, t.seed)
    clocks: tuple[Clock, Clock] = (Clock(), Silent())
    seconds: tuple[list[float], list[float]] = ([], [])
    for block in range(4, 2 * o.pairs + 4):
        # the order within a pair alternates, so that neither always follows the other
        which = (block + block // 2) % 2
        use(stage, clocks[which])
        start = time.process_time()
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            stage.iterate(i, False)
        seconds[which].append((time.process_time() - start) / BLOCK)
    noted, silent = (statistics.median(values) for values in seconds)
    least = min(seconds[0]) / min(seconds[1]) - 1
    clock, times = Clock(), 5000
    start = time.process_time()
    for i in range(times):
        clock.begin_iteration(10)
        note_a_layer(clock, i)
        clock.end_iteration(1)
    alone = (time.process_time() - start) / times
    found: dict[str, Any] = {
        "nodes": train.rows,
        "layers": o.layers,
        "hidden": o.hidden,
        "seconds_with": noted,
        "seconds_without": silent,
        "overhead_of_medians": noted / silent - 1,
        "overhead_of_least": least,
        "seconds_of_notes_per_layer": alone,
        "notes_over_iteration": alone * o.layers / silent / BLOCK,
    }
    print(found)
    if o.json:
        write_json(Path(o.json), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
