"""The constraint p_{l+1} = q_l between two layers, as each of its two ends sees it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pdadmm.comm.codec import Codec, GridCodec
from pdadmm.trace import Clock

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
        self._held = False

    def expect(self) -> None:
        """Post the receive of the next message."""
        self.link.post_receive()
        self._awaiting = True

    def message(self) -> Array | None:
        """Bytes of the next message, waited for; None before the first one was posted."""
        if self._held:
            self._held = False
            return self.link.receive_buffer
        if not self._awaiting:
            return None
        self._awaiting = False
        self.link.wait_received()
        self._received += 1
        self._clock.message("received", self.index, self.upper, self._received)
        return self.link.receive_buffer

    def hold(self) -> Array | None:
        """Wait for the message that is under way and keep it for :meth:`message`; a copy of its bytes."""
        if self._awaiting:
            self.message()
            self._held = True
        return self.link.receive_buffer.copy() if self._held else None

    def state(self) -> dict[str, Array]:
        """Arrays to save between two iterations; the message under way is waited for."""
        held = self.hold()
        found = {"own": self.own, "other_hat": self.other_hat, "u": self.u}
        if not self.codec.lossless:
            found["own_hat"] = self.own_hat
        if held is not None:
            found["message"] = held
        if isinstance(self.codec, GridCodec):
            found["grid"] = np.array([self.codec.low, self.codec.high])
        found["counts"] = np.array([self._sent, self._received, self.link.bytes_sent], np.int64)
        return found

    def restore(self, saved: dict[str, Array]) -> None:
        """Take over the arrays of :meth:`state`."""
        self.own[...] = saved["own"]
        self.other_hat[...] = saved["other_hat"]
        self.u[...] = saved["u"]
        if not self.codec.lossless:
            self.own_hat[...] = saved["own_hat"]
        if "message" in saved:
            self.link.receive_buffer[...] = saved["message"]
            self._held = True
        if isinstance(self.codec, GridCodec):
            self.codec = GridCodec(self.codec.bits, *(float(v) for v in saved["grid"]))
        self._sent, self._received, self.link.bytes_sent = (int(v) for v in saved["counts"])
        self.link.messages_sent = self._sent

    def outgoing(self) -> tuple[Array, int]:
        """The free send buffer and the key of the next message's stochastic rounding."""
        self.link.wait_sent()
        self._sent += 1
        key = (self._seed * 0x85EBCA6B) ^ (self.index * 2 + self.upper) * 0xC2B2AE35 ^ self._sent * 0x27D4EB2F
        return self.link.send_buffer, key & 0xFFFFFFFF

    def send(self) -> None:
        """Send what was encoded into the buffer of :meth:`outgoing`."""
        self.link.start_send()
        self._clock.message("sent", self.index, not self.upper, self._sent)
