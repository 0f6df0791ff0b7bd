"""``make gpu-check``: tests, benchmarks and a training run on this machine's GPU, and a report of them.

    make gpu-check PYTHON=python3            or: python3 benchmarks/gpu_check.py [--quick]

Uses the Python packages that are there and no network. Builds the host library when a compiler is
there. Writes benchmarks/results/gpu-check.md and .json. Exit codes: 0 all passed; 1 something failed;
3 not run on a GPU, nothing is written then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NEEDED = ("numpy", "scipy", "h5py", "mpi4py", "rich", "threadpoolctl", "tomli_w")
OPTIONS = "--layers 4 --hidden 64 --iterations 60 --eval-every 20 --quiet"

Report = dict[str, Any]


def find_gpu() -> tuple[Report | None, str]:
    """The GPUs, or why there are none."""
    if importlib.util.find_spec("cupy") is None:
        return None, "CuPy is not installed for this Python"
    try:
        import cupy

        runtime = cupy.cuda.runtime
        count = runtime.getDeviceCount()
        names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
        from cupy.cuda import nccl

        return {
            "gpus": names,
            "driver": runtime.driverGetVersion(),
            "cuda": runtime.runtimeGetVersion(),
            "cupy": cupy.__version__,
            "nccl": nccl.get_version() if nccl.available else None,
        }, ""
    except Exception as error:  # CuPy and its libraries raise errors of many kinds
        return None, " ".join(str(error).split())[:300]


class Check:
    """Runs commands and collects what they gave; a failure does not end the rest."""

    def __init__(self) -> None:
        self.entries: list[Report] = []
        self.environment = {**os.environ, "PYTHONPATH": path_with_root(), "PYTHONUNBUFFERED": "1"}

    def run(
        self, name: str, command: list[str], timeout: float = 300, env: dict[str, str] | None = None
    ) -> bool:
        """Run a command from the root; True when it ended with 0."""
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**self.environment, **(env or {})}, timeout=timeout,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            code, text = done.returncode, done.stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            code, text = -1, str(error)
        seconds = time.perf_counter() - start
        self.note(name, code == 0, seconds, "" if code == 0 else text[-3000:], last_line(text))
        return code == 0

    def note(self, name: str, ok: bool | None, seconds: float = 0.0, log: str = "", result: Any = "") -> None:
        """Keep an entry; `ok` None: not run, `result` says why."""
        self.entries.append({"name": name, "ok": ok, "seconds": seconds, "result": result, "log": log})
        word = {True: "passed", False: "FAILED", None: "not run"}[ok]
        print(f"{word:8} {name} ({seconds:.1f} s) {result}", flush=True)


def path_with_root() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""


def build_library(check: Check) -> None:
    """The host library, in place, where a compiler is there."""
    compiler = next(
        (c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None
    )
    if compiler is None:
        check.note("build the host library", None, result="no C++ compiler; the CPU side runs without it")
    elif shutil.which("cmake"):
        with tempfile.TemporaryDirectory() as build:
            script = (
                f"cmake -S . -B {build} && cmake --build {build} -j && "
                f"cp {build}/libpdadmm_host.so pdadmm/kernels/"
            )
            check.run("build the host library", ["sh", "-c", script])
    else:
        sources = "kernels/host.cpp kernels/host_passes.cpp"
        script = (
            f"{compiler} -O3 -std=c++17 -shared -fPIC -fvisibility=hidden -ffp-contract=off -pthread "
            f"-DPDADMM_ISA=portable -DPDADMM_NAMESPACE=pdadmm_portable {sources} "
            "-o pdadmm/kernels/libpdadmm_host.so"
        )
        check.run("build the host library (portable)", ["sh", "-c", script])


def find_mpirun() -> str | None:
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def train(check: Check, ranks: int, name: str, options: str, out: Path, env: dict[str, str]) -> Report | None:
    """A training run; its summary, with its metrics under ``records``."""
    mpirun = find_mpirun()
    launch = [mpirun, "-n", str(ranks)] if mpirun else []
    if not mpirun and ranks > 1:
        check.note(name, None, result="there is no mpirun")
        return None
    command = [
        *launch,
        sys.executable,
        "-m",
        "pdadmm.run",
        *OPTIONS.split(),
        *options.split(),
        "--out",
        str(out),
    ]
    if not check.run(name, command, env=env):
        return None
    summary: Report = json.loads((out / "summary.json").read_text())
    lines = (out / "metrics.jsonl").read_text().splitlines()
    summary["records"] = [
        {k: v for k, v in json.loads(line).items() if not k.startswith("seconds")} for line in lines
    ]
    return summary


def training(check: Check, folder: Path, nccl: int | None, kernels: str) -> list[Report]:
    """Accuracy on the GPU against the CPU, and the same iterates on 1, 2 and 4 ranks of one GPU."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    cpu = train(check, 1, "train on the CPU", "--backend numpy", folder / "cpu", one)
    runs: list[tuple[int, str, dict[str, str]]] = [(1, "mpi", {}), (2, "mpi", {}), (4, "mpi", {})]
    if nccl and nccl >= 23000:
        runs += [(ranks, "nccl", {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}) for ranks in (2, 4)]
    else:
        why = f"NCCL {nccl} is older than 2.30" if nccl else "there is no NCCL"
        check.note("train on 2 and 4 ranks over NCCL", None, result=f"{why}: ranks cannot share a GPU")
    rows: list[Report] = []
    first: Report | None = None
    for precision in ("tf32", "bf16x3"):
        options = f"--backend cupy --kernels {kernels} --precision {precision}"
        found = train(check, 1, f"train on the GPU in {precision}", options, folder / precision, one)
        if found:
            rows.append(row(found, cpu, None))
    for ranks, transport, env in runs:
        name = f"train on {ranks} rank{'s' if ranks > 1 else ''} over {transport}"
        options = f"--backend cupy --kernels {kernels} --transport {transport}"
        found = train(check, ranks, name, options, folder / f"{transport}{ranks}", {**one, **env})
        if found is None:
            continue
        first = first or found
        rows.append(row(found, cpu, first))
        if ranks > 1:
            same = found["records"] == first["records"]
            check.note(
                f"{name}: the iterates of one rank", same, result="bit for bit" if same else "they differ"
            )
        elif cpu:
            gap = abs(found["test_accuracy"] - cpu["test_accuracy"])
            shown = f"{found['test_accuracy']:.4f} against {cpu['test_accuracy']:.4f}"
            check.note("accuracy as on the CPU, to .02", gap <= 0.02, result=shown)
    return rows


