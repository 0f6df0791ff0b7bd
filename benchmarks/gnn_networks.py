"""Seconds per epoch and exposed communication of graph networks on slow links, by scheme of messages.

    python benchmarks/gnn_networks.py [--mbit 100,1000] [--parts 2,4] [--messages float32,adaqp,lean]
        [--json FILE] [--nodes 60000] [--degree 30] [--features 100] [--communities 64] [--graph FILE.npz]

Hosts are network namespaces on this machine (see hosts.py): Linux, root and iproute2 are needed, and where
they are missing the script says so and ends with 0. A part a rank, a rank a host, a thread a rank.

The graph is the stochastic block model of pdadmm.gnn.prepare; the network a GCN of 3 layers of 256 columns.
An epoch's time is the mean over a window of epochs between two evaluations, after the first assignment of
widths (--reassign is short for that); of several windows and repeats the median. The schemes take turns,
so that a busy machine slows all of them. Results of training do not depend on the network, so accuracy
comes from a run of --accuracy-epochs on this machine without limits. What is in FILE is not run again.

`predicted_seconds_per_epoch` is what pdadmm.profile predicts for the network from a run on hosts without
limits, of the same scheme and parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from hosts import Hosts, reason_not_to

from pdadmm.files import write_json
from pdadmm.profile.load import load
from pdadmm.profile.predict_graph import predict_graph
from pdadmm.profile.simulate import Network

SCHEMES = ("float32", "adaqp", "lean")
ROOT = Path(__file__).resolve().parents[1]


def prepare(o: argparse.Namespace, parts: int, folder: Path) -> Path:
    """The graph in parts."""
    path = folder / f"{parts}.h5"
    names = ("nodes", "degree", "features", "communities", "train_per_class")
    sizes = ["synthetic"]
    for name in names:
        sizes += [f"--synthetic-{name.replace('_', '-')}", getattr(o, name)]
    command = [sys.executable, "-m", "pdadmm.gnn.prepare", *([o.graph] if o.graph else sizes)]
    command += ["--parts", parts, "--out", path]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, env=_environment())
    return path


def options(o: argparse.Namespace, scheme: str, epochs: int, every: int, folder: Path) -> list[str]:
    """Of a run."""
    found = [
        "--messages", scheme, "--model", o.model, "--layers", o.layers, "--hidden", o.hidden,
        "--epochs", epochs, "--eval-every", every, "--threads", 1, "--quiet", "--out", folder,
    ]  # fmt: skip
    return [str(option) for option in found]


#: of links between namespaces, one way; a rough figure, small beside the messages
LATENCY = 50e-6


def measure(hosts: Hosts, graph: Path, o: argparse.Namespace, scheme: str) -> dict[str, Any]:
    """Seconds and bytes of the windows of a run on hosts, and its profile."""
    # the profile drops three epochs after an assignment
    epochs = o.window * (1 + o.windows)
    with tempfile.TemporaryDirectory() as folder:
        run = options(o, scheme, epochs, o.window, Path(folder) / "run")
        run += ["--reassign", str(o.window)]
        hosts.mpirun("-m", "pdadmm.gnn.run", graph, *run, timeout=3600)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        profile = load(Path(folder) / "run")
    records = [json.loads(line) for line in lines]
    keys = ("seconds", "seconds_exposed", "bytes")
    windows = [
        {key: (b[key] - a[key]) / (b["epoch"] - a["epoch"]) for key in keys}
        for a, b in itertools.pairwise(records)
    ]
    reductions = summary["reduction_bytes_per_epoch"]
    return {"windows": windows, "reduction_bytes_per_epoch": reductions, "profile": profile}


def train(graph: Path, o: argparse.Namespace, scheme: str) -> dict[str, Any]:
    """A whole run on this machine: accuracies, and by evaluation the epochs and accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        run = options(o, scheme, o.accuracy_epochs, 5, Path(folder) / "run")
        command = [sys.executable, "-m", "pdadmm.gnn.run", str(graph), *run]
        subprocess.run(command, check=True, env={**_environment(), "OMP_NUM_THREADS": "1"})
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    curve = [(r["epoch"], r["val_accuracy"]) for r in map(json.loads, lines)]
    kept = (
        "nodes", "edges", "edge_cut", "halo_rows", "partitioner", "test_accuracy", "best_val_accuracy",
        "test_accuracy_at_best_val", "mean_bits_forward", "mean_bits_backward", "float32_bytes_per_epoch",
    )  # fmt: skip
    return {**{key: summary[key] for key in kept}, "curve": curve}


def entry(found: list[dict[str, Any]], trained: dict[str, Any]) -> dict[str, Any]:
    """What goes into the file, of all windows of all repeats."""
    windows = [window for run in found for window in run["windows"]]
    seconds = [w["seconds"] for w in windows]
    return {
        "seconds_per_epoch": median(seconds),
        "seconds_exposed": median(w["seconds_exposed"] for w in windows),
        "bytes_per_epoch": round(median(w["bytes"] for w in windows)),
        "reduction_bytes_per_epoch": found[0]["reduction_bytes_per_epoch"],
        "seconds_of_windows": seconds,
        **trained,
    }


def to_accuracy(curve: list[list[float]], seconds: float, target: float) -> float | None:
    """Seconds of epochs until the validation accuracy is there; None where it never is."""
    return next((epoch * seconds for epoch, accuracy in curve if accuracy >= target), None)


