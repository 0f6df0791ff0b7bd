"""Messages between GPUs over NCCL point-to-point.

NCCL runs what a rank enqueues on a stream in order, so that ranks which enqueue their sends and
receives in different orders wait for each other for ever. So every rank goes through the same cycle of
rounds (:mod:`pdadmm.comm.rounds`), in which a round is one NCCL group::

    P  send p to the rank below, receive p from the rank above     one NCCL group
    Q  send q to the rank above, receive q from the rank below     one NCCL group
    P  ...

A round is enqueued as soon as all its parts are there (the buffers to send are being encoded, those to
receive into are free) and the round before it is enqueued. All rounds run on one communication stream.
Events order it against the compute stream, and the host never waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pdadmm.arrays import Array, DeviceArray
from pdadmm.arrays.backend import Backend
from pdadmm.arrays.streams import Event, Streams
from pdadmm.comm.channel import Channel, Ends, Incoming, Outgoing
from pdadmm.comm.rounds import Rounds
from pdadmm.comm.waiter import Waiter
from pdadmm.comm.where import stopped_ranks
from pdadmm.errors import InputError, RunError

if TYPE_CHECKING:
    from cupy.cuda.nccl import NcclCommunicator

__all__ = [
    "CupyNccl",
    "Device",
    "NCCLIncoming",
    "NCCLOutgoing",
    "NCCLPipeline",
    "NCCLTransport",
    "Overdue",
    "Watch",
    "connect",
    "open_rounds",
    "require_nccl",
]

#: first NCCL that lets several ranks share a GPU, with NCCL_MULTI_RANK_GPU_ENABLE=1
MULTI_RANK_VERSION = 23000

#: a buffer and the rank that it goes to or comes from
Transfer = tuple[DeviceArray, int]


class Device(Protocol):
    """What is asked of the GPU and of NCCL; tests put a recorder in its place."""

    def buffer(self, nbytes: int) -> DeviceArray:
        """Zeroed device memory, uint8."""
        ...

    def mark_compute(self) -> Event:
        """An event at the end of what the compute stream has been given so far."""
        ...

    def mark_transfers(self) -> Event:
        """The same for the communication stream."""
        ...

    def transfers_after(self, event: Event) -> None:
        """Let what the communication stream is given from now on wait for an event."""
        ...

    def compute_after(self, event: Event) -> None:
        """Let what the compute stream is given from now on wait for an event."""
        ...

    def compute_waits(self, event: Event) -> None:
        """The same for a message, and count the time that it stands still."""
        ...

    def group(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        """Enqueue transfers as one NCCL group on the communication stream."""
        ...


class _Turn:
    """A round on this rank: what it transfers, and the ends that are ready for the next one."""

    def __init__(self, name: str, parts: int) -> None:
        self.name = name
        self.sends: list[Transfer] = []
        self.receives: list[Transfer] = []
        self.ready: dict[Outgoing | Incoming, Event] = {}
        self.done: Event | None = None  #: end of the last one that was enqueued
        self._parts = parts

    @property
    def complete(self) -> bool:
        return len(self.ready) == self._parts


class _Cycle:
    """The rounds that a rank has a part in, enqueued in turn."""

    def __init__(self, device: Device) -> None:
        self.turns: list[_Turn] = []
        self._device = device
        self._next = 0

    def register(self, turn: _Turn, end: Outgoing | Incoming) -> None:
        """A part of the next round of a kind is there; enqueue whatever has become possible."""
        if end in turn.ready:
            raise AssertionError(f"{end.channel.name} was registered twice in round {turn.name}")
        turn.ready[end] = self._device.mark_compute()
        while self.turns[self._next].complete:
            self._enqueue(self.turns[self._next])
            self._next = (self._next + 1) % len(self.turns)

    def _enqueue(self, turn: _Turn) -> None:
        for event in turn.ready.values():
            self._device.transfers_after(event)
        turn.ready = {}
        if turn.sends or turn.receives:
            self._device.group(turn.sends, turn.receives)
        turn.done = self._device.mark_transfers()


class NCCLOutgoing(Outgoing):
    """The sender's end, with a buffer on the device."""

    def __init__(self, channel: Channel, device: Device, cycle: _Cycle, turn: _Turn) -> None:
        super().__init__(channel, device.buffer(channel.nbytes))
        self._device, self._cycle, self._turn = device, cycle, turn

    def wait_free(self) -> None:
        """Let the compute stream wait until the buffer is free; the host does not wait."""
        if self._turn.done is not None:
            self._device.compute_waits(self._turn.done)

    def _start(self) -> None:
        """The compute stream has been given the encoding of the buffer."""
        self._cycle.register(self._turn, self)

    def close(self) -> None:
        """The buffer's memory may be taken by what the compute stream is given after the last send."""
        if self._turn.done is not None:
            self._device.compute_after(self._turn.done)


