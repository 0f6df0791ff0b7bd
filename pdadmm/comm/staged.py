"""Couplings between GPUs over MPI, through pinned host buffers.

A message is copied to the host on a stream of its own once it is encoded, goes over MPI, and is
copied to the other device. The host must see the copy's end before it may start the send, but it
does not wait for it: a :class:`Pump` moves every link of the rank on whenever the rank waits for
anything, which it soon does, since giving a GPU its work takes little time.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pdadmm.arrays.streams import IdleTime
from pdadmm.comm.mpi import MPILink
from pdadmm.comm.waiter import Waiter

__all__ = ["Copier", "CupyCopier", "Pump", "StagedLink"]

Buffer = Any


class Copier(Protocol):
    """Copies between the device and pinned host memory on a stream of their own."""

    def pinned(self, nbytes: int) -> np.ndarray:
        """Pinned host memory, uint8."""
        ...

    def device(self, nbytes: int) -> Buffer:
        """Zeroed device memory, uint8."""
        ...

    def mark_compute(self) -> Any:
        """An event at the end of what the compute stream has been given."""
        ...

    def to_host(self, source: Buffer, target: np.ndarray, after: Any) -> Any:
        """Start a copy after an event; returns the event at its end."""
        ...

    def to_device(self, source: np.ndarray, target: Buffer, after: Any) -> Any:
        """Start a copy after an event; returns the event at its end."""
        ...

    def compute_after(self, event: Any) -> None:
        """Let what the compute stream is given from now on wait for an event."""
        ...

    @property
    def idle(self) -> IdleTime:
        """Told of the compute stream's waits for messages."""
        ...


