"""Messages between GPUs over MPI, through pinned host buffers.

A message is copied to the host on a stream of its own once it is encoded, goes over MPI, and is
copied to the other device. The host must see the copy's end before it may start the send, but it
does not wait for it: a :class:`Pump` moves every message of the rank on whenever the rank waits for
anything, which it soon does, since giving a GPU its work takes little time.

A CUDA-aware MPI library takes the buffers on the device themselves: then nothing is copied, and the
states below are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from pdadmm.arrays import Array
from pdadmm.arrays.backend import Backend
from pdadmm.arrays.streams import Event, Streams
from pdadmm.comm.channel import Channel, Ends, Incoming, Outgoing
from pdadmm.comm.mpi import Wire
from pdadmm.comm.pipeline import HostPipeline
from pdadmm.comm.rounds import Rounds
from pdadmm.comm.waiter import Waiter

__all__ = ["Pump", "StagedIncoming", "StagedOutgoing", "StagedPipeline", "StagedTransport"]


class Pump:
    """Moves the staged messages of a rank on; its waiter calls :meth:`advance` while it polls.

    Parameters
    ----------
    waiter
        Waits for MPI.
    """

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self.ends: list[StagedOutgoing | StagedIncoming] = []
        waiter.background = self.advance

    def advance(self) -> None:
        """Start whatever has become possible; never waits."""
        for end in self.ends:
            end.advance()

    def until(self, end: StagedOutgoing | StagedIncoming, done: Callable[[], bool]) -> None:
        """Poll until `done` holds for one end."""

        # this end first: a message that is there already needs no turn of the others
        def there() -> bool:
            end.advance()
            return done()

        # while the host waits the device may be at work: what it waits is counted there
        seconds = self._waiter.seconds
        self._waiter.until(there, end.channel.what)
        self._waiter.seconds = seconds

    def close(self) -> None:
        """Let the waiter poll for itself again."""
        self._waiter.background = None


class Sending(Enum):
    """Where an outgoing message is."""

    NOWHERE = auto()  #: there is none, or it has left
    ON_DEVICE = auto()  #: it is being encoded, or copied to the host
    ON_WIRE = auto()  #: MPI has it


class StagedOutgoing(Outgoing):
    """The sender's end, with a buffer on the device.

    Parameters
    ----------
    streams
        Copies and events.
    waiter
        Holds the communicator.
    pump
        Gets to know this end.
    overlap
        Let messages travel while computing; else every send waits for its message to leave.
    direct
        Give MPI the device's buffer itself.
    """

    def __init__(
        self, channel: Channel, streams: Streams, waiter: Waiter, pump: Pump, overlap: bool, direct: bool
    ) -> None:
        super().__init__(channel, streams.buffer(channel.nbytes))
        self._streams, self._pump, self._overlap, self._direct = streams, pump, overlap, direct
        self._staging = self.buffer if direct else streams.pinned(channel.nbytes)
        self._wire = Wire(waiter, channel, self._staging)
        self._state = Sending.NOWHERE
        #: end of the encoding (direct) or of the copy of the last message; the copy's end frees the buffer
        self._ready: Event | None = None
        pump.ends.append(self)

    def advance(self) -> None:
        """Start whatever has become possible; never waits."""
        if self._state is Sending.ON_DEVICE and self._ready is not None and self._ready.done:
            self._wire.start()
            self._state = Sending.ON_WIRE
        if self._state is Sending.ON_WIRE and self._wire.done():
            self._state = Sending.NOWHERE

    def wait_free(self) -> None:
        """Let the compute stream wait until the buffer is free; the host waits if MPI reads it."""
        if self._direct:
            self._until_left()
        elif self._ready is not None:
            self._streams.compute_after(self._ready)

    def _start(self) -> None:
        """The compute stream has been given the encoding of the buffer."""
        self._until_left()  # the message before, which the staging buffer holds
        self._ready = self._streams.mark_compute()
        if not self._direct:
            self._ready = self._streams.to_host(self.buffer, self._staging, self._ready)
        self._state = Sending.ON_DEVICE
        if not self._overlap:
            self._until_left()

    def left(self) -> bool:
        """Whether all messages have left; never waits."""
        self.advance()
        return self._state is Sending.NOWHERE

    def _until_left(self) -> None:
        self._pump.until(self, lambda: self._state is Sending.NOWHERE)

    def close(self) -> None:
        self._until_left()
        self._pump.ends.remove(self)
        self._wire.free()


class Receiving(Enum):
    """Where an incoming message is."""

    NOWHERE = auto()  #: none was asked for, or it was taken
    ASKED = auto()  #: it was asked for; the buffer that MPI writes to is still read
    ON_WIRE = auto()  #: MPI may write it
    HERE = auto()  #: it is there; its copy to the device was given to the stream


class StagedIncoming(Incoming):
    """The receiver's end, with a buffer on the device; parameters as in :class:`StagedOutgoing`."""

    def __init__(self, channel: Channel, streams: Streams, waiter: Waiter, pump: Pump, direct: bool) -> None:
        super().__init__(channel, streams.buffer(channel.nbytes))
        self._streams, self._pump, self._direct = streams, pump, direct
        self._staging = self.buffer if direct else streams.pinned(channel.nbytes)
        self._wire = Wire(waiter, channel, self._staging)
        self._state = Receiving.NOWHERE
        self._read: Event | None = None  # the compute stream has read the message before
        self._copied: Event | None = None  # the last message is in the buffer; None: it never was copied
        pump.ends.append(self)

    def advance(self) -> None:
        """Start whatever has become possible; never waits."""
        if self._state is Receiving.ASKED and self._writable():
            self._wire.start()
            self._state = Receiving.ON_WIRE
        if self._state is Receiving.ON_WIRE and self._wire.done():
            if not self._direct and self._read is not None:
                self._copied = self._streams.to_device(self._staging, self.buffer, self._read)
            self._state = Receiving.HERE

    def _writable(self) -> bool:
        """Whether MPI may write where it receives: when the device has read or copied it."""
        last = self._read if self._direct else self._copied
        return last is None or last.done

    def _post(self) -> None:
        """The compute stream has been given all that reads the buffer: it may be filled again."""
        self._read = self._streams.mark_compute()
        self._state = Receiving.ASKED
        self.advance()

    def _wait(self) -> None:
        """Wait for the message, and let the compute stream wait for its copy."""
        begun = self._streams.idle.begin()
        self._pump.until(self, lambda: self._state is Receiving.HERE)
        self._state = Receiving.NOWHERE
        if self._copied is not None:
            self._streams.compute_after(self._copied)
        self._streams.idle.end(begun)

    def close(self) -> None:
        self._pump.ends.remove(self)
        self._wire.free()


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
