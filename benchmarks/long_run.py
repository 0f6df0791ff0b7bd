"""Seconds an iteration and memory of every rank along a run of many iterations.

    python benchmarks/long_run.py [--iterations 100000] [--ranks 1,2] [--nodes 300] [--layers 4] [--hidden 8]
        [--options "--trace ..."] [--out FILE.json]

The program itself trains a small network on random features, where everything but computing counts
most; between two of its iterations each rank reads its clocks and its resident memory, up to a thousand
times in all. Right after that it iterates a network of its own, always from the same state of its accounts,
which is a yardstick for how fast the machine is at that time, shared with others. Every tenth of the run
gives medians of the wall time, the processor time, and the latter over that of the yardstick. The last
tenth over the first, and the memory at the end over that after the first hundredth, are what should be 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from gpu_check import find_mpirun
from networks import write_random_features

from pdadmm.admm import command
from pdadmm.admm.stage import Stage
from pdadmm.bench.iteration import Variant, make_stage
from pdadmm.comm.waiter import Waiter
from pdadmm.files import write_json
from pdadmm.runtime.control import Control
from pdadmm.runtime.launch import main_under_mpi

PARTS, POINTS = 10, 1000
#: iterations between two points, at least
EVERY = 10
#: of an iteration, medians of a part; the last one is a ratio
TIMES = ("seconds", "processor_seconds", "relative")
#: iterations of the yardstick at a time
BESIDE = 20
#: of the run, in which buffers are filled and libraries loaded
BEGINNING = 0.01


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch(Control):
    """The control of a run, which reads clocks and memory between iterations."""

    every = 1
    points: ClassVar[list[dict[str, float]]] = []
    _begun: tuple[float, float] | None = None

    def after(self, iteration: int) -> int:
        verdict = super().after(iteration)
        if iteration % self.every == 0:
            now = time.perf_counter(), time.process_time()
            beside = self._yardstick()
            if self._begun is not None:
                wall, processor = ((b - a) / self.every for a, b in zip(self._begun, now, strict=True))
                times = dict(zip(TIMES, (wall, processor, processor / beside), strict=True))
                self.points.append({"iteration": iteration, **times, "resident_bytes": resident()})
            self._begun = time.perf_counter(), time.process_time()
        return verdict

    @cached_property
    def _stage(self) -> Stage:
        return make_stage(
            Variant("fused", "delta", 4, "gradient"), 300, 8, 4, 1, 40, np.random.default_rng(0)
        )

    def _yardstick(self) -> float:
        """Processor seconds of an iteration of another network, as early in a stage each time."""
        self._stage.clock.begin_stage()
        start = time.process_time()
        for iteration in range(BESIDE):
            self._stage.iterate(iteration, False)
        return (time.process_time() - start) / BESIDE


def watch(arguments: list[str], iterations: int, out: Path) -> int:
    """Train with what `python -m pdadmm.run` takes, and leave this rank's points as `out`-RANK.json."""
    Watch.every = max(EVERY, iterations // POINTS)

    def train(waiter: Waiter, given: list[str]) -> None:
        command.train(waiter, given)
        write_json(out.with_name(f"{out.name}-{waiter.comm.rank}.json"), {"points": Watch.points})

    with mock.patch.object(command, "Control", Watch):
        return main_under_mpi(train, arguments)


def in_parts(points: list[dict[str, float]], iterations: int) -> dict[str, Any]:
    """Medians of every part of a rank's run, and what grew."""
    parts: list[dict[str, float]] = []
    for part in range(PARTS):
        first, last = part * iterations // PARTS, (part + 1) * iterations // PARTS
        mine = [point for point in points if first < point["iteration"] <= last]
        times = {name: statistics.median(point[name] for point in mine) for name in TIMES}
        parts.append({"iterations": last, **times, "resident_bytes": mine[-1]["resident_bytes"]})
    begun = next(p for p in points if p["iteration"] >= BEGINNING * iterations)["resident_bytes"]
    growth = {f"growth_of_{name}": parts[-1][name] / parts[0][name] - 1 for name in TIMES}
    memory = points[-1]["resident_bytes"] / begun - 1
    return {"parts": parts, "resident_bytes_begun": begun, **growth, "growth_of_memory": memory}


def measure(o: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """A run on so many ranks, each by itself."""
    with tempfile.TemporaryDirectory() as folder:
        features, points = Path(folder) / "random.h5", Path(folder) / "points"
        write_random_features(features, o.nodes, o.columns)
        options = f"--layers {o.layers} --stages {o.layers} --hidden {o.hidden} --iterations {o.iterations} "
        options += f"--eval-every {max(1, o.iterations // 100)} --threads 1 --quiet"
        given = [str(features), *options.split(), *shlex.split(o.options), "--out", f"{folder}/run"]
        launch = [find_mpirun() or "mpirun", "-n", str(ranks)] if ranks > 1 else []
        me = [sys.executable, __file__, "--iterations", str(o.iterations), "--watch", str(points)]
        subprocess.run([*launch, *me, "--", *given], check=True)
        files = [points.with_name(f"points-{rank}.json") for rank in range(ranks)]
        found = [in_parts(json.loads(file.read_text())["points"], o.iterations) for file in files]
    return {
        "ranks": ranks,
        **{name: getattr(o, name) for name in ("iterations", "nodes", "layers", "hidden", "options")},
        "by_rank": found,
    }


def show(result: dict[str, Any]) -> None:
    """A line a part, and what grew, of every rank."""
    for rank, found in enumerate(result["by_rank"]):
        print(
            f"rank {rank} of {result['ranks']}: iterations; us an iteration, of the processor, relative; MB"
        )
        for part in found["parts"]:
            wall, processor, relative = (part[name] for name in TIMES)
            times = f"{1e6 * wall:10.1f}{1e6 * processor:10.1f}{relative:8.3f}"
            print(f"  {part['iterations']:>9,}{times}{part['resident_bytes'] / 1e6:10.1f}")
        grown = [f"{found[f'growth_of_{name}']:+.1%}" for name in (*TIMES, "memory")]
        print(f"  grown by {', '.join(grown)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=100_000)
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, one run each")
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--columns", type=int, default=40, help="of the features")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=8)
    parser.add_argument("--options", default="", help="more of them for pdadmm.run, as one word")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("run", nargs="*", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.iterations < 10 * PARTS * EVERY:
        parser.error(f"--iterations {o.iterations}: too few to compare; give {10 * PARTS * EVERY} or more")
    if o.watch:
        return watch(o.run, o.iterations, o.watch)
    results = []
    for ranks in (int(word) for word in o.ranks.split(",")):
        results.append(measure(o, ranks))
        show(results[-1])
    if o.out:
        write_json(o.out, {"results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
