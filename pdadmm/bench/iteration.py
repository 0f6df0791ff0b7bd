"""``python -m pdadmm.bench iteration``: a layer's iteration as a multiple of one of its products.

L layers of n neurons on one rank, V random nodes with n inputs and 10 classes. Measured are the
layers 2 to L-1, which have a p-, a W- and a z/q/u-update of n x n: seconds_per_layer_iteration is
the median over the iterations of their mean. One V x n x n product is timed after every iteration,
so that both see the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from threadpoolctl import threadpool_limits

from pdadmm.admm.activations import ReLU
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Hyper
from pdadmm.admm.passes import make_passes
from pdadmm.admm.stage import MakeCodec, Plan, Stage
from pdadmm.arrays.backend import Backend, NumpyBackend
from pdadmm.arrays.cupy_backend import CupyBackend
from pdadmm.arrays.groups import groups_of_shard
from pdadmm.codec import CODECS, Codec, make_codec
from pdadmm.comm.waiter import usable_cores
from pdadmm.errors import InputError
from pdadmm.files import Record, write_json
from pdadmm.files.target import report_target
from pdadmm.runtime.console import plain_console
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import answer
from pdadmm.trace.clock import WARM_UP, Clock

__all__ = ["Variant", "main", "make_stage", "measure"]

CLASSES = 10
_PARTS = ("p", "W", "z_q_u")


@dataclass(frozen=True)
class Variant:
    """What is measured."""

    kernels: str  #: fused | reference
    codec: str
    bits: int
    solver: str
    step: str = "exact"


DEFAULT = [
    Variant("reference", "float32", 32, "gradient"),
    Variant("fused", "float32", 32, "gradient"),
    Variant("reference", "delta", 8, "gradient"),
    Variant("fused", "delta", 8, "gradient"),
    Variant("fused", "delta", 4, "gradient"),
    Variant("fused", "delta", 1, "gradient"),
    Variant("fused", "float32", 32, "gradient", "row"),
    Variant("fused", "delta", 4, "gradient", "row"),
    Variant("fused", "affine", 8, "gradient"),
    Variant("fused", "grid", 8, "gradient"),
    Variant("reference", "float32", 32, "exact"),
    Variant("fused", "float32", 32, "exact"),
    Variant("fused", "delta", 8, "exact"),
]


def measure(
    variant: Variant,
    nodes: int,
    hidden: int,
    layers: int,
    threads: int,
    iterations: int,
    inputs: int = 0,
    backend: Backend | None = None,
) -> Record:
    """Time one variant; BLAS must have been limited to one thread.

    On a GPU the parts of the inner layers are waited for, which a run does not do.

    Parameters
    ----------
    inputs
        Columns of X; 0 for `hidden`.
    backend
        NumPy with that many threads where none is given.

    Returns
    -------
    dict
        An entry of the JSON file's ``results``; seconds and bytes.
    """
    rng = np.random.default_rng(0)
    backend = backend or NumpyBackend(threads, groups_of_shard(nodes, 1))
    stage = make_stage(variant, nodes, hidden, layers, threads, inputs or hidden, rng, backend)
    a, b = (
        backend.asarray(rng.standard_normal((rows, hidden), dtype=np.float32)) for rows in (nodes, hidden)
    )
    out = backend.empty((nodes, hidden))
    inner = [layer.position for layer in stage.layers[1:-1]]
    whole, inside, product = [], [], []
    parts: dict[str, list[float]] = {name: [] for name in _PARTS}
    gc.collect()
    _reset_peak()
    for i in range(WARM_UP + iterations):
        took = dict.fromkeys(((part, layer.position) for part in _PARTS for layer in stage.layers), 0.0)
        start = time.perf_counter()
        stage.clock.begin_iteration(i)
        for part, layer, call in _calls(stage, i):
            before = time.perf_counter()
            call()
            if layer in inner:  # what a middle layer costs on a device is only found by waiting
                _wait(backend)
            took[part, layer] = time.perf_counter() - before
        _wait(backend)
        stage.clock.end_iteration(0)
        end = time.perf_counter()
        backend.matmul(a, b.T, out=out)
        _wait(backend)
        after = time.perf_counter()
        if i >= WARM_UP:
            whole.append(end - start)
            product.append(after - end)
            for part in _PARTS:
                parts[part].append(sum(took[part, position] for position in inner) / len(inner))
            inside.append(sum(parts[part][-1] for part in _PARTS))
    peak = _peak()
    seconds, once = statistics.median(inside), statistics.median(product)
    phases = [stage.clock.seconds[position] for position in inner]
    products = sum(p["products"] for p in phases) / sum(sum(p.values()) for p in phases)
    return {
        "backend": backend.name,
        "kernels": variant.kernels,
        "codec": variant.codec,
        "bits": variant.bits,
        "solver": variant.solver,
        "step": variant.step,
        "nodes": nodes,
        "hidden": hidden,
        "layers": layers,
        "inputs": inputs or hidden,
        "threads": threads,
        "iterations": iterations,
        "seconds_per_layer_iteration": seconds,
        "seconds_per_product": once,
        "ratio": seconds / once,
        "ratio_of_fastest": min(inside) / min(product),
        "seconds_per_iteration": statistics.median(whole),
        "share": {part: statistics.median(parts[part]) / seconds for part in _PARTS},
        "share_products": products,
        "peak_bytes": peak,
    }


def _wait(backend: Backend) -> None:
    """Until the device is done."""
    if backend.on_device:
        import cupy

        cupy.cuda.get_current_stream().synchronize()


def make_stage(
    variant: Variant,
    nodes: int,
    hidden: int,
    layers: int,
    threads: int,
    inputs: int,
    rng: np.random.Generator,
    backend: Backend | None = None,
    clock: Clock | None = None,
) -> Stage:
    """A stage of random data on one rank, started; without a backend NumPy with that many threads."""
    backend = backend or NumpyBackend(threads, groups_of_shard(nodes, 1))
    widths = [inputs, *[hidden] * (layers - 1), CLASSES]
    network = [
        random_layer(i, widths[i - 1], widths[i], ReLU() if i < layers else None, seed=0).to(backend)
        for i in range(1, layers + 1)
    ]
    plan = Plan(layers, layers, [range(1, layers + 1)], 0)
    no_waiter: Any = None  # one rank has nobody to wait for
    stage = Stage(plan, network, no_waiter, clock or Clock(), backend=backend)
    X = backend.asarray(rng.standard_normal((nodes, inputs), dtype=np.float32))
    y = backend.asarray(rng.integers(0, CLASSES, nodes))
    hyper = Hyper(0.01, 0.1, 0.01, variant.solver, variant.step, 10**9, "cross_entropy")
    passes = make_passes(variant.kernels, threads, backend.name, backend.groups)
    stage.start(X, y, nodes, _codec_maker(variant), hyper, passes, 0)
    return stage


def _codec_maker(variant: Variant) -> MakeCodec:
    def codec(span: Callable[[], tuple[float, float]]) -> Codec:
        return make_codec(variant.codec, variant.bits, lambda: (-0.1 * span()[1], 1.1 * span()[1]))

    return codec


def _calls(stage: Stage, iteration: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """The parts of an iteration in the order of :meth:`Stage.iterate`."""
    for layer in reversed(stage.layers):
        yield "p", layer.position, functools.partial(layer.update_p, iteration)
    for layer in stage.layers:
        yield "W", layer.position, functools.partial(layer.update_weights, iteration)
    for layer in stage.layers:
        yield "z_q_u", layer.position, functools.partial(layer.update_outputs, iteration, False)


def _reset_peak() -> None:
    """Let the kernel forget the peak of the variants before, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Peak resident bytes of the process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _backend(name: str, threads: int, nodes: int) -> Backend:
    if name == "numpy":
        return NumpyBackend(threads, groups_of_shard(nodes, 1))
    try:
        return CupyBackend()
    except ImportError:
        raise InputError("--backend cupy needs CuPy; pip install 'pdadmm[cuda13]'") from None


