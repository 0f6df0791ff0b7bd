"""The constraint p_{l+1} = q_l between two layers, as each of its two ends sees it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pdadmm.comm.codec import Codec

__all__ = ["CouplingEnd", "Link"]

Array = Any


class Link(Protocol):
    """One end's two messages a iteration, planned once a stage: buffers and requests never change."""

    between_ranks: bool
    send_buffer: Array
    receive_buffer: Array
    messages_sent: int
    bytes_sent: int

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

    def __init__(self, index: int, codec: Codec, link: Link, start: Array, upper: bool, seed: int) -> None:
        self.index = index
        self.codec = codec
        self.link = link
        self.upper = upper
        self.own = start.copy()
        self.own_hat = self.own if codec.lossless else start.copy()
        self.other_hat = start.copy()
        self.u = np.zeros_like(start)
        self._seed = seed
        self._sent = 0
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
        self.link.wait_received()
        return self.link.receive_buffer

    def outgoing(self) -> tuple[Array, int]:
        """The free send buffer and the key of the next message's stochastic rounding."""
        self.link.wait_sent()
        self._sent += 1
        key = (self._seed * 0x85EBCA6B) ^ (self.index * 2 + self.upper) * 0xC2B2AE35 ^ self._sent * 0x27D4EB2F
        return self.link.send_buffer, key & 0xFFFFFFFF

    def send(self) -> None:
        """Send what was encoded into the buffer of :meth:`outgoing`."""
        self.link.start_send()
