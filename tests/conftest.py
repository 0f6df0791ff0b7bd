"""Fixtures: the shared folder, mpirun, prepared files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Finished, find_mpirun, python, start, succeed

# Where no bytecode may be kept, every rank of every run compiles the modules anew: a seventh of the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what takes minutes unless it is asked for."""
    if not os.environ.get("PDADMM_SLOW"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; PDADMM_SLOW=1 runs it"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the raw data sets and the authors' iterates, from $PDADMM_SHARED."""
    if not os.environ.get("PDADMM_SHARED"):
        pytest.skip("PDADMM_SHARED is not set: it names the folder with data/ and golden/")
    return Path(os.environ["PDADMM_SHARED"])


@pytest.fixture(scope="session")
def mpirun() -> Callable[..., Finished]:
    """``mpirun(ranks, *arguments, timeout=60, env=None, cwd=None)`` runs Python on so many ranks."""
    program = find_mpirun()
    if program is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")

    def run(ranks: int, *arguments: str | Path, timeout: float = 60, **keywords: Any) -> Finished:
        command = [program, "-n", str(ranks), sys.executable, *map(str, arguments)]
        return start(command, timeout, **keywords)

    return run


@pytest.fixture(scope="session")
def prepared(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``prepared(name, seed=0)`` is the feature file of a data set of the shared folder, made once a session.

    The seed draws the split of data sets that have no public one; ``operators="powers:4"`` are the paper's,
    without it they are the data set's own.
    """
    folder = tmp_path_factory.mktemp("prepared")
    raw = {"cora": "planetoid", "citeseer": "planetoid"}

    def file(name: str, seed: int = 0, operators: str | None = None) -> Path:
        path = folder / f"{name}-{seed}{'' if operators is None else '-' + operators}.h5"
        if not path.exists():
            source = shared / "data" / raw.get(name, "npz")
            succeed(
                python(
                    "-m",
                    "pdadmm.prepare",
                    name,
                    "--raw",
                    source,
                    "--seed",
                    str(seed),
                    *([] if operators is None else ["--operators", operators]),
                    "--out",
                    path,
                    timeout=120,
                )
            )
        return path

    return file


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature file of a small synthetic graph: quick to read and to train on."""
    path = tmp_path_factory.mktemp("small") / "small.h5"
    options = "--synthetic-nodes 300 --synthetic-features 60 --synthetic-train-per-class 9 --hops 2"
    succeed(python("-m", "pdadmm.prepare", "synthetic", *options.split(), "--out", path))
    return path
