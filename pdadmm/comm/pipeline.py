"""Activations of a forward pass on their way from rank to rank, chunk after chunk.

Every conveyor has ``receive(shape)``, which gives the next chunk from the rank below, ``send(x)``,
which passes one on to the rank above, and ``finish()``, after which all that was sent has left.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pdadmm.arrays import Array
from pdadmm.comm.waiter import Waiter

__all__ = ["HostConveyor", "NCCLConveyor", "StagedConveyor"]

_TAG = 20000


class HostConveyor:
    """Chunks on the host, over MPI.

    Parameters
    ----------
    waiter
        Waits for MPI.
    previous, following
        Ranks below and above, or None.
    """

    def __init__(self, waiter: Waiter, previous: int | None, following: int | None) -> None:
        self._waiter = waiter
        self._previous, self._following = previous, following
        self._pending: list[tuple[Array, list[Any]]] = []

    def receive(self, shape: tuple[int, int]) -> Array:
        assert self._previous is not None
        x = np.empty(shape, np.float32)
        self._waiter.receive(x, self._previous, _TAG)
        return x

    def send(self, x: Array) -> None:
        assert self._following is not None
        self._pending.append((x, self._waiter.send(x, self._following, _TAG)))

    def finish(self) -> None:
        for _, requests in self._pending:
            self._waiter.all(requests, f"activations to reach rank {self._following}")
        self._pending = []


class StagedConveyor:
    """Chunks on a GPU, copied to the host and back for MPI.

    Parameters
    ----------
    host
        Takes the copies.
    backend
        Of the chunks.
    """

    def __init__(self, host: HostConveyor, backend: Any) -> None:
        self._host, self._backend = host, backend

    def receive(self, shape: tuple[int, int]) -> Array:
        return self._backend.asarray(self._host.receive(shape))

    def send(self, x: Array) -> None:
        self._host.send(self._backend.to_host(x))

    def finish(self) -> None:
        self._host.finish()


class NCCLConveyor:
    """Chunks on a GPU, over NCCL.

    Forward passes lie between iterations, where every rank has enqueued the same rounds of p and q
    (see :mod:`pdadmm.comm.nccl`), so that their transfers follow those on the communication stream in
    the same order everywhere.

    Parameters
    ----------
    device
        Streams, events and NCCL.
    backend
        Of the chunks.
    """

    def __init__(self, device: Any, backend: Any, previous: int | None, following: int | None) -> None:
        self._device, self._backend = device, backend
        self._previous, self._following = previous, following
        # chunks stay alive until the communication stream has read them: the memory pool knows of
        # the compute stream alone
        self._pending: list[Array] = []
        self._last: Any = None

    def receive(self, shape: tuple[int, int]) -> Array:
        x = self._backend.empty(shape)
        device = self._device
        device.communication_after(device.mark_compute())
        device.group([], [(_bytes(x), self._previous)])
        device.compute_after(device.mark_communication())
        return x

    def send(self, x: Array) -> None:
        device = self._device
        device.communication_after(device.mark_compute())
        device.group([(_bytes(x), self._following)], [])
        self._last = device.mark_communication()
        self._pending.append(x)

    def finish(self) -> None:
        if self._last is not None:
            self._device.compute_after(self._last)
        self._pending, self._last = [], None


def _bytes(x: Array) -> Array:
    return x.reshape(-1).view(np.uint8)