class CupyCopier:
    """:class:`Copier` on CuPy; the compute stream is CuPy's current stream."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self.idle = IdleTime()

    def pinned(self, nbytes: int) -> np.ndarray:
        memory = self._cupy.cuda.alloc_pinned_memory(max(nbytes, 1))
        return np.frombuffer(memory, np.uint8, nbytes)

    def device(self, nbytes: int) -> Buffer:
        return self._cupy.zeros(nbytes, np.uint8)

    def mark_compute(self) -> Any:
        return self._mark(self._cupy.cuda.get_current_stream())

    def to_host(self, source: Buffer, target: np.ndarray, after: Any) -> Any:
        self._stream.wait_event(after)
        source.get(stream=self._stream, out=target, blocking=False)
        return self._mark(self._stream)

    def to_device(self, source: np.ndarray, target: Buffer, after: Any) -> Any:
        self._stream.wait_event(after)
        target.set(source, stream=self._stream)
        return self._mark(self._stream)

    def compute_after(self, event: Any) -> None:
        self._cupy.cuda.get_current_stream().wait_event(event)

    def _mark(self, stream: Any) -> Any:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return event


class Pump:
    """Moves the staged links of a rank on; a waiter calls :meth:`advance` while it polls."""

    def __init__(self) -> None:
        self.links: list[StagedLink] = []

    def advance(self) -> None:
        """Start whatever has become possible; never waits."""
        for link in self.links:
            link.advance()


class StagedLink:
    """One end of a coupling between GPUs of different ranks; see :class:`pdadmm.admm.coupling.Link`.

    Parameters
    ----------
    copier
        Copies and events.
    waiter
        Waits for MPI; polls the pump.
    pump
        Gets to know this link.
    direct
        Give MPI the device buffers themselves, which a CUDA-aware MPI library takes.
    """

    between_ranks = True

    def __init__(
        self,
        copier: Copier,
        waiter: Waiter,
        pump: Pump,
        peer: int,
        coupling: int,
        upper: bool,
        nbytes: int,
        overlap: bool = True,
        direct: bool = False,
    ) -> None:
        self.peer = peer
        self.messages_sent = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.bytes_received = 0
        self.send_buffer = copier.device(nbytes)
        self.receive_buffer = copier.device(nbytes)
        self._copier, self._waiter, self._overlap = copier, waiter, overlap
        self._pump = pump
        buffers = (
            (self.send_buffer, self.receive_buffer)
            if direct
            else (copier.pinned(nbytes), copier.pinned(nbytes))
        )
        self._direct = direct
        self._wire = MPILink(waiter, peer, coupling, upper, nbytes, nbytes, buffers=buffers)
        #: end of the encoding (direct) or of the copy to the host, for a message not yet given to MPI
        self._outgoing: Any = None
        self._on_wire = False
        self._left: Any = None  # the device's send buffer is free after this event
        self._free: Any = None  # the compute stream has read the receive buffer after this event
        self._copied_in: Any = None  # the last message is in the receive buffer after this event
        self._wanted = self._receiving = self._arrived = False
        pump.links.append(self)

    def advance(self) -> None:
        """Start whatever has become possible; never waits."""
        if self._outgoing is not None and self._outgoing.done:
            self._outgoing = None
            self._wire.start_send()
            self._on_wire = True
        if self._on_wire and self._wire.sent():
            self._on_wire = False
        if self._wanted and (self._copied_in is None or self._copied_in.done) and self._readable():
            self._wanted = False
            self._wire.post_receive()
            self._receiving = True
        if self._receiving and self._wire.received():
            self._receiving = False
            if not self._direct:
                self._copied_in = self._copier.to_device(
                    self._wire.receive_buffer, self.receive_buffer, self._free
                )
            self._arrived = True

    def _readable(self) -> bool:
        """Whether MPI may write where it receives: at once on the host, when it was read on the device."""
        return not self._direct or self._free.done

    def post_receive(self) -> None:
        """The compute stream has been given all that reads the receive buffer: it may be filled again."""
        self._free = self._copier.mark_compute()
        self._wanted = True
        self.advance()

    def start_send(self) -> None:
        """The compute stream has been given the encoding of the send buffer."""
        # the host's copy of the message before
        self._until(lambda: not self._sending, f"a message to {self._wire.what} to leave")
        encoded = self._copier.mark_compute()
        if self._direct:
            self._outgoing = encoded
        else:
            self._outgoing = self._left = self._copier.to_host(
                self.send_buffer, self._wire.send_buffer, encoded
            )
        self.messages_sent += 1
        self.bytes_sent += self.send_buffer.nbytes
        if not self._overlap:
            self._until(lambda: not self._sending, f"a message to {self._wire.what} to leave")

    def sent(self) -> bool:
        """Whether all messages have left; never waits."""
        self.advance()
        return not self._sending

    def wait_sent(self) -> float:
        """Let the compute stream wait until the send buffer is free; the host waits if MPI reads it."""
        if self._direct:
            return self._until(lambda: not self._sending, f"a message to {self._wire.what} to leave")
        if self._left is not None:
            self._copier.compute_after(self._left)
        return 0.0

    def wait_received(self) -> float:
        """Wait for the posted message, and let the compute stream wait for its copy."""
        begun = self._copier.idle.begin()
        waited = self._until(lambda: self._arrived, f"a message from {self._wire.what}")
        self._arrived = False
        self.messages_received += 1
        self.bytes_received += self.receive_buffer.nbytes
        if self._copied_in is not None:
            self._copier.compute_after(self._copied_in)
        self._copier.idle.end(begun)
        return waited

    def close(self) -> None:
        """Finish what is under way and free the requests."""
        self._until(lambda: not self._sending, f"a message to {self._wire.what} to leave")
        self._pump.links.remove(self)
        self._wire.close()

    @property
    def _sending(self) -> bool:
        return self._outgoing is not None or self._on_wire

    def _until(self, done: Any, what: str) -> float:
        # this link first: a message that is there already needs no turn of the pump
        def there() -> bool:
            self.advance()
            return bool(done())

        # while the host waits the device may be at work: what it waits is counted there
        seconds = self._waiter.seconds
        waited = self._waiter.until(there, what)
        self._waiter.seconds = seconds
        return waited
