"""The order in which messages travel: a cycle of rounds, the same on every rank.

A round holds messages that need not wait for each other; one is over on a rank before the next one
begins there. pdADMM has two::

    P  p goes from every rank to the one below
    Q  q goes from every rank to the one above

A graph network of L layers has 2L - 1: F1 ... FL forward, BL ... B2 back, but for F1 where the inputs of
neighbours are at hand. A rank without a part of a round passes over it. Transports whose messages must be
enqueued in one order everywhere (NCCL) take it from here: the turn is an index into the cycle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pdadmm.comm.channel import Channel

__all__ = ["Round", "Rounds"]


@dataclass(frozen=True)
class Round:
    """This rank's messages of a round, in any order; none where it has no part in it."""

    name: str
    channels: tuple[Channel, ...]


@dataclass(frozen=True)
class Rounds:
    """What a rank sends and receives over and over, in order.

    Raises
    ------
    ValueError
        When two messages that this rank sends, or two that it receives, have the same name.
    """

    cycle: tuple[Round, ...]

    def __post_init__(self) -> None:
        for sends in (True, False):
            names = [channel.name for channel in self.channels if channel.sends is sends]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(
                    f"two messages that a rank {'sends' if sends else 'receives'} are called {twice}"
                )

    def __iter__(self) -> Iterator[Round]:
        return iter(self.cycle)

    @property
    def channels(self) -> list[Channel]:
        """All messages of this rank."""
        return [channel for part in self.cycle for channel in part.channels]

    @property
    def peers(self) -> list[int]:
        """Ranks that this one talks to, ascending."""
        return sorted({channel.peer for channel in self.channels})

    def resized(self, nbytes: int) -> Rounds:
        """The same with messages of another size."""
        return Rounds(
            tuple(
                replace(part, channels=tuple(replace(channel, nbytes=nbytes) for channel in part.channels))
                for part in self.cycle
            )
        )
