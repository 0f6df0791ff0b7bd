"""On a GPU: products, numbers on the device, codecs of the reference, training; skipped without one."""
# ruff: noqa: E402  (without CuPy the imports below are not reached)

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import CODECS, Finished, records_of, succeed, summary_of, without_times, words


def find_gpu() -> Any:
    """CuPy, where it finds a GPU."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("not run on a GPU: CuPy is not installed", allow_module_level=True)
    import cupy

    try:
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        pytest.skip(f"not run on a GPU: {error}", allow_module_level=True)
    return cupy


cupy = find_gpu()

from pdadmm.admm import updates
from pdadmm.admm.activations import ReLU
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Hyper
from pdadmm.admm.passes import make_passes
from pdadmm.admm.passes.lengths import DeviceLengths, label_of, place_of
from pdadmm.admm.stage import Plan, Stage
from pdadmm.arrays.cupy_backend import CupyBackend
from pdadmm.codec import AffineCodec, DeltaCodec, Float32Codec, GridCodec
from pdadmm.comm.mpi import MPITransport
from pdadmm.trace.choose import make_clock

KERNELS = ["reference", *(["fused"] if importlib.util.find_spec("pdadmm.admm.passes.cuda") else [])]
MAKERS: dict[str, Any] = {"affine": AffineCodec, "delta": DeltaCodec}


def codec_of(name: str, bits: int) -> Any:
    if name == "float32":
        return Float32Codec()
    return GridCodec(bits, -1.5, 2.0) if name == "grid" else MAKERS[name](bits)


@pytest.mark.parametrize(
    ("precision", "bound"), [("float32", 2e-6), ("tf32", 2e-3), ("bf16x3", 1e-4)], ids=lambda v: str(v)
)
def test_products(precision: str, bound: float) -> None:
    backend = CupyBackend(0, precision)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape, dtype=np.float32) for shape in ((500, 300), (300, 77)))
    expected = x.astype(np.float64) @ y
    device = backend.asarray
    for a in (device(x), device(np.ascontiguousarray(x.T)).T):
        for b in (device(y), device(np.ascontiguousarray(y.T)).T):
            found = backend.to_host(backend.matmul(a, b, out=backend.empty((500, 77))))
            assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
            out = backend.asarray(np.ones((500, 77), np.float32))
            backend.add_product(a, b, out)
            added = backend.to_host(out) - 1
            assert np.abs(added - expected).max() <= (bound + 1e-7) * np.abs(expected).max() + 1e-6


@pytest.mark.parametrize("step", ["exact", "doubling"])
def test_step_lengths(step: str) -> None:
    backend, lengths = CupyBackend(), DeviceLengths()
    for norm, image in ((3.0, 5.0), (0.0, 0.0), (1e-30, 1.0), (1.0, 1e6), (2.0, 0.0)):
        on_device = lengths.step(
            0.3, 0.7, backend.asarray(np.float64(image)), backend.asarray(np.float64(norm)), step, 5
        )
        assert float(on_device) == updates.step_length(0.3, 0.7, image, norm, step)
    bad = backend.asarray(np.float64("inf"))
    lengths.step(1.0, 1.0, bad, bad, step, label_of(4, 6, "p"))
    assert place_of(lengths.first_bad() or 0) == (4, 6, "p")


@pytest.mark.parametrize(("name", "bits"), CODECS)
def test_the_reference_codecs_send_the_bytes_of_the_host(name: str, bits: int) -> None:
    codec = codec_of(name, bits)
    rng = np.random.default_rng(0)
    x, hat = (rng.standard_normal((37, 201), dtype=np.float32) for _ in range(2))
    on_device = [cupy.asarray(x), cupy.asarray(hat)]
    out, device_out = np.zeros(codec.nbytes(37, 201), np.uint8), cupy.zeros(codec.nbytes(37, 201), np.uint8)
    before = hat.copy()
    codec.encode(x, hat, out, 99)
    codec.encode(*on_device, device_out, 99)
    assert np.array_equal(out, device_out.get())
    assert np.array_equal(hat, on_device[1].get())
    decoded = cupy.asarray(before)
    codec.decode(device_out, decoded)
    assert np.array_equal(hat, decoded.get())


def stage_of(kernels: str, codec: Any, step: str = "exact") -> Stage:
    backend = CupyBackend()
    widths = [50, 40, 40, 40, 5]
    layers = [
        random_layer(i, widths[i - 1], widths[i], ReLU() if i < 4 else None, 0).to(backend)
        for i in range(1, 5)
    ]
    nobody: Any = None
    plan = Plan(4, 4, [range(1, 5)], 0)
    clock = make_clock(backend, traced=False)
    stage = Stage(plan, layers, nobody, clock, transport=MPITransport(nobody), backend=backend)
    rng = np.random.default_rng(0)
    X = backend.asarray(rng.standard_normal((300, 50), dtype=np.float32))
    y = backend.asarray(rng.integers(0, 5, 300))
    # the reference's Newton iteration decides on the host, so the loss is the squared error here
    risk = "cross_entropy" if kernels == "fused" else "least_squares"
    hyper = Hyper(0.01, 0.1, 0.01, "gradient", step, 7, risk)
    stage.start(X, y, 300, lambda start: codec, hyper, make_passes(kernels, 1, "cupy"), 0)
    return stage


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("step", ["exact", "row"])
@pytest.mark.parametrize("codec", [DeltaCodec(4), AffineCodec(8), Float32Codec()], ids=lambda c: c.name)
def test_no_iteration_waits_or_grows_the_memory_pool(kernels: str, codec: Any, step: str) -> None:
    import cupyx

    stage = stage_of(kernels, codec, step)
    for i in range(8):
        stage.iterate(i, False)
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes()
    with cupyx.allow_synchronize(False):
        for i in range(8, 24):
            stage.iterate(i, False)
    assert pool.total_bytes() == before


@pytest.mark.parametrize("kernels", KERNELS)
def test_phases_add_up_to_the_time_between_events_around_the_iterations(kernels: str) -> None:
    stage = stage_of(kernels, DeltaCodec(4))
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    for i in range(20):  # of which each one counts
        if i == 10:
            cupy.cuda.get_current_stream().synchronize()
            stage.clock.begin_stage()
            start.record()
        stage.iterate(i, False)
    end.record()
    end.synchronize()
    stage.clock.end_stage()
    phases = sum(sum(row.values()) for row in stage.clock.seconds.values())
    assert stage.clock.iterations == 10
    assert phases == pytest.approx(1e-9 * stage.clock.walls.sums[0], rel=1e-3)
    assert phases == pytest.approx(cupy.cuda.get_elapsed_time(start, end) * 1e-3, rel=0.03)


@pytest.mark.slow
def test_links_between_two_ranks_are_measured(tmp_path: Path, mpirun: Callable[..., Finished]) -> None:
    from cupy.cuda import nccl

    file = tmp_path / "links.json"
    options = words("-m pdadmm.bench links --backend cupy --seconds 0.01 --json")
    succeed(mpirun(2, *options, file, timeout=200, env={"NCCL_MULTI_RANK_GPU_ENABLE": "1"}))
    found = json.loads(file.read_text())["transports"]
    alone = cupy.cuda.runtime.getDeviceCount() > 1
    possible = nccl.available and (alone or nccl.get_version() >= 23000)
    assert list(found) == (["mpi", "nccl", "staged"] if possible else ["mpi", "staged"])
    for (link,) in found.values():
        assert all(0 < row["latency_seconds"] < 1 and row["bandwidth"] > 0 for row in link["results"])


WAYS = [
    f"{codec} --kernels {kernels}"
    for kernels in KERNELS
    for codec in (
        "--codec delta --bits 4",
        "--codec delta --bits 4 --step row",
        "--codec grid --bits 8",
        "--codec float32 --solver exact",
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS)
def test_training_is_as_good_as_on_the_cpu(
    options: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    common = f"--layers 4 --hidden 32 --iterations 40 --quiet {options}".split()
    for backend in ("numpy", "cupy"):
        arguments = [*common, "--backend", backend, "--out", tmp_path / backend]
        succeed(mpirun(1, "-m", "pdadmm.run", small, *arguments, timeout=200))
    cpu, gpu = (records_of(tmp_path / backend)[-1] for backend in ("numpy", "cupy"))
    assert gpu["objective"] == pytest.approx(cpu["objective"], rel=0.02)
    assert gpu["test_accuracy"] == pytest.approx(cpu["test_accuracy"], abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["exact", "row"])
def test_shards_that_share_a_gpu_train_as_well_as_on_the_cpu(
    step: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    common = (
        f"--layers 4 --hidden 32 --iterations 40 --shards 2 --step {step} --transport mpi --quiet".split()
    )
    for backend in ("numpy", "cupy"):
        arguments = [*common, "--quiet", "--backend", backend, "--out", tmp_path / backend]
        succeed(mpirun(4, "-m", "pdadmm.run", small, *arguments, timeout=200))
    cpu, gpu = (records_of(tmp_path / backend)[-1] for backend in ("numpy", "cupy"))
    assert gpu["objective"] == pytest.approx(cpu["objective"], rel=0.02)
    assert gpu["test_accuracy"] == pytest.approx(cpu["test_accuracy"], abs=0.03)
    assert summary_of(tmp_path / "cupy")["shards"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("transport", ["mpi", "nccl"], ids=["staged", "over_nccl"])
def test_ranks_that_share_a_gpu_give_the_iterates_of_one(
    ranks: int, transport: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    from cupy.cuda import nccl

    if transport == "nccl" and not (nccl.available and nccl.get_version() >= 23000):
        pytest.skip("NCCL is older than 2.30: ranks cannot share a GPU")
    env = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    options = words("--layers 4 --hidden 32 --iterations 20 --quiet --backend cupy")
    for n, way in ((1, "mpi"), (ranks, transport)):
        arguments = [*options, "--transport", way, "--out", tmp_path / str(n)]
        succeed(mpirun(n, "-m", "pdadmm.run", small, *arguments, timeout=200, env=env))
    one, many = ([without_times(r) for r in records_of(tmp_path / str(n))] for n in (1, ranks))
    assert one == many
    assert summary_of(tmp_path / str(ranks))["transport"] == transport


def test_iterations_are_launched_as_graphs() -> None:
    stage = stage_of("fused", DeltaCodec(4))
    for i in range(40):
        stage.iterate(i, False)
    assert stage._replay is not None and stage._replay.launches > 10


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--codec delta --bits 4", "--codec float32 --precision tf32"])
def test_graphs_give_the_iterates_of_single_kernels(
    options: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    common = words(f"--layers 4 --hidden 32 --iterations 80 --refresh 7 --quiet --backend cupy {options}")
    # the phases of a traced run are told apart, so that it has no graphs
    for name, more in (("graphs", []), ("kernels", ["--trace"])):
        run = [small, *common, *more, "--out", tmp_path / name]
        succeed(mpirun(1, "-m", "pdadmm.run", *run, timeout=200))
    graphs, kernels = ([without_times(r) for r in records_of(tmp_path / n)] for n in ("graphs", "kernels"))
    assert graphs == kernels


GRAPH_WAYS = [
    "--messages lean",
    "--messages adaqp --model sage",
    "--messages lean --forward delta",
    "--messages float32",
]


@pytest.mark.slow
@pytest.mark.parametrize("options", GRAPH_WAYS)
def test_graph_networks(options: str, tmp_path: Path, mpirun: Callable[..., Finished]) -> None:
    graph = tmp_path / "graph.h5"
    made = words("synthetic --synthetic-nodes 900 --synthetic-features 40 --parts 4 --out")
    succeed(mpirun(1, "-m", "pdadmm.gnn.prepare", *made, graph))
    common = words(f"--hidden 32 --epochs 40 --reassign 10 --quiet {options}")
    for name, ranks, backend in (("one", 1, "cupy"), ("two", 2, "cupy"), ("cpu", 1, "numpy")):
        way = ["--backend", backend, "--transport", "mpi", "--out", tmp_path / name]
        succeed(mpirun(ranks, "-m", "pdadmm.gnn.run", graph, *common, *way, timeout=200))
    one, two = ([without_times(r) for r in records_of(tmp_path / name)] for name in ("one", "two"))
    assert one == two
    found, expected = summary_of(tmp_path / "one"), summary_of(tmp_path / "cpu")
    assert found["backend"] == "cupy" and found["kernels"] == "fused"
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.15)
    assert found["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=0.05)
