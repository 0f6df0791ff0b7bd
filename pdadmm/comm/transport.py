"""How messages and activations travel between ranks: one object a way, all with the same methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pdadmm.arrays.backend import Backend
from pdadmm.arrays.streams import Streams
from pdadmm.comm.channel import Ends
from pdadmm.comm.mpi import MPIIncoming, MPIOutgoing, ProgressThread
from pdadmm.comm.nccl import CupyNccl, Watch, open_rounds
from pdadmm.comm.pipeline import HostPipeline, NCCLPipeline, Pipeline, StagedPipeline
from pdadmm.comm.rounds import Rounds
from pdadmm.comm.staged import Pump, StagedIncoming, StagedOutgoing
from pdadmm.comm.waiter import Waiter

__all__ = ["MPITransport", "NCCLTransport", "StagedTransport", "Transport"]


class Transport(Protocol):
    """A way of messages between ranks."""

    def open(self, rounds: Rounds) -> Ends:
        """The ends of this rank's messages, to be closed when no more are sent."""
        ...

    def pipeline(self, below: int | None, above: int | None) -> Pipeline:
        """For a forward pass, between the ranks below and above this one; None where there is none."""
        ...

    def waited(self) -> float:
        """Seconds that the device stood still for messages since the last call; 0 on the host."""
        ...

    def close(self) -> None:
        """Free what the way holds; before MPI is finalized."""
        ...


@dataclass
class MPITransport:
    """Between arrays on the host.

    Parameters
    ----------
    waiter
        Waits politely, holds the communicator.
    progress
        Keeps large messages moving; None leaves that to the waits.
    overlap
        Let messages travel while computing.
    """

    waiter: Waiter
    progress: ProgressThread | None = None
    overlap: bool = True

    def open(self, rounds: Rounds) -> Ends:
        ends = Ends({}, {})
        for channel in rounds.channels:
            if channel.sends:
                ends.outgoing[channel.name] = MPIOutgoing(channel, self.waiter, self.progress, self.overlap)
            else:
                ends.incoming[channel.name] = MPIIncoming(channel, self.waiter, self.progress)
        return ends

    def pipeline(self, below: int | None, above: int | None) -> HostPipeline:
        return HostPipeline(self.waiter, below, above)

    def waited(self) -> float:
        """On the host the waiter counts the seconds."""
        return 0.0

    def close(self) -> None:
        """Nothing to free."""


class StagedTransport:
    """Between GPUs over MPI, through pinned host buffers or, `direct`, a CUDA-aware MPI library."""

    def __init__(
        self, waiter: Waiter, backend: Backend, streams: Streams, overlap: bool = True, direct: bool = False
    ) -> None:
        self.waiter, self.backend, self.streams = waiter, backend, streams
        self.overlap, self.direct = overlap, direct
        self.pump = Pump(waiter)

    def open(self, rounds: Rounds) -> Ends:
        ends = Ends({}, {})
        common = self.streams, self.waiter, self.pump
        for channel in rounds.channels:
            if channel.sends:
                ends.outgoing[channel.name] = StagedOutgoing(channel, *common, self.overlap, self.direct)
            else:
                ends.incoming[channel.name] = StagedIncoming(channel, *common, self.direct)
        return ends

    def pipeline(self, below: int | None, above: int | None) -> StagedPipeline:
        return StagedPipeline(HostPipeline(self.waiter, below, above), self.backend)

    def waited(self) -> float:
        return self.streams.idle.seconds()

    def close(self) -> None:
        self.pump.close()


class NCCLTransport:
    """Between GPUs over NCCL."""

    def __init__(self, device: CupyNccl, backend: Backend, watch: Watch) -> None:
        self.device, self.backend, self._watch = device, backend, watch

    def open(self, rounds: Rounds) -> Ends:
        self.device.peers_now = rounds.peers
        return open_rounds(self.device, rounds)

    def pipeline(self, below: int | None, above: int | None) -> NCCLPipeline:
        return NCCLPipeline(self.device, self.backend, below, above)

    def waited(self) -> float:
        return self.device.idle.seconds()

    def close(self) -> None:
        self._watch.close()
        self.device.close()
