"""GA-MLPs trained by ADMM beside graph networks on the same splits: accuracy, bytes, seconds to accuracy.

    python benchmarks/both_systems.py --raw DIR[:DIR] --work DIR [--datasets cora,...] [--seeds 0-2]
        [--methods admm4,admm2,gcn,sage] [--rates 0.01,0.003,0.001] [--epochs 200] [--class-prior train]
        [--json FILE.jsonl]
    python benchmarks/both_systems.py --table [--json FILE.jsonl]

Every run is of the commands with their defaults, but for --class-prior, on 2 ranks of one thread: ``admmB``
is pdadmm.run on the data set's own operators and presets, 10 layers of 100, delta at B bits; ``gcn`` and
``sage`` are pdadmm.gnn.run with 3 layers of 256 on 2 parts, lean messages, --epochs epochs. A seed draws
the split where none is published, and the weights. The learning rate of a graph network is the one of --rates
with the best validation accuracy of the first seed. A test accuracy is that of the evaluated iterate that
is best on validation. What is in FILE is not run again.

Seconds are of iterations and epochs, up to the first evaluation whose validation accuracy is no more than a
point below that of the worst of the methods at its best, on that split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pdadmm.inputs.class_prior import CLASS_PRIORS

DATASETS = "cora,citeseer,amazon-computers,amazon-photo,coauthor-cs,coauthor-physics"
RESULTS = Path(__file__).parent / "results" / "both_systems.jsonl"
LAYERS, PARTS = 10, 2
NAMES = {"admm": "pdADMM-G, delta {} bits", "gcn": "GCN, lean", "sage": "GraphSAGE, lean"}


def run_python(*command: str | Path | int | float, ranks: int = 0) -> None:
    mpirun = [str(Path(sys.executable).parent / "mpirun"), "-n", str(ranks)] if ranks else []
    done = subprocess.run(
        [*mpirun, sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")


def prepared(o: argparse.Namespace, dataset: str, seed: int, graph: bool) -> Path:
    """The file of a split; made when it is not there."""
    path = Path(o.work) / f"{dataset}-{seed}{'-graph' if graph else ''}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        program = "pdadmm.gnn.prepare" if graph else "pdadmm.prepare"
        command: list[str | Path | int | float] = ["-m", program, dataset, "--seed", seed]
        planetoid = dataset in ("cora", "citeseer")
        for folder in filter(None, o.raw.split(":")):
            if planetoid == any(Path(folder).glob("ind.*")):
                command += ["--raw", folder]
        if graph:
            command += ["--parts", PARTS]
        run_python(*command, "--out", path)
    return path


def train(o: argparse.Namespace, dataset: str, method: str, seed: int, rate: float) -> dict[str, Any]:
    """A run: its evaluations (seconds, bytes, validation, test) and what it sends."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        common: list[str | Path | int | float] = ["--seed", seed, "--eval-every", 2, "--quiet", "--out", out]
        common += ["--class-prior", o.class_prior]
        if method.startswith("admm"):
            path = prepared(o, dataset, seed, graph=False)
            own: list[str | int | float] = ["--layers", LAYERS, "--bits", method.removeprefix("admm")]
            run_python("-m", "pdadmm.run", path, *own, *common, ranks=2)
        else:
            path = prepared(o, dataset, seed, graph=True)
            own = ["--model", method, "--lr", rate, "--epochs", o.epochs]
            run_python("-m", "pdadmm.gnn.run", path, *own, *common, ranks=2)
        summary = json.loads((out / "summary.json").read_text())
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluations, sent, before = [], 0.0, 0
    for record in records:
        if "layers" in record:  # every coupling of hidden layers sends as much
            share = (record["layers"] - 1) / (LAYERS - 1)
            sent += (record["iteration"] - before) * share * summary["bytes_per_iteration"]
            before = record["iteration"]
        else:
            sent = record["bytes"]
        evaluations.append([record["seconds"], round(sent), record["val_accuracy"], record["test_accuracy"]])
    return {"evaluations": evaluations, "seconds": evaluations[-1][0], "bytes": evaluations[-1][1]}