def _table(results: list[Record], threads: int) -> Table:
    first = results[0]
    table = Table(
        title=f"a layer's iteration, {first['nodes']} nodes x {first['hidden']} neurons, "
        f"{first['layers']} layers, {threads} threads"
    )
    for name in ("kernels", "codec", "bits", "solver", "step"):
        table.add_column(name)
    for name in ("ms", "ms a product", "products", "p %", "W %", "z q u %", "in products %", "peak MB"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            r["kernels"], r["codec"], str(r["bits"]), r["solver"], r["step"],
            f"{1e3 * r['seconds_per_layer_iteration']:.3g}", f"{1e3 * r['seconds_per_product']:.3g}",
            f"{r['ratio']:.2f}", *(f"{100 * r['share'][part]:.0f}" for part in _PARTS),
            f"{100 * r['share_products']:.0f}", f"{r['peak_bytes'] / 1e6:.0f}",
        )  # fmt: skip
    return table


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m pdadmm.bench iteration",
        description=(__doc__ or "").split("\n\n")[1],
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, default=20000, help="V (20000)")
    parser.add_argument("--hidden", type=int, default=500, help="n (500)")
    parser.add_argument("--layers", type=int, default=3, help="L, at least 3 (3)")
    parser.add_argument("--inputs", type=int, default=0, help="columns of X; default: n")
    parser.add_argument("--iterations", type=int, default=10, help="measured iterations (10)")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy")
    parser.add_argument("--codec", choices=CODECS, help="only this codec")
    parser.add_argument("--bits", type=int, help="only this width")
    parser.add_argument("--solver", choices=("gradient", "exact"), help="only this solver")
    parser.add_argument("--step", choices=("exact", "row"), help="only this step length")
    parser.add_argument("--kernels", choices=("fused", "reference"), help="only these kernels")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    options = parser.parse_args(arguments)
    if options.layers < 3:
        raise InputError(f"--layers {options.layers} has no layer between others; give at least 3")
    for name in ("nodes", "hidden", "iterations"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} must be at least 1")
    return options


def _bench(arguments: list[str]) -> None:
    options = _parse(arguments)
    variants = [
        v
        for v in DEFAULT
        if all(
            getattr(options, name) in (None, getattr(v, name))
            for name in ("codec", "bits", "solver", "step", "kernels")
        )
    ]
    if options.json:
        report_target(options.json, "--json", '{"results":')
    if not variants:
        raise InputError(
            "none of the measured variants has these --codec, --bits, --solver, --step, --kernels"
        )
    threads = options.threads or usable_cores()
    backend = _backend(options.backend, threads, options.nodes)
    results = []
    with threadpool_limits(1):  # tiles of products have threads of their own
        for variant in variants:
            results.append(
                measure(
                    variant, options.nodes, options.hidden, options.layers, threads,
                    options.iterations, options.inputs, backend,
                )
            )  # fmt: skip
    plain_console(160).print(_table(results, threads))
    if options.json:
        write_json(Path(options.json), {"results": results})


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    return answer("pdadmm", lambda report: _bench(arguments))
