"""Test accuracy of graph networks by scheme of messages, with the bytes they send; PyG beside.

    python benchmarks/gnn_accuracy.py [--raw DIR] [--graphs cora,...] [--models gcn,sage] [--parts 2,4,8]
        [--schemes float32,adaqp,lean,uniform8,...,pyg] [--splits public,random] [--seeds 0-4] [--lr 0.01]
        [--json FILE] [--table]

DIR holds the raw files (as --raw of pdadmm.gnn.prepare). Seed S trains on split S where the split is drawn,
and from start S. All schemes have the same order of the hidden layer (norm, activation, dropout), so that
nothing but the messages differs; `--order scheme` leaves to each its own. `uniformB` is lean with the same
B bits for every row, `lean32` lean without rounding, `pyg` PyTorch Geometric on one process (gnn_pyg.py),
on the same split, in float32's order. A test accuracy is that of the epoch that is best on validation, but
in the column of the last epoch, which chooses nothing. Runs in FILE are not repeated; runs of other orders,
numbers of epochs or learning rates are tables of their own.

    python benchmarks/gnn_accuracy.py --pareto FILE.svg     accuracy against bytes, from FILE.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pdadmm.files import write_json

GRAPHS = ("cora", "citeseer", "amazon-photo", "amazon-computers", "coauthor-cs", "coauthor-physics")
SCHEMES = ("float32", "adaqp", "lean")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "gnn_accuracy.json"
KEY = ("graph", "split", "model", "parts", "scheme", "order", "epochs", "lr", "seed")
_KEPT = (
    "nodes", "edge_cut", "halo_rows", "partitioner", "test_accuracy", "best_val_accuracy",
    "test_accuracy_at_best_val", "bytes_per_epoch", "float32_bytes_per_epoch", "mean_bits_forward",
    "mean_bits_backward",
)  # fmt: skip


def scheme_options(scheme: str, order: str) -> list[str]:
    """``uniform2`` and so on as options of a run."""
    if scheme.startswith("uniform"):
        found = ["--messages", "lean", "--bits", scheme.removeprefix("uniform")]
    elif scheme == "lean32":
        found = ["--messages", "lean", "--forward", "float32", "--backward", "float32"]
    else:
        found = ["--messages", scheme]
    return found if order == "scheme" else [*found, "--order", order]


def run_python(*command: object, env: dict[str, str] | None = None) -> str:
    """What Python prints, with the package of this checkout and these benchmarks; ends when it fails."""
    before = filter(None, [os.environ.get("PYTHONPATH")])
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *before])
    environment = {**os.environ, "PYTHONPATH": path, **(env or {})}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def prepare(folder: Path, raw: str, graph: str, split: str, parts: int, seed: int) -> Path:
    """The graph file of a split in parts; made when it is not there."""
    path = folder / f"{graph}-{split}-{parts}-{seed}.h5"
    if not path.exists():
        options = ["--parts", parts, "--split", split, "--seed", seed, "--out", path]
        run_python("-m", "pdadmm.gnn.prepare", graph, *options, *(["--raw", raw] if raw else []))
    return path


def train(
    path: Path, model: str, scheme: str, order: str, seed: int, epochs: int, rate: float
) -> dict[str, Any]:
    """A run of the program, all parts on one rank: on others its bits were the same."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", model, "--seed", seed, "--epochs", epochs, "--lr", rate]
        options += ["--quiet", "--out", f"{folder}/run"]
        command = ["-m", "pdadmm.gnn.run", path, *options, *scheme_options(scheme, order)]
        run_python(*command, env={"OMP_NUM_THREADS": "1"})
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    found = {key: summary[key] for key in _KEPT}
    return {**found, "seconds_per_epoch": summary["seconds_epochs"] / epochs}


def points(runs: list[dict[str, Any]]) -> list[float]:
    return [100 * run["test_accuracy_at_best_val"] for run in runs]