def best(run: dict[str, Any]) -> list[float]:
    """The evaluation with the best validation accuracy, the first of equal ones."""
    found: list[float] = max(run["evaluations"], key=lambda evaluation: evaluation[2])
    return found


def run_all(o: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    first, _, last = o.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    known = {(run["dataset"], run["method"], run["seed"], run["rate"]): run for run in runs}
    for dataset in o.datasets.split(","):
        for method in o.methods.split(","):
            rates = [0.0] if method.startswith("admm") else [float(rate) for rate in o.rates.split(",")]
            for seed in seeds:
                for rate in rates:
                    key = dataset, method, seed, rate
                    if key not in known:
                        found = train(o, dataset, method, seed, rate)
                        names = ("dataset", "method", "seed", "rate")
                        known[key] = {**dict(zip(names, key, strict=True)), **found}
                        with o.json.open("a") as file:
                            file.write(json.dumps(known[key]) + "\n")
                        shown = best(found)
                        print(
                            *key,
                            f"val {shown[2]:.4f} test {shown[3]:.4f} {found['seconds']:.1f} s",
                            flush=True,
                        )
                if seed == seeds[0]:
                    rates = [max(rates, key=lambda rate: best(known[dataset, method, seed, rate])[2])]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a row a data set and method."""
    lines = [
        "| data set | method | test accuracy | MB of the run | seconds of the run "
        "| to a common accuracy: seconds | MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for dataset in dict.fromkeys(run["dataset"] for run in runs):
        of_set = [run for run in runs if run["dataset"] == dataset]
        first = min(run["seed"] for run in of_set)
        chosen: dict[str, dict[int, dict[str, Any]]] = {}
        for method in dict.fromkeys(run["method"] for run in of_set):
            tried = [run for run in of_set if run["method"] == method]
            rate = max((run for run in tried if run["seed"] == first), key=lambda run: best(run)[2])["rate"]
            chosen[method] = {run["seed"]: run for run in tried if run["rate"] == rate}
        seeds = sorted(set.intersection(*(set(found) for found in chosen.values())))
        target = {seed: min(best(found[seed])[2] for found in chosen.values()) - 0.01 for seed in seeds}
        for method, found in chosen.items():
            of = [found[seed] for seed in seeds]
            tests = [100 * best(run)[3] for run in of]
            reached = [
                next(e for e in run["evaluations"] if e[2] >= target[run["seed"]] - 1e-9) for run in of
            ]
            kind = method.rstrip("0123456789")
            name = NAMES[kind].format(method.removeprefix(kind))
            if of[0]["rate"]:
                name += f", step {of[0]['rate']:g}"
            spread = f" ± {stdev(tests):.1f}" if len(tests) > 1 else ""
            lines.append(
                f"| {dataset} | {name} | {mean(tests):.1f}{spread} ({len(tests)}) "
                f"| {mean(run['bytes'] for run in of) / 1e6:.3g} | {mean(run['seconds'] for run in of):.3g} "
                f"| {mean(e[0] for e in reached):.2g} | {mean(e[1] for e in reached) / 1e6:.2g} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raw", default="", help="folders of the raw files, separated by colons")
    parser.add_argument("--work", default="both", help="where prepared files are kept")
    parser.add_argument("--datasets", default=DATASETS)
    parser.add_argument("--methods", default="admm4,admm2,gcn,sage")
    parser.add_argument("--seeds", default="0-2", help="first-last")
    parser.add_argument("--rates", default="0.01,0.003,0.001", help="learning rates tried for graph networks")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--class-prior", choices=CLASS_PRIORS, default="train", help="of all runs in --json")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    o = parser.parse_args()
    runs = [json.loads(line) for line in o.json.read_text().splitlines()] if o.json.exists() else []
    if not o.table:
        run_all(o, runs)
        runs = [json.loads(line) for line in o.json.read_text().splitlines()]
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
