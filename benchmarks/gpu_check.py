"""``make gpu-check``: tests, benchmarks and training runs on this machine's GPU, and a report of them.

    make gpu-check PYTHON=python3
    python3 benchmarks/gpu_check.py [--quick] [--only PART,...] [--out DIR]

Uses the Python packages that are there and no network. Builds the host library when a compiler is
there. The report, gpu-check.md and .json in DIR (benchmarks/results), is written after every step, so that
one which is cut short leaves what it had. Parts, each of a few minutes at most:

    nccl        a message to itself over NCCL
    tests       tests of kernels and codecs, and tests/test_gpu.py
    launches    an iteration of small and large networks, as a graph and kernel by kernel
    kernels     bandwidth of the passes, beside a copy
    iterations  a layer's iteration as a multiple of its products
    training    accuracy beside the CPU's, the same iterates on 1, 2 and 4 ranks
    graphs      the same of a graph network; an epoch beside PyTorch Geometric where it is installed
    links       latency and bandwidth between two ranks

Exit codes: 0 all passed; 1 something failed; 2 bad options; 3 not run on a GPU, nothing is written then.
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
NEEDED = ("numpy", "scipy", "h5py", "mpi4py", "rich", "msgspec", "threadpoolctl", "tomli_w")
PARTS = ("nccl", "tests", "launches", "kernels", "iterations", "training", "graphs", "links")
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
    """Runs commands and collects what they gave; a failure does not end the rest.

    Parameters
    ----------
    report
        Written to `out` after every step; the steps are its ``checks``.
    """

    def __init__(self, report: Report, out: Path) -> None:
        self.report, self._out = report, out
        self.entries: list[Report] = report["checks"]
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
        self.write()

    def keep(self, name: str, found: Any) -> None:
        """Keep what a part has measured."""
        self.report[name] = found
        self.write()

    def write(self) -> None:
        """Write the report as it is."""
        self._out.mkdir(parents=True, exist_ok=True)
        (self._out / "gpu-check.json").write_text(json.dumps(self.report, indent=2) + "\n")
        (self._out / "gpu-check.md").write_text(markdown(self.report))


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
        flags = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -pthread"
        # as CMakeLists.txt compiles what there is once for every instruction set
        passes = "-DPDADMM_ISA=portable -DPDADMM_NAMESPACE=pdadmm_portable -fno-math-errno -fno-trapping-math"
        with tempfile.TemporaryDirectory() as build:
            objects = {name: f"{build}/{name}.o" for name in ("host", "host_passes", "graph_passes")}
            script = " && ".join(
                f"{compiler} {flags} {'' if name == 'host' else passes} -c kernels/{name}.cpp -o {made}"
                for name, made in objects.items()
            )
            script += f" && {compiler} -shared -pthread {' '.join(objects.values())} "
            script += "-o pdadmm/kernels/libpdadmm_host.so"
            check.run("build the host library (portable)", ["sh", "-c", script])


def find_mpirun() -> str | None:
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def train(
    check: Check, ranks: int, name: str, program: str, options: str, out: Path, env: dict[str, str]
) -> Report | None:
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
        *program.split(),
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
    program = f"pdadmm.run {OPTIONS}"
    cpu = train(check, 1, "train on the CPU", program, "--backend numpy", folder / "cpu", one)
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
        found = train(check, 1, f"train on the GPU in {precision}", program, options, folder / precision, one)
        if found:
            rows.append(row(found, cpu, None))
    for ranks, transport, env in runs:
        name = f"train on {ranks} rank{'s' if ranks > 1 else ''} over {transport}"
        options = f"--backend cupy --kernels {kernels} --transport {transport}"
        out = folder / f"{transport}{ranks}"
        found = train(check, ranks, name, program, options, out, {**one, **env})
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


def graphs(check: Check, folder: Path, quick: bool) -> list[Report]:
    """A graph network in four parts on 1, 2 and 4 ranks of the GPU, and on the CPU."""
    graph, one = folder / "graph.h5", {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    nodes = 2000 if quick else 20_000
    size = f"--synthetic-nodes {nodes} --synthetic-features 64 --synthetic-communities 16"
    prepare = [sys.executable, "-m", "pdadmm.gnn.prepare", "synthetic", *size.split()]
    if not check.run("make a graph", [*prepare, "--parts", "4", "--out", str(graph)]):
        return []
    program, rows = f"pdadmm.gnn.run {graph} --epochs 60 --eval-every 20 --quiet", []
    cpu = train(check, 1, "graph network on the CPU", program, "--backend numpy", folder / "gcpu", one)
    first: Report | None = None
    for ranks in (1, 2, 4):
        name = f"graph network on {ranks} rank{'s' if ranks > 1 else ''}"
        options, out = "--backend cupy --transport mpi", folder / f"g{ranks}"
        found = train(check, ranks, name, program, options, out, one)
        if found is None:
            continue
        first = first or found
        keys = ("ranks", "test_accuracy", "loss", "seconds_epochs", "seconds_evaluation", "bytes_per_epoch")
        rows.append({**{key: found[key] for key in keys}, "cpu": cpu and {key: cpu[key] for key in keys}})
        if ranks > 1:
            check.note(f"{name}: the epochs of one rank", found["records"] == first["records"])
        elif cpu:
            gap = abs(found["test_accuracy"] - cpu["test_accuracy"])
            shown = f"{found['test_accuracy']:.4f} against {cpu['test_accuracy']:.4f}"
            check.note("its accuracy as on the CPU, to .05", gap <= 0.05, result=shown)
    return rows


def beside_pyg(check: Check, folder: Path, quick: bool) -> list[Report]:
    """Seconds of an epoch and PyG's."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torch_geometric") is None:
        check.note("an epoch beside PyTorch Geometric", None, result="it is not installed")
        return []
    graph, found = folder / "whole.h5", folder / "gnn_speed.json"
    size = "--synthetic-degree 20 --synthetic-features 128 --synthetic-communities 64"
    nodes = ["--synthetic-nodes", "5000" if quick else "200000"]
    prepare = [sys.executable, "-m", "pdadmm.gnn.prepare", "synthetic", *size.split(), *nodes]
    if not check.run("make a whole graph", [*prepare, "--parts", "1", "--out", str(graph)]):
        return []
    speed = [sys.executable, "benchmarks/gnn_speed.py", str(graph), "--schemes", "float32", "--epochs", "30"]
    speed += ["--rounds", "1", "--backend", "cupy", "--json", str(found)]
    if not check.run("an epoch beside PyTorch Geometric", speed):
        return []
    results: list[Report] = json.loads(found.read_text())["results"]
    return results


