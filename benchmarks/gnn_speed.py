"""Seconds an epoch of graph networks on one part and one process, beside PyTorch Geometric, in turn.

    python benchmarks/gnn_speed.py FILE.h5 [FILE.h5 ...] [--models gcn,sage] [--schemes float32,lean]
        [--threads 1] [--epochs 20] [--rounds 3] [--backend numpy|cupy] [--json FILE]

FILE.h5 are graph files of one part (pdadmm.gnn.prepare ... --parts 1). A round trains each program for some
epochs in a process of its own, one after the other; an epoch's time is the median, of the rounds the least,
since other work on a machine only ever adds. PyG has the adjacency as a torch.sparse CSR tensor, with which
it is fastest (gnn_pyg.py). With `--backend cupy` both are on the GPU. Networks have 3 layers of 256 columns,
all in the order norm, activation, dropout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gnn_accuracy import run_python

from pdadmm.files import write_json


def _python(arguments: list[object], threads: int) -> str:
    env = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    return run_python(*arguments, env=env)


def ours(path: Path, model: str, scheme: str, threads: int, epochs: int, backend: str) -> float:
    """Median seconds of an epoch, from the profile of a run."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", model, "--messages", scheme, "--order", "norm", "--epochs", epochs]
        options += ["--eval-every", epochs, "--threads", threads, "--quiet", "--out", f"{folder}/run"]
        options += ["--backend", backend]
        _python(["-m", "pdadmm.gnn.run", path, *options], threads)
        profile = json.loads((Path(folder) / "run" / "profile.json").read_text())
    return float(profile["ranks"][0]["stages"][-1]["iteration_seconds"]["median"])


def pyg(path: Path, model: str, threads: int, epochs: int, backend: str) -> float:
    """Median seconds of an epoch of PyG."""
    program = (
        "import sys, torch; from pathlib import Path; from gnn_pyg import train_pyg; "
        "torch.set_num_threads(int(sys.argv[3])); "
        "print(train_pyg(Path(sys.argv[1]), sys.argv[2], epochs=int(sys.argv[4]), eval_every=10**9, "
        "device=sys.argv[5])['seconds_per_epoch'])"
    )
    device = "cuda" if backend == "cupy" else "cpu"
    return float(_python(["-c", program, path, model, threads, epochs, device], threads).split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", nargs="+", type=Path)
    parser.add_argument("--models", default="gcn,sage")
    parser.add_argument("--schemes", default="float32,lean")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="numpy", choices=("numpy", "cupy"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "gnn_speed.json")
    o = parser.parse_args()
    try:
        packages = {name: version(name) for name in ("torch", "torch_geometric")}
    except PackageNotFoundError as error:
        sys.exit(f"{error.name} is missing: pip install 'pdadmm[torch]'")
    results: list[dict[str, Any]] = json.loads(o.json.read_text())["results"] if o.json.exists() else []
    schemes = o.schemes.split(",")
    print("| graph | model | threads | " + " | ".join([*schemes, "PyG"]) + " | PyG over " + schemes[0] + " |")
    print("| --- | --- | ---: |" + " ---: |" * (len(schemes) + 2))
    for graph in o.graphs:
        for model in o.models.split(","):
            for threads in map(int, o.threads.split(",")):
                seconds: dict[str, float] = {}
                for _ in range(o.rounds):
                    for scheme in [*schemes, "pyg"]:
                        if scheme == "pyg":
                            took = pyg(graph, model, threads, o.epochs, o.backend)
                        else:
                            took = ours(graph, model, scheme, threads, o.epochs, o.backend)
                        seconds[scheme] = min(seconds.get(scheme, took), took)
                cells = [f"{seconds[name]:.4f}" for name in [*schemes, "pyg"]]
                ratio = seconds["pyg"] / seconds[schemes[0]]
                print(f"| {graph.stem} | {model} | {threads} | " + " | ".join(cells) + f" | {ratio:.2f} |")
                results.append(
                    {
                        "graph": graph.stem,
                        "model": model,
                        "threads": threads,
                        "seconds_per_epoch": seconds,
                        "epochs": o.epochs,
                        "rounds": o.rounds,
                        "backend": o.backend,
                        "date": time.strftime("%Y-%m-%d"),
                        "cores": os.cpu_count(),
                        "versions": {"python": platform.python_version(), **packages},
                    }
                )
                o.json.parent.mkdir(parents=True, exist_ok=True)
                write_json(o.json, {"benchmark": "gnn_speed", "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
