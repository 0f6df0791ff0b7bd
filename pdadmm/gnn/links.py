"""What the assignment of widths takes for the time of messages: links as measured, less the work beside them.

Messages of a rank share its port. Between parts of one rank nothing has to travel, so bytes are free there. A
message is hidden for as long as its receiver still works after it was sent: the median over the epochs
since the last assignment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pdadmm.comm.waiter import Waiter
from pdadmm.gnn.bits import Link
from pdadmm.runtime.links import HostWay

__all__ = ["LinkModel", "Times", "measure_links"]

#: of the messages whose times tell latency and bandwidth
_SMALL, _LARGE = 1, 1 << 18
_REPEATS = 4

#: by ranks, the lower one first
Links = Mapping[tuple[int, int], Link]


class Times:
    """How long after its messages were sent a part began to wait for its own, by slot and part."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._found: dict[tuple[str, int], list[float]] = {}

    def sent(self, slot: str) -> None:
        """The last of a slot's messages has been handed over."""
        self._since[slot] = time.perf_counter()

    def waits(self, slot: str, part: int) -> None:
        """A part has nothing left to do before its messages come."""
        if slot in self._since:
            self._found.setdefault((slot, part), []).append(time.perf_counter() - self._since[slot])

    def seconds(self) -> dict[tuple[str, int], float]:
        """Medians since this was asked for last."""
        found, self._found = self._found, {}
        return {key: median(values) for key, values in found.items()}


@dataclass(frozen=True)
class LinkModel:
    """The links of a run.

    Parameters
    ----------
    links
        Between ranks.
    owner
        Rank of every part.
    """

    links: Links
    owner: Sequence[int]

    def between(self, sender: int, receiver: int) -> Link:
        """The way from a part to another one."""
        a, b = sorted((self.owner[sender], self.owner[receiver]))
        return Link(0.0, 0.0) if a == b else self.links[a, b]


def measure_links(waiter: Waiter, pairs: Sequence[tuple[int, int]]) -> Links:
    """Latency and seconds a byte between pairs of ranks, those without a rank in common at once; collective.

    Parameters
    ----------
    pairs
        The lower rank first; the same on all ranks.

    Returns
    -------
    dict
        The same on all ranks. The shortest of some round trips counts, halved.
    """
    comm = waiter.comm
    way = HostWay(comm)
    mine: dict[tuple[int, int], Link] = {}
    with waiter.patient(), waiter.limit("the links between the ranks are measured"):
        for together in _apart(pairs):
            waiter.barrier()
            for a, b in together:
                if comm.rank not in (a, b):
                    continue
                taken = []
                for size in (_SMALL, _LARGE):
                    with way.ping_pong(comm.rank == a, b if comm.rank == a else a, size) as once:
                        once()  # opens the connection
                        taken.append(min(_seconds(once) for _ in range(_REPEATS)) / 2)
                if comm.rank == a:
                    slope = max(taken[1] - taken[0], 0.0) / (_LARGE - _SMALL)
                    mine[a, b] = Link(taken[0], slope)
    gathered = waiter.gather(mine)
    merged = None
    if gathered is not None:
        merged = {pair: link for of_rank in gathered for pair, link in of_rank.items()}
    return waiter.broadcast(merged)


def _apart(pairs: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Pairs in groups in which no rank is twice."""
    groups: list[tuple[set[int], list[tuple[int, int]]]] = []
    for pair in pairs:
        free = next((found for found in groups if found[0].isdisjoint(pair)), None)
        if free is None:
            free = set(), []
            groups.append(free)
        taken, group = free
        taken.update(pair)
        group.append(pair)
    return [group for _, group in groups]


def _seconds(once: Callable[[], None]) -> float:
    start = time.perf_counter()
    once()
    return time.perf_counter() - start