def to_itself(check: Check) -> None:
    """A message over NCCL from the GPU to itself, 50 times in each of two rounds."""
    check.run("a message to itself over NCCL", [sys.executable, str(Path(__file__)), "--self-loop"], 120)


def self_loop() -> None:
    """What :func:`to_itself` runs."""
    import numpy as np

    from pdadmm.arrays.cupy_backend import CupyBackend
    from pdadmm.comm.channel import Channel
    from pdadmm.comm.nccl import CupyNccl, open_rounds, require_nccl
    from pdadmm.comm.rounds import Round, Rounds

    CupyBackend(0)
    nccl, nbytes = require_nccl(), 1 << 20
    device = CupyNccl(nccl, nccl.NcclCommunicator(1, nccl.get_unique_id(), 0))
    rounds = [
        Round(name, tuple(Channel(name, 0, tag, nbytes, sends) for sends in (True, False)))
        for tag, name in enumerate("PQ")
    ]
    ends = open_rounds(device, Rounds(tuple(rounds)))
    for i in range(50):
        for name, more in (("P", 0), ("Q", 100)):
            outgoing, incoming = ends.outgoing[name], ends.incoming[name]
            incoming.post()
            outgoing.wait_free()
            outgoing.buffer[...] = np.uint8(i + more)
            outgoing.start()
            incoming.wait()
            if int((incoming.buffer != i + more).sum()):
                sys.exit(f"message {i} of round {name} came otherwise than it was sent")
    print(f"NCCL {nccl.get_version()}: 100 messages of {nbytes} bytes came as they were sent")
    device.close()


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
        stage._replay = None  # without graphs, which a plain clock does not take
        timed = device_seconds(cupy, work, repeats)
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
                "ratio": full / product, "events_cost": timed / plain - 1,
                "pool_grew_after_warm_up": pool.total_bytes() > used,
            }
        )  # fmt: skip
    return found


