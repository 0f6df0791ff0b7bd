"""The GPU code path without a GPU: CuPy and NCCL replaced by tests/standin.

The stand-in refuses hidden copies as CuPy does, runs streams as threads that lag, counts how often the
host waits, and moves NCCL's messages over MPI. What CUDA computes it cannot show: tests/test_gpu.py does,
on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from support import (
    PROGRAMS,
    STANDIN,
    Finished,
    find_mpirun,
    on_standin,
    records_of,
    run_each,
    run_many,
    start,
    succeed,
    summary_of,
    weights_of,
    without_times,
)

from pdadmm.admm.passes.lengths import label_of, place_of
from pdadmm.errors import InputError, RunError
from pdadmm.profile.load import load
from pdadmm.runtime.devices import Place, decide
from pdadmm.runtime.sections import Run

SHAPE = "--layers 5 --hidden 24 --iterations 12 --eval-every 6 --stages 2,5 --kernels reference --quiet"

#: options that take different ways through a layer, and the transport they are tried with
WAYS = {
    "delta4": ("--codec delta --bits 4", "mpi"),
    "delta2": ("--codec delta --bits 2 --refresh 5", "nccl"),
    "delta1": ("--codec delta --bits 1 --activation leaky_relu --step doubling --no-overlap", "mpi"),
    "row": ("--codec delta --bits 4 --step row", "nccl"),
    "grid8": ("--codec grid --bits 8 --timeout 60", "nccl"),
    "affine4": ("--codec affine --bits 4 --risk least_squares", "nccl"),
    "exact": ("--codec float32 --solver exact --no-overlap", "nccl"),
    "accelerated": ("--solver exact --damping 1 --momentum 0.9 --z-centre linear", "mpi"),
    "linear": ("--codec delta --bits 4 --z-centre linear", "nccl"),
    "tanh": ("--codec delta --bits 8 --activation tanh --checkpoint-every 7", "mpi"),
}


def runs(backend: str, small: Path) -> dict[str, list[str]]:
    """Arguments of WAYS by name."""
    found = {}
    for name, (options, transport) in WAYS.items():
        way = f"--backend {backend} --transport {transport if backend == 'cupy' else 'mpi'}"
        found[name] = [str(small), *f"{SHAPE} {options} {way}".split()]
    return found


@pytest.fixture(scope="module")
def on_numpy(
    mpirun: Callable[..., Finished], small: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folders of the runs of WAYS with NumPy on one rank."""
    return run_each(partial(mpirun, 1), "pdadmm.run", runs("numpy", small), tmp_path_factory.mktemp("numpy"))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_iterates_are_those_of_numpy(
    ranks: int, on_numpy: dict[str, Path], small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    run_each(partial(mpirun, ranks), "pdadmm.run", runs("cupy", small), tmp_path, env=on_standin())
    for name, (_, transport) in WAYS.items():
        for a, b in zip(records_of(on_numpy[name]), records_of(tmp_path / name), strict=True):
            assert without_times(a) == without_times(b), name
        for a, b in zip(weights_of(on_numpy[name] / "model.h5"), weights_of(tmp_path / name / "model.h5"),
                        strict=True):  # fmt: skip
            assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]), name
        summary = summary_of(tmp_path / name)
        assert summary["backend"] == "cupy"
        assert summary["transport"] == (transport if ranks > 1 else "mpi")
        assert len(set(summary["devices"])) == ranks and "GPU-" in summary["devices"][0]
        assert summary["bytes_per_iteration"] == summary_of(on_numpy[name])["bytes_per_iteration"]