def groups(runs: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]]:
    """By order, epochs, learning rate, graph, split, model and parts, the runs of every scheme."""
    graphs = [*GRAPHS, *(run["graph"] for run in runs)]
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    heads = ("order", "epochs", "lr")
    for run in sorted(runs, key=lambda run: (*(run[k] for k in heads), graphs.index(run["graph"]))):
        key = tuple(run[k] for k in (*heads, "graph", "split", "model", "parts"))
        found.setdefault(key, {}).setdefault(run["scheme"], []).append(run)
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: points, their differences to float32 seed by seed with standard errors, and bytes.

    A table for each order of the hidden layer, number of epochs and learning rate.
    """
    found = []
    for head, of_head in itertools.groupby(groups(runs).items(), key=lambda item: item[0][:3]):
        lines = _rows({key[3:]: schemes for key, schemes in of_head})
        order, epochs, rate = head
        found.append("\n".join([f"Order {order}, {epochs} epochs, learning rate {rate:g}:", "", *lines]))
    return "\n\n".join(found)


def _rows(found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]]) -> list[str]:
    lines = [
        "| graph | split | model | parts | scheme | test accuracy | less float32 | validation less float32 "
        "| last epoch less float32 | MB an epoch | of float32's | bits forward, back |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (graph, split, model, parts), schemes in found.items():
        # without rounding lean computes the same, sooner where the features are many
        plain = "float32" if "float32" in schemes else "lean32"
        base = {run["seed"]: run for run in schemes.get(plain, [])}
        for scheme, of_scheme in schemes.items():
            values = points(of_scheme)
            spread = stdev(values) if len(values) > 1 else 0.0
            cells = [graph, split, model, str(parts), scheme, f"{mean(values):.1f} ± {spread:.1f}"]
            for key in ("test_accuracy_at_best_val", "best_val_accuracy", "test_accuracy"):
                pairs = [
                    100 * (run[key] - base[run["seed"]][key]) for run in of_scheme if run["seed"] in base
                ]
                error = stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else 0.0
                cells.append(f"{mean(pairs):+.2f} ± {error:.2f}" if pairs and scheme != plain else "")
            if scheme == "pyg":
                cells += ["", "", ""]
            else:
                sent = mean(run["bytes_per_epoch"] for run in of_scheme)
                whole = mean(run["float32_bytes_per_epoch"] for run in of_scheme)
                bits = [mean(run[f"mean_bits_{way}"] for run in of_scheme) for way in ("forward", "backward")]
                cells += [f"{sent / 1e6:.3f}", f"{sent / whole:.1%}", f"{bits[0]:.1f}, {bits[1]:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def pareto(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against bytes of all schemes, a panel a graph and model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {key: at for key, at in groups(runs).items() if len(at.keys() - {"pyg"}) > 1}
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, (key, schemes) in zip(axes.flat, found.items(), strict=False):
        for scheme, of_scheme in schemes.items():
            if scheme == "pyg":
                continue
            x, y = mean(run["bytes_per_epoch"] for run in of_scheme) / 1e6, mean(points(of_scheme))
            axis.plot(x, y, "o")
            axis.annotate(scheme, (x, y), fontsize=7)
        axis.set(xscale="log", xlabel="MB an epoch", ylabel="test accuracy, %")
        axis.set_title(" ".join(map(str, key)))
    figure.tight_layout()
    figure.savefig(path)


def numbers(text: str) -> list[int]:
    """``0-4`` or ``0,2``."""
    if "-" in text:
        first, last = map(int, text.split("-"))
        return list(range(first, last + 1))
    return [int(n) for n in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raw", default="", help="folder of the raw files; several, separated by colons")
    parser.add_argument("--graphs", default=",".join(GRAPHS))
    parser.add_argument("--models", default="gcn,sage")
    parser.add_argument("--parts", default="2,4,8")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--splits", default="public,random")
    parser.add_argument("--order", default="norm", choices=("norm", "adaqp", "scheme"))
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of Adam")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--data", default="", help="where the graph files are kept; default: nowhere")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    parser.add_argument("--pareto", type=Path, help="draw accuracy against bytes and run nothing")
    o = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(o.json.read_text())["runs"] if o.json.exists() else []
    runs = [{"lr": 0.01, **run} for run in runs]
    if o.pareto:
        pareto(runs, o.pareto)
        return 0
    if not o.table:
        with tempfile.TemporaryDirectory() as folder:
            run_all(o, runs, Path(o.data or folder))
    print(table(runs))
    return 0


def run_all(o: argparse.Namespace, runs: list[dict[str, Any]], folder: Path) -> None:
    """What is asked for and not among `runs` yet, added to them and to the file."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {tuple(run[k] for k in KEY) for run in runs}
    # seeds outermost: what an interrupted benchmark has done compares all graphs and schemes
    for seed, graph, split, model, parts, scheme in itertools.product(
        numbers(o.seeds), o.graphs.split(","), o.splits.split(","), o.models.split(","), numbers(o.parts),
        o.schemes.split(","),
    ):  # fmt: skip
        key = (graph, split, model, parts, scheme, o.order, o.epochs, o.lr, seed)
        if key in done:
            continue
        path = prepare(folder, _raw_of(o.raw, graph), graph, split, parts, seed)
        if scheme == "pyg":
            from gnn_pyg import train_pyg

            first = o.order != "norm"
            found = train_pyg(path, model, epochs=o.epochs, rate=o.lr, seed=seed, dropped_first=first)
        else:
            found = train(path, model, scheme, o.order, seed, o.epochs, o.lr)
        runs.append({**dict(zip(KEY, key, strict=True)), **found})
        done.add(key)
        o.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(o.json, {"benchmark": "gnn_accuracy", "runs": runs})
        print(*key, f"test {found['test_accuracy_at_best_val']:.4f}", flush=True)


def _raw_of(raw: str, graph: str) -> str:
    """The folder that has the raw files of a graph: planetoid's start with ``ind.``."""
    for folder in filter(None, raw.split(":")):
        if (graph in ("cora", "citeseer", "pubmed")) == any(Path(folder).glob("ind.*")):
            return folder
    return ""


if __name__ == "__main__":
    sys.exit(main())
