"""Simulation of iterations between ranks: computing, messages, a network.

The model
---------
* A rank runs its operations in order: compute for a time, start a send, wait for a message.
* A message takes ``latency + bytes / bandwidth``. Every rank has one full-duplex port: messages that
  leave a rank at the same time share its outgoing bandwidth evenly, as TCP does, and so do those that
  reach it; the two directions are independent.
* With overlap a message travels while both ranks compute, as the progress thread makes it. Without
  it, so does one that the buffers of the sockets hold; with a larger one the sender stands still
  until it has left, and it only moves while its receiver is in MPI, too.
* Computing takes the same time whatever the network does.

A wait is split at the moment its message was sent: before, the sender was late; after, the
communication is exposed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pdadmm.errors import InputError

__all__ = ["EAGER", "Network", "Op", "Outcome", "simulate"]

#: bytes up to which a message leaves at once without overlap, whatever its receiver does. Rough: over
#: TCP on Linux, messages of 2 and of 3 MB were seen to, those of 10 MB not
EAGER = 2 << 20

_SETTLE, _KEPT = 6, 12


@dataclass(frozen=True)
class Network:
    """Latency in seconds, bandwidth in bytes/s of each direction of a port, overlap or not.

    `eager` is the size in bytes up to which a message leaves at once where nothing overlaps.
    """

    latency: float
    bandwidth: float
    overlap: bool = True
    eager: int = EAGER


@dataclass(frozen=True)
class Op:
    """``compute`` for `seconds`; ``send`` or ``wait`` for the message `key` of `nbytes` to or from `peer`.

    A ``wait`` of a message that its peer sends later in the iteration means that of the iteration
    before: `previous` says so, and in the first iteration nothing is waited for.
    """

    kind: str
    seconds: float = 0.0
    key: str = ""  #: name of the channel
    nbytes: int = 0
    peer: int = -1
    previous: bool = False


@dataclass
class Outcome:
    """Seconds an iteration, in the steady state; lists by rank."""

    iteration: float = 0.0
    compute: list[float] = field(default_factory=list)
    late_sender: list[float] = field(default_factory=list)
    exposed: list[float] = field(default_factory=list)

    @property
    def exposed_share(self) -> float:
        """Exposed communication over the iteration, mean of the ranks."""
        return sum(self.exposed) / len(self.exposed) / self.iteration if self.iteration else 0.0


class _Rank:
    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.place = 0
        self.iteration = 0
        self.blocked_since: float | None = None
        self.compute = self.late = self.exposed = 0.0
        self.marks: list[tuple[float, float, float, float]] = []


@dataclass
class _Message:
    sender: int
    receiver: int
    nbytes: int
    sent: float
    left: float = 0.0  #: bytes still to travel
    arrival: float | None = None
    taker: bool = False  #: its receiver is waiting for it
    leaver: bool = False  #: its sender is waiting for it to leave


def simulate(programs: Sequence[Sequence[Op]], network: Network) -> Outcome:
    """Run the ranks' programs over and over until their rhythm is steady.

    Parameters
    ----------
    programs
        The operations of an iteration, by rank.

    Raises
    ------
    InputError
        When a rank waits for what no other can send.
    """
    return _Simulation(programs, network).run()


class _Simulation:
    def __init__(self, programs: Sequence[Sequence[Op]], network: Network) -> None:
        self.network = network
        self.ranks = [_Rank(ops) for ops in programs]
        self.messages: dict[tuple[str, int], _Message] = {}
        self.flows: list[_Message] = []  # that travel
        self.flows_at = 0.0  # time up to which their bytes are counted
        self.plan = 0  # of their next end; older plans are void
        self.held: list[list[_Message]] = [[] for _ in programs]  # wait for their receiver to enter MPI
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.count = 0

    def at(self, time: float, action: Callable[[float], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, action))

    def run(self) -> Outcome:
        for number in range(len(self.ranks)):
            self.at(0.0, lambda now, number=number: self.step(number, now))  # type: ignore[misc]
        while self.events:
            now, _, action = heapq.heappop(self.events)
            action(now)
        outcome = Outcome()
        spans = []
        for rank in self.ranks:
            if len(rank.marks) <= _SETTLE + _KEPT:
                raise InputError("the steps of the profile wait for each other for ever; run again")
            first, last = rank.marks[_SETTLE], rank.marks[_SETTLE + _KEPT]
            time, compute, late, exposed = ((b - a) / _KEPT for a, b in zip(first, last, strict=True))
            spans.append(time)
            outcome.compute.append(compute)
            outcome.late_sender.append(late)
            outcome.exposed.append(exposed)
        outcome.iteration = max(spans)
        return outcome

    def step(self, number: int, now: float) -> None:
        """Run a rank from its place until it computes, blocks or has done all iterations."""
        rank = self.ranks[number]
        while rank.iteration <= _SETTLE + _KEPT + 1:
            if rank.place == len(rank.ops):
                rank.place = 0
                rank.iteration += 1
                rank.marks.append((now, rank.compute, rank.late, rank.exposed))
                continue
            op = rank.ops[rank.place]
            if op.kind == "compute":
                rank.place += 1
                rank.compute += op.seconds
                self.at(now + op.seconds, lambda then: self.step(number, then))
                return
            if op.kind == "send":
                message = self.send(number, op, rank.iteration, now)
                if not self.network.overlap and op.nbytes > self.network.eager:
                    self.block(number, now)
                    self.finish(message, number, now, sending=True)
                    return
                rank.place += 1
                continue
            wanted = rank.iteration - op.previous
            if wanted < 0:
                rank.place += 1
                continue
            found = self.messages.get((op.key, wanted))
            if found is not None and found.arrival is not None and found.arrival <= now:
                del self.messages[op.key, wanted]
                rank.place += 1
                continue
            self.block(number, now)
            if found is not None:
                self.finish(found, number, now, sending=False)
            return

    def block(self, number: int, now: float) -> None:
        """A rank stands still in MPI: what was held up by its computing can move."""
        self.ranks[number].blocked_since = now
        held, self.held[number] = self.held[number], []
        for message in held:
            self.transfer(message, now)

    def send(self, number: int, op: Op, iteration: int, now: float) -> _Message:
        message = _Message(number, op.peer, op.nbytes, now)
        self.messages[op.key, iteration] = message
        receiver = self.ranks[op.peer]
        if self.network.overlap or op.nbytes <= self.network.eager or receiver.blocked_since is not None:
            self.transfer(message, now)
        else:
            self.held[op.peer].append(message)
        self.notify(op.peer, op.key, iteration, message)
        return message

    def notify(self, number: int, key: str, iteration: int, message: _Message) -> None:
        """A receiver that waits for this very message learns when it will be there."""
        rank = self.ranks[number]
        if rank.blocked_since is None or rank.place >= len(rank.ops):
            return
        op = rank.ops[rank.place]
        if op.kind == "wait" and op.key == key and rank.iteration - op.previous == iteration:
            self.finish(message, number, rank.blocked_since, sending=False)

    def transfer(self, message: _Message, now: float) -> None:
        """Let a message travel."""
        self.advance(now)
        message.left = float(message.nbytes)
        self.flows.append(message)
        self.replan(now)

    def rate(self, message: _Message) -> float:
        """Bytes/s that a message gets of the ports that it shares."""
        leaving = sum(flow.sender == message.sender for flow in self.flows)
        reaching = sum(flow.receiver == message.receiver for flow in self.flows)
        return self.network.bandwidth / max(leaving, reaching)

    def advance(self, now: float) -> None:
        """Count the bytes that travelled until now."""
        rates = [self.rate(flow) for flow in self.flows]
        for flow, rate in zip(self.flows, rates, strict=True):
            flow.left -= rate * (now - self.flows_at)
        self.flows_at = now

    def replan(self, now: float) -> None:
        """Note when the next message will have left, with the ports shared as they are now."""
        self.plan += 1
        if self.flows:
            first = min(self.flows, key=lambda flow: flow.left / self.rate(flow))
            plan = self.plan
            ends = now + max(first.left, 0.0) / self.rate(first)
            self.at(ends, lambda then: self.ended(first, plan, then))

    def ended(self, message: _Message, plan: int, now: float) -> None:
        """A message has left; the others share what it had."""
        if plan != self.plan:
            return
        self.advance(now)
        self.flows.remove(message)
        self.replan(now)
        message.arrival = now + self.network.latency
        for number, waits in ((message.receiver, message.taker), (message.sender, message.leaver)):
            if waits:
                self.wake(message, number, message.arrival)

    def finish(self, message: _Message, number: int, since: float, sending: bool) -> None:
        """Wake a blocked rank when a message arrives, or when it has left."""
        if message.arrival is not None:
            self.wake(message, number, max(message.arrival, since))
        elif sending:
            message.leaver = True
        else:
            message.taker = True

    def wake(self, message: _Message, number: int, when: float) -> None:
        self.at(when, lambda now: self.resume(message, number, number == message.sender, now))

    def resume(self, message: _Message, number: int, sending: bool, now: float) -> None:
        rank = self.ranks[number]
        assert rank.blocked_since is not None
        waited = now - rank.blocked_since
        late = 0.0 if sending else min(max(message.sent - rank.blocked_since, 0.0), waited)
        rank.late += late
        rank.exposed += waited - late
        rank.blocked_since = None
        if sending:
            rank.place += 1
        self.step(number, now)