def test_a_checkpoint_of_gpu_ranks_is_gone_on_from(
    on_numpy: dict[str, Path], small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    options = f"{SHAPE} --codec delta --bits 4 --backend cupy --checkpoint-every 7".split()
    first = [str(small), *options, "--out", str(tmp_path / "run"), "--transport", "nccl"]
    again = [*first[:-1], "mpi", "--resume"]
    run_many(partial(mpirun, 2), "pdadmm.run", [first, again], tmp_path, env=on_standin())
    records = [without_times(r) for r in records_of(tmp_path / "run")]
    assert records == [without_times(r) for r in records_of(on_numpy["delta4"])]


def test_shards_on_devices_are_those_of_numpy(
    small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    """Sums over the shards travel through the host, messages by either transport."""
    ways = {
        "delta4": "--codec delta --bits 4 --transport mpi",
        "row": "--codec delta --bits 2 --step row --transport nccl",
        "grid8": "--codec grid --bits 8 --transport nccl",
        "exact": "--codec float32 --solver exact --damping 1 --momentum 0.9 --transport mpi",
    }
    for backend, env in (("numpy", None), ("cupy", on_standin())):
        folder = tmp_path / backend
        folder.mkdir()
        cases = {}
        for name, options in ways.items():
            transport = options if backend == "cupy" else options.replace("nccl", "mpi")
            way = f"{SHAPE} {transport} --backend {backend} --shards 2 --checkpoint-every 9 --measure-links"
            cases[name] = [str(small), *way.split()]
        run_each(partial(mpirun, 4), "pdadmm.run", cases, folder, env=env)
    for name in ways:
        one, other = tmp_path / "numpy" / name, tmp_path / "cupy" / name
        for a, b in zip(records_of(one), records_of(other), strict=True):
            assert without_times(a) == without_times(b), name
        for a, b in zip(weights_of(one / "model.h5"), weights_of(other / "model.h5"), strict=True):
            assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]), name
        summary = summary_of(other)
        assert (summary["backend"], summary["shards"]) == ("cupy", 2)
        sums = "reduction_bytes_per_iteration"
        assert summary[sums] == summary_of(one)[sums] > 0
        baseline = load(other)["links_baseline"]["transports"]
        (way,) = baseline
        assert way == ("staged" if summary["transport"] == "mpi" else "nccl")
        pairs = [(link["lower"], link["upper"]) for link in baseline[way]]
        assert pairs == [(0, 1), (0, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("step", ["exact", "row"])
@pytest.mark.parametrize("transport", ["mpi", "nccl"], ids=["staged", "over_nccl"])
def test_no_iteration_waits_for_the_device(
    transport: str, step: str, mpirun: Callable[..., Finished]
) -> None:
    finished = succeed(mpirun(2, PROGRAMS / "gpu_waits.py", transport, step, env=on_standin()))
    lines = [line.split() for line in finished.out.splitlines()]
    assert [unmeasured for unmeasured, *_ in lines] == ["0", "0"]
    assert all(0 < int(measured) <= 2 for _, measured, *_ in lines)
    # the clock has its times all the same: of the iterations after the warm-up, and all of their time
    assert [counted for *_, counted, _ in lines] == ["5", "5"]
    assert all(float(share) == pytest.approx(1, rel=1e-3) for *_, share in lines)


@pytest.mark.parametrize(
    "options",
    [
        "--codec delta --bits 4",
        "--codec float32 --mu 0 --z-centre linear",
        "--codec delta --bits 4 --schedule authors --nu 1e-6 --rho 1e-5 --eval-every 5",
    ],
)
def test_graphs_give_the_iterates_of_single_kernels(
    options: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    shape = "--layers 3 --hidden 12 --stages 3 --iterations 46 --refresh 7 --backend cupy --quiet"
    runs = []
    # the phases of a traced run are told apart, so that it has no graphs
    for name, more in (("graphs", ""), ("kernels", "--trace")):
        command = [small, *f"{shape} {options} {more}".split(), "--out", tmp_path / name]
        finished = succeed(mpirun(1, PROGRAMS / "gpu_graphs.py", *command, timeout=120, env=on_standin()))
        runs.append([int(word) for word in finished.out.split()])
    (graphs, launches), (none, single) = runs
    assert none == 0 and graphs >= 10 and launches < 0.9 * single
    assert list(map(without_times, records_of(tmp_path / "graphs"))) == list(
        map(without_times, records_of(tmp_path / "kernels"))
    )
    for a, b in zip(
        *(weights_of(tmp_path / name / "model.h5") for name in ("graphs", "kernels")), strict=True
    ):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    penalties = [record["nu"] for record in records_of(tmp_path / "graphs")]
    assert (len(set(penalties[4:])) > 1) == ("authors" in options), "they change while there are graphs"
    found, expected = (summary_of(tmp_path / name) for name in ("graphs", "kernels"))
    assert found["bytes_per_iteration"] == expected["bytes_per_iteration"]


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("options", ["mpi", "mpi --no-overlap", "nccl"])
def test_rounds_among_any_peers_carry_messages_of_any_size(
    ranks: int, options: str, mpirun: Callable[..., Finished]
) -> None:
    finished = succeed(mpirun(ranks, PROGRAMS / "gpu_rounds.py", *options.split(), env=on_standin()))
    counts = [[int(word) for word in line.split()] for line in finished.out.splitlines()]
    assert len(counts) == ranks and all(sum(count) for count in counts)
    assert sum(sent for sent, _ in counts) == sum(received for _, received in counts)


@pytest.mark.parametrize(("status", "words"), [("", "REMOTE_ERROR"), ("99", "status 99")])
def test_an_error_of_nccl_ends_the_job_and_names_rank_and_link(
    status: str, words: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    (tmp_path / "failed").touch()
    env = on_standin(STANDIN_NCCL_FAILS=str(tmp_path / "failed"), STANDIN_NCCL_STATUS=status)
    options = f"{SHAPE} --backend cupy --transport nccl --iterations 100000".split()
    finished = mpirun(3, "-m", "pdadmm.run", small, *options, "--out", tmp_path / "out", env=env, timeout=60)
    assert finished.code not in (0, 2)
    line = next(line for line in finished.err.splitlines() if "NCCL" in line)
    assert line.startswith("pdadmm: rank ") and "on the link to rank" in line and words in line


@pytest.mark.parametrize("transport", ["mpi", "nccl"], ids=["staged", "over_nccl"])
def test_a_gpu_that_fails_ends_the_job_in_one_line(
    transport: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    options = f"{SHAPE} --backend cupy --transport {transport} --iterations 100000".split()
    env = on_standin(STANDIN_FAILS_AT="300")
    finished = mpirun(2, "-m", "pdadmm.run", small, *options, "--out", tmp_path / "out", env=env, timeout=40)
    assert finished.code == 1 and "Traceback" not in finished.err
    lines = [line for line in finished.err.splitlines() if "the GPU has failed" in line]
    assert lines and all("cudaErrorIllegalAddress" in line and "rank" in line for line in lines)


def test_a_damaged_kernel_is_compiled_again(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    load = "from pdadmm.kernels import cuda; cuda._module('quantize.cu', 0)"

    def kept() -> tuple[Path, bytes]:
        succeed(start([sys.executable, "-c", load], 120, on_standin(CUPY_CACHE_DIR=str(tmp_path))))
        (path,) = tmp_path.glob("pdadmm_*")
        return path, path.read_bytes()

    path, whole = kept()
    path.write_bytes(whole[: len(whole) // 2])
    assert kept() == (path, whole)
    place = len(whole) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    assert kept() == (path, whole)


def test_ranks_of_which_some_have_no_gpu_are_refused(small: Path, tmp_path: Path) -> None:
    program = find_mpirun()
    if program is None:
        pytest.skip("there is no mpirun")
    command = [program]
    for devices in ("1", "0"):
        arguments = ["-m", "pdadmm.run", str(small), *SHAPE.split(), "--out", str(tmp_path / "out")]
        separator = [":"] if devices == "0" else []
        rank = ["-n", "1", "/usr/bin/env", f"STANDIN_DEVICES={devices}", sys.executable, *arguments]
        command += [*separator, *rank]
    finished = start(command, 40, on_standin())
    assert finished.code == 2 and finished.err.count("\n") == 1
    assert "1 ranks have a GPU and 1 have none (rank 1" in finished.err


def test_a_rank_that_hangs_ends_the_others_that_wait_for_nccl(
    small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    options = f"{SHAPE} --stages 5 --backend cupy --transport nccl --iterations 100000 --timeout 3".split()
    program = [PROGRAMS / "faulty_rank.py", "stop", "1", "12", small]
    finished = mpirun(3, *program, *options, "--out", tmp_path / "out", env=on_standin(), timeout=60)
    assert finished.code not in (0, 2)
    lines = [line for line in finished.err.splitlines() if line.startswith("pdadmm: ") and "rank" in line]
    (line,) = [line for line in lines if "CuPy" not in line]
    assert re.search(
        r"rank [02], .*: NCCL: no answer within 3 s .* rank 1; rank 1 \(process \d+\) is stopped", line
    )


@pytest.mark.parametrize(
    ("devices", "options", "words"),
    [
        (0, "--backend cupy", ["--backend cupy", "no CUDA-capable device"]),
        (0, "--transport nccl", ["--transport nccl", "no CUDA-capable device"]),
        (1, "--transport nccl", ["share a GPU", "NCCL_MULTI_RANK_GPU_ENABLE"]),
        (2, "--as-sharded", ["--as-sharded", "CPUs only", "--backend numpy"]),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    devices: int, options: str, words: list[str], small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    finished = mpirun(
        2, "-m", "pdadmm.run", small, *f"{SHAPE} {options}".split(), "--out", tmp_path / "out",
        env=on_standin(devices),
    )  # fmt: skip
    assert finished.code == 2
    assert finished.err.count("\n") == 1 and all(word in finished.err for word in words)
    assert not (tmp_path / "out").exists()


def test_without_cupy_the_line_says_how_to_install_it(
    small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    if importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is installed here")
    for options in ("--backend cupy", "--transport nccl"):
        finished = mpirun(2, "-m", "pdadmm.run", small, *options.split(), "--out", tmp_path / "out")
        assert finished.code == 2 and finished.err.count("\n") == 1
        assert "CuPy is not installed" in finished.err and "pip install" in finished.err


# ---- the choice at the start ----------------------------------------------------------------------

GPU = Place("node1", None, 0, "H200", "GPU-0", None, 23007)
OTHER = replace(GPU, device=1, uuid="GPU-1")
NONE = Place("node2", "CuPy is not installed; install it")


@pytest.mark.parametrize(
    ("run", "places", "backend", "transport"),
    [
        (Run(), [NONE, NONE], "numpy", "mpi"),
        (Run(), [GPU, OTHER], "cupy", "nccl"),
        (Run(transport="mpi"), [GPU, OTHER], "cupy", "mpi"),
        (Run(cuda_aware_mpi=True), [GPU, OTHER], "cupy", "mpi"),
        (Run(backend="numpy"), [GPU, OTHER], "numpy", "mpi"),
        (Run(), [GPU, GPU], "cupy", "mpi"),
        (Run(), [replace(GPU, shares=True)] * 2, "cupy", "nccl"),
        (Run(), [replace(GPU, shares=True, nccl_version=22907)] * 2, "cupy", "mpi"),
        (Run(), [GPU, replace(OTHER, nccl_version=22907)], "cupy", "mpi"),
        (Run(), [replace(GPU, nccl_problem="CuPy found no NCCL library")], "cupy", "mpi"),
        (Run(precision="tf32"), [replace(GPU, capability=75)], "cupy", "mpi"),
    ],
)
def test_choice(run: Run, places: list[Place], backend: str, transport: str) -> None:
    choice = decide(run, places)
    assert (choice.backend, choice.transport) == (backend, transport)
    fell_back = backend == "cupy" and transport == "mpi" and run == Run() and len(places) > 1
    assert bool(choice.why_not_nccl) == fell_back


@pytest.mark.parametrize(
    ("run", "places", "words"),
    [
        (Run(backend="cupy"), [NONE, NONE], "CuPy is not installed"),
        (Run(), [GPU, NONE], "1 ranks have a GPU and 1 have none (rank 1 on node2"),
        (Run(backend="cupy"), [GPU, NONE, OTHER], "2 ranks have a GPU and 1 have none"),
        (Run(transport="nccl"), [GPU, GPU], "NCCL_MULTI_RANK_GPU_ENABLE=1"),
        (Run(transport="nccl"), [replace(GPU, nccl_version=22907)] * 2, "NCCL 2.29.7 does not allow"),
        (Run(transport="nccl"), [NONE], "CuPy is not installed"),
        (Run(transport="nccl", cuda_aware_mpi=True), [GPU, OTHER], "--cuda-aware-mpi"),
        (Run(precision="tf32"), [NONE], "--precision tf32 needs GPUs"),
        (
            Run(precision="bf16x3"),
            [GPU, replace(OTHER, name="T4", capability=75)],
            "rank 1 on node1 has a T4 of 7.5",
        ),
    ],
)
def test_refusals_name_what_is_missing(run: Run, places: list[Place], words: str) -> None:
    with pytest.raises(InputError) as caught:
        decide(run, places)
    assert words in str(caught.value)


# ---- numbers on the device ------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in as ``cupy`` within this process; an installed CuPy comes back afterwards."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupy_backends")]

    before = {name: sys.modules.pop(name) for name in ours()}
    monkeypatch.syspath_prepend(str(STANDIN))
    yield importlib.import_module("cupy")
    for name in ours():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16x3"])
def test_products_in_every_layout(precision: str, cupy: Any) -> None:
    from pdadmm.arrays.cupy_backend import CupyBackend

    backend = CupyBackend(0, precision)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape, dtype=np.float32) for shape in ((7, 5), (5, 3)))
    expected = x.astype(np.float64) @ y
    device = backend.asarray
    for a in (device(x), device(np.ascontiguousarray(x.T)).T):
        for b in (device(y), device(np.ascontiguousarray(y.T)).T):
            out = backend.empty((7, 3))
            assert backend.matmul(a, b, out=out) is out
            np.testing.assert_allclose(backend.to_host(out), expected, rtol=3e-5, atol=3e-5)
            backend.add_product(a, b, out)
            np.testing.assert_allclose(backend.to_host(out), 2 * expected, rtol=3e-5, atol=3e-5)
    if precision != "float32":  # CuPy itself takes any strides
        with pytest.raises(ValueError, match="C-contiguous"):
            backend.matmul(device(x)[:, ::2], device(y)[::2])


def test_products_by_the_library_itself(cupy: Any, tmp_path: Path) -> None:
    """What it is called with, against its declaration in C."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    from pdadmm.arrays.cublas import Cublas
    from pdadmm.arrays.cupy_backend import CupyBackend

    library = tmp_path / "libcublas.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", PROGRAMS / "cublas_on_cpu.c", "-o", library], check=True
    )
    backend = CupyBackend()
    backend._blas = Cublas(ctypes.CDLL(str(library)), cupy)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape, dtype=np.float32) for shape in ((7, 5), (5, 3)))
    device = backend.asarray
    for a in (device(x), device(np.ascontiguousarray(x.T)).T):
        for b in (device(y), device(np.ascontiguousarray(y.T)).T):
            out = backend.matmul(a, b)
            np.testing.assert_allclose(backend.to_host(out), x @ y, rtol=1e-5, atol=1e-5)
            backend.add_product(a, b, out)
            np.testing.assert_allclose(backend.to_host(out), 2 * (x @ y), rtol=1e-5, atol=1e-5)
    backend.precision = "tf32"
    with pytest.raises(RuntimeError, match="cuBLAS failed with status 13"):
        backend.matmul(a, b)


@pytest.mark.parametrize("step", ["exact", "doubling"])
def test_step_lengths_are_those_of_the_host(step: str, cupy: Any) -> None:
    from pdadmm.admm import updates
    from pdadmm.admm.passes.lengths import DeviceLengths
    from pdadmm.arrays.cupy_backend import CupyBackend

    backend, lengths = CupyBackend(), DeviceLengths()
    for norm, image in ((3.0, 5.0), (0.0, 0.0), (1e-30, 1.0), (1.0, 1e6), (2.0, 0.0)):
        on_device = lengths.step(
            0.3, 0.7, backend.asarray(np.float64(image)), backend.asarray(np.float64(norm)), step, 5
        )
        assert float(on_device) == updates.step_length(0.3, 0.7, image, norm, step)
    assert lengths.first_bad() is None


def test_the_first_step_that_is_not_finite_is_named(cupy: Any) -> None:
    from pdadmm.admm.passes.lengths import DeviceLengths
    from pdadmm.arrays.cupy_backend import CupyBackend

    backend, lengths = CupyBackend(), DeviceLengths()
    one, bad = backend.asarray(np.float64(1)), backend.asarray(np.float64("nan"))
    for iteration, position, norm in ((3, 2, one), (4, 7, bad), (4, 6, bad), (5, 1, bad)):
        lengths.step(1.0, 1.0, one, norm, "exact", label_of(iteration, position, "W"))
    assert place_of(lengths.first_bad() or 0) == (4, 6, "W")
    # a graph's label is that of the iteration it is launched for, other labels stay
    lengths = DeviceLengths()
    lengths.step(1.0, 1.0, one, one, "exact", label_of(2, 2, "p"))
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    lengths.step(1.0, 1.0, one, bad, "exact", label_of(3, 2, "p"))
    graph = stream.end_capture()
    lengths.move(4)
    graph.launch()
    assert place_of(lengths.first_bad() or 0) == (7, 2, "p")
    lengths.step(1.0, 1.0, one, bad, "exact", label_of(5, 1, "W"))
    assert place_of(lengths.first_bad() or 0) == (5, 1, "W")


def test_nan_on_the_device_ends_the_run_with_layer_and_iteration(cupy: Any) -> None:
    from pdadmm.admm.activations import ReLU
    from pdadmm.admm.growth import random_layer
    from pdadmm.admm.layer import Hyper
    from pdadmm.admm.passes import make_passes
    from pdadmm.admm.stage import Plan, Stage
    from pdadmm.arrays.cupy_backend import CupyBackend
    from pdadmm.codec import DeltaCodec
    from pdadmm.comm.mpi import MPITransport
    from pdadmm.comm.waiter import Waiter
    from pdadmm.trace.clock import Clock

    backend, waiter = CupyBackend(), Waiter(MPI.COMM_SELF)
    widths = [4, 4, 4, 2]
    layers = [
        random_layer(i, widths[i - 1], widths[i], ReLU() if i < 3 else None, 0).to(backend) for i in (1, 2, 3)
    ]
    transport = MPITransport(waiter)
    stage = Stage(Plan(3, 3, [range(1, 4)], 0), layers, waiter, Clock(), transport=transport, backend=backend)
    rng = np.random.default_rng(1)
    X, y = backend.asarray(rng.random((9, 4), np.float32)), backend.asarray(rng.integers(0, 2, 9))
    hyper = Hyper(0.1, 1.0, 0.01, "gradient", "exact", 25, "least_squares")
    stage.start(X, y, 9, lambda start: DeltaCodec(8), hyper, make_passes("reference", 1, "cupy"), 0)
    stage.iterate(0, measure=True)
    layers[1].M[0, 0] = float("nan")
    stage.iterate(1, measure=False)
    with pytest.raises(RunError, match="layer 2, iteration 2 of the stage: the gradient of p is NaN or Inf"):
        stage.iterate(2, measure=True)


# ---- the clock ------------------------------------------------------------------------------------


def test_phases_are_what_the_device_took_and_the_host_waits_for_none(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device stands still at first, so that the host gives out all iterations before one is done."""
    from pdadmm.trace.clock import WARM_UP
    from pdadmm.trace.device_clock import DeviceClock

    stream = cupy.cuda.Stream(non_blocking=True)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    clock = DeviceClock(traced=True)
    gate = threading.Event()
    made = []

    def compute(seconds: float) -> None:
        stream._do(lambda: time.sleep(seconds))

    def until_idle() -> None:
        event = cupy.cuda.Event()
        event.record(stream)
        while not event.done:
            time.sleep(1e-4)

    def iterate(i: int, evaluated: bool) -> None:
        clock.begin_iteration(i)
        clock.part("p", 2)
        if not i:
            stream._do(gate.wait)
        compute(4e-3)
        clock.lap("products", 2)
        clock.message("received", "q 1", i + 1, time.perf_counter_ns())
        compute(2e-3)
        clock.lap("wait", 2)
        clock.lap("updates", 2)
        clock.message("sent", "p 2", i + 1, time.perf_counter_ns())
        clock.lap("send", 2)
        assert cupy.cuda.nvtx.opened == ["p 2"]
        if evaluated:
            until_idle()
        clock.end_iteration(2)
        assert cupy.cuda.nvtx.opened == []

    for _ in range(2):
        gate.clear()
        clock.begin_stage()
        waits = cupy.counts["waits"]
        count = WARM_UP + 4
        begun = time.perf_counter_ns()
        for i in range(count - 1):
            iterate(i, False)
        assert clock.walls.rows == clock.iterations == 0
        time.sleep(0.1)
        opened = time.perf_counter_ns()
        gate.set()
        iterate(count - 1, True)
        with clock.span("evaluation"):
            until_idle()
        clock.end_stage()
        ended = time.perf_counter_ns()
        made.append(cupy.counts["events"])
        assert cupy.counts["waits"] == waits
        assert clock.walls.rows == clock.iterations == 4
        phases = clock.seconds[2]
        assert phases["products"] >= 4 * 4e-3 and phases["wait"] >= 4 * 2e-3
        assert phases["updates"] < phases["wait"] and phases["send"] < phases["wait"]
        assert sum(phases.values()) == pytest.approx(1e-9 * clock.walls.sums[0], rel=1e-5)
        # in times of the host: after the host gave it out, and when the device did it
        events = (clock.events or [])[-(5 * count + 1) :]  # five laps an iteration, and the evaluation
        stamps = [stamp for _, _, *ends in events for stamp in ends]
        assert stamps == sorted(stamps) and begun <= stamps[0] and stamps[-1] <= ended
        assert events[-1][0] == "evaluation"
        first = next(end for name, _, _, end in events if name == "products")
        assert opened - 50_000_000 < first < ended
        received, sent = ([m for m in clock.messages if m[0] == kind] for kind in ("received", "sent"))
        assert [m[2] for m in received] == [m[2] for m in sent] == list(range(1, count + 1))
        assert all(m[4] - m[3] >= 1_990_000 for m in received)
        assert all(a[4] <= b[3] for a, b in zip(received, sent, strict=True))
        assert [m[5] for m in sent] == [False] * WARM_UP + [True] * 4
    # the second stage takes the events of the first, but for those of the test itself
    assert made[1] - made[0] == 2
    assert cupy.cuda.nvtx.named == ["p 2"] * 2 * count


def test_iterations_are_accounted_for_while_the_device_is_behind(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has caught up in a stage: then its time is known. Else there would be ever more to keep."""
    from pdadmm.trace.device_clock import DeviceClock

    stream = cupy.cuda.Stream(non_blocking=True)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    clock = DeviceClock()
    waits = cupy.counts["waits"]

    def iterate(i: int, gate: threading.Event | None = None) -> Callable[[], None]:
        """Returns what polls until the device has passed the iteration."""
        clock.begin_iteration(i)
        if gate is not None:
            stream._do(gate.wait)
        stream._do(lambda: time.sleep(1e-3))
        clock.lap("products", 1)
        clock.end_iteration(1)
        event = cupy.cuda.Event()
        event.record(stream)

        def passed() -> None:
            while not event.done:
                time.sleep(1e-4)

        return passed

    first, second, third = threading.Event(), threading.Event(), threading.Event()
    early = iterate(7, first)
    late = iterate(8, second)
    first.set()
    early()
    rest = iterate(9, third)
    assert clock.walls.rows == 1 and clock.iterations == 0  # read, but not aligned yet
    second.set()
    third.set()
    late()
    rest()
    second.clear()
    third.clear()
    early = iterate(10)
    assert clock.iterations == 3
    late = iterate(11, second)
    early()
    rest = iterate(12, third)
    assert clock.iterations == 4  # the device stands at the second gate
    second.set()
    late()
    iterate(13)
    assert clock.iterations == 5
    third.set()
    rest()
    iterate(14)()
    clock.end_stage()
    assert clock.iterations == 8 and cupy.counts["waits"] == waits
    assert sum(clock.seconds[1].values()) == pytest.approx(1e-9 * clock.walls.sums[0], rel=1e-5)
    assert 8 * clock.iteration_seconds.mean == pytest.approx(1e-9 * clock.walls.sums[0], rel=1e-5)


def test_a_device_that_never_catches_up_is_accounted_for(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is always an iteration ahead, and no evaluation waits for the device."""
    from pdadmm.trace import device_clock
    from pdadmm.trace.clock import WARM_UP

    monkeypatch.setattr(device_clock, "_UNALIGNED", 20)
    stream = cupy.cuda.Stream(non_blocking=True)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    clock = device_clock.DeviceClock(traced=True)
    gates = [threading.Event() for _ in range(100)]
    waiting = 0
    for i, gate in enumerate(gates):
        clock.begin_iteration(i)
        stream._do(gate.wait)
        clock.lap("products", 1)
        clock.end_iteration(1)
        if i:
            gates[i - 1].set()
            while not clock._given[0][1][-1][0].done:
                time.sleep(1e-4)
        waiting = max(waiting, len(clock._passed) + len(clock._given))
    assert not clock._aligned and 20 <= waiting <= 22
    assert clock.iterations >= 80 - WARM_UP
    gates[-1].set()
    while not clock._given[-1][1][-1][0].done:
        time.sleep(1e-4)
    clock.end_stage()
    assert clock.iterations == clock.walls.rows == 100 - WARM_UP
    assert sum(clock.seconds[1].values()) == pytest.approx(1e-9 * clock.walls.sums[0], rel=1e-5)
    stamps = [stamp for _, _, *ends in clock.events or [] for stamp in ends]
    assert stamps == sorted(stamps)
