"""Time per iteration and to accuracy, against PyTorch and the authors' code; growth with V, n, L and ranks.

    python benchmarks/speed.py iteration [--nodes 20000] [--hidden 500] [--layers 10] [--reference DIR]
    python benchmarks/speed.py scaling   [--nodes 8000] [--hidden 256] [--layers 10]
    python benchmarks/speed.py ranks     [--nodes 4000] [--hidden 500]
    python benchmarks/speed.py accuracy  FILE.h5 [FILE.h5 ...] [--layers 10] [--hidden 100]
    python benchmarks/speed.py table

Every part is written under its name into --out (benchmarks/results/speed.json) and replaces what was
there; ``table`` prints them as Markdown. What is compared is timed by turns in one run.

iteration   A whole iteration of pdadmm (delta, 4 bits) and an epoch of full-batch Adam in PyTorch on the
            same random data and widths, and one middle layer of pdadmm and of the authors' serial
            code, for which DIR is a clone of github.com/xianggebenben/pdADMM-G. PyTorch is needed.
scaling     Seconds per iteration as V, n and L double from an eighth of what is given, and the
            exponents of a fit.
ranks       One rank against two, a thread each, for several depths and widths; memory a rank.
accuracy    Validation accuracy by seconds of training, pdadmm and Adam with growth, and the seconds until
            each reaches the lower of their two best ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import input_scaling
from baselines import GRIDS, OPTIMISERS, train_torch
from gpu_check import find_mpirun
from networks import write_random_features
from threadpoolctl import threadpool_limits
from tune import Cached

from pdadmm.arrays.products import Products
from pdadmm.bench.iteration import Variant, make_stage, measure
from pdadmm.errors import InputError
from pdadmm.files import write_json

DELTA4 = Variant("fused", "delta", 4, "gradient")
REPEATS = 7
#: runs a command and prints the peak memory of the largest of its processes, in bytes
LARGEST = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


def median_seconds(calls: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each call, made by turns after one round to warm up."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                took[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


# ---- an iteration -----------------------------------------------------------------------------------


def adam_epoch(nodes: int, hidden: int, layers: int) -> Callable[[], None]:
    """A full-batch step of Adam on random data of the widths of `make_stage`."""
    import torch
    from torch import nn

    widths = [*[hidden] * layers, 10]
    parts = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*parts[:-1])
    method = getattr(torch.optim, OPTIMISERS["adam"])(network.parameters(), lr=1e-3)
    X, y = torch.randn(nodes, hidden), torch.randint(0, 10, (nodes,))

    def epoch() -> None:
        method.zero_grad()
        nn.functional.cross_entropy(network(X), y).backward()
        method.step()

    return epoch


def authors_layer(folder: Path, nodes: int, hidden: int) -> Callable[[], None]:
    """An iteration of a middle layer by the functions of the authors' common.py.

    Raises
    ------
    InputError
        When the folder holds no such file.
    """
    import torch

    path = next(
        (p for p in (folder / "pdADMM_G_serial" / "common.py", folder / "common.py") if p.exists()), None
    )
    if path is None:
        raise InputError(f"{folder} has no pdADMM_G_serial/common.py; give a clone of xianggebenben/pdADMM-G")
    # imported at its top, used by its data sets and pictures only
    names = ["torch_sparse", "torch_scatter", "torch_geometric", "torch_geometric.utils"]
    for name in [*names, "torch_geometric.utils.num_nodes", "matplotlib", "matplotlib.pyplot"]:
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
    wanted = {
        "torch_sparse": ("SparseTensor", "fill_diag", "sum", "mul"),
        "torch_scatter": ("scatter_add",),
        "torch_geometric.utils": ("add_remaining_self_loops",),
        "torch_geometric.utils.num_nodes": ("maybe_num_nodes",),
    }
    for name, members in wanted.items():
        for member in members:
            if not hasattr(sys.modules[name], member):
                setattr(sys.modules[name], member, None)
    spec = importlib.util.spec_from_file_location("authors_common", path)
    assert spec is not None and spec.loader is not None
    common = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(common)
    torch.manual_seed(0)
    rho, mu = 0.1, 0.01
    p, z, q, q_before, p_next = (torch.randn(hidden, nodes) for _ in range(5))
    u, u_before = torch.zeros(hidden, nodes), torch.zeros(hidden, nodes)
    W, b = torch.randn(hidden, hidden) / hidden**0.5, torch.zeros(hidden, 1)

    def iterate() -> None:
        nonlocal p, W, b, z, q, u
        p = common.update_p(p, q_before, W, b, z, u_before, rho).detach()
        W = common.update_W(p, b, z, W, rho, mu).detach()
        b = common.update_b(p, W, z, b, rho)
        z = common.update_z(z, p, W, b, q, rho)
        q = common.update_q(p_next, z, u, rho)
        u = u + rho * (p_next - q)

    return iterate


def iteration(o: argparse.Namespace) -> dict[str, Any]:
    """Whole iterations and epochs, and middle layers: seconds, and products of the library each uses."""
    import torch

    torch.set_num_threads(o.threads)
    rng = np.random.default_rng(0)
    stage = make_stage(DELTA4, o.nodes, o.hidden, o.layers, o.threads, o.hidden, rng)
    count, products = itertools.count(), Products(o.threads)
    a, b = torch.randn(o.nodes, o.hidden), torch.randn(o.hidden, o.hidden)
    x, w, out = a.numpy(), b.numpy(), np.empty((o.nodes, o.hidden), np.float32)
    calls: dict[str, Callable[[], Any]] = {
        "numpy_product": lambda: products.matmul(x, w, out),
        "torch_product": lambda: torch.matmul(a, b),
        "pdadmm": lambda: stage.iterate(next(count), False),
        "adam": adam_epoch(o.nodes, o.hidden, o.layers),
    }
    if o.reference:
        calls["authors_layer"] = authors_layer(o.reference, o.nodes, o.hidden)
    seconds = median_seconds(calls)
    seconds["pdadmm_layer"] = measure(DELTA4, o.nodes, o.hidden, 3, o.threads, REPEATS)[
        "seconds_per_layer_iteration"
    ]
    found = {
        "nodes": o.nodes,
        "hidden": o.hidden,
        "layers": o.layers,
        "threads": o.threads,
        "seconds": seconds,
    }
    found["products"] = {
        name: value / seconds["numpy_product" if name.startswith("pdadmm") else "torch_product"]
        for name, value in seconds.items()
    }
    return found


# ---- growth -----------------------------------------------------------------------------------------


def scaling(o: argparse.Namespace) -> dict[str, Any]:
    """Seconds per iteration over V, n and L, each with the others fixed, and fitted exponents."""
    found: dict[str, Any] = {"threads": o.threads}
    for name in ("nodes", "hidden", "layers"):
        whole = getattr(o, name)
        points = sorted({max(whole // k, 3) for k in (8, 4, 2, 1)})
        rows = []
        for value in points:
            size = {"nodes": o.nodes // 4, "hidden": o.hidden, "layers": 5, name: value}
            result = measure(DELTA4, size["nodes"], size["hidden"], size["layers"], o.threads, REPEATS)
            rows.append(
                {**size, "seconds": result["seconds_per_iteration"], "peak_bytes": result["peak_bytes"]}
            )
        x, y = (np.log([row[key] for row in rows]) for key in (name, "seconds"))
        found[name] = {"points": rows, "exponent": float(np.polyfit(x, y, 1)[0])}
    return found


def ranks(o: argparse.Namespace) -> dict[str, Any]:
    """Seconds per iteration on one rank and on two, a thread each."""
    rows = []
    mpirun = find_mpirun()
    if mpirun is None:
        raise InputError("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    with tempfile.TemporaryDirectory() as name:
        features = Path(name) / "random.h5"
        write_random_features(features, o.nodes)
        for layers, hidden in ((8, o.hidden), (16, o.hidden), (16, o.hidden // 2)):
            row: dict[str, Any] = {"nodes": o.nodes, "hidden": hidden, "layers": layers}
            for size in (1, 2):
                out = Path(name) / f"{layers}-{hidden}-{size}"
                options = (
                    f"--layers {layers} --stages {layers} --hidden {hidden} --iterations 20 --eval-every 20"
                )
                command = ["-m", "pdadmm.run", str(features), *options.split(), "--threads", "1", "--quiet"]
                launch = [mpirun, "-n", str(size), sys.executable, *command, "--out", str(out)]
                peak = subprocess.run(
                    [sys.executable, "-c", LARGEST, *launch], check=True, capture_output=True
                )
                summary = json.loads((out / "summary.json").read_text())
                row[f"seconds_{size}"] = summary["seconds_iterations"] / summary["iterations"]
                row[f"exposed_{size}"] = summary["seconds_exposed_communication"] / summary["iterations"]
                row[f"peak_bytes_{size}"] = int(peak.stdout)
            row["speedup"] = row["seconds_1"] / row["seconds_2"]
            rows.append(row)
    return {"rows": rows}


# ---- accuracy by time -------------------------------------------------------------------------------


def accuracy(o: argparse.Namespace) -> dict[str, Any]:
    """Curves of validation accuracy by seconds of training, evaluation left out."""
    import torch

    torch.set_num_threads(o.threads)
    found: dict[str, Any] = {}
    stages = [d for d in (2, 4, 8) if d < o.layers] + [o.layers]
    for path in o.files:
        data = Cached(path)
        name = data.sizes.dataset
        with tempfile.TemporaryDirectory() as out:
            options = f"--layers {o.layers} --hidden {o.hidden} --eval-every 5 --threads {o.threads} --quiet"
            command = [sys.executable, "-m", "pdadmm.run", path, *options.split(), "--out", out]
            subprocess.run(command, check=True, capture_output=True)
            lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
        curves = {"pdadmm": [[r["seconds"], r["val_accuracy"]] for r in map(json.loads, lines)]}
        best: tuple[float, float] = (-1.0, 0.0)
        for rate in GRIDS["adam"]:
            history: list[list[float]] = []
            scaling = input_scaling(name, data.sizes.operators)
            r = train_torch(data, o.hidden, stages, 100, "adam", rate, 0, scaling, history)
            if r["best_val_accuracy"] > best[0]:
                best = (r["best_val_accuracy"], rate)
                curves["adam+growth"] = history
        bests = {method: max(a for _, a in curve) for method, curve in curves.items()}
        common = min(bests.values())
        found[name] = {
            "layers": o.layers,
            "hidden": o.hidden,
            "learning_rate": best[1],
            "curves": curves,
            "best": bests,
            "seconds_to_lower_best": {
                method: min(s for s, a in curve if a >= common) for method, curve in curves.items()
            },
        }
    return found


# ---- the table --------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """All parts as Markdown."""
    lines: list[str] = []
    if r := found.get("iteration"):
        s, p = r["seconds"], r["products"]
        lines += [
            f"V = {r['nodes']:,}, n = {r['hidden']}, {r['threads']} threads; a product of V x n x n takes "
            f"{1000 * s['numpy_product']:.0f} ms in NumPy and {1000 * s['torch_product']:.0f} in PyTorch:\n",
            "| | seconds | products of its own library |\n| --- | ---: | ---: |",
        ]
        names = {
            "pdadmm_layer": "a middle layer: pdadmm, delta 4 bits",
            "authors_layer": "a middle layer: the authors' serial code (PyTorch)",
            "pdadmm": f"{r['layers']} layers: pdadmm, an iteration",
            "adam": f"{r['layers']} layers: PyTorch, an epoch of full-batch Adam",
        }
        lines += [f"| {text} | {s[key]:.3f} | {p[key]:.1f} |" for key, text in names.items() if key in s]
    if r := found.get("scaling"):
        lines += [
            "\n| seconds per iteration grow with | from | to | exponent |\n| --- | ---: | ---: | ---: |"
        ]
        for name, text in (("nodes", "V"), ("hidden", "n"), ("layers", "L")):
            points = r[name]["points"]
            lines.append(f"| {text} | {points[0][name]} | {points[-1][name]} | {r[name]['exponent']:.2f} |")
    if r := found.get("ranks"):
        lines += [
            "\n| layers | neurons | speedup of 2 ranks | exposed communication | MB a rank, 1 and 2 ranks |"
            "\n| ---: | ---: | ---: | ---: | ---: |"
        ]
        for row in r["rows"]:
            lines.append(
                f"| {row['layers']} | {row['hidden']} | {row['speedup']:.2f} | "
                f"{row['exposed_2'] / row['seconds_2']:.1%} | "
                f"{row['peak_bytes_1'] / 1e6:.0f}, {row['peak_bytes_2'] / 1e6:.0f} |"
            )
    if r := found.get("accuracy"):
        lines += [
            "\n| data set | best on validation: pdadmm | Adam + growth | time to the lower: pdadmm | Adam |"
            "\n| --- | ---: | ---: | ---: | ---: |"
        ]
        for name, row in r.items():
            if isinstance(row, dict):
                mine, adams = (row["seconds_to_lower_best"][m] for m in ("pdadmm", "adam+growth"))
                a, b = row["best"]["pdadmm"], row["best"]["adam+growth"]
                lines.append(f"| {name} | {100 * a:.1f} | {100 * b:.1f} | {mine:.2f} s | {adams:.2f} s |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "iteration": iteration, "scaling": scaling, "ranks": ranks, "accuracy": accuracy,
}  # fmt: skip
SIZES = {
    "iteration": (20000, 500, 10),
    "scaling": (8000, 256, 24),
    "ranks": (4000, 500, 16),
    "accuracy": (0, 100, 10),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("files", nargs="*", metavar="FILE.h5")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a clone of the authors' repository")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    o = parser.parse_args()
    found: dict[str, Any] = json.loads(o.out.read_text()) if o.out.exists() else {}
    if o.part != "table":
        for name, value in zip(("nodes", "hidden", "layers"), SIZES[o.part], strict=True):
            setattr(o, name, getattr(o, name) or value)
        with threadpool_limits(1, "blas"):  # products in tiles have threads of their own, and so has torch
            found[o.part] = PARTS[o.part](o)
        found[o.part]["measured"] = f"{date.today()}, {platform.machine()}, NumPy {np.__version__}"
        o.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(o.out, found)
    print(table(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"speed: {error}", file=sys.stderr)
        sys.exit(2)
