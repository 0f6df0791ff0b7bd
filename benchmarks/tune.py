"""Sweep training options on prepared features and rank them by validation accuracy.

    python benchmarks/tune.py FILE.h5 [FILE.h5 ...] --sweep NAME VALUE [VALUE ...] [--sweep ...]
        [--seeds 0,1,2] [--drop-half] [--json FILE] [--top 10] [-- OPTIONS OF pdadmm.run]

Every combination of the swept values is trained with every seed, on one rank in this process, and
ranked by the mean validation accuracy of the final iterate (ties: by the mean validation loss).
Test accuracy is recorded but has no say. For instance, on Cora:

    python benchmarks/tune.py data/cora.h5 --sweep nu 1e-3 1e-2 1e-1 --sweep rho 1nu 10nu \\
        --sweep codec float32 delta --seeds 0,1,2 --json cora.jsonl -- --layers 10 --iterations 50

A value such as ``10nu`` is ten times the run's nu. Several files are drawn splits of one data set: seed i
then runs on the i-th file, modulo their number. ``--drop-half`` runs all combinations with the first
seed and after each seed keeps only the better half, but at least three. Lines already in the JSON
file are not run again, so a sweep that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from mpi4py import MPI

from pdadmm.admm import command
from pdadmm.admm import options as configuration
from pdadmm.admm.trainer import Sizes, Trainer, largest_product
from pdadmm.comm.waiter import Waiter
from pdadmm.datasets.registry import SPLITS
from pdadmm.errors import InputError, RunError
from pdadmm.runtime.threads import set_threads

FIGURES = ("val_accuracy", "val_loss", "test_accuracy", "train_accuracy", "objective", "primal_residual")


class Cached:
    """Features of one file, read once and lent to every run; what Trainer wants of opened features."""

    def __init__(self, path: str) -> None:
        self.path = path
        with command.open_features(path) as features:
            self.sizes = Sizes.of(features)
            self._x = {name: features.x(name) for name in SPLITS}
            self._y = {name: features.y(name) for name in SPLITS}

    def __enter__(self) -> Cached:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def x(self, split: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._x[split][start:stop]

    def y(self, split: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._y[split][start:stop]


def train(features: Cached, options: dict[str, str], fixed: list[str], seed: int) -> dict[str, Any]:
    """Figures of the final iterate of one run; a run that diverges has validation accuracy 0."""
    options = dict(options)
    arguments = [*([features.path] if features.path else []), *fixed, "--seed", str(seed)]
    for name, value in options.items():
        arguments += ["--" + name, value]
    if "--eval-every" not in fixed:  # at the end of every stage only
        arguments += ["--eval-every", "1000000"]
    config = configuration.parse(_resolve_multiples(arguments), command.preset)
    command.resolve(config, 1)
    threads = set_threads(config.run, MPI.COMM_SELF, largest_product(config, features.sizes))
    started = time.perf_counter()
    record: dict[str, Any] = {"seed": seed, "options": options, "fixed": fixed, "file": features.path}
    records: list[dict[str, Any]] = []
    waiter = Waiter(MPI.COMM_SELF)
    try:
        lend: Any = lambda: features  # noqa: E731  (which has what Trainer asks of features)
        Trainer(config, features.sizes, lend, waiter, progress=records.append, threads=threads).run()
    except RunError as error:
        record.update(dict.fromkeys(FIGURES, 0.0), val_loss=math.inf, failed=str(error))
    else:
        record.update({name: records[-1][name] for name in FIGURES})
        ends = [r for r, after in zip(records, [*records[1:], None], strict=True)
                if after is None or after["stage"] != r["stage"]]  # fmt: skip
        record["stages"] = [[r["layers"], r["val_accuracy"], r["test_accuracy"]] for r in ends]
    record["seconds"] = round(time.perf_counter() - started, 2)
    return record


def _resolve_multiples(arguments: list[str]) -> list[str]:
    """Replace values such as 10nu by that multiple of the value given for --nu."""
    nu = next((float(b) for a, b in reversed(list(itertools.pairwise(arguments))) if a == "--nu"), None)
    resolved = []
    for name, text in itertools.pairwise(["", *arguments]):
        if name in ("--rho", "--mu") and text.endswith("nu"):
            if nu is None:
                raise InputError(f"{name} {text}: --nu is not given")
            text = repr(float(text[:-2] or "1") * nu)
        resolved.append(text)
    return resolved


def ranked(records: list[dict[str, Any]]) -> list[tuple[dict[str, str], list[dict[str, Any]]]]:
    """Records by combination; most seeds first, then best mean validation accuracy, then lowest loss."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(json.dumps(record["options"]), []).append(record)

    def order(runs: list[dict[str, Any]]) -> tuple[float, float, float]:
        return (
            -len(runs),
            -round(mean(r["val_accuracy"] for r in runs), 6),
            mean(r["val_loss"] for r in runs),
        )

    return [(runs[0]["options"], runs) for runs in sorted(groups.values(), key=order)]


