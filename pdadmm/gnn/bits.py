"""How many bits each row of a message gets: AdaQP's assignment, solved exactly but for one row.

In a slot every row k of every message has a weight ``beta_k``, its share in the variance of the gradient
at 1 bit; b bits leave ``beta_k / (2^b - 1)^2``. Messages of a slot travel at the same time, each takes
``latency + seconds_per_byte * bytes``, and the slot the longest of them. The assignment minimises

    share * variance / (range of the variance)  +  (1 - share) * time / (range of the time)

``1/(2^b - 1)^2`` is convex along the widths 1, 2, 4, 8 also in bytes, so for a given time each message
takes its best steps to a wider width first, by what they save a byte; and the objective is a convex
function of the slot's time, minimised by bisection. The only inexactness is the last row of a message,
whose step does not fit. :func:`exact` is the same problem for a solver of mixed integer programs (HiGHS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pdadmm.codec.packing import row_bytes

__all__ = ["Link", "Message", "assign", "exact", "objective"]


@dataclass(frozen=True)
class Link:
    """The way of a message: seconds before its first byte and of every byte."""

    latency: float = 0.0
    seconds_per_byte: float = 1.0


@dataclass(frozen=True)
class Message:
    """Rows of one channel in one slot.

    Parameters
    ----------
    weights
        (k,) float64, beta of every row.
    cols
        Entries of a row.
    link
        Its way.
    hidden
        Seconds of it that nobody waits for, behind work.
    """

    weights: np.ndarray
    cols: int
    link: Link = Link()
    hidden: float = 0.0

    def seconds(self, nbytes: float) -> float:
        """Exposed time of a message of codes of so many bytes."""
        return max(0.0, self.link.latency + self.link.seconds_per_byte * nbytes - self.hidden)


def _levels(bits: Sequence[int] | np.ndarray) -> np.ndarray:
    """What is left of the variance at each width."""
    return 1.0 / (2.0 ** np.asarray(bits, np.float64) - 1.0) ** 2


def _sizes(cols: int, bits: Sequence[int]) -> np.ndarray:
    """Bytes of a row's codes at each width."""
    return np.array([row_bytes(cols, b) for b in bits], np.float64)


def objective(
    messages: Sequence[Message], widths: Sequence[np.ndarray], bits: Sequence[int], share: float
) -> float:
    """The value of an assignment, see the module.

    Parameters
    ----------
    messages
        Of a slot.
    widths
        Of each message, (k,) bits.
    bits
        The widths that there are.
    share
        Of the variance against the time, from 0 to 1.
    """
    variance = sum(float(m.weights @ _levels(w)) for m, w in zip(messages, widths, strict=True))
    seconds = max(
        m.seconds(sum(row_bytes(m.cols, int(b)) for b in w)) for m, w in zip(messages, widths, strict=True)
    )
    low, high, least, most = _ranges(messages, bits)
    return _scaled(variance, low, high, share) + _scaled(seconds, least, most, 1 - share)


def _ranges(messages: Sequence[Message], bits: Sequence[int]) -> tuple[float, float, float, float]:
    """Smallest and largest variance and time of a slot."""
    ordered = sorted(bits)
    levels = _levels(ordered)
    total = sum(float(m.weights.sum()) for m in messages)
    ends = []
    for b in (ordered[0], ordered[-1]):
        ends.append(max(m.seconds(float(len(m.weights) * row_bytes(m.cols, b))) for m in messages))
    return total * levels[-1], total * levels[0], ends[0], ends[1]


def _scaled(value: float, low: float, high: float, share: float) -> float:
    return share * (value - low) / (high - low) if high > low else 0.0


class _Steps:
    """A message's steps to wider widths, best first: what a number of bytes buys."""

    def __init__(self, message: Message, bits: Sequence[int]) -> None:
        self.message, self.bits = message, sorted(bits)
        levels, sizes = _levels(self.bits), _sizes(message.cols, self.bits)
        rows = len(message.weights)
        cost, saved = np.diff(sizes), -np.diff(levels)
        free = cost <= 0
        # narrow rows take as many bytes at several widths: the widest of them is free
        gain = message.weights[:, None] * np.where(free, 0, saved / np.where(free, 1, cost))
        gain[:, free] = np.inf
        step = np.tile(np.arange(len(cost)), rows)
        row = np.repeat(np.arange(rows), len(cost))
        # ties by step and row, so that the order is the same everywhere and no step comes before its turn
        order = np.lexsort((row, step, -gain.reshape(-1)))
        self._row, self._step = row[order], step[order]
        self._bytes = rows * sizes[0] + np.cumsum(cost[self._step])
        self._saved = np.cumsum(message.weights[self._row] * saved[self._step])
        self._first = rows * sizes[0]
        self._start = float(message.weights.sum()) * levels[0]
        self._useful = int(np.count_nonzero(gain > 0))

    def within(self, seconds: float) -> int:
        """Number of steps that fit a time."""
        link = self.message.link
        if link.seconds_per_byte <= 0:
            return self._useful
        room = (seconds + self.message.hidden - link.latency) / link.seconds_per_byte
        return min(self._useful, int(np.searchsorted(self._bytes, room * (1 + 1e-12), side="right")))

    def variance(self, steps: int) -> float:
        return self._start - (float(self._saved[steps - 1]) if steps else 0.0)

    def nbytes(self, steps: int) -> float:
        return float(self._bytes[steps - 1]) if steps else self._first

    def widths(self, steps: int) -> np.ndarray:
        """(k,) uint8 after so many steps."""
        reached = np.bincount(self._row[:steps], minlength=len(self.message.weights))
        return np.asarray(self.bits, np.uint8)[reached]


