"""Activations of a forward pass on their way from rank to rank, chunk after chunk."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pdadmm.arrays import Array
from pdadmm.comm.waiter import Waiter

if TYPE_CHECKING:
    from mpi4py.MPI import Request

__all__ = ["HostPipeline", "Pipeline"]

_TAG = 20000


class Pipeline(Protocol):
    """A rank's place in a forward pass."""

    def receive(self, shape: tuple[int, int]) -> Array:
        """The next chunk from the rank below, float32."""
        ...

    def send(self, x: Array) -> None:
        """Pass a chunk on to the rank above."""
        ...

    def finish(self) -> None:
        """Wait until all that was sent has left."""
        ...


class HostPipeline:
    """Chunks on the host, over MPI.

    Parameters
    ----------
    waiter
        Waits for MPI.
    below, above
        Ranks below and above, or None.
    """

    def __init__(self, waiter: Waiter, below: int | None, above: int | None) -> None:
        self._waiter = waiter
        self._below, self._above = below, above
        self._pending: deque[tuple[Array, list[Request]]] = deque()

    def receive(self, shape: tuple[int, int]) -> Array:
        assert self._below is not None
        x = np.empty(shape, np.float32)
        self._waiter.receive(x, self._below, _TAG)
        return x

    def send(self, x: Array) -> None:
        assert self._above is not None
        while self._pending and _all_left(self._pending[0][1]):
            self._pending.popleft()
        self._pending.append((x, self._waiter.send(x, self._above, _TAG)))

    def finish(self) -> None:
        for _, requests in self._pending:
            self._waiter.all(requests, f"activations to reach rank {self._above}")
        self._pending.clear()


def _all_left(requests: list[Request]) -> bool:
    from mpi4py import MPI

    return bool(MPI.Request.Testall(requests))