def links(check: Check, file: Path, nccl: int | None) -> list[Report]:
    """Latency and bandwidth of every way between two ranks, a row a way and size."""
    env = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"} if nccl and nccl >= 23000 else {}
    mpirun = find_mpirun()
    if not mpirun:
        check.note("measure links", None, result="there is no mpirun")
        return []
    command = [mpirun, "-n", "2", sys.executable, "-m", "pdadmm.bench", "links", "--backend", "cupy"]
    if not check.run("measure links", [*command, "--json", str(file)], 600, env):
        return []
    measured = json.loads(file.read_text())["transports"]
    check.note("ways between two ranks", True, result=", ".join(measured))
    return [{"transport": way, **result} for way, (link,) in measured.items() for result in link["results"]]


def row(found: Report, cpu: Report | None, first: Report | None) -> Report:
    keys = (
        "ranks", "transport", "kernels", "precision", "test_accuracy", "objective", "seconds_iterations",
        "seconds_exposed_communication", "bytes_per_iteration", "devices",
    )  # fmt: skip
    kept = {key: found.get(key) for key in keys}
    kept["cpu_test_accuracy"] = cpu["test_accuracy"] if cpu else None
    kept["cpu_seconds_iterations"] = cpu["seconds_iterations"] if cpu else None
    kept["same_iterates_as_one_rank"] = found["records"] == first["records"] if first else None
    return kept


