"""Blocks of layers against shards of the nodes: seconds an iteration, those of the reductions, peak memory.

    python benchmarks/shards.py [--grids 1x1,2x1,1x2] [--nodes 20000] [--hidden 500] [--inputs 500]
        [--layers 4] [--step exact] [--iterations 9] [--rounds 2] [--mbit 0] [--json FILE]
    python benchmarks/shards.py --table [--json FILE]

A grid BxS is B blocks of layers times S shards of the nodes, on B * S ranks of one thread. A round runs every
grid once, in turn. With --mbit every rank is a host of its own, a network namespace with links of that rate
(hosts.py: Linux, root, iproute2), else all are on this machine. The features are random with class means.
Seconds are the median iteration of the slowest rank, delta 4 bits; memory is the largest of the ranks'
at its peak, with that of the interpreter and its libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from hosts import Hosts, reason_not_to
from networks import write_random_features

from pdadmm.files import write_json
from pdadmm.profile.figures import figures
from pdadmm.profile.load import load

RESULTS = Path(__file__).parent / "results" / "shards.json"
_SAME = ("nodes", "hidden", "inputs", "layers", "step", "mbit")


#: a rank of pdadmm.run that leaves in a folder the memory it took, and loads nothing that users' ranks do not
RANK = """
import atexit, os, resource, runpy, sys

def note(folder):
    with open(os.path.join(folder, f"peak.{os.getpid()}"), "w") as file:
        file.write(str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

atexit.register(note, sys.argv.pop(1))
runpy.run_module("pdadmm.run", run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def launcher(ranks: int, mbit: float) -> Iterator[Any]:
    """A function that runs Python with arguments on so many ranks."""
    if mbit:
        with Hosts(ranks, mbit * 1e6) as hosts:
            yield lambda *arguments: hosts.mpirun(*arguments, timeout=3600)
        return
    mpirun = str(Path(sys.executable).with_name("mpirun"))

    def here(*arguments: str | Path) -> None:
        command = [mpirun, "-n", str(ranks), sys.executable, *map(str, arguments)]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True, capture_output=True, text=True)

    yield here


def measure(o: argparse.Namespace, grid: str, features: Path) -> dict[str, Any]:
    """A run on a grid."""
    blocks, shards = map(int, grid.split("x"))
    with tempfile.TemporaryDirectory() as folder, launcher(blocks * shards, o.mbit) as start:
        options = (
            f"--layers {o.layers} --stages {o.layers} --hidden {o.hidden} --shards {shards} --step {o.step}"
        )
        options += f" --iterations {o.iterations} --eval-every {o.iterations} --threads 1 --quiet"
        out = Path(folder) / "run"
        start("-c", RANK, folder, features, *options.split(), "--out", out)
        profile = load(out)
        summary = json.loads((out / "summary.json").read_text())
        peaks = [int(path.read_text()) for path in Path(folder).glob("peak.*")]
    ranks = figures(profile, grid).ranks
    medians = [rank["stages"][-1]["iteration_seconds"]["median"] for rank in profile["ranks"]]
    return {
        "grid": grid,
        **{name: getattr(o, name) for name in _SAME},
        "seconds_per_iteration": max(medians),
        "seconds_reduction": max(rank.phases["reduction"] for rank in ranks),
        "seconds_waited": max(rank.phases["wait"] for rank in ranks),
        "bytes_per_iteration": summary["bytes_per_iteration"],
        "reduction_bytes_per_iteration": summary["reduction_bytes_per_iteration"],
        "peak_bytes": max(peaks),
        "train_accuracy": summary["train_accuracy"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row a grid, medians over its runs."""
    lines = [
        "| nodes x hidden x layers | step | Mbit/s | blocks x shards | s an iteration | of it sums "
        "| efficiency | MB of messages | MB of sums | peak GB a rank | of one rank's |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        runs.setdefault((*(result[name] for name in _SAME), result["grid"]), []).append(result)

    def of(key: tuple[Any, ...], name: str) -> float:
        return float(median(run[name] for run in runs[key]))

    for key in runs:
        nodes, hidden, inputs, layers, step, mbit, grid = key
        size = f"{nodes:,} x {hidden} x {layers}" + (f", {inputs} inputs" if inputs != hidden else "")
        one = next((other for other in runs if other[:4] == key[:4] and other[-1] == "1x1"), None)
        ranks = int(grid.split("x")[0]) * int(grid.split("x")[1])
        seconds, peak = of(key, "seconds_per_iteration"), of(key, "peak_bytes")
        efficiency = f"{of(one, 'seconds_per_iteration') / seconds / ranks:.2f}" if one else ""
        share = f"{peak / of(one, 'peak_bytes'):.2f}" if one else ""
        rate = f"{mbit:g}" if mbit else "-"
        lines.append(
            f"| {size} | {step} | {rate} | {grid} | {seconds:.3g} "
            f"| {of(key, 'seconds_reduction'):.3g} | {efficiency} "
            f"| {of(key, 'bytes_per_iteration') / 1e6:.1f} "
            f"| {of(key, 'reduction_bytes_per_iteration') / 1e6:.1f} | {peak / 1e9:.2f} | {share} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grids", default="1x1,2x1,1x2", help="blocks x shards")
    parser.add_argument("--nodes", type=int, default=20000, help="that train")
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--inputs", type=int, default=500, help="a multiple of 5")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--step", choices=("exact", "row"), default="exact")
    parser.add_argument("--iterations", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--mbit", type=float, default=0.0, help="rate of the links; 0: one machine")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    o = parser.parse_args()
    results = json.loads(o.json.read_text())["results"] if o.json.exists() else []
    if not o.table:
        reason = reason_not_to() if o.mbit else None
        if reason:
            print(f"skipped: {reason}")
            return 0
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        with tempfile.TemporaryDirectory() as folder:
            features = Path(folder) / "features.h5"
            write_random_features(features, o.nodes, o.inputs)
            for _ in range(o.rounds):
                for grid in o.grids.split(","):
                    results.append(measure(o, grid, features))
                    write_json(o.json, {"benchmark": "shards", "results": results})
                    shown = {k: v for k, v in results[-1].items() if k not in _SAME}
                    print(json.dumps(shown), flush=True)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
