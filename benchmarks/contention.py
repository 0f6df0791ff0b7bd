"""What a busy process beside it costs an iteration, with one thread and with all cores.

    python benchmarks/contention.py [--sizes 20000x500,300000x128] [--layers 3] [--rounds 3] [--json FILE]

The busy process multiplies and adds on one core for ever. Each figure is the median over the iterations of
`python -m pdadmm.bench iteration` (gradient solver, delta codec, 4 bits), of the rounds the least; quiet and
contended runs of all numbers of threads take turns. OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are left out of
the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdadmm.comm.waiter import usable_cores
from pdadmm.files import write_json

RESULTS = Path(__file__).parent / "results" / "contention.json"


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """A process that keeps a core busy."""
    process = None
    if wanted:
        process = subprocess.Popen([sys.executable, "-c", "x = 1\nwhile True: x = x * 3 % 1000003 + 1"])
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def seconds(nodes: int, hidden: int, layers: int, threads: int, iterations: int) -> tuple[float, float]:
    """Of a middle layer's iteration, and of a product."""
    left_out = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "iteration.json"
        options = f"--nodes {nodes} --hidden {hidden} --layers {layers} --threads {threads}"
        options += f" --iterations {iterations} --codec delta --bits 4"
        options += " --solver gradient --step exact --kernels fused"
        command = [sys.executable, "-m", "pdadmm.bench", "iteration", *options.split(), "--json", str(file)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        (result,) = json.loads(file.read_text())["results"]
    return result["seconds_per_layer_iteration"], result["seconds_per_product"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="20000x500,300000x128", help="nodes x hidden")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS)
    o = parser.parse_args()
    found: dict[tuple[str, int, bool], tuple[float, float]] = {}
    threads = sorted({1, usable_cores()})
    for _, size, number, contended in itertools.product(
        range(o.rounds), o.sizes.split(","), threads, (False, True)
    ):
        nodes, hidden = map(int, size.split("x"))
        with busy(contended):
            took = seconds(nodes, hidden, o.layers, number, o.iterations)
        key = size, number, contended
        found[key] = min(found.get(key, took), took)
    results: list[dict[str, Any]] = [
        {
            "nodes": int(size.split("x")[0]), "hidden": int(size.split("x")[1]), "layers": o.layers,
            "threads": number, "busy_processes": int(contended),
            "seconds_per_layer_iteration": iteration, "seconds_per_product": product,
        }
        for (size, number, contended), (iteration, product) in found.items()
    ]  # fmt: skip
    print(
        "| nodes x hidden | threads | quiet, ms | beside a busy process, ms |\n| --- | ---: | ---: | ---: |"
    )
    for size, number in itertools.product(o.sizes.split(","), threads):
        cells = [f"{1e3 * found[size, number, contended][0]:.1f}" for contended in (False, True)]
        print(f"| {size} | {number} | {cells[0]} | {cells[1]} |")
    date = time.strftime("%Y-%m-%d")
    write_json(o.json, {"benchmark": "contention", "date": date, "cores": usable_cores(), "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
