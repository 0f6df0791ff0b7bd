"""The constraint p_{l+1} = q_l between two layers, as each of its two ends sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from pdadmm.arrays import Array, copy_into
from pdadmm.codec import Codec, make_codec
from pdadmm.trace.clock import Clock

__all__ = ["CouplingEnd", "Link"]


class Link(Protocol):
    """One end's two messages a iteration, planned once a stage: buffers and requests never change."""

    between_ranks: bool
    send_buffer: Array
    receive_buffer: Array
    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int

    def post_receive(self) -> None: ...
    def start_send(self) -> None: ...
    def wait_sent(self) -> float: ...
    def wait_received(self) -> float: ...
    def close(self) -> None: ...


class CouplingEnd:
    """State of a coupling at one of its layers.

    Both ends hold the decoded p and q and the dual u, bit for bit the same, and each updates u
    itself: only p (down) and q (up) ever travel.

    Parameters
    ----------
    index
        Position of the lower layer.
    codec, link
        How and over what messages travel.
    start
        (V, n) float32, the activations of the stage's forward pass, which p and q start from.
    upper
        Whether this is the upper layer's end, which sends p and receives q.
    seed
        Of the run, for stochastic rounding.
    clock
        Told of every message.

    Attributes
    ----------
    own
        (V, n) the variable this end sends (p above, q below).
    own_hat, other_hat
        (V, n) decoded copies of the variable sent and of the one received. For a lossless codec
        `own_hat` is `own` itself.
    u
        (V, n) the dual.
    """

    def __init__(
        self, index: int, codec: Codec, link: Link, start: Array, upper: bool, seed: int, clock: Clock
    ) -> None:
        self.index = index
        self.codec = codec
        self.link = link
        self.upper = upper
        self.own = start.copy()
        self.own_hat = self.own if codec.lossless else start.copy()
        self.other_hat = start.copy()
        self.u = np.zeros_like(start)
        self._seed = seed
        self._clock = clock
        self._sent = 0
        self._received = 0
        self._awaiting = False

    def expect(self) -> None:
        """Post the receive of the next message."""
        self.link.post_receive()
        self._awaiting = True

    def message(self) -> Array | None:
        """Bytes of the next message, waited for; None before the first one was posted."""
        if not self._awaiting:
            return None
        self._awaiting = False
        start = time.perf_counter_ns()
        self.link.wait_received()
        self._received += 1
        self._clock.message("received", self.index, self.upper, self._received, start)
        return self.link.receive_buffer

    def state(self) -> dict[str, Array]:
        """Arrays to save between two iterations.

        The lower end saves what both ends share, since it is an iteration's last to know: the upper
        end takes in the last q only in its next iteration. The upper end adds what it alone has.
        """
        counts = np.array([self._sent, self.link.bytes_sent], np.int64)
        if self.upper:
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

    def restore(self, lower: Mapping[str, Array], upper: Mapping[str, Array]) -> None:
        """Take over what the two layers saved; no message is under way then."""
        lossless = self.codec.lossless
        p_hat, q_hat = "above/p_hat", "above/q" if lossless else "above/q_hat"
        if self.upper:
            copy_into(self.own, lower[p_hat] if lossless else upper["below/p"])
        else:
            copy_into(self.own, lower["above/q"])
        if not lossless:
            copy_into(self.own_hat, lower[p_hat if self.upper else q_hat])
        copy_into(self.other_hat, lower[q_hat if self.upper else p_hat])
        copy_into(self.u, lower["above/u"])
        if self.codec.span is not None:
            low, high = lower["above/grid"].tolist()
            self.codec = make_codec(self.codec.name, self.codec.bits, (low, high))
        counts = [lower["above/counts"], upper["below/counts"]]
        mine, other = counts[:: -1 if self.upper else 1]
        self._sent, self.link.bytes_sent = (int(v) for v in mine)
        self._received, self.link.bytes_received = (int(v) for v in other)
        self.link.messages_sent, self.link.messages_received = self._sent, self._received

    def outgoing(self) -> tuple[Array, int]:
        """The free send buffer and the key of the next message's stochastic rounding."""
        self.link.wait_sent()
        self._sent += 1
        key = (self._seed * 0x85EBCA6B) ^ (self.index * 2 + self.upper) * 0xC2B2AE35 ^ self._sent * 0x27D4EB2F
        return self.link.send_buffer, key & 0xFFFFFFFF

    def send(self) -> None:
        """Send what was encoded into the buffer of :meth:`outgoing`."""
        start = time.perf_counter_ns()
        self.link.start_send()
        self._clock.message("sent", self.index, not self.upper, self._sent, start)