class NCCLIncoming(Incoming):
    """The receiver's end, with a buffer on the device."""

    def __init__(self, channel: Channel, device: Device, cycle: _Cycle, turn: _Turn) -> None:
        super().__init__(channel, device.buffer(channel.nbytes))
        self._device, self._cycle, self._turn = device, cycle, turn

    def _post(self) -> None:
        """The compute stream has been given all that reads the buffer: it may be filled again."""
        self._cycle.register(self._turn, self)

    def _wait(self) -> None:
        """Let the compute stream wait for the message; the host does not wait."""
        if self._turn.done is None or self in self._turn.ready:
            raise AssertionError(f"{self.channel.name} was awaited before its round was enqueued")
        self._device.compute_waits(self._turn.done)

    def close(self) -> None:
        """Nothing to free: the last message was waited for."""


def open_rounds(device: Device, rounds: Rounds) -> Ends:
    """The ends of a rank's messages, enqueued in the order of the rounds."""
    cycle, ends = _Cycle(device), Ends({}, {})
    for part in rounds:
        if not part.channels:
            continue  # this rank passes over it
        turn = _Turn(part.name, len(part.channels))
        cycle.turns.append(turn)
        # several messages between two ranks meet in the order they are given in: that of their tags
        for channel in sorted(part.channels, key=lambda channel: channel.tag):
            end: Outgoing | Incoming
            if channel.sends:
                end = ends.outgoing[channel.name] = NCCLOutgoing(channel, device, cycle, turn)
            else:
                end = ends.incoming[channel.name] = NCCLIncoming(channel, device, cycle, turn)
            if channel.nbytes:  # both ends know of an empty one
                (turn.sends if channel.sends else turn.receives).append((end.buffer, channel.peer))
    return ends


def require_nccl() -> ModuleType:
    """CuPy's NCCL module.

    Raises
    ------
    InputError
        When CuPy, or NCCL for it, is missing.
    """
    try:
        from cupy.cuda import nccl
    except ImportError:
        raise InputError(
            "--transport nccl needs CuPy, which is not installed; pip install 'pdadmm[cuda12]' or [cuda13]"
        ) from None
    if not nccl.available:
        raise InputError(
            "--transport nccl: CuPy found no NCCL library; pip install nvidia-nccl-cu12 (or -cu13), "
            "or use --transport mpi"
        )
    found: ModuleType = nccl
    return found


def connect(waiter: Waiter, stages: Sequence[Rounds]) -> CupyNccl:
    """Make the NCCL communicator of a run; collective.

    Rank 0 makes the id and MPI broadcasts it. Then every message of every stage goes out once, so
    that no iteration pays for setting connections up.

    Parameters
    ----------
    stages
        What this rank sends and receives in every stage, in the order of the stages.
    """
    nccl = require_nccl()
    comm = waiter.comm
    identity = waiter.broadcast(nccl.get_unique_id() if comm.rank == 0 else None)
    with waiter.patient(), waiter.limit("NCCL connects all ranks"):
        device = CupyNccl(nccl, nccl.NcclCommunicator(comm.size, identity, comm.rank))
        device.peers = sorted({peer for rounds in stages for peer in rounds.peers})
        under_way = [warm_up(device, rounds) for rounds in stages]
        device.synchronize()
        del under_way  # and its buffers, which must live until then
    device.overdue = Overdue(waiter)
    return device


