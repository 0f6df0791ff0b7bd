"""Every command tells its version, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import Finished, python, succeed

import pdadmm

ALONE = ("bench", "bench kernels", "bench iteration", "profile", "plot", "gnn.export")
COLLECTIVE = (
    "run", "prepare", "predict", "tune", "bench links", "gnn.run", "gnn.prepare", "gnn.predict", "gnn.tune",
)  # fmt: skip


@pytest.mark.parametrize("command", ALONE + COLLECTIVE)
def test_the_version(command: str) -> None:
    module, *rest = command.split()
    done = python("-m", f"pdadmm.{module}", *rest, "--version")
    assert (done.code, done.out, done.err) == (0, f"pdadmm {pdadmm.__version__}\n", "")


def test_the_package_lists_its_commands() -> None:
    listed = succeed(python("-m", "pdadmm", "--help")).out
    for command in ALONE + COLLECTIVE:
        assert f"\n  {command.split()[0]} " in listed
    assert succeed(python("-m", "pdadmm", "--version")).out == f"pdadmm {pdadmm.__version__}\n"
    found = python("-m", "pdadmm")
    assert (found.code, found.out, found.err) == (2, "", listed)
    found = python("-m", "pdadmm", "run")
    assert found.code == 2 and found.err.count("\n") == 1 and "python -m pdadmm.run" in found.err


def test_the_classes_are_listed() -> None:
    assert {"ADMMClassifier", "GraphModel", "Model", "__version__"} <= set(dir(pdadmm))


@pytest.mark.parametrize("command", COLLECTIVE)
def test_one_rank_tells_the_version(command: str, mpirun: Callable[..., Finished]) -> None:
    module, *rest = command.split()
    done = succeed(mpirun(3, "-m", f"pdadmm.{module}", *rest, "--version", timeout=60))
    assert done.out == f"pdadmm {pdadmm.__version__}\n"