def iterations(nodes: int, hidden: int, repeats: int, only: str) -> list[Report]:
    """A layer's iteration as a multiple of one of its products, in the entries of ``bench iteration``."""
    import cupy
    import numpy as np

    from pdadmm.admm.activations import ReLU
    from pdadmm.admm.growth import random_layer
    from pdadmm.admm.layer import Hyper
    from pdadmm.admm.passes import make_passes
    from pdadmm.admm.stage import Plan, Stage
    from pdadmm.arrays.cupy_backend import CupyBackend
    from pdadmm.codec import make_codec
    from pdadmm.comm.mpi import MPITransport
    from pdadmm.trace.choose import make_clock
    from pdadmm.trace.clock import Clock

    layers, classes = 6, 10
    widths = [hidden] * layers + [classes]
    asked = [("float32", 32), ("delta", 8), ("delta", 4), ("delta", 1), ("affine", 8)]
    codecs = {
        name if bits == 32 else f"{name}{bits}": make_codec(name, bits, (0.0, 1.0)) for name, bits in asked
    }
    variants = [("fused", "float32", codec) for codec in codecs]
    variants += [("fused", precision, "delta4") for precision in ("tf32", "bf16x3")]
    variants += [("reference", "float32", "delta4")]
    rng = np.random.default_rng(0)
    found = []
    for kernels, precision, codec in variants:
        if only not in ("auto", kernels):
            continue
        backend = CupyBackend(0, precision)
        chosen = make_passes(kernels, 1, "cupy")
        network = [
            random_layer(i, widths[i - 1], widths[i], ReLU() if i < layers else None, 0).to(backend)
            for i in range(1, layers + 1)
        ]
        nobody: Any = None
        plan = Plan(layers, layers, [range(1, layers + 1)], 0)
        clock = make_clock(backend, traced=False)
        stage = Stage(plan, network, nobody, clock, transport=MPITransport(nobody), backend=backend)
        X = backend.asarray(rng.standard_normal((nodes, hidden), dtype=np.float32))
        y = backend.asarray(rng.integers(0, classes, nodes))
        hyper = Hyper(0.01, 0.1, 0.01, "gradient", "exact", 10**9, "cross_entropy")
        made = codecs[codec]
        stage.start(X, y, nodes, partial(lambda made, span: made, made), hyper, chosen, 0)

        def work(stage: Any = stage) -> None:
            stage.iterate(work.count, False)  # type: ignore[attr-defined]
            work.count += 1  # type: ignore[attr-defined]

        work.count = 0  # type: ignore[attr-defined]
        pool = cupy.get_default_memory_pool()
        seconds = device_seconds(cupy, work, repeats)
        used = pool.total_bytes()
        stage.clock = host_clock = Clock()
        for noting in (*stage.layers, *stage.couplings):
            setattr(noting, "clock" if hasattr(noting, "clock") else "_clock", host_clock)
        plain = device_seconds(cupy, work, repeats)
        a = backend.asarray(rng.standard_normal((nodes, hidden), dtype=np.float32))
        b = backend.asarray(rng.standard_normal((hidden, hidden), dtype=np.float32))
        out = backend.empty((nodes, hidden))
        product = device_seconds(cupy, partial(backend.matmul, a, b.T, out=out), 4 * repeats)
        # layers 2 to L-1 have four products of full size, the first two, the last one a narrow one
        full = seconds / (layers - 1.5)
        found.append(
            {
                "backend": "cupy", "kernels": kernels, "precision": precision, "codec": made.name,
                "bits": made.bits, "solver": "gradient", "nodes": nodes, "hidden": hidden, "layers": layers,
                "seconds_per_layer_iteration": full, "seconds_per_product": product,
                "ratio": full / product, "events_cost": seconds / plain - 1,
                "pool_grew_after_warm_up": pool.total_bytes() > used,
            }
        )  # fmt: skip
    return found