def warm_up(device: Device, rounds: Rounds) -> Ends:
    """Send a byte instead of every message, in the order of the rounds; returns their ends."""
    ends = open_rounds(device, rounds.resized(1))
    for receiver in ends.incoming.values():
        receiver.post()
    for sender in ends.outgoing.values():
        sender.start()
    return ends


class Watch:
    """A thread that ends the job when NCCL meets an error that no call of this rank reports.

    The host may be waiting for the device, and the device for a neighbour that is gone.

    Parameters
    ----------
    problem
        What NCCL met, in words, or None; called every `period` seconds.
    end
        Called once with the problem.
    """

    def __init__(
        self, problem: Callable[[], str | None], end: Callable[[str], None], period: float = 0.5
    ) -> None:
        self._problem, self._end, self._period = problem, end, period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nccl-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            problem = self._problem()
            if problem is not None and not self._stop.is_set():
                self._end(problem)
                return


class Overdue:
    """Tells when transfers that were enqueued take longer than they may: the host never waits for them.

    Parameters
    ----------
    waiter
        Its timeout is that between the ends of two transfers while one is under way, 0 for none; while
        it is patient, so is this.
    """

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self._under_way: deque[tuple[float, Event]] = deque()
        self._moved = 0.0
        self.timeout = waiter.timeout

    def enqueued(self, mark: Callable[[], Event]) -> None:
        """Transfers were enqueued; `mark` makes an event at their end."""
        if self._waiter.timeout:
            self._under_way.append((time.monotonic(), mark()))

    def passed(self) -> bool:
        """Whether the timeout is over; never waits."""
        now = time.monotonic()
        if self.timeout != self._waiter.timeout:
            self.timeout, self._moved = self._waiter.timeout, now
        while self._under_way and self._under_way[0][1].done:
            self._under_way.popleft()
            self._moved = now
        if not self._under_way or not self.timeout:
            return False
        return now - max(self._moved, self._under_way[0][0]) > self.timeout


class CupyNccl(Streams):
    """:class:`Device` on CuPy's streams and NCCL binding.

    Attributes
    ----------
    peers
        Ranks that this one talks to in any stage.
    peers_now
        Those of the stage under way, which an error is about; none when this rank has no message in it.
    overdue
        Told of all transfers; None while NCCL connects.
    """

    def __init__(self, nccl: ModuleType, communicator: NcclCommunicator) -> None:
        super().__init__()
        self._nccl = nccl
        self._device = self._cupy.cuda.Device()
        self.communicator = communicator
        self.peers: list[int] = []
        self.peers_now: list[int] = []
        self.overdue: Overdue | None = None

    def compute_waits(self, event: Event) -> None:
        begun = self.idle.begin()
        self.compute_after(event)
        self.idle.end(begun)

    def group(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        stream = self.transfers.ptr
        self._nccl.groupStart()
        for buffer, peer in sends:
            self.communicator.send(buffer.data.ptr, buffer.nbytes, self._nccl.NCCL_UINT8, peer, stream)
        for buffer, peer in receives:
            self.communicator.recv(buffer.data.ptr, buffer.nbytes, self._nccl.NCCL_UINT8, peer, stream)
        self._nccl.groupEnd()
        if self.overdue is not None:
            self.overdue.enqueued(self.mark_transfers)

    def problem(self) -> str | None:
        """What NCCL met asynchronously or waits for too long, and the links it is about, or None."""
        peers = self.peers_now or self.peers
        links = " or ".join(f"rank {peer}" for peer in peers)
        self._device.use()  # asked for in a thread of its own, which begins on device 0
        try:
            self.communicator.check_async_error()
        except (self._nccl.NcclError, KeyError) as error:  # CuPy looks up what a status means
            found = f"status {error}" if isinstance(error, KeyError) else str(error)
            return f"{found} on the link to {links}" if peers else found
        try:
            overdue = self.overdue is not None and self.overdue.passed()
        except RunError as error:
            return str(error)
        if overdue and self.overdue is not None:
            return (
                f"no answer within {self.overdue.timeout:g} s on the link to {links}; "
                + (stopped_ranks() or "that process hangs or is slow: look at its host")
                + ", or give a longer --timeout"
            )
        return None

    def close(self) -> None:
        """Destroy the communicator; before MPI is finalized."""
        self.synchronize()
        self.communicator.destroy()


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
