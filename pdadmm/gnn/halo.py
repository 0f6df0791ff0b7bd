"""The messages of a graph network: which rows go from part to part in every layer, forward and back.

A *slot* is a place in the epoch where halos are filled: F2 ... FL forward, BL ... B2 back. In every slot
a part sends to each part that borders on it one message, a channel of the transport. Rows of a message
are grouped by their width, widest first, and within a width in the order of the graph file; both ends
know the widths, so that nothing travels but heads and codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from pdadmm.arrays import Array
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.codec import DeltaCodec, NonFiniteError
from pdadmm.codec.rows import FLOAT32, WIDTHS, row_message_bytes
from pdadmm.comm.channel import Channel, Ends, Incoming, Outgoing
from pdadmm.comm.local import local_ends
from pdadmm.comm.rounds import Round, Rounds
from pdadmm.comm.transport import Transport
from pdadmm.errors import RunError
from pdadmm.files import Record
from pdadmm.gnn.laps import Laps
from pdadmm.gnn.links import Times
from pdadmm.gnn.part import Part, parts_of_rank
from pdadmm.gnn.passes.protocol import Passes

__all__ = [
    "Exchange",
    "Hats",
    "Layout",
    "Slot",
    "Widths",
    "channel_name",
    "message_key",
    "rounds_of",
    "uniform_widths",
]


@dataclass(frozen=True)
class Slot:
    """A place in the epoch where halos are filled.

    Parameters
    ----------
    name
        F or B and the number of the layer.
    index
        Of the slot in the epoch, or behind all of these in an evaluation, whose messages are others.
    layer
        From 1.
    cols
        Entries of a row.
    """

    name: str
    index: int
    layer: int
    cols: int

    @property
    def back(self) -> bool:
        """Whether gradients travel."""
        return self.name.startswith("B")


#: by slot name, sender and receiver: decoded copies of the rows, (k, cols) float32
Hats = dict[tuple[str, int, int], np.ndarray]
#: by slot name, sender and receiver: bits of the rows, (k,) uint8, in the order of the graph file
Widths = Mapping[tuple[str, int, int], np.ndarray]
#: slot name, sender and receiver, and whether it is the sender's end
_End = tuple[str, int, int, bool]


def channel_name(slot: str, sender: int, receiver: int) -> str:
    """What the message of a slot from a part to another one is called."""
    return f"{slot} {sender}>{receiver}"


def message_key(seed: int, epoch: int, slot: int, sender: int, receiver: int, bits: int) -> int:
    """Seeds the rounding of the rows of one width in one message, below 2^32."""
    parts = (seed, epoch, slot, sender, receiver, bits)
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@dataclass(frozen=True)
class _Group:
    """The rows of one width in a message."""

    bits: int
    rows: Array  #: (k,) int32, of the matrix at this end
    first: int  #: of its bytes in the message
    nbytes: int


class Layout:
    """How a message is made up at one of its ends.

    Parameters
    ----------
    rows
        (k,) int32, rows of the matrix at this end.
    widths
        (k,) their bits.
    cols
        Entries of a row.
    changes
        They travel as changes, all at the same width.
    backend
        Where the matrix is.
    """

    def __init__(
        self,
        rows: np.ndarray,
        widths: np.ndarray,
        cols: int,
        changes: bool = False,
        backend: Backend = NUMPY,
    ) -> None:
        self.groups: list[_Group] = []
        self.nbytes = 0
        for bits in (FLOAT32, *WIDTHS):
            chosen = np.ascontiguousarray(rows[widths == bits])
            if len(chosen):
                if changes:
                    nbytes = -(-_delta(bits).nbytes(len(chosen), cols) // 4) * 4
                else:
                    nbytes = row_message_bytes(len(chosen), cols, bits)
                self.groups.append(_Group(bits, backend.asarray(chosen), self.nbytes, nbytes))
                self.nbytes += nbytes


@functools.cache
def _delta(bits: int) -> DeltaCodec:
    """The same for all messages: the passes keep what they know of a codec."""
    return DeltaCodec(bits)


def uniform_widths(parts: Mapping[int, Part], slots: Sequence[Slot], bits: int) -> Widths:
    """The same bits for every row of the messages of some parts."""
    found = {}
    for part in parts.values():
        for slot in slots:
            for other, rows in part.sends.items():
                found[slot.name, part.number, other] = np.full(len(rows), bits, np.uint8)
            for other, rows in part.receives.items():
                found[slot.name, other, part.number] = np.full(len(rows), bits, np.uint8)
    return found


@dataclass(frozen=True)
class _Message:
    """An end of a message, and how its bytes are made up."""

    other: int  #: the part at the other end
    layout: Layout
    views: tuple[Array, ...]  #: of the groups in the buffer


def _owners(total: int, ranks: int) -> dict[int, tuple[int, range]]:
    """Rank of every part, and all parts of that rank."""
    owned = ((rank, parts_of_rank(total, ranks, rank)) for rank in range(ranks))
    return {part: (rank, parts) for rank, parts in owned for part in parts}


def _messages(
    parts: Mapping[int, Part], slots: Sequence[Slot]
) -> Iterator[tuple[Slot, tuple[int, int], bool, np.ndarray]]:
    """Slot, sender and receiver of every message, whether it is sent from here, and its rows here."""
    for slot in slots:
        for part in parts.values():
            for other, rows in part.sends.items():
                yield slot, (part.number, other), True, rows
            for other, rows in part.receives.items():
                yield slot, (other, part.number), False, rows


def _channel(
    slot: Slot, ends: tuple[int, int], sends: bool, owners: Mapping[int, tuple[int, range]], nbytes: int
) -> Channel:
    """Of a message; its tag tells it from the others between two ranks, and so stays as small as may be."""
    sender, receiver = ends
    other = receiver if sends else sender
    (_, senders), (_, receivers) = owners[sender], owners[receiver]
    tag = (slot.index * len(senders) + sender - senders.start) * len(receivers) + receiver - receivers.start
    return Channel(channel_name(slot.name, *ends), owners[other][0], tag, nbytes, sends, f"part {other}")


def rounds_of(parts: Mapping[int, Part], total: int, slots: Sequence[Slot], ranks: int, rank: int) -> Rounds:
    """What a rank sends to and receives from others in an epoch, whatever the sizes.

    Parameters
    ----------
    parts
        Of this rank.
    total
        Parts of the graph.
    """
    return _channels(parts, total, slots, ranks, rank, lambda end: 1)[0]


def _channels(
    parts: Mapping[int, Part],
    total: int,
    slots: Sequence[Slot],
    ranks: int,
    rank: int,
    nbytes: Callable[[_End], int],
) -> tuple[Rounds, list[Channel]]:
    """Of the messages between ranks, and of those within this one, at their senders."""
    owners, within = _owners(total, ranks), []
    between: dict[str, list[Channel]] = {slot.name: [] for slot in slots}
    for slot, ends, sends, _ in _messages(parts, slots):
        channel = _channel(slot, ends, sends, owners, nbytes((slot.name, *ends, sends)))
        if channel.peer != rank:
            between[slot.name].append(channel)
        elif sends:
            within.append(channel)
    return Rounds(tuple(Round(name, tuple(found)) for name, found in between.items())), within


def advice(epoch: int, coded: bool) -> str:
    """What to do about NaN or Inf in an epoch (from 1), of messages that are coded or not."""
    if epoch == 1:  # of weights that no step has changed
        return (
            "the features are too large: look for placeholders of missing values, or prepare the graph with "
            "--feature-norm standard"
        )
    return f"scale the features to about 1, or try a smaller --lr{' or more --bits' if coded else ''}"


class Exchange:
    """The messages of this rank's parts, sent and taken slot by slot.

    Parameters
    ----------
    parts
        Those of this rank.
    total
        Parts of the graph.
    slots
        Of an epoch, in order.
    widths
        Of all rows that this rank sends or receives.
    transport, ranks, rank
        Way of the messages between ranks.
    passes
        That encode and decode.
    seed
        Of the rounding.
    backend
        Where the matrices and the messages are.
    laps
        Told of what is sent and waited for.
    changes
        Slots whose rows travel as changes since the epoch before, all of a message at the same width.
    hats
        What both ends of these messages have come to; none: zeros.
    times
        Told when messages were sent and waited for, where somebody wants to know.
    finite
        Whether NaN and Inf end the run; if not, which is for rows in float32, they travel like numbers.
    """

    def __init__(
        self,
        parts: Mapping[int, Part],
        total: int,
        slots: Sequence[Slot],
        widths: Widths,
        transport: Transport | None,
        ranks: int,
        rank: int,
        passes: Passes,
        seed: int,
        backend: Backend = NUMPY,
        laps: Laps | None = None,
        changes: Set[str] = frozenset(),
        hats: Hats | None = None,
        times: Times | None = None,
        finite: bool = True,
    ) -> None:
        self.slots = {slot.name: slot for slot in slots}
        self._finite = finite
        self.widths = widths
        self._passes, self._seed = passes, seed
        self._laps = laps or Laps()
        self._times = times
        self._changes = changes
        self._backend = backend
        self._epoch = 0
        layouts: dict[_End, Layout] = {}
        self._hats: dict[_End, Array] = {}
        for slot, (sender, receiver), sends, rows in _messages(parts, slots):
            key, end = (slot.name, sender, receiver), (slot.name, sender, receiver, sends)
            layouts[end] = Layout(rows, widths[key], slot.cols, slot.name in changes, backend)
            if slot.name in changes:
                kept = (hats or {}).get(key)
                start = np.zeros((len(rows), slot.cols), np.float32) if kept is None else kept.copy()
                self._hats[end] = backend.asarray(start)
        between, within = _channels(parts, total, slots, ranks, rank, lambda end: layouts[end].nbytes)
        here = local_ends(within, backend)
        self._between = transport.open(between) if transport is not None else Ends({}, {})
        outgoing = {**here.outgoing, **self._between.outgoing}
        incoming = {**here.incoming, **self._between.incoming}
        self._sends: dict[tuple[str, int], list[tuple[Outgoing, _Message]]] = {}
        self._receives: dict[tuple[str, int], list[tuple[Incoming, _Message]]] = {}
        for (name, sender, receiver, sends), layout in layouts.items():
            of_channel = channel_name(name, sender, receiver)
            if sends:
                out = outgoing[of_channel]
                message = _Message(receiver, layout, _views(out.buffer, layout))
                self._sends.setdefault((name, sender), []).append((out, message))
            else:
                taken = incoming[of_channel]
                message = _Message(sender, layout, _views(taken.buffer, layout))
                self._receives.setdefault((name, receiver), []).append((taken, message))
        self.outgoing = list(outgoing.values())
        self.incoming = list(incoming.values())

    def begin(self, epoch: int) -> None:
        """Begin an epoch (from 1): every message of it may come."""
        self._epoch = epoch
        for end in self.incoming:
            end.post()

    def send(self, slot: str, part: int, X: Array) -> None:
        """Encode and start the messages of a part, rows of X, (n or more, cols)."""
        index = self.slots[slot].index
        for end, message in self._sends.get((slot, part), ()):
            end.wait_free()
            for group, view in zip(message.layout.groups, message.views, strict=True):
                key = 0
                if group.bits != FLOAT32:
                    key = message_key(self._seed, self._epoch, index, part, message.other, group.bits)
                try:
                    if slot in self._changes:
                        self._encode_change(slot, part, message.other, group, X, view)
                    else:
                        self._passes.encode_rows(X, group.rows, group.bits, key, view)
                except NonFiniteError:
                    if not self._finite:
                        view[...] = np.ascontiguousarray(X[group.rows]).view(np.uint8).reshape(-1)
                        continue
                    raise RunError(
                        f"NaN or Inf in the rows of part {part} in {slot}; "
                        f"{advice(self._epoch, group.bits != FLOAT32)}"
                    ) from None
            self._laps.start(end)

        if self._times is not None:
            self._times.sent(slot)

    def receive(self, slot: str, part: int, X: Array) -> None:
        """Wait for the messages to a part and decode them into the halo rows of X, (n + h, cols)."""
        if self._times is not None:
            self._times.waits(slot, part)
        for end, message in self._receives.get((slot, part), ()):
            self._laps.wait(end)
            for group, view in zip(message.layout.groups, message.views, strict=True):
                if slot in self._changes:
                    self._decode_change(slot, message.other, part, group, view, X)
                else:
                    self._passes.decode_rows(view, group.bits, group.rows, X)

    def _encode_change(
        self, slot: str, sender: int, receiver: int, group: _Group, X: Array, view: Array
    ) -> None:
        hat, codec = self._hats[slot, sender, receiver, True], _delta(group.bits)
        self._passes.encode_change(X, group.rows, codec, hat, view[: codec.nbytes(*hat.shape)])

    def _decode_change(
        self, slot: str, sender: int, receiver: int, group: _Group, view: Array, X: Array
    ) -> None:
        hat, codec = self._hats[slot, sender, receiver, False], _delta(group.bits)
        self._passes.decode_change(view[: codec.nbytes(*hat.shape)], group.rows, codec, hat, X)

    def hats(self) -> Hats:
        """What both ends of the messages that travel as changes have come to."""
        return {key[:3]: self._backend.to_host(hat) for key, hat in self._hats.items()}

    def received(self, slot: str, part: int) -> list[tuple[int, list[tuple[int, Array, Array]]]]:
        """What came last to a part: by sender, the groups' bits, columns of the part and bytes."""
        return [
            (
                message.other,
                [
                    (group.bits, group.rows, view)
                    for group, view in zip(message.layout.groups, message.views, strict=True)
                ],
            )
            for _, message in self._receives.get((slot, part), ())
        ]

    def float32_bytes(self) -> dict[str, int]:
        """By name of the channel, what a message would be as float32."""
        return {name: 4 * facts["rows"] * facts["cols"] for name, facts in self.facts.items()}

    @functools.cached_property
    def facts(self) -> dict[str, Record]:
        """By name of the channel: the parts at its ends, its rows and columns, and rows by width."""
        found = {}
        for (slot, sender, receiver), widths in self.widths.items():
            if slot in self.slots:
                counts = {str(b): int(np.count_nonzero(widths == b)) for b in (FLOAT32, *WIDTHS)}
                found[channel_name(slot, sender, receiver)] = {
                    "slot": slot,
                    "sender_part": sender,
                    "receiver_part": receiver,
                    "rows": len(widths),
                    "cols": self.slots[slot].cols,
                    "widths": {bits: rows for bits, rows in counts.items() if rows},
                }
        return found

    def close(self) -> None:
        """Finish what is under way and free the ends."""
        self._between.close()


def _views(buffer: Array, layout: Layout) -> tuple[Array, ...]:
    return tuple(buffer[group.first : group.first + group.nbytes] for group in layout.groups)
