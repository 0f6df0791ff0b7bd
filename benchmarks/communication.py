"""Bytes, accuracy and time by codec: the communication figure of the pdADMM-G-Q paper, and beyond it.

    python benchmarks/communication.py FILE.h5 [FILE.h5 ...] [--seeds 5] [--hidden 1000] [--layers 10]
        [--stages 2,5,10] [--iterations 100] [--codecs float32,grid8,...] [--json FILE] [--svg FILE]

FILEs are prepared features of Citeseer, Amazon Computers and Coauthor CS (or any others). Several
files of one data set are drawn splits: seed i runs on the i-th, modulo their number. Every run
takes the data set's preset. It trains on one rank: bytes and accuracy do not depend on the number
of ranks. Runs that are already in the JSON file are not made again.

The paper's own reductions, Wang et al., TNNLS 2022 (arXiv 2105.09837): its figure shows 22.6 %,
28.3 % and 27.9 % for 8 bits of p and q, its text says up to 45 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import h5py
from rich.console import Console
from rich.table import Table

from pdadmm.files import write_json
from pdadmm.profile.svg import bars, standalone

CODECS = ("float32", "grid8", "affine8", "affine4", "affine2", "delta8", "delta4", "delta2", "delta1")
#: reduction in the paper's figure, 8 bits of p and q
PAPER = {"citeseer": 0.226, "amazon-computers": 0.283, "coauthor-cs": 0.279}


def dataset_of(path: str) -> str:
    """Name of the data set in a prepared file."""
    with h5py.File(path) as file:
        return str(file.attrs["dataset"])


def train(path: str, codec: str, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    """Summary of one run."""
    name = codec.rstrip("0123456789") if codec != "float32" else codec
    bits = codec[len(name) :]
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--layers": o.layers,
            "--stages": o.stages,
            "--hidden": o.hidden,
            "--iterations": o.iterations,
            "--eval-every": o.iterations,
            "--seed": seed,
            "--codec": name,
            "--out": folder,
        }
        if bits:
            options["--bits"] = bits
        arguments = [str(word) for pair in options.items() for word in pair]
        command = [sys.executable, "-m", "pdadmm.run", path, "--quiet", *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    return found


def table_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, by data set and codec."""
    groups = defaultdict(list)
    for result in results:
        groups[result["dataset"], result["codec"]].append(result)
    rows = []
    for (dataset, codec), runs in groups.items():
        accuracy = [run["test_accuracy"] for run in runs]
        size, plain = runs[0]["bytes_per_iteration"], runs[0]["float32_bytes_per_iteration"]
        rows.append(
            {
                "dataset": dataset,
                "codec": codec,
                "seeds": len(runs),
                "bytes_per_iteration": size,
                "reduction": 1 - size / plain,
                "paper": PAPER.get(dataset) if codec == "grid8" else None,
                "test_accuracy": fmean(accuracy),
                "deviation": stdev(accuracy) if len(accuracy) > 1 else 0.0,
                "seconds_per_iteration": fmean(run["seconds_iterations"] / run["iterations"] for run in runs),
            }
        )
    order = {codec: i for i, codec in enumerate(CODECS)}
    return sorted(rows, key=lambda row: (row["dataset"], order.get(row["codec"], len(order))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE.h5")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--stages", default="2,5,10")
    parser.add_argument("--iterations", type=int, default=100, help="of every stage")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--json", default="benchmarks/results/communication.json")
    parser.add_argument("--svg", metavar="FILE", help="write the plot there")
    o = parser.parse_args()
    files: dict[str, list[str]] = defaultdict(list)
    for path in o.files:
        files[dataset_of(path)].append(path)
    out = Path(o.json)
    results: list[dict[str, Any]] = json.loads(out.read_text())["results"] if out.exists() else []
    keys = ("dataset", "codec", "seed", "hidden", "layers", "per_stage")
    done = {tuple(result[key] for key in keys) for result in results}
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    for seed, (dataset, paths), codec in itertools.product(
        range(o.seeds), files.items(), o.codecs.split(",")
    ):
        key = dict(zip(keys, (dataset, codec, seed, o.hidden, o.layers, o.iterations), strict=True))
        if tuple(key.values()) in done:
            continue
        try:
            summary = train(paths[seed % len(paths)], codec, seed, o)
        except subprocess.CalledProcessError as error:
            print(f"{key}: {error.stderr.strip()[-500:]}", file=sys.stderr)
            continue
        kept = (
            "test_accuracy", "val_accuracy", "bytes_per_iteration", "float32_bytes_per_iteration",
            "seconds_iterations", "iterations", "nodes_train",
        )  # fmt: skip
        results.append({**key, **{name: summary[name] for name in kept}})
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"benchmark": "communication", "results": results})
        print(f"{dataset} {codec} seed {seed}: test {summary['test_accuracy']:.3f}", flush=True)
    show(table_rows(results), o.svg)
    return 0


def show(rows: list[dict[str, Any]], svg: str | None) -> None:
    """Print the table; draw the bytes."""
    table = Table(title="communication by codec")
    for column in (
        "data set",
        "codec",
        "bytes/iteration",
        "reduction",
        "paper",
        "test accuracy",
        "s/iteration",
    ):
        table.add_column(column, justify="right" if column not in ("data set", "codec") else "left")
    for row in rows:
        table.add_row(
            row["dataset"],
            row["codec"],
            f"{row['bytes_per_iteration']:,}",
            f"{row['reduction']:.1%}",
            f"{row['paper']:.1%}" if row["paper"] else "",
            f"{row['test_accuracy']:.3f} ± {row['deviation']:.3f} ({row['seeds']})",
            f"{row['seconds_per_iteration']:.3f}",
        )
    Console(width=110).print(table)
    if svg:
        datasets = list(dict.fromkeys(row["dataset"] for row in rows))
        codecs = [codec for codec in CODECS if any(row["codec"] == codec for row in rows)]
        size = {(row["dataset"], row["codec"]): 1 - row["reduction"] for row in rows}
        series = [(dataset, [size.get((dataset, codec)) for codec in codecs]) for dataset in datasets]
        chart = bars(
            "bytes by codec", codecs, series, "bytes an iteration, of float32's", lambda v: f"{v:.1%}", False
        )
        Path(svg).write_text(standalone(chart))


if __name__ == "__main__":
    sys.exit(main())
