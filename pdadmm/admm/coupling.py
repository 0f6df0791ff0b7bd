"""The constraint p_{l+1} = q_l between two layers, as each of its two ends sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pdadmm.arrays import Array, copy_into
from pdadmm.codec import Codec, make_codec
from pdadmm.codec.packing import key_from
from pdadmm.comm.channel import Channel, Incoming, Outgoing
from pdadmm.trace.clock import Clock

__all__ = ["CouplingEnd", "Edge"]


@dataclass(frozen=True)
class Edge:
    """Two layers that follow each other in a stage, by their positions."""

    below: int
    above: int

    @property
    def p(self) -> str:
        """Name of the message that goes down."""
        return f"p {self.above}"

    @property
    def q(self) -> str:
        """Name of the message that goes up."""
        return f"q {self.below}"

    def channels(self, peer: int, nbytes: int, at_above: bool) -> tuple[Channel, Channel]:
        """p and q as the rank of one of the two layers sees them.

        Parameters
        ----------
        peer
            Rank of the other layer.
        nbytes
            Of each of the two messages.
        at_above
            Whether the rank of the layer above asks, which sends p and receives q.
        """
        other = f"layer {self.below if at_above else self.above}"
        return (
            Channel(self.p, peer, 2 * self.below, nbytes, at_above, other),
            Channel(self.q, peer, 2 * self.below + 1, nbytes, not at_above, other),
        )


class CouplingEnd:
    """State of a coupling at one of its layers.

    Both ends hold the decoded p and q and the dual u, bit for bit the same, and each updates u
    itself: only p (down) and q (up) ever travel. Two ends in one rank share these three: the end that
    sends has them ready, and the other one decodes nothing.

    Parameters
    ----------
    index
        Position of the layer below.
    codec
        How messages are written.
    outgoing, incoming
        The ends of the message sent and of the one received.
    start
        (V, n) float32, the activations of the stage's forward pass, which p and q start from.
    is_above
        Whether this is the end of the layer above, which sends p and receives q.
    seed
        Of the run, for stochastic rounding.
    clock
        Told of every message.
    first
        The first of these nodes among those of all shards.
    partner
        The end of the layer below, where it is on this rank too.

    Attributes
    ----------
    outgoing_end, incoming_end
        They hold the buffers and count what went through them.
    own
        (V, n) the variable this end sends (p above, q below).
    own_hat, other_hat
        (V, n) decoded copies of the variable sent and of the one received. For a lossless codec
        `own_hat` is `own` itself.
    u
        (V, n) the dual.
    shared
        Whether the other end, in this rank, has `own_hat`, `other_hat` and `u` as its own.
    """

    def __init__(
        self,
        index: int,
        codec: Codec,
        outgoing: Outgoing,
        incoming: Incoming,
        start: Array,
        is_above: bool,
        seed: int,
        clock: Clock,
        first: int = 0,
        partner: CouplingEnd | None = None,
    ) -> None:
        self.index = index
        self.codec = codec
        self.outgoing_end = outgoing
        self.incoming_end = incoming
        self.is_above = is_above
        self.own = start.copy()
        self.shared = not (incoming.between_ranks or outgoing.between_ranks)
        if partner is None:
            self.own_hat = self.own if codec.lossless else start.copy()
            self.other_hat = start.copy()
            self.u = np.zeros_like(start)
        else:
            if codec.lossless:
                partner.other_hat = self.own
            self.own_hat, self.other_hat, self.u = partner.other_hat, partner.own_hat, partner.u
        self._seed = seed ^ (seed >> 32)  # a key has 32 bits
        self._before = first * start.shape[1]  # entries of those of other shards
        self._clock = clock

    @property
    def float32_bytes(self) -> int:
        """What a message would be as float32."""
        return 4 * self.own.size

    @property
    def ends(self) -> tuple[Outgoing, Incoming]:
        """Those of its two messages."""
        return self.outgoing_end, self.incoming_end

    def expect(self) -> None:
        """Post the receive of the next message."""
        self.incoming_end.post()

    def message(self) -> Array | None:
        """Bytes of the next message, waited for; None before the first was posted, or where ends share."""
        end = self.incoming_end
        if not end.posted:
            return None
        start = time.perf_counter_ns()
        end.wait()
        self._clock.message("received", end.channel.name, end.messages, start)
        return None if self.shared else end.buffer

    def state(self) -> dict[str, Array]:
        """Arrays to save between two iterations.

        The end below saves what both ends share, since it is an iteration's last to know: the end
        above takes in the last q only in its next iteration, and adds what it alone has.
        """
        counts = np.array([self.outgoing_end.messages, self.outgoing_end.bytes], np.int64)
        if self.is_above:
            found = {"below/counts": counts}
            if not self.codec.lossless:
                found["below/p"] = self.own
            return found
        found = {"above/counts": counts, "above/q": self.own, "above/p_hat": self.other_hat}
        found["above/u"] = self.u
        if not self.codec.lossless:
            found["above/q_hat"] = self.own_hat
        if self.codec.span is not None:
            found["above/grid"] = np.array(self.codec.span)
        return found

    def restore(self, below: Mapping[str, Array], above: Mapping[str, Array]) -> None:
        """Take over what the two layers saved; no message is under way then."""
        lossless = self.codec.lossless
        p_hat, q_hat = "above/p_hat", "above/q" if lossless else "above/q_hat"
        if self.is_above:
            copy_into(self.own, below[p_hat] if lossless else above["below/p"])
        else:
            copy_into(self.own, below["above/q"])
        if not lossless:
            copy_into(self.own_hat, below[p_hat if self.is_above else q_hat])
        copy_into(self.other_hat, below[q_hat if self.is_above else p_hat])
        copy_into(self.u, below["above/u"])
        if self.codec.span is not None:
            low, high = below["above/grid"].tolist()
            self.codec = make_codec(self.codec.name, self.codec.bits, (low, high))
        counts = [below["above/counts"], above["below/counts"]]
        mine, other = counts[:: -1 if self.is_above else 1]
        self.outgoing_end.count_from(*mine.tolist())
        self.incoming_end.count_from(*other.tolist())

    def outgoing(self) -> tuple[Array, int]:
        """The free send buffer and the key of the next message's stochastic rounding."""
        end = self.outgoing_end
        end.wait_free()
        number = end.messages + 1
        key = (self._seed * 0x85EBCA6B) ^ (self.index * 2 + self.is_above) * 0xC2B2AE35 ^ number * 0x27D4EB2F
        return end.buffer, key_from(key, self._before)

    def send(self) -> None:
        """Send what was encoded into the buffer of :meth:`outgoing`."""
        end = self.outgoing_end
        start = time.perf_counter_ns()
        end.start()
        self._clock.message("sent", end.channel.name, end.messages, start)