def _spread(values: list[float]) -> float:
    """Standard deviation of the runs; 0 of a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def table(records: list[dict[str, Any]], top: int) -> str:
    """The best combinations, a line each."""
    lines = [f"{'validation':>13} {'loss':>8} {'test':>13} {'train':>6} {'primal':>9} {'s':>6}  n  options"]
    for options, runs in ranked(records)[:top]:
        val, test = ([100 * r[name] for r in runs] for name in ("val_accuracy", "test_accuracy"))
        lines.append(
            f"{mean(val):6.2f} ± {_spread(val):4.2f} {mean(r['val_loss'] for r in runs):8.4f} "
            f"{mean(test):6.2f} ± {_spread(test):4.2f} {100 * mean(r['train_accuracy'] for r in runs):6.1f} "
            f"{mean(r['primal_residual'] for r in runs):9.2e} {mean(r['seconds'] for r in runs):6.1f} "
            f"{len(runs):2d}  " + " ".join(f"{name}={value}" for name, value in options.items())
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    fixed: list[str] = []
    if "--" in given:
        split = given.index("--")
        given, fixed = given[:split], given[split + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE.h5", help="none: the embedded data set")
    parser.add_argument("--sweep", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--drop-half", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--top", type=int, default=10)
    options = parser.parse_args(given)
    seeds = [int(text) for text in options.seeds.split(",")]
    names = [sweep[0] for sweep in options.sweep]
    combinations = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(s[1:] for s in options.sweep))
    ]
    np.seterr(all="ignore")

    known: dict[str, dict[str, Any]] = {}

    def key(record: dict[str, Any]) -> str:
        return json.dumps([record[k] for k in ("file", "fixed", "options", "seed")])

    if options.json and options.json.exists():
        for line in options.json.read_text().splitlines():
            record = json.loads(line)
            known[key(record)] = record

    files = options.files or [""]
    records: list[dict[str, Any]] = []
    alive = combinations
    loaded: Cached | None = None
    for seed_index, seed in enumerate(seeds):
        path = files[seed_index % len(files)]
        for combination in alive:
            wanted = key({"file": path, "fixed": fixed, "options": combination, "seed": seed})
            if wanted not in known:
                if loaded is None or loaded.path != path:
                    loaded = Cached(path)
                known[wanted] = train(loaded, combination, fixed, seed)
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    with options.json.open("a") as file:
                        file.write(json.dumps(known[wanted]) + "\n")
            records.append(known[wanted])
        if options.drop_half and seed_index + 1 < len(seeds):
            best = ranked([r for r in records if r["options"] in alive])
            alive = [found for found, _ in best[: max(3, math.ceil(len(best) / 2))]]
    print(table(records, options.top))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"tune: {error}", file=sys.stderr)
        sys.exit(2)
