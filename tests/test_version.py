"""Every command tells its version, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import Finished, python, succeed

import pdadmm

ALONE = ("bench", "bench kernels", "bench iteration", "profile", "plot", "gnn.export")
COLLECTIVE = ("run", "prepare", "tune", "bench links", "gnn.run", "gnn.prepare", "gnn.predict")


@pytest.mark.parametrize("command", ALONE + COLLECTIVE)
def test_the_version(command: str) -> None:
    module, *rest = command.split()
    done = python("-m", f"pdadmm.{module}", *rest, "--version")
    assert (done.code, done.out, done.err) == (0, f"pdadmm {pdadmm.__version__}\n", "")


@pytest.mark.parametrize("command", COLLECTIVE)
def test_one_rank_tells_the_version(command: str, mpirun: Callable[..., Finished]) -> None:
    module, *rest = command.split()
    done = succeed(mpirun(3, "-m", f"pdadmm.{module}", *rest, "--version", timeout=60))
    assert done.out == f"pdadmm {pdadmm.__version__}\n"