def prediction(profile: dict[str, Any], mbit: float) -> float:
    """Seconds an epoch that a profile predicts for a network."""
    return predict_graph(profile, Network(LATENCY, mbit * 1e6 / 8)).iteration


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: seconds, ratios to `lean`, share exposed, time to the accuracy that all schemes reach."""
    lines = [
        "| Mbit/s | parts | messages | s per epoch | of it exposed | × lean | predicted s | MB per epoch "
        "| test accuracy | s to accuracy |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (mbit, parts), group in itertools.groupby(
        sorted(results, key=lambda r: (r["mbit"], r["parts"], -r["seconds_per_epoch"])),
        lambda r: (r["mbit"], r["parts"]),
    ):
        rows = list(group)
        lean = next((r["seconds_per_epoch"] for r in rows if r["messages"] == "lean"), float("nan"))
        target = min(max(accuracy for _, accuracy in r["curve"]) for r in rows) - 0.005
        for r in rows:
            seconds, predicted = r["seconds_per_epoch"], r["predicted_seconds_per_epoch"]
            reached = to_accuracy(r["curve"], seconds, target)
            lines.append(
                f"| {mbit:g} | {parts} | {r['messages']} | {seconds:.3f} "
                f"| {r['seconds_exposed'] / seconds:.0%} | {seconds / lean:.2f} "
                f"| {predicted:.3f} ({predicted / seconds - 1:+.0%}) "
                f"| {r['bytes_per_epoch'] / 1e6:.1f} | {r['test_accuracy_at_best_val']:.3f} "
                f"| {'-' if reached is None else f'{reached:.1f} ({target:.3f})'} |"
            )
    return "\n".join(lines)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mbit", default="100,1000", help="of every link and direction")
    parser.add_argument("--parts", default="2,4")
    parser.add_argument("--messages", default=",".join(SCHEMES))
    parser.add_argument("--json", default="benchmarks/results/gnn_networks.json")
    parser.add_argument("--graph", default="", help="a graph in the gnn-benchmark keys instead of the model")
    parser.add_argument("--nodes", type=int, default=60000)
    parser.add_argument("--degree", type=float, default=30)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--communities", type=int, default=64)
    parser.add_argument("--train-per-class", type=int, default=1000)
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--window", type=int, default=6, help="epochs between evaluations")
    parser.add_argument("--windows", type=int, default=2, help="after the first one, which is left out")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--accuracy-epochs", type=int, default=100)
    parser.add_argument("--wrapper", default="", help="command that starts every rank, e.g. 'chrt -r 1'")
    o = parser.parse_args()
    reason = reason_not_to()
    if reason:
        print(f"skipped: {reason}")
        return 0
    os.environ["PYTHONPATH"] = str(ROOT)  # the ranks start in other namespaces, but with this environment
    out = Path(o.json)
    results: list[dict[str, Any]] = json.loads(out.read_text())["results"] if out.exists() else []
    asked = [name for name in vars(o) if name not in ("mbit", "parts", "messages", "json", "wrapper")]
    settings = {name: getattr(o, name) for name in asked}
    done = {(r["mbit"], r["parts"], r["messages"]) for r in results if r["settings"] == settings}
    trained: dict[tuple[int, str], dict[str, Any]] = {}
    profiles: dict[tuple[int, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for parts, mbit in itertools.product(map(int, o.parts.split(",")), map(float, o.mbit.split(","))):
            schemes = [s for s in o.messages.split(",") if (mbit, parts, s) not in done]
            if not schemes:
                continue
            graph = prepare(o, parts, Path(folder))
            with Hosts(parts, None, o.wrapper) as hosts:
                for scheme in schemes:
                    if (parts, scheme) not in profiles:
                        profiles[parts, scheme] = measure(hosts, graph, o, scheme)["profile"]
            found: dict[str, list[dict[str, Any]]] = {scheme: [] for scheme in schemes}
            with Hosts(parts, mbit * 1e6, o.wrapper) as hosts:
                for _, scheme in itertools.product(range(o.repeats), schemes):
                    start = time.perf_counter()
                    try:
                        found[scheme].append(measure(hosts, graph, o, scheme))
                    except subprocess.CalledProcessError as error:
                        print(f"{scheme}: failed\n{error.stderr[-2000:]}", file=sys.stderr)
                        return 1
                    seconds = median(w["seconds"] for w in found[scheme][-1]["windows"])
                    print(
                        f"{mbit:g} Mbit/s, {parts} parts, {scheme}: {seconds:.3f} s an epoch "
                        f"({time.perf_counter() - start:.0f} s)",
                        flush=True,
                    )
            for scheme in schemes:
                if (parts, scheme) not in trained:
                    trained[parts, scheme] = train(graph, o, scheme)
                results.append(
                    {
                        "messages": scheme,
                        "mbit": mbit,
                        "parts": parts,
                        **entry(found[scheme], trained[parts, scheme]),
                        "predicted_seconds_per_epoch": prediction(profiles[parts, scheme], mbit),
                        "settings": settings,
                        "date": time.strftime("%Y-%m-%d"),
                        "cores": os.cpu_count(),
                        "versions": f"Python {platform.python_version()}, NumPy {np.__version__}",
                    }
                )
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, {"benchmark": "gnn_networks", "results": results})
    print(table([r for r in results if r["settings"] == settings]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
