"""Are the iterates the same, bit for bit: of two versions of pdadmm, or of one wherever it runs?

Record the iterates of one version, then compare another with them::

    BEFORE/.venv/bin/python benchmarks/same_iterates.py FILE.h5 --record before.json
    .venv/bin/python benchmarks/same_iterates.py FILE.h5 --compare before.json

or compare one version's on one rank and thread with those on several threads, ranks and shards::

    .venv/bin/python benchmarks/same_iterates.py FILE.h5 --placements [--hidden 500]

A run's iterates are its metrics.jsonl without seconds and its model's weights. Every codec runs with
both solvers, with step lengths row by row, and with the authors' doubling, of a network of 10 layers; two
versions on 1, 3 and 10 ranks. Shards have the same bits with --as-sharded, and without it from 2,048 training
nodes on where these outnumber all inputs; other files are compared without shards then. Exit code 1, and the
runs that differ, when any does.
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

from pdadmm.inputs.feature_file import FeatureFile

CODECS = (("float32", 32), ("grid", 8), ("affine", 4), ("delta", 4), ("delta", 2), ("delta", 1))
METHODS = (("gradient", "exact"), ("exact", "exact"), ("gradient", "row"), ("gradient", "doubling"))
RANKS = (1, 3, 10)
#: ranks, shards, threads; the first is what the others are compared with
PLACEMENTS = ((1, 1, 1), (1, 1, 2), (1, 1, 3), (3, 1, 1), (10, 1, 1), (2, 2, 1), (4, 4, 1), (6, 2, 2))
#: training nodes from which on shards change no bit, if these are more than the inputs
MANY = 2048


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


def run_options(codec: str, bits: int, solver: str, step: str, o: argparse.Namespace) -> list[str]:
    options = f"--layers 10 --stages 2,5,10 --eval-every 5 --iterations {o.iterations}"
    options += f" --codec {codec} --bits {bits} --solver {solver} --step {step}"
    return [*options.split(), *(["--hidden", str(o.hidden)] if o.hidden else [])]


def compare_placements(features: str, o: argparse.Namespace) -> tuple[int, int]:
    """Runs, and how many of them differ from one rank's."""
    with FeatureFile(features) as file:
        few = not o.as_sharded and (file.n_train < MANY or file.n_train <= file.num_features)
    runs = different = 0
    for (codec, bits), (solver, step) in itertools.product(CODECS, METHODS):
        options = run_options(codec, bits, solver, step, o)
        first = ""
        for ranks, shards, threads in PLACEMENTS:
            if shards > 1 and few:
                continue
            placed = ["--shards", str(shards), "--threads", str(threads)]
            placed += ["--as-sharded"] if o.as_sharded else []
            found = iterates(features, ranks, [*options, *placed])
            runs += 1
            if not first:
                first = found
                if found.startswith("exit"):
                    print(f"fails: {codec} {bits}, {solver} {step}: {found}", flush=True)
            if found != first:
                different += 1
                name = f"{codec} {bits}, {solver} {step}, {ranks} ranks, {shards} shards, {threads} threads"
                print(f"differs: {name}: {found}, on one rank {first}", flush=True)
    return runs, different


def compare_versions(features: str, o: argparse.Namespace) -> tuple[int, int]:
    """Runs, and how many of them differ from the other version's."""
    before = json.loads(Path(o.compare).read_text()) if o.compare else {}
    found: dict[str, str] = {}
    different = 0
    for (codec, bits), (solver, step), ranks in itertools.product(CODECS, METHODS, o.ranks or RANKS):
        name = f"{codec} {bits}, {solver} {step}, {ranks} ranks"
        options = run_options(codec, bits, solver, step, o)
        found[name] = iterates(features, ranks, [*options, "--threads", "1"])
        if before and before.get(name) != found[name]:
            different += 1
            print(f"differs: {name}: {found[name]}, before {before.get(name)}", flush=True)
    if o.record:
        Path(o.record).write_text(json.dumps(found, indent=1) + "\n")
    return len(found), different


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("features", metavar="FILE.h5")
    parser.add_argument("--record", metavar="FILE.json")
    parser.add_argument("--compare", metavar="FILE.json")
    parser.add_argument("--placements", action="store_true", help="compare threads, ranks and shards instead")
    parser.add_argument("--as-sharded", action="store_true", help="given to the runs of --placements")
    parser.add_argument("--ranks", type=int, action="append", help="only these numbers of ranks")
    parser.add_argument("--hidden", type=int, help="default: that of pdadmm.run")
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    features = str(Path(options.features).resolve())
    compare = compare_placements if options.placements else compare_versions
    runs, different = compare(features, options)
    print(f"{runs} runs, {different} differ" if options.placements or options.compare else f"{runs} runs")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
