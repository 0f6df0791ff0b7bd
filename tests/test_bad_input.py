"""Bad input ends every rank with code 2 and one line; a failure in mid-run ends them all at once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import PROGRAMS, Finished, python, words

MPIRun = Callable[..., Finished]

#: name: (options, words of the complaint); F is a good file, the others are made by `places`
WRONG: dict[str, tuple[str, list[str]]] = {
    "missing file": ("none.h5", ["none.h5", "no such file"]),
    "truncated file": ("truncated.h5", ["truncated.h5", "truncated"]),
    "no HDF5": ("text.h5", ["text.h5", "HDF5"]),
    "empty file": ("empty.h5", ["empty.h5"]),
    "another schema": ("foreign.h5", ["foreign.h5", "schema"]),
    "schema version": ("version.h5", ["version.h5", "version 99"]),
    "NaN in features": ("nan.h5", ["nan.h5", "NaN"]),
    "features without a square root": (
        "negative.h5 --input-norm hellinger",
        ["negative", "--input-norm none"],
    ),
    "label out of range": ("label.h5", ["label.h5", "label"]),
    "folder": (".", ["."]),
    "unknown codec": ("F --codec gzip", ["gzip", "delta"]),
    "unknown option": ("F --layer 3", ["--layer"]),
    "bits the codec lacks": ("F --codec affine --bits 1", ["affine", "1-bit", "8, 4, 2"]),
    "stages that do not grow": ("F --stages 4,4", ["4,4", "grow"]),
    "stages that end elsewhere": ("F --stages 2,4 --layers 5", ["--layers"]),
    "rho of zero": ("F --rho 0", ["--rho"]),
    "unwritable place": ("F --out text.h5/out", ["text.h5/out"]),
    "missing configuration": ("F --config none.toml", ["none.toml"]),
    "bad TOML": ("F --config syntax.toml", ["syntax.toml", "TOML"]),
    "unknown key": ("F --config key.toml", ["key.toml", "'hiden'"]),
    "wrong type": ("F --config type.toml", ["type.toml", "hidden"]),
    "more than memory": (
        "F --layers 50 --hidden 1000000",
        ["50 layers of 1000000 neurons", "GB", "--hidden"],
    ),
    "a layer for every atom": ("F --layers 100000000000000000000", ["--layers", "10000"]),
    "no regular file": ("/dev/zero", ["/dev/zero", "not a file"]),
    "no GPU library": ("F --backend numpy --transport nccl", ["nccl"]),
}


@pytest.fixture(scope="module")
def places(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("bad")

    def changed(name: str) -> Any:
        shutil.copy(small, folder / name)
        return h5py.File(folder / name, "r+")

    content = small.read_bytes()
    (folder / "truncated.h5").write_bytes(content[: len(content) // 2])
    (folder / "text.h5").write_text("not HDF5\n" * 100)
    (folder / "empty.h5").touch()
    with changed("foreign.h5") as file:
        file.attrs["schema"] = "something-else"
    with changed("version.h5") as file:
        file.attrs["schema_version"] = 99
    with changed("nan.h5") as file:
        file["x"][3, 5] = np.nan
    with changed("negative.h5") as file:
        file["x"][3, 5] = -1
    with changed("label.h5") as file:
        file["y"][0] = 1000
    (folder / "syntax.toml").write_text("[network\n")
    (folder / "key.toml").write_text("[network]\nhiden = 3\n")
    (folder / "type.toml").write_text("[network]\nhidden = '3'\n")
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_one_line(finished: Finished, *complaint: str) -> None:
    assert finished.code == 2, finished.err
    assert finished.out == ""
    assert finished.err.startswith("pdadmm: ") and finished.err.count("\n") == 1, finished.err
    assert "Traceback" not in finished.err
    for word in complaint:
        assert word in finished.err


#: as above, tried on one rank only: the same code answers
ON_ONE_RANK = {
    "no HDF5", "empty file", "another schema", "folder", "missing configuration", "no GPU library",
    "a layer for every atom", "no regular file",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ranks"), [(n, r) for n in WRONG for r in (1, 3) if r == 1 or n not in ON_ONE_RANK]
)
def test_bad_input_is_one_line_and_code_2(
    name: str, ranks: int, mpirun: MPIRun, places: Path, small: Path
) -> None:
    before = everything(places)
    options, complaint = WRONG[name]
    arguments = [str(small) if part == "F" else part for part in options.split()]
    if "--out" not in arguments:
        arguments += ["--out", "results/here"]
    if ranks == 1:
        finished = python("-m", "pdadmm.run", *arguments, cwd=places, timeout=30)
    else:
        finished = mpirun(ranks, "-m", "pdadmm.run", *arguments, cwd=places, timeout=30)
    assert_one_line(finished, *complaint)
    assert everything(places) == before  # nothing is left behind


NASTY = "a\nb\x1b[31m\u202e.h5"


@pytest.mark.parametrize(
    "command",
    [
        ("run", NASTY),
        ("run", "--config", NASTY),
        ("run", "--codec", NASTY),
        ("run", f"--{NASTY}"),
        ("prepare", NASTY),
        ("gnn.prepare", "--parts", "2", NASTY),
        ("profile", NASTY),
        ("bench", NASTY),
        ("bench", "kernels", "--nodes", "0"),
    ],
    ids=lambda command: " ".join(command[:-1]),
)
def test_a_line_is_one_line_whatever_it_names(command: tuple[str, ...], tmp_path: Path) -> None:
    finished = python("-m", f"pdadmm.{command[0]}", *command[1:], cwd=tmp_path, timeout=30)
    assert finished.code == 2
    assert finished.err.startswith("pdadmm") and finished.err.count("\n") == 1 and finished.out == ""
    assert finished.err.removesuffix("\n").isprintable()
    assert not everything(tmp_path)


def test_fewer_layers_than_ranks_are_refused(mpirun: MPIRun, small: Path, tmp_path: Path) -> None:
    finished = mpirun(3, "-m", "pdadmm.run", small, "--layers", "2", cwd=tmp_path, timeout=30)
    assert_one_line(finished, "2 layers", "3 ranks")
    assert not everything(tmp_path)


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_a_rank_that_raises_ends_all_of_them_and_is_named(
    victim: int, mpirun: MPIRun, small: Path, tmp_path: Path
) -> None:
    program = PROGRAMS / "failing_rank.py"
    options = [small, "--layers", "4", "--stages", "4", "--iterations", "1000000", "--out", tmp_path / "out"]
    start = time.perf_counter()
    finished = mpirun(4, program, victim, *options, timeout=40)
    assert time.perf_counter() - start < 20  # starting four Pythons included
    assert finished.code not in (0, 2)
    assert f"rank {victim}" in finished.err and "injected" in finished.err
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("solver", ["gradient", "exact"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_diverging_run_names_layer_and_iteration(
    solver: str, ranks: int, mpirun: MPIRun, small: Path, tmp_path: Path
) -> None:
    options = words("--layers 3 --stages 3 --hidden 8 --iterations 50 --nu 1e30 --rho 1e-30 --quiet")
    finished = mpirun(
        ranks, "-m", "pdadmm.run", small, *options, "--solver", solver, "--out", tmp_path, timeout=40
    )
    assert finished.code not in (0, 2)
    line = next(line for line in finished.err.splitlines() if line.startswith("pdadmm: "))
    assert "layer " in line and "iteration " in line and "diverges" in line and "rank " in line
    assert "Traceback" not in finished.err


def test_one_rank_under_mpirun_complains_as_without(mpirun: MPIRun, places: Path) -> None:
    assert_one_line(mpirun(1, "-m", "pdadmm.run", "none.h5", cwd=places), "none.h5")


def test_a_separate_world_for_every_task_is_noticed(places: Path, small: Path) -> None:
    """What srun starts when its --mpi does not fit the MPI library."""
    for task in ("0", "1"):
        finished = python(
            "-m", "pdadmm.run", small, cwd=places, env={"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": task}
        )
        assert finished.code == 2
        assert finished.err.count("\n") == (1 if task == "0" else 0)
        assert task != "0" or ("srun" in finished.err and "--mpi" in finished.err)


@pytest.mark.skipif(os.getuid() != 0, reason="only root has rights to give up")
def test_what_a_user_may_not_use_is_bad_input(
    mpirun: MPIRun, small: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By a process that has given up its rights: those of other users' files are not needed to start it."""
    closed = tmp_path_factory.mktemp("closed")
    (closed / "model.h5").write_text("")
    code = (
        "import ctypes, runpy, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
        "assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0, ctypes.get_errno()\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    closed.chmod(0)
    try:
        for command in (
            f"pdadmm.prepare cora --raw {closed}",
            f"pdadmm.gnn.prepare {closed}/x.npz --parts 2 --out {small.parent}/x.h5",
            f"pdadmm.plot convergence {small.parent} --out {closed}/x.svg",
            f"pdadmm.gnn.export {closed} --out {small.parent}/x.safetensors",
            f"pdadmm.gnn.predict {closed} {small}",
            f"pdadmm.predict {closed} {small}",
            f"pdadmm.run --out {closed} --resume",
            f"pdadmm.run {closed}/x.h5",
            f"pdadmm.profile {closed}",
            f"pdadmm.profile {small.parent} --json {closed}/x.json",
        ):
            found = python("-c", code, *command.split())
            assert found.code == 2 and found.err.count("\n") == 1, (command, found)
            assert str(closed) in found.err and "denied" in found.err.lower(), (command, found.err)
        found = mpirun(2, "-c", code, "pdadmm.gnn.predict", closed, small)
        assert found.code == 2 and found.err.count("\n") == 1 and "denied" in found.err, found
    finally:
        closed.chmod(0o700)
