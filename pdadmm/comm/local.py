"""Couplings between two layers of one rank: the message stays where it was written."""

from __future__ import annotations

from typing import Any

from pdadmm.arrays.backend import NUMPY

__all__ = ["LocalLink", "local_pair"]


class LocalLink:
    """One end of a coupling within a rank; its peer's receive buffer is this end's send buffer."""

    between_ranks = False

    def __init__(self, send_buffer: Any, receive_buffer: Any) -> None:
        self.send_buffer = send_buffer
        self.receive_buffer = receive_buffer
        self.peer: LocalLink | None = None
        self.messages_sent = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.bytes_received = 0
        self._arrived = False

    def post_receive(self) -> None:
        """Nothing to post: the peer writes straight into the buffer."""

    def start_send(self) -> None:
        """Hand the send buffer over."""
        assert self.peer is not None
        self.peer._arrived = True
        self.messages_sent += 1
        self.bytes_sent += self.send_buffer.nbytes

    def wait_sent(self) -> float:
        return 0.0

    def wait_received(self) -> float:
        """Check that the message is there; a local one is always written before it is read."""
        if not self._arrived:
            raise AssertionError("a local message was read before it was written")
        self._arrived = False
        self.messages_received += 1
        self.bytes_received += self.receive_buffer.nbytes
        return 0.0

    def close(self) -> None:
        """Nothing to free."""


def local_pair(up_bytes: int, down_bytes: int, backend: Any = NUMPY) -> tuple[LocalLink, LocalLink]:
    """The lower and the upper end of a coupling within one rank."""
    up, down = backend.zeros(up_bytes, "uint8"), backend.zeros(down_bytes, "uint8")
    lower, upper = LocalLink(up, down), LocalLink(down, up)
    lower.peer, upper.peer = upper, lower
    return lower, upper
