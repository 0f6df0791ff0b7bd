"""What a way of messages and activations between ranks is; each has a module: mpi, staged, nccl."""

from __future__ import annotations

from typing import Protocol

from pdadmm.comm.channel import Ends
from pdadmm.comm.pipeline import Pipeline
from pdadmm.comm.rounds import Rounds

__all__ = ["Transport"]


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
