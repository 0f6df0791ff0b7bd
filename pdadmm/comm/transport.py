"""How a stage's messages and activations travel between ranks: one object a way, the same two methods.

``links(below, above)`` makes the links of a stage's couplings to the neighbouring ranks, each given
as an :class:`Edge` or None. ``conveyor(previous, following)`` carries the activations of a forward
pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pdadmm.comm.mpi import MPILink, ProgressThread
from pdadmm.comm.nccl import CupyNccl, NCCLExchange, Watch
from pdadmm.comm.pipeline import HostConveyor, NCCLConveyor, StagedConveyor
from pdadmm.comm.staged import Copier, Pump, StagedLink
from pdadmm.comm.waiter import Waiter

__all__ = ["Edge", "MPITransport", "NCCLTransport", "StagedTransport"]


class Edge(NamedTuple):
    """A coupling to another rank: that rank, the position of the lower layer, and a message's size."""

    peer: int
    coupling: int
    nbytes: int


Pair = tuple[Any, Any]


@dataclass
class MPITransport:
    """Between arrays on the host."""

    waiter: Waiter
    progress: ProgressThread | None = None
    overlap: bool = True

    def links(self, below: Edge | None, above: Edge | None) -> Pair:
        def link(edge: Edge, upper: bool) -> MPILink:
            return MPILink(
                self.waiter, edge.peer, edge.coupling, upper, edge.nbytes, edge.nbytes,
                self.progress, self.overlap,
            )  # fmt: skip

        return link(below, True) if below else None, link(above, False) if above else None

    def conveyor(self, previous: int | None, following: int | None) -> HostConveyor:
        return HostConveyor(self.waiter, previous, following)

    def waited(self) -> float:
        """Seconds that the device stood still for messages; on the host the waiter counts them."""
        return 0.0

    def close(self) -> None:
        """Nothing to free."""


class StagedTransport:
    """Between GPUs over MPI, through pinned host buffers or, `direct`, a CUDA-aware MPI library."""

    def __init__(
        self, waiter: Waiter, backend: Any, copier: Copier, overlap: bool = True, direct: bool = False
    ) -> None:
        self.waiter, self.backend, self.copier = waiter, backend, copier
        self.overlap, self.direct = overlap, direct
        self.pump = Pump()
        waiter.background = self.pump.advance

    def links(self, below: Edge | None, above: Edge | None) -> Pair:
        def link(edge: Edge, upper: bool) -> StagedLink:
            return StagedLink(
                self.copier, self.waiter, self.pump, edge.peer, edge.coupling, upper, edge.nbytes,
                self.overlap, self.direct,
            )  # fmt: skip

        return link(below, True) if below else None, link(above, False) if above else None

    def conveyor(self, previous: int | None, following: int | None) -> StagedConveyor:
        return StagedConveyor(HostConveyor(self.waiter, previous, following), self.backend)

    def waited(self) -> float:
        """Seconds that the device stood still for messages since the last call."""
        return self.copier.idle.seconds()

    def close(self) -> None:
        """Let the waiter poll for itself again."""
        self.waiter.background = None


class NCCLTransport:
    """Between GPUs over NCCL."""

    def __init__(self, device: CupyNccl, backend: Any, watch: Watch) -> None:
        self.device, self.backend, self._watch = device, backend, watch

    def links(self, below: Edge | None, above: Edge | None) -> Pair:
        exchange = NCCLExchange(
            self.device,
            below.peer if below else None,
            above.peer if above else None,
            below.nbytes if below else 0,
            above.nbytes if above else 0,
        )
        self.device.exchange = exchange
        return exchange.links.get("below"), exchange.links.get("above")

    def conveyor(self, previous: int | None, following: int | None) -> NCCLConveyor:
        return NCCLConveyor(self.device, self.backend, previous, following)

    def waited(self) -> float:
        """Seconds that the device stood still for messages since the last call."""
        return self.device.idle.seconds()

    def close(self) -> None:
        """Destroy the communicator; before MPI is finalized."""
        self._watch.close()
        self.device.close()