def launches(quick: bool) -> list[Report]:
    """What an iteration of a layer takes the host and the device, as a graph and kernel by kernel."""
    import cupy
    import numpy as np

    from pdadmm.arrays.cupy_backend import CupyBackend
    from pdadmm.bench.iteration import Variant, make_stage
    from pdadmm.trace.choose import make_clock

    sizes = [(140, 100, 1), (140, 100, 10), (2000, 128, 10), (20_000, 500, 10), (100_000, 512, 6)]
    first, count = 25, 35  # none of them is measured in detail
    variant = Variant("fused", "delta", 4, "gradient")
    found = []
    for nodes, hidden, layers in sizes[: 3 if quick else None]:
        for as_graph in (True, False):
            backend, rng = CupyBackend(0), np.random.default_rng(0)
            clock = make_clock(backend, traced=False)
            stage = make_stage(variant, nodes, hidden, layers, 1, hidden, rng, backend, clock)
            kernels: Any = stage.layers[0].passes
            if not as_graph:
                stage._replay = None
            for i in range(first):
                stage.iterate(i, False)
            stream = cupy.cuda.get_current_stream()
            stream.synchronize()
            calls, start = kernels.calls, time.perf_counter()
            for i in range(first, first + count):
                stage.iterate(i, False)
            given = time.perf_counter() - start
            stream.synchronize()
            taken = time.perf_counter() - start
            found.append(
                {
                    "nodes": nodes, "hidden": hidden, "layers": layers, "graphs": as_graph,
                    "host_microseconds_per_layer": 1e6 * given / count / layers,
                    "microseconds_per_layer": 1e6 * taken / count / layers,
                    "single_launches_per_layer": (kernels.calls - calls) / count / layers,
                }
            )  # fmt: skip
            del stage
            cupy.get_default_memory_pool().free_all_blocks()
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
    tables = {
        "Training": "training", "Graph networks": "graphs", "An epoch, seconds": "epochs",
        "Launches": "launches", "Links": "links", "A layer's iteration": "iterations",
    }  # fmt: skip
    for title, name in tables.items():
        if rows := report.get(name):
            keys = [key for key in rows[0] if key not in ("devices", "versions")]
            lines += ["", f"## {title}", "", f"| {' | '.join(keys)} |", "|" + " --- |" * len(keys)]
            lines += ["| " + " | ".join(text(r.get(k)) for k in keys) + " |" for r in rows]
    failed = [e for e in report["checks"] if e["ok"] is False and e["log"]]
    for e in failed:
        lines += ["", f"## {e['name']}: the end of its output", "", "```", e["log"], "```"]
    return "\n".join(lines) + "\n"


def text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(check: Check, file: Path, what: str, arguments: list[str]) -> list[Report]:
    """What this program, started with an option that measures into a file, has found."""
    command = [sys.executable, str(Path(__file__)), *arguments, str(file)]
    found: list[Report] = json.loads(file.read_text()) if check.run(what, command, 600) else []
    return found


