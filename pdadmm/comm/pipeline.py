"""Activations of a forward pass on their way from rank to rank, chunk after chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from pdadmm.arrays import Array
from pdadmm.arrays.backend import Backend
from pdadmm.arrays.streams import Event
from pdadmm.comm.nccl import Device
from pdadmm.comm.waiter import Waiter

if TYPE_CHECKING:
    from mpi4py.MPI import Request

__all__ = ["HostPipeline", "NCCLPipeline", "Pipeline", "StagedPipeline"]

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
        self._pending: list[tuple[Array, list[Request]]] = []

    def receive(self, shape: tuple[int, int]) -> Array:
        assert self._below is not None
        x = np.empty(shape, np.float32)
        self._waiter.receive(x, self._below, _TAG)
        return x

    def send(self, x: Array) -> None:
        assert self._above is not None
        self._pending.append((x, self._waiter.send(x, self._above, _TAG)))

    def finish(self) -> None:
        for _, requests in self._pending:
            self._waiter.all(requests, f"activations to reach rank {self._above}")
        self._pending = []


class StagedPipeline:
    """Chunks on a GPU, copied to the host and back for MPI.

    Parameters
    ----------
    host
        Takes the copies.
    backend
        Of the chunks.
    """

    def __init__(self, host: HostPipeline, backend: Backend) -> None:
        self._host, self._backend = host, backend

    def receive(self, shape: tuple[int, int]) -> Array:
        return self._backend.asarray(self._host.receive(shape))

    def send(self, x: Array) -> None:
        self._host.send(self._backend.to_host(x))

    def finish(self) -> None:
        self._host.finish()


class NCCLPipeline:
    """Chunks on a GPU, over NCCL.

    Forward passes lie between iterations, where every rank has enqueued the same rounds (see
    :mod:`pdadmm.comm.nccl`), so that their transfers follow those on the communication stream in the
    same order everywhere.

    Parameters
    ----------
    device
        Streams, events and NCCL.
    backend
        Of the chunks.
    """

    def __init__(self, device: Device, backend: Backend, below: int | None, above: int | None) -> None:
        self._device, self._backend = device, backend
        self._below, self._above = below, above
        # chunks stay alive until the communication stream has read them: the memory pool knows of
        # the compute stream alone
        self._pending: list[Array] = []
        self._last: Event | None = None

    def receive(self, shape: tuple[int, int]) -> Array:
        assert self._below is not None
        x = self._backend.empty(shape)
        device = self._device
        device.transfers_after(device.mark_compute())
        device.group([], [(_bytes(x), self._below)])
        device.compute_waits(device.mark_transfers())
        return x

    def send(self, x: Array) -> None:
        assert self._above is not None
        device = self._device
        device.transfers_after(device.mark_compute())
        device.group([(_bytes(x), self._above)], [])
        self._last = device.mark_transfers()
        self._pending.append(x)

    def finish(self) -> None:
        if self._last is not None:
            self._device.compute_waits(self._last)
        self._pending, self._last = [], None


def _bytes(x: Array) -> Array:
    return x.reshape(-1).view(np.uint8)