def assign(messages: Sequence[Message], bits: Sequence[int], share: float) -> list[np.ndarray]:
    """Bits of every row of every message of a slot, (k,) uint8 each.

    Parameters
    ----------
    messages
        Of a slot; those without rows get none.
    bits
        The widths that there are.
    share
        Of the variance against the time, from 0 to 1 (AdaQP's lambda).
    """
    present = [m for m in messages if len(m.weights)]
    if not present:
        return [np.zeros(0, np.uint8) for _ in messages]
    low, high, least, most = _ranges(present, bits)
    steps = [_Steps(m, bits) for m in present]

    def value(seconds: float) -> float:
        found = [(s, s.within(seconds)) for s in steps]
        variance = sum(s.variance(n) for s, n in found)
        taken = max(s.message.seconds(s.nbytes(n)) for s, n in found)
        return _scaled(variance, low, high, share) + _scaled(taken, least, most, 1 - share)

    best = _minimum(value, least, most)
    chosen = iter([s.widths(s.within(best)) for s in steps])
    return [next(chosen) if len(m.weights) else np.zeros(0, np.uint8) for m in messages]


def _minimum(value: Callable[[float], float], first: float, last: float) -> float:
    """Where a convex function is least, by golden section; its ends count too."""
    ratio = (5**0.5 - 1) / 2
    a, b = first, last
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    at_c, at_d = value(c), value(d)
    for _ in range(60):
        if at_c <= at_d:
            b, d, at_d = d, c, at_c
            c = b - ratio * (b - a)
            at_c = value(c)
        else:
            a, c, at_c = c, d, at_d
            d = a + ratio * (b - a)
            at_d = value(d)
    return min((first, last, c, d), key=value)


def exact(messages: Sequence[Message], bits: Sequence[int], share: float) -> list[np.ndarray]:
    """The same as :func:`assign` by HiGHS, to optimality; slow with more than a few thousand rows."""
    import scipy.sparse as sp
    from scipy.optimize import Bounds, LinearConstraint, milp

    ordered = sorted(bits)
    present = [m for m in messages if len(m.weights)]
    if not present:
        return [np.zeros(0, np.uint8) for _ in messages]
    low, high, least, most = _ranges(present, ordered)
    count = len(ordered)
    rows = sum(len(m.weights) for m in present)
    cost = np.concatenate([np.outer(m.weights, _levels(ordered)).ravel() for m in present])
    of_variance = share / (high - low) if high > low else 0.0
    of_time = (1 - share) / (most - least) if most > least else 0.0
    # the last variable is the slot's exposed time
    once = sp.hstack([sp.kron(sp.identity(rows), np.ones((1, count))), sp.csr_matrix((rows, 1))])
    times = sp.lil_matrix((len(present), rows * count + 1))
    ends = []
    place = 0
    for i, m in enumerate(present):
        seconds = m.link.seconds_per_byte * np.tile(_sizes(m.cols, ordered), len(m.weights))
        times[i, place : place + len(seconds)] = seconds
        times[i, rows * count] = -1
        ends.append(m.hidden - m.link.latency)
        place += len(seconds)
    found = milp(
        np.append(of_variance * cost, of_time),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(times.tocsr(), -np.inf, ends)],
        integrality=np.append(np.ones(rows * count), 0),
        bounds=Bounds(0, np.append(np.ones(rows * count), np.inf)),
    )
    chosen = np.asarray(ordered, np.uint8)[found.x[:-1].reshape(rows, count).argmax(axis=1)]
    parts = iter(np.split(chosen, np.cumsum([len(m.weights) for m in present])[:-1]))
    return [next(parts) if len(m.weights) else np.zeros(0, np.uint8) for m in messages]