def run_tests(check: Check) -> None:
    """Those that a GPU runs, by as many processes as pytest-xdist gives."""
    if importlib.util.find_spec("pytest") is None:
        check.note("tests", None, result="pytest is not installed")
        return
    processes = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    python = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *processes]
    check.run("tests on the GPU", [*python, "tests/test_gpu.py"], 600)
    if importlib.util.find_spec("hypothesis") is None:
        check.note("tests of the kernels", None, result="hypothesis is not installed")
        return
    kernels = ["tests/test_kernels.py", "tests/test_gnn_cuda.py", "-k", "not cuda-on-cpu and not thread"]
    check.run("tests of the kernels", [*python, *kernels], 600)


def run_parts(check: Check, parts: list[str], options: argparse.Namespace, folder: Path) -> None:
    """The parts that were asked for, in their order; what they measure goes into the report."""
    quick = ["--kernels", options.kernels, *(["--quick"] if options.quick else [])]
    nccl = check.report["gpu"]["nccl"]
    can_train = bool(find_mpirun()) or can_load_mpi()
    for part in parts:
        if part in ("training", "graphs", "links") and not can_train:
            check.note(part, None, result="no MPI library can be loaded")
        elif part == "nccl":
            if nccl:
                to_itself(check)
            else:
                check.note("a message to itself over NCCL", None, result="there is no NCCL")
        elif part == "tests":
            run_tests(check)
        elif part == "launches":
            file = folder / "launches.json"
            check.keep(part, measured(check, file, "launches", [*quick, "--launches"]))
        elif part == "iterations":
            file = folder / "iterations.json"
            check.keep(part, measured(check, file, "time iterations", [*quick, "--iterations"]))
        elif part == "kernels":
            file = folder / "kernels.json"
            size = ["--nodes", "20000"] if options.quick else ["--nodes", "200000", "--hidden", "512"]
            bench = [sys.executable, "-m", "pdadmm.bench", "kernels", "--backend", "cupy", *size]
            if check.run("time kernels", [*bench, "--json", str(file)], 600):
                check.keep(part, json.loads(file.read_text()))
        elif part == "training":
            check.keep(part, training(check, folder, nccl, options.kernels))
        elif part == "graphs":
            check.keep(part, graphs(check, folder, options.quick))
            check.keep("epochs", beside_pyg(check, folder, options.quick))
        elif part == "links":
            check.keep(part, links(check, folder / "links.json", nccl))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--kernels", default="auto", help="of the training runs and the timed iterations")
    parser.add_argument("--only", metavar="PART,...", default=",".join(PARTS), help="parts to run")
    parser.add_argument("--out", metavar="DIR", default=str(RESULTS), help="folder of the report")
    parser.add_argument("--iterations", metavar="FILE", help="only time iterations, into this JSON file")
    parser.add_argument("--launches", metavar="FILE", help="only time launches, into this JSON file")
    parser.add_argument("--self-loop", action="store_true", help="only send messages to itself over NCCL")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")
    sys.path.insert(0, str(ROOT))
    nodes, hidden, repeats = (2000, 128, 20) if options.quick else (100_000, 512, 50)
    if options.iterations:
        Path(options.iterations).write_text(json.dumps(iterations(nodes, hidden, repeats, options.kernels)))
        return 0
    if options.launches:
        Path(options.launches).write_text(json.dumps(launches(options.quick)))
        return 0
    if options.self_loop:
        self_loop()
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
    when, python = time.strftime("%Y-%m-%d %H:%M"), platform.python_version()
    report: Report = {"when": when, "python": python, "gpu": gpu, "checks": []}
    out = Path(options.out)
    check = Check(report, out)
    build_library(check)
    with tempfile.TemporaryDirectory() as name:
        run_parts(check, parts, options, Path(name))
    print(f"written: {out / 'gpu-check.md'} and .json")
    return 1 if any(entry["ok"] is False for entry in check.entries) else 0


def can_load_mpi() -> bool:
    code = "from mpi4py import MPI"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
