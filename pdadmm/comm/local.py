"""Messages within a rank: they stay where they were written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pdadmm.arrays.backend import Backend
from pdadmm.comm.channel import Channel, Ends, Incoming, Outgoing

__all__ = ["LocalIncoming", "LocalOutgoing", "local_ends"]


class LocalIncoming(Incoming):
    """The receiver's end; the sender writes straight into its buffer."""

    between_ranks = False
    written = False  #: whether the message is there

    def _post(self) -> None:
        """Nothing to post."""

    def _wait(self) -> None:
        """Check that the message is there; a local one is always written before it is read."""
        if not self.written:
            raise AssertionError(f"{self.channel.name} was read before it was written")
        self.written = False

    def close(self) -> None:
        """Nothing to free."""


class LocalOutgoing(Outgoing):
    """The sender's end.

    Parameters
    ----------
    taker
        The other end, whose buffer this one shares.
    """

    between_ranks = False

    def __init__(self, channel: Channel, taker: LocalIncoming) -> None:
        super().__init__(channel, taker.buffer)
        self._taker = taker

    def wait_free(self) -> None:
        """The buffer is free: what was written was read before."""

    def _start(self) -> None:
        self._taker.written = True

    def close(self) -> None:
        """Nothing to free."""


def local_ends(channels: Iterable[Channel], backend: Backend) -> Ends:
    """Both ends of messages within a rank."""
    ends = Ends({}, {})
    for channel in channels:
        taker = LocalIncoming(replace(channel, sends=False), backend.zeros(channel.nbytes, "uint8"))
        ends.incoming[channel.name] = taker
        ends.outgoing[channel.name] = LocalOutgoing(replace(channel, sends=True), taker)
    return ends
