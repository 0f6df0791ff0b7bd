"""Do two versions of pdadmm compute the same iterates, bit for bit?

Record the iterates of one version, then compare another with them::

    BEFORE/.venv/bin/python benchmarks/same_iterates.py FILE.h5 --record before.json
    .venv/bin/python benchmarks/same_iterates.py FILE.h5 --compare before.json

A run's iterates are its metrics.jsonl without seconds and its model's weights. Every codec runs with
both solvers, with step lengths row by row, and with the authors' doubling, on 1, 3 and 10 ranks of a network
of 10 layers. Exit code 1, and the runs that differ, when any does.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py

CODECS = (("float32", 32), ("grid", 8), ("affine", 4), ("delta", 4), ("delta", 2), ("delta", 1))
METHODS = (("gradient", "exact"), ("exact", "exact"), ("gradient", "row"), ("gradient", "doubling"))
RANKS = (1, 3, 10)


def iterates(features: str, ranks: int, options: list[str]) -> str:
    """Digest of a run's metrics without seconds, and of its weights; or how the run failed."""
    python = Path(sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [
            str(python.with_name("mpirun")),
            "-n",
            str(ranks),
            str(python),
            "-m",
            "pdadmm.run",
            features,
        ]
        done = subprocess.run(
            [*command, *options, "--out", str(out), "--quiet"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            return f"exit {done.returncode}: {last.split(': ', 2)[-1]}"
        digest = hashlib.sha256()
        for line in (out / "metrics.jsonl").read_text().splitlines():
            record = {key: value for key, value in json.loads(line).items() if not key.startswith("seconds")}
            digest.update(json.dumps(record, sort_keys=True).encode())
        with h5py.File(out / "model.h5", "r") as file:
            for name in sorted(file):
                for part in ("W", "b"):
                    digest.update(file[name][part][...].tobytes())
        return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("features", metavar="FILE.h5")
    parser.add_argument("--record", metavar="FILE.json")
    parser.add_argument("--compare", metavar="FILE.json")
    parser.add_argument("--ranks", type=int, action="append", help="only these numbers of ranks")
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    features = str(Path(options.features).resolve())
    before = json.loads(Path(options.compare).read_text()) if options.compare else {}
    found: dict[str, str] = {}
    different = 0
    for (codec, bits), (solver, step), ranks in itertools.product(CODECS, METHODS, options.ranks or RANKS):
        name = f"{codec} {bits}, {solver} {step}, {ranks} ranks"
        found[name] = iterates(
            features,
            ranks,
            [
                *("--layers", "10", "--stages", "2,5,10", "--iterations", str(options.iterations)),
                *("--codec", codec, "--bits", str(bits), "--solver", solver, "--step", step),
                *("--eval-every", "5", "--threads", "1"),
            ],
        )
        if before and before.get(name) != found[name]:
            different += 1
            print(f"differs: {name}: {found[name]}, before {before.get(name)}", flush=True)
    if options.record:
        Path(options.record).write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} runs" + (f", {different} differ" if before else ""))
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
