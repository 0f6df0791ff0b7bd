"""Kills a random rank of a training again and again: is the right one named, and what stays behind?

    python tests/programs/kill_rank.py FEATURES.h5 FOLDER [--ranks 8] [--times 50] [--seed 0]

Prints a JSON object a kill: the rank killed, the ranks named, the lines, what is new in /dev/shm.
Run it where nobody else starts MPI jobs, or in a mount namespace with a /dev/shm of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 60.0


def shared_memory() -> set[str]:
    """Names of segments of MPI libraries."""
    return {name for name in os.listdir("/dev/shm") if re.match("mpich_shm_|ucx_shm_", name)}


def ranks_of(mpirun: int) -> dict[int, int]:
    """Processes of the ranks that an mpirun has started, by rank."""
    parents, found = {mpirun}, {}
    for _ in range(2):  # mpirun, its proxy, the ranks
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent not in parents or int(folder.name) in parents:
                    continue
                variables = (folder / "environ").read_text().split("\0")
            except (OSError, ValueError):
                continue
            rank = next((int(v.partition("=")[2]) for v in variables if v.startswith("PMI_RANK=")), None)
            if rank is None:
                parents.add(int(folder.name))
            else:
                found[rank] = int(folder.name)
    return found


def kill_once(features: Path, folder: Path, ranks: int, draw: random.Random) -> dict[str, object]:
    """Start a training, kill one of its ranks some time after the first record; returns what happened."""
    before = shared_memory()
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [mpirun, "-n", ranks, sys.executable, "-m", "pdadmm.run", features, "--layers", ranks]
    command += ["--hidden", 16, "--iterations", 1000000, "--eval-every", 5, "--quiet", "--out", folder]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        limit, metrics = time.monotonic() + LIMIT, folder / "metrics.jsonl"
        while not metrics.exists() or not metrics.stat().st_size:
            if process.poll() is not None or time.monotonic() > limit:
                raise AssertionError(f"the training did not start: {process.communicate()[1]}")
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.1))
        victim = draw.randrange(ranks)
        os.kill(ranks_of(process.pid)[victim], signal.SIGKILL)
        err = process.communicate(timeout=LIMIT)[1]
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    limit = time.monotonic() + 2  # names are removed as the last rank goes
    while shared_memory() - before and time.monotonic() < limit:
        time.sleep(0.02)
    lines = [line for line in err.splitlines() if line.startswith("pdadmm: ")]
    named = [int(rank) for rank in re.findall(r"pdadmm: rank (\d+), .*died without a word", err)]
    return {"victim": victim, "named": named, "lines": lines, "left": sorted(shared_memory() - before)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("features", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    right = 0
    for _ in range(options.times):
        found = kill_once(options.features, options.folder, options.ranks, draw)
        right += found["named"] == [found["victim"]] and len(found["lines"]) == 1 and not found["left"]
        print(json.dumps(found), flush=True)
    print(f"{right} of {options.times} right", file=sys.stderr)
    return 0 if right == options.times else 1


if __name__ == "__main__":
    sys.exit(main())
