"""Fixtures of the tests that run under mpirun."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pdadmm.comm.waiter import Waiter


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    """On a communicator of its own, so that a failed test leaves nothing to the next one."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    yield Waiter(comm, timeout=60)
    comm.Free()
