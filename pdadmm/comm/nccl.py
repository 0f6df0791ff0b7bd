"""Couplings between GPUs over NCCL point-to-point.

NCCL runs what a rank enqueues on a stream in order, so that neighbours which enqueue their sends and
receives in different orders wait for each other for ever. The exchange therefore has *rounds*, and
every rank goes through the same sequence of them::

    P  send p to the rank below, receive p from the rank above     one NCCL group
    Q  send q to the rank above, receive q from the rank below     one NCCL group
    P  ...

A round is enqueued as soon as all its parts are there (the send buffer is being encoded, the receive
buffer is free) and the round before it is enqueued. All rounds run on one communication stream.
Events order it against the compute stream, and the host never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pdadmm.arrays.streams import IdleTime
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError

__all__ = ["CupyNccl", "Device", "NCCLExchange", "NCCLLink", "Watch", "connect", "require_nccl"]

Buffer = Any

#: first NCCL that lets several ranks share a GPU, with NCCL_MULTI_RANK_GPU_ENABLE=1
MULTI_RANK_VERSION = 23000


class Device(Protocol):
    """What the exchange asks of the GPU and of NCCL; tests put a recorder in its place."""

    def buffer(self, nbytes: int) -> Buffer:
        """A zeroed device buffer, uint8."""
        ...

    def mark_compute(self) -> Any:
        """An event at the end of what the compute stream has been given so far."""
        ...

    def mark_communication(self) -> Any:
        """The same for the communication stream."""
        ...

    def communication_after(self, event: Any) -> None:
        """Let what the communication stream is given from now on wait for an event."""
        ...

    def compute_after(self, event: Any) -> None:
        """Let what the compute stream is given from now on wait for an event."""
        ...

    def group(self, sends: list[tuple[Buffer, int]], receives: list[tuple[Buffer, int]]) -> None:
        """Enqueue (buffer, peer) transfers as one NCCL group on the communication stream."""
        ...


class _Round:
    """One kind of round on this rank: the parts it has, and those that are there for the next one."""

    def __init__(self, sends: bool, receives: bool) -> None:
        self.sends, self.receives = sends, receives
        self.ready: dict[str, Any] = {}
        self.done: Any = None

    @property
    def complete(self) -> bool:
        return ("send" in self.ready) == self.sends and ("receive" in self.ready) == self.receives


class NCCLExchange:
    """The two couplings of a rank to its neighbours, for one stage.

    Parameters
    ----------
    device
        Streams, events and NCCL.
    below, above
        Ranks of the neighbours, or None.
    below_bytes, above_bytes
        Sizes of the messages of the coupling to each.
    """

    def __init__(
        self, device: Device, below: int | None, above: int | None, below_bytes: int, above_bytes: int
    ) -> None:
        self._device = device
        self.below = below
        self.above = above
        self._rounds = {
            "p": _Round(sends=below is not None, receives=above is not None),
            "q": _Round(sends=above is not None, receives=below is not None),
        }
        self._turn = "p"
        self.links: dict[str, NCCLLink] = {}
        if below is not None:
            self.links["below"] = NCCLLink(self, device, below, "p", "q", below_bytes)
        if above is not None:
            self.links["above"] = NCCLLink(self, device, above, "q", "p", above_bytes)

    def register(self, kind: str, part: str) -> None:
        """A part of the next round of a kind is there; enqueue whatever has become possible."""
        ready = self._rounds[kind].ready
        if part in ready:
            raise AssertionError(f"the {part} of round {kind} was registered twice")
        ready[part] = self._device.mark_compute()
        while self._rounds[self._turn].complete:
            self._enqueue(self._turn)
            self._turn = "q" if self._turn == "p" else "p"

    def done(self, kind: str) -> Any:
        """Event at the end of the last enqueued round of a kind; None before the first."""
        return self._rounds[kind].done

    def _enqueue(self, kind: str) -> None:
        entry = self._rounds[kind]
        for event in entry.ready.values():
            self._device.communication_after(event)
        entry.ready = {}
        down, up = self.links.get("below"), self.links.get("above")
        sender, receiver = (down, up) if kind == "p" else (up, down)
        to, source = (self.below, self.above) if kind == "p" else (self.above, self.below)
        sends = [(sender.send_buffer, to)] if sender is not None and to is not None else []
        receives = [(receiver.receive_buffer, source)] if receiver is not None and source is not None else []
        self._device.group(sends, receives)
        entry.done = self._device.mark_communication()


class NCCLLink:
    """One end of a coupling between GPUs; see :class:`pdadmm.admm.coupling.Link`."""

    between_ranks = True

    def __init__(
        self, exchange: NCCLExchange, device: Device, peer: int, sends: str, receives: str, nbytes: int
    ) -> None:
        self.peer = peer
        self.send_buffer = device.buffer(nbytes)
        self.receive_buffer = device.buffer(nbytes)
        self.messages_sent = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.bytes_received = 0
        self._exchange = exchange
        self._device = device
        self._sends, self._receives = sends, receives

    def post_receive(self) -> None:
        """The compute stream has been given all that reads the receive buffer: it may be filled again."""
        self._exchange.register(self._receives, "receive")

    def start_send(self) -> None:
        """The compute stream has been given the encoding of the send buffer."""
        self._exchange.register(self._sends, "send")
        self.messages_sent += 1
        self.bytes_sent += self.send_buffer.nbytes

    def wait_sent(self) -> float:
        """Let the compute stream wait until the send buffer is free; the host does not wait."""
        event = self._exchange.done(self._sends)
        if event is not None:
            self._device.compute_after(event)
        return 0.0

    def wait_received(self) -> float:
        """Let the compute stream wait for the message; the host does not wait."""
        event = self._exchange.done(self._receives)
        if event is None:
            raise AssertionError("a message was awaited before its round was enqueued")
        self._device.compute_after(event)
        self.messages_received += 1
        self.bytes_received += self.receive_buffer.nbytes
        return 0.0

    def close(self) -> None:
        """Nothing to free: the communicator outlives the stage."""


def require_nccl() -> Any:
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
    return nccl


def connect(waiter: Waiter, neighbours: Sequence[tuple[int | None, int | None]]) -> CupyNccl:
    """Make the NCCL communicator of a run; collective.

    Rank 0 makes the id and MPI broadcasts it. Then a message crosses every edge in both directions, so
    that no iteration pays for setting connections up.

    Parameters
    ----------
    neighbours
        Ranks below and above this one (or None) in every stage, in the order of the stages.
    """
    nccl = require_nccl()
    comm = waiter.comm
    identity = waiter.broadcast(nccl.get_unique_id() if comm.rank == 0 else None)
    device = CupyNccl(nccl, nccl.NcclCommunicator(comm.size, identity, comm.rank))
    device.peers = sorted({peer for pair in neighbours for peer in pair if peer is not None})
    for below, above in neighbours:
        warm_up(NCCLExchange(device, below, above, 1, 1))
    device.synchronize()
    return device


def warm_up(exchange: NCCLExchange) -> None:
    """Send one message over every edge in both directions, in the order of an iteration: p down first."""
    for link in exchange.links.values():
        link.post_receive()
    for name in ("below", "above"):
        if name in exchange.links:
            exchange.links[name].start_send()


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


class CupyNccl:
    """:class:`Device` on CuPy's streams and NCCL binding.

    The compute stream is CuPy's current stream.
    """

    def __init__(self, nccl: Any, communicator: Any) -> None:
        import cupy

        self._cupy, self._nccl = cupy, nccl
        self.communicator = communicator
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.idle = IdleTime()
        #: of the stage under way, whose links an error is about
        self.exchange: NCCLExchange | None = None
        #: neighbours in any stage: an error may come in a stage that gives this rank no link
        self.peers: list[int] = []

    def buffer(self, nbytes: int) -> Buffer:
        return self._cupy.zeros(nbytes, self._cupy.uint8)

    def mark_compute(self) -> Any:
        return self._mark(self._cupy.cuda.get_current_stream())

    def mark_communication(self) -> Any:
        return self._mark(self.stream)

    def communication_after(self, event: Any) -> None:
        self.stream.wait_event(event)

    def compute_after(self, event: Any) -> None:
        begun = self.idle.begin()
        self._cupy.cuda.get_current_stream().wait_event(event)
        self.idle.end(begun)

    def group(self, sends: list[tuple[Buffer, int]], receives: list[tuple[Buffer, int]]) -> None:
        self._nccl.groupStart()
        for buffer, peer in sends:
            self.communicator.send(
                buffer.data.ptr, buffer.nbytes, self._nccl.NCCL_UINT8, peer, self.stream.ptr
            )
        for buffer, peer in receives:
            self.communicator.recv(
                buffer.data.ptr, buffer.nbytes, self._nccl.NCCL_UINT8, peer, self.stream.ptr
            )
        self._nccl.groupEnd()

    def synchronize(self) -> None:
        """Let the host wait for both streams."""
        self.stream.synchronize()
        self._cupy.cuda.get_current_stream().synchronize()

    def problem(self) -> str | None:
        """What NCCL met asynchronously and the links it is about, or None."""
        try:
            self.communicator.check_async_error()
        except self._nccl.NcclError as error:
            now = [] if self.exchange is None else [self.exchange.below, self.exchange.above]
            peers = [peer for peer in now if peer is not None] or self.peers
            links = " or ".join(f"rank {peer}" for peer in peers)
            return f"{error} on the link to {links}" if peers else str(error)
        return None

    def close(self) -> None:
        """Destroy the communicator; before MPI is finalized."""
        self.synchronize()
        self.communicator.destroy()

    def _mark(self, stream: Any) -> Any:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return event
