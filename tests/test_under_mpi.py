"""Runs tests/mpi under mpirun; a plain run of pytest skips them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Finished


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_links_under_mpirun(ranks: int, mpirun: Callable[..., Finished]) -> None:
    folder = Path(__file__).parent / "mpi"
    finished = mpirun(
        ranks, "-m", "mpi4py", "-m", "pytest", "--with-mpi", "-p", "no:cacheprovider",
        "-p", "no:hypothesispytest", "-q", folder, "--timeout", "200", timeout=280,
    )  # fmt: skip
    report = f"{finished.out[-6000:]}\n{finished.err[-2000:]}"
    assert finished.code == 0, report
    # every rank reports on its own
    passed = [int(n) for n in re.findall(r"(\d+) passed", finished.out)]
    assert len(passed) == ranks and len(set(passed)) == 1 and passed[0] >= 20, report
    assert not re.search(r"\d+ (failed|error)", finished.out), report
