"""Graph networks with CuPy's arrays and the CUDA sources, without a GPU: both stand in, see tests/standin.

The kernels are those of a GPU, run on the CPU, so that their bits are; NCCL's messages go over MPI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from data_files import npz_with_feature
from support import (
    PROGRAMS,
    Finished,
    check_accounts,
    on_standin,
    python,
    records_of,
    run_each,
    succeed,
    summary_of,
    without_times,
    words,
)

from pdadmm.profile.load import load

SHAPE = "--hidden 16 --epochs 12 --reassign 5 --eval-every 4 --quiet"
#: ways through an epoch
WAYS = {
    "lean": "--messages lean",
    "adaqp": "--messages adaqp --model sage",
    "changes": "--messages lean --forward delta --no-overlap",
    "float32": "--messages float32 --model sage --layers 2 --order adaqp",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.h5"
    options = "--synthetic-nodes 240 --synthetic-features 40 --synthetic-train-per-class 9 --parts 4"
    succeed(python("-m", "pdadmm.gnn.prepare", "synthetic", *words(options), "--out", path))
    return path


#: (ranks, transport) of GPUs, and the ways that are gone there
GPUS = {
    (1, "mpi"): list(WAYS),
    (3, "nccl"): list(WAYS),
    (2, "mpi"): ["lean"],
    (4, "nccl"): ["lean", "changes"],
}


@pytest.fixture(scope="module")
def on_numpy(
    graph: Path, mpirun: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folders of the runs of WAYS with NumPy on one rank."""
    return run_ways(partial(mpirun, 1), tmp_path_factory.mktemp("numpy"), graph, WAYS, "--backend numpy")


def run_ways(
    start: Callable[..., Finished], folder: Path, graph: Path, ways: Iterable[str], options: str, **more: Any
) -> dict[str, Path]:
    """Ways in one start of the program; the folders of their results."""
    runs = {name: [graph, *words(f"{SHAPE} {WAYS[name]} {options}")] for name in ways}
    return run_each(start, "pdadmm.gnn.run", runs, folder, **more)


def records(folder: Path) -> list[dict[str, object]]:
    return [without_times(record) for record in records_of(folder)]


@pytest.mark.parametrize(("ranks", "transport"), GPUS)
def test_epochs_are_those_of_numpy(
    ranks: int,
    transport: str,
    graph: Path,
    on_numpy: dict[str, Path],
    tmp_path: Path,
    mpirun: Callable[..., Finished],
) -> None:
    ways = GPUS[ranks, transport]
    options = f"--backend cupy --transport {transport}"
    found = run_ways(partial(mpirun, ranks), tmp_path, graph, ways, options, env=on_standin())
    for name, run in found.items():
        assert records(run) == records(on_numpy[name]), name
        summary, expected = summary_of(run), summary_of(on_numpy[name])
        assert summary["backend"] == "cupy" and summary["kernels"] == "fused"
        assert summary["transport"] == (transport if ranks > 1 else "mpi")
        assert len(set(summary["devices"])) == ranks
        for key in ("bytes_per_epoch", "mean_bits_forward", "mean_bits_backward"):
            assert summary[key] == expected[key], name
        profile = load(run)
        assert all(any(stage["iterations"] for stage in rank["stages"]) for rank in profile["ranks"])
        check_accounts(profile)


@pytest.mark.parametrize("name", ["lean", "changes"])
def test_a_checkpoint_of_gpus_is_gone_on_from_on_cpus(
    name: str, graph: Path, on_numpy: dict[str, Path], tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    options = words(f"{SHAPE} {WAYS[name]} --checkpoint-every 7")
    run = ["-m", "pdadmm.gnn.run", graph, *options, "--out", tmp_path / "run"]
    nccl = words("--backend cupy --transport nccl")
    succeed(mpirun(2, *run, *nccl, timeout=120, env=on_standin()))
    succeed(mpirun(3, *run, *words("--backend numpy --resume"), timeout=120))
    assert records(tmp_path / "run") == records(on_numpy[name])


def test_an_epoch_waits_for_nothing(graph: Path) -> None:
    """On one rank: the host gives the device its work and looks at no number of it."""
    finished = succeed(python(PROGRAMS / "gnn_waits.py", graph, env=on_standin()))
    assert finished.out.split() == ["0"]


def test_nan_in_a_message_ends_the_run(graph: Path, tmp_path: Path, mpirun: Callable[..., Finished]) -> None:
    options = words(f"{SHAPE} --backend cupy --lr 1e30 --out {tmp_path / 'run'}")
    finished = mpirun(2, "-m", "pdadmm.gnn.run", graph, *options, timeout=120, env=on_standin())
    assert finished.code == 1 and "Traceback" not in finished.err
    assert "NaN or Inf in a message" in finished.err or "the run diverges" in finished.err
    assert "smaller --lr" in finished.err


def test_nan_before_the_first_step_is_the_features(tmp_path: Path, mpirun: Callable[..., Finished]) -> None:
    npz_with_feature(tmp_path / "huge.npz", 3e38)
    given = words("--parts 2 --partitioner random --out")
    succeed(python("-m", "pdadmm.gnn.prepare", tmp_path / "huge.npz", *given, tmp_path / "huge.h5"))
    options = words(f"{SHAPE} --backend cupy --out {tmp_path / 'run'}")
    finished = mpirun(2, "-m", "pdadmm.gnn.run", tmp_path / "huge.h5", *options, env=on_standin())
    assert finished.code == 1 and "the features are too large" in finished.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--backend cupy --kernels reference", "--kernels reference"),
        ("--backend cupy --links measured", "--links measured"),
        ("--backend numpy --transport nccl", "--transport nccl needs --backend cupy"),
        ("--backend numpy --precision tf32", "--precision tf32 needs GPUs"),
    ],
)
def test_what_gpus_do_not_have_is_refused_in_one_line(
    options: str, said: str, graph: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    run = [*words(options), "--out", tmp_path / "run"]
    finished = mpirun(2, "-m", "pdadmm.gnn.run", graph, *run, env=on_standin())
    assert finished.code == 2 and finished.err.count("\n") == 1 and said in finished.err
    assert not (tmp_path / "run").exists()
