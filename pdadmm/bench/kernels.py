"""``python -m pdadmm.bench kernels``: what the fused passes make of the memory's bandwidth.

Bytes are those that the pass has to read and to write; a pass is compared with a copy of one matrix
by the same threads (the decoding of a float32 message, which is a copy).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from rich.table import Table

from pdadmm.admm.activations import ReLU
from pdadmm.admm.passes import Copies, Passes, make_passes
from pdadmm.arrays import Array
from pdadmm.codec import CODECS, Codec, make_codec
from pdadmm.comm.waiter import usable_cores
from pdadmm.errors import InputError
from pdadmm.files import Record, write_json
from pdadmm.files.target import report_target
from pdadmm.runtime.console import plain_console
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import answer

__all__ = ["main", "measure"]

CLASSES = 10
_CODECS = [make_codec(name, bits, (-4.0, 4.0)) for name, entry in CODECS.items() for bits in entry.bits]


def measure(
    passes: Passes, backend: str, nodes: int, hidden: int, repeats: int, device: ModuleType | None = None
) -> list[Record]:
    """Time every pass on random (nodes, hidden) matrices.

    Parameters
    ----------
    device
        The CuPy module, for kernels on a GPU.

    Returns
    -------
    list of dict
        Entries of the JSON file's ``results``.
    """
    rng = np.random.default_rng(0)
    shape = (nodes, hidden)

    def put(x: Array) -> Array:
        return x if device is None else device.asarray(x)

    def normal(*shape: int) -> Array:
        return put(rng.standard_normal(shape, dtype=np.float32))

    G, H, p, p_hat, q_hat, u, z, q, M = (normal(*shape) for _ in range(9))
    W, GW, mean = normal(hidden, hidden), normal(hidden, hidden), normal(hidden)
    z_last, M_last, mean_last = normal(nodes, CLASSES), normal(nodes, CLASSES), normal(CLASSES)
    y = put(rng.integers(0, CLASSES, nodes))
    matrix = G.nbytes
    tiny = 1e-9  # a step that moves nothing out of range
    results: list[Record] = []

    def add(kernel: str, codec: Codec | None, moved: int, call: Callable[[], object], entries: int) -> None:
        seconds = _seconds(call, repeats, device)
        results.append(
            {
                "kernel": kernel,
                "codec": codec.name if codec else None,
                "bits": codec.bits if codec else None,
                "backend": backend,
                "nodes": nodes,
                "hidden": hidden,
                "seconds": seconds,
                "bytes": moved,
                "bytes_per_second": moved / seconds,
                "seconds_per_element": seconds / entries,
            }
        )

    message = put(np.zeros(matrix, np.uint8))
    message[:] = put(np.frombuffer(rng.standard_normal(G.size, dtype=np.float32).tobytes(), np.uint8))
    add("copy", None, 2 * matrix, lambda: passes.decode(_CODECS[0], message, H), G.size)
    add("squared_norm", None, matrix, lambda: passes.squared_norm(H), G.size)
    add("subtract", None, 3 * matrix, lambda: passes.subtract(M, H, tiny), G.size)
    add("subtract_mean", None, 3 * matrix, lambda: passes.subtract_mean(M, H, tiny), G.size)
    add("column_sums", None, matrix, lambda: passes.column_sums(H), G.size)
    add("column_squares", None, matrix, lambda: passes.column_squares(H), G.size)
    add("residual", None, 3 * matrix, lambda: passes.residual(M, mean, z), G.size)
    add(
        "weight_gradient", None, 3 * W.nbytes,
        lambda: passes.weight_gradient(GW, W, 0.0, 1.0, tiny), W.size,
    )  # fmt: skip
    for codec in _CODECS:
        size = codec.nbytes(*shape)
        out, arrived = put(np.zeros(size, np.uint8)), put(np.zeros(size, np.uint8))
        passes.encode(codec, p, p_hat, arrived, 1)
        above = Copies(codec, p, p if codec.lossless else p_hat, q_hat, u)
        below = Copies(codec, q, q if codec.lossless else q_hat, p_hat, u)
        # a decoded copy that changes is read and written, one that is replaced is written
        hat = (2 if codec.name == "delta" else 1) * matrix
        own = 0 if codec.lossless else hat
        add("encode", codec, matrix + hat + size, _bind(passes.encode, codec, p, p_hat, out, 1), G.size)
        add("decode", codec, hat + size, _bind(passes.decode, codec, arrived, p_hat), G.size)
        add(
            "p_gradient", codec, 6 * matrix + hat + size,
            _bind(passes.p_gradient, G, above, arrived, tiny, tiny), G.size,
        )  # fmt: skip
        add(
            "p_step", codec, 3 * matrix + own + size,
            _bind(passes.p_step, above, G, tiny, out, 1), G.size,
        )  # fmt: skip
        add(
            "p_line_search", codec, 6 * matrix + own + size,
            _bind(passes.p_line_search, above, G, H, M, tiny, 1 / tiny, out, 1), G.size,
        )  # fmt: skip
        add(
            "hidden", codec, 8 * matrix + hat + own + 2 * size,
            _bind(passes.hidden, M, mean, z, below, arrived, out, 1, ReLU(), 0.01, 0.1, False), G.size,
        )  # fmt: skip
    M_start, z_start = M_last.copy(), z_last.copy()

    def newton() -> None:
        M_last[...], z_last[...] = M_start, z_start
        passes.output(M_last, mean_last, z_last, y, 0.01, "cross_entropy")

    add("output", None, 4 * M_last.nbytes, newton, M_last.size)
    copy = results[0]["bytes_per_second"]
    for result in results:
        result["of_copy"] = result["bytes_per_second"] / copy
    return results


def _bind(call: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: call(*arguments)


def _seconds(call: Callable[[], object], repeats: int, device: ModuleType | None) -> float:
    """Median time of a call, after two that warm up."""
    times = []
    for i in range(repeats + 2):
        if device is None:
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
        else:
            first, last = device.cuda.Event(), device.cuda.Event()
            first.record()
            call()
            last.record()
            last.synchronize()
            seconds = device.cuda.get_elapsed_time(first, last) * 1e-3
        if i >= 2:
            times.append(seconds)
    return statistics.median(times)


def _table(results: list[Record], title: str) -> Table:
    table = Table(title=title)
    table.add_column("pass")
    table.add_column("codec")
    for name in ("ms", "GB/s", "of a copy", "ns an element"):
        table.add_column(name, justify="right")
    for r in results:
        codec = "" if r["codec"] is None else f"{r['codec']} {r['bits']}"
        table.add_row(
            r["kernel"], codec, f"{1e3 * r['seconds']:.3f}", f"{r['bytes_per_second'] / 1e9:.1f}",
            f"{100 * r['of_copy']:.0f} %", f"{1e9 * r['seconds_per_element']:.3f}",
        )  # fmt: skip
    return table


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pdadmm.bench kernels",
        description="Bandwidth of the fused passes.",
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, default=20000, help="rows of the matrices (20000)")
    parser.add_argument("--hidden", type=int, default=500, help="columns of the matrices (500)")
    parser.add_argument("--layers", type=int, help="as of bench iteration; says nothing to a pass")
    parser.add_argument("--repeats", type=int, default=9, help="measurements, of which the median counts (9)")
    parser.add_argument("--threads", type=int, default=0, help="on the host; default: all cores")
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy")
    parser.add_argument("--kernels", choices=("fused", "reference"), default="fused")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    return parser


def _bench(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    for name in ("nodes", "hidden", "repeats"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.json:
        report_target(options.json, "--json", '{"results":')
    threads = options.threads or usable_cores()
    passes = make_passes(options.kernels, threads, options.backend)
    device = _cupy() if options.backend == "cupy" else None
    results = measure(passes, options.backend, options.nodes, options.hidden, options.repeats, device)
    where = getattr(passes, "instruction_set", options.backend)
    title = f"{options.kernels} passes, {options.nodes} x {options.hidden}, {threads} threads, {where}"
    plain_console(100).print(_table(results, title))
    if options.json:
        write_json(Path(options.json), {"results": results})


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    return answer("pdadmm", lambda report: _bench(arguments))


def _cupy() -> ModuleType:
    try:
        import cupy
    except ImportError:
        raise InputError("--backend cupy needs CuPy; pip install 'pdadmm[cuda13]'") from None
    return cupy
