"""A planned message and its two live ends, the only place where traffic is counted.

A transport gives every channel of a rank an end: an :class:`Outgoing` where this rank sends, an
:class:`Incoming` where it receives. Its buffer and its requests are made once and never change::

    end.wait_free()    the message before has left         end.post()    the next message may come
    encode into end.buffer                                 ...
    end.start()                                            end.wait()    it is in end.buffer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pdadmm.arrays import Array

__all__ = ["Channel", "Ends", "Incoming", "Outgoing"]


@dataclass(frozen=True)
class Channel:
    """One planned message, as one of its two ranks sees it.

    Parameters
    ----------
    name
        What travels: the same at both ends, and no other message of the rounds has it.
    peer
        Rank of the other end; this rank itself for a message that stays here.
    tag
        Tells it from other messages between the two ranks; the same at both ends.
    nbytes
        Size; 0 where nothing has to travel.
    sends
        Whether this rank is the sender.
    other
        What the message is for or from at the other end, in words: a layer.
    """

    name: str
    peer: int
    tag: int
    nbytes: int
    sends: bool
    other: str = ""

    @property
    def what(self) -> str:
        """What is waited for, in words."""
        end = f"{self.other} on rank {self.peer}" if self.other else f"rank {self.peer}"
        return f"a message to {end} to leave" if self.sends else f"a message from {end}"


class _End(ABC):
    """What both ends have: a buffer, and the messages and bytes that went through it so far.

    Parameters
    ----------
    channel
        The message.
    buffer
        (nbytes,) uint8, on the host or on a device.
    """

    #: whether the other end is on another rank
    between_ranks = True

    def __init__(self, channel: Channel, buffer: Array) -> None:
        self.channel = channel
        self.buffer = buffer
        self.messages = 0
        self.bytes = 0

    def count_from(self, messages: int, total: int) -> None:
        """Go on from the messages and bytes of an earlier run."""
        self.messages, self.bytes = messages, total

    def _count(self) -> None:
        self.messages += 1
        self.bytes += self.channel.nbytes

    @abstractmethod
    def close(self) -> None:
        """Finish what is under way and free what was made."""


class Outgoing(_End):
    """The sender's end."""

    @abstractmethod
    def wait_free(self) -> None:
        """Wait until the buffer may be written."""

    def start(self) -> None:
        """Hand the buffer over; it must not change until :meth:`wait_free` returns."""
        self._count()
        self._start()

    @abstractmethod
    def _start(self) -> None: ...


class Incoming(_End):
    """The receiver's end.

    Attributes
    ----------
    posted
        Whether a message was asked for and not taken yet.
    """

    def __init__(self, channel: Channel, buffer: Array) -> None:
        super().__init__(channel, buffer)
        self.posted = False

    def post(self) -> None:
        """Let the next message come into the buffer."""
        self.posted = True
        self._post()

    def wait(self) -> None:
        """Wait for the posted message."""
        if not self.posted:
            raise AssertionError(f"{self.channel.name} was awaited before it was posted")
        self._wait()
        self.posted = False
        self._count()

    @abstractmethod
    def _post(self) -> None: ...

    @abstractmethod
    def _wait(self) -> None: ...


@dataclass(frozen=True)
class Ends:
    """The ends of a rank's channels by name."""

    outgoing: dict[str, Outgoing]
    incoming: dict[str, Incoming]

    def close(self) -> None:
        """Finish what is under way and free what was made."""
        for end in (*self.outgoing.values(), *self.incoming.values()):
            end.close()