def device_seconds(cupy: Any, work: Callable[[], Any], repeats: int) -> float:
    """Mean seconds of one call, by events around `repeats` calls after a warm-up."""
    for _ in range(5):
        work()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) * 1e-3 / repeats


def markdown(report: Report) -> str:
    lines = ["# GPU check", "", f"{report['when']}, {', '.join(report['gpu']['gpus'])}, CuPy "
             f"{report['gpu']['cupy']}, CUDA {report['gpu']['cuda']}, NCCL {report['gpu']['nccl']}.", "",
             "| step | outcome | seconds | result |", "| --- | --- | --- | --- |"]  # fmt: skip
    words = {True: "passed", False: "**failed**", None: "not run"}
    lines += [
        f"| {e['name']} | {words[e['ok']]} | {e['seconds']:.1f} | {e['result']} |" for e in report["checks"]
    ]
    tables = {"Training": "training", "Links": "links", "A layer's iteration": "iterations"}
    for title, name in tables.items():
        if rows := report[name]:
            keys = [key for key in rows[0] if key != "devices"]
            lines += ["", f"## {title}", "", f"| {' | '.join(keys)} |", "|" + " --- |" * len(keys)]
            lines += ["| " + " | ".join(text(r.get(k)) for k in keys) + " |" for r in rows]
    failed = [e for e in report["checks"] if e["ok"] is False and e["log"]]
    for e in failed:
        lines += ["", f"## {e['name']}: the end of its output", "", "```", e["log"], "```"]
    return "\n".join(lines) + "\n"


def text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--kernels", default="auto", help="of the training runs and the timed iterations")
    parser.add_argument("--out", metavar="DIR", default=str(RESULTS), help="folder of the report")
    parser.add_argument("--iterations", metavar="FILE", help="only time iterations, into this JSON file")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    nodes, hidden, repeats = (2000, 128, 20) if options.quick else (100_000, 512, 50)
    if options.iterations:
        Path(options.iterations).write_text(json.dumps(iterations(nodes, hidden, repeats, options.kernels)))
        return 0
    gpu, why = find_gpu()
    if gpu is None:
        print(f"gpu-check: not run on a GPU: {why}", file=sys.stderr)
        return 3
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"gpu-check: {sys.executable} lacks {', '.join(missing)}; put them on PYTHONPATH", file=sys.stderr
        )
        return 1
    check = Check()
    build_library(check)
    if importlib.util.find_spec("pytest"):
        tests = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("test_kernels*.py"))
        python = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        check.run("tests on the GPU", [*python, "tests/test_gpu.py"], 600)
        check.run("tests of the kernels", [*python, *tests], 600)
    else:
        check.note("tests", None, result="pytest is not installed")
    rows: list[Report] = []
    timed: list[Report] = []
    between: list[Report] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if find_mpirun() or can_load_mpi():
            rows = training(check, folder, gpu["nccl"], options.kernels)
            between = links(check, folder / "links.json", gpu["nccl"])
        else:
            check.note("training", None, result="no MPI library can be loaded")
        quick = ["--kernels", options.kernels, *(["--quick"] if options.quick else [])]
        program = [sys.executable, str(Path(__file__))]
        if check.run("time iterations", [*program, *quick, "--iterations", str(folder / "it.json")], 600):
            timed = json.loads((folder / "it.json").read_text())
        kernels = folder / "kernels.json"
        bench = [sys.executable, "-m", "pdadmm.bench", "kernels", "--json", str(kernels)]
        passes = json.loads(kernels.read_text()) if check.run("time kernels", bench, 600) else None
    report = {
        "when": time.strftime("%Y-%m-%d %H:%M"), "python": platform.python_version(), "gpu": gpu,
        "checks": check.entries, "training": rows, "links": between, "iterations": timed, "kernels": passes,
    }  # fmt: skip
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu-check.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "gpu-check.md").write_text(markdown(report))
    print(f"written: {out / 'gpu-check.md'} and .json")
    return 1 if any(entry["ok"] is False for entry in check.entries) else 0


def can_load_mpi() -> bool:
    code = "from mpi4py import MPI"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
