"""How many bits each row of a message gets: AdaQP's assignment, solved exactly but for one row.

In a slot every row k of every message has a weight ``beta_k``, its share in the variance of the gradient
at 1 bit; b bits leave ``beta_k / (2^b - 1)^2``. A message takes ``latency + seconds_per_byte * bytes``.
Messages that share a port travel one after the other, ports work at the same time, and the slot takes
the longest of them. The assignment minimises

    share * variance / (range of the variance)  +  (1 - share) * time / (range of the time)

``1/(2^b - 1)^2`` is convex along the widths 1, 2, 4, 8 also in bytes, so for a given time each port
takes its best steps to a wider width first, by what they save a second; and with parts of steps the objective
is a convex function of the slot's time, minimised by golden section. Of the whole steps just before and after
that time the best are taken: with one port and nothing hidden that is the best of all assignments, else it
may miss a step of each port.
:func:`exact` is the same problem for a solver of mixed integer programs (HiGHS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pdadmm.codec.packing import row_bytes
from pdadmm.errors import RunError

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
        Seconds of it that nobody waits for, behind work; of a port's messages the least counts.
    port
        Messages of the same port share it; None: alone.
    """

    weights: np.ndarray
    cols: int
    link: Link = Link()
    hidden: float = 0.0
    port: int | None = None

    def seconds(self, nbytes: float) -> float:
        """How long it travels with so many bytes of codes."""
        return self.link.latency + self.link.seconds_per_byte * nbytes


def _ports(messages: Sequence[Message]) -> list[list[int]]:
    """Places of the messages of every port."""
    found: dict[tuple[bool, int], list[int]] = {}
    for i, message in enumerate(messages):
        found.setdefault((True, i) if message.port is None else (False, message.port), []).append(i)
    return list(found.values())


def _exposed(messages: Sequence[Message], nbytes: Sequence[float]) -> float:
    """Seconds of a slot that somebody waits for."""
    return max(
        max(0.0, sum(messages[i].seconds(nbytes[i]) for i in port) - min(messages[i].hidden for i in port))
        for port in _ports(messages)
    )


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
    nbytes = [float(sum(row_bytes(m.cols, int(b)) for b in w)) for m, w in zip(messages, widths, strict=True)]
    seconds = _exposed(messages, nbytes)
    low, high, least, most = _ranges(messages, bits)
    return _scaled(variance, low, high, share) + _scaled(seconds, least, most, 1 - share)


def _ranges(messages: Sequence[Message], bits: Sequence[int]) -> tuple[float, float, float, float]:
    """Smallest and largest variance and time of a slot."""
    ordered = sorted(bits)
    levels = _levels(ordered)
    total = sum(float(m.weights.sum()) for m in messages)
    ends = []
    for b in (ordered[0], ordered[-1]):
        ends.append(_exposed(messages, [float(len(m.weights) * row_bytes(m.cols, b)) for m in messages]))
    return total * levels[-1], total * levels[0], ends[0], ends[1]


def _scaled(value: float, low: float, high: float, share: float) -> float:
    return share * (value - low) / (high - low) if high > low else 0.0


def _sums(values: np.ndarray) -> np.ndarray:
    """Of the first 0, 1, ... values."""
    return np.concatenate([[0.0], np.cumsum(values)])


class _Steps:
    """A port's steps to wider widths, best first: what an amount of time buys."""

    def __init__(self, messages: Sequence[Message], bits: Sequence[int]) -> None:
        self._bits = np.asarray(sorted(bits), np.uint8)
        self._counts = [len(m.weights) for m in messages]
        levels = _levels(self._bits)
        weights = np.concatenate([m.weights for m in messages])
        sizes = np.stack([_sizes(m.cols, sorted(bits)) for m in messages])
        # the heaviest row first: the gains of a step are then in order already where links are alike
        rows = np.argsort(-weights, kind="stable")
        weights = weights[rows]
        # (steps, rows): seconds and variance of every row's steps
        seconds = np.diff(sizes, axis=1) * np.array([[m.link.seconds_per_byte] for m in messages])
        cost, saved = np.repeat(seconds, self._counts, axis=0)[rows].T, -np.diff(levels)[:, None] * weights
        # narrow rows take as many bytes at several widths: the widest of them is free
        gain = np.full(cost.shape, np.inf)
        np.divide(saved, cost, out=gain, where=cost > 0)
        # ties by step and row, so that the order is the same everywhere and no step comes before its turn
        order = np.argsort(-gain.reshape(-1), kind="stable")
        self._row = rows[order % len(rows)]
        least = [
            m.seconds(n * of_row) for m, n, of_row in zip(messages, self._counts, sizes[:, 0], strict=True)
        ]
        self._hidden = min(m.hidden for m in messages)
        # after any number of steps
        self._seconds = sum(least) + _sums(cost.reshape(-1)[order])
        self._variance = float(weights.sum()) * levels[0] - _sums(saved.reshape(-1)[order])
        self.useful = int(np.count_nonzero(gain > 0))

    def within(self, seconds: float) -> int:
        """Number of steps that fit a time."""
        room = (seconds + self._hidden) * (1 + 1e-12)
        return min(self.useful, max(0, int(np.searchsorted(self._seconds, room, side="right")) - 1))

    def variance(self, steps: int) -> float:
        return float(self._variance[steps])

    def relaxed(self, seconds: float) -> tuple[float, float]:
        """Variance and seconds with a part of the step that does not fit a time."""
        count = self.useful + 1
        variance = np.interp(seconds + self._hidden, self._seconds[:count], self._variance[:count])
        return float(variance), min(max(seconds, self.seconds(0)), self.seconds(self.useful))

    def seconds(self, steps: int) -> float:
        return max(0.0, float(self._seconds[steps]) - self._hidden)

    def widths(self, steps: int) -> list[np.ndarray]:
        """Of each message after so many steps, (k,) uint8."""
        reached = np.bincount(self._row[:steps], minlength=sum(self._counts))
        return np.split(self._bits[reached], np.cumsum(self._counts)[:-1])


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
    found = [np.zeros(0, np.uint8) for _ in messages]
    present = [i for i, m in enumerate(messages) if len(m.weights)]
    if not present:
        return found
    chosen = [messages[i] for i in present]
    low, high, least, most = _ranges(chosen, bits)
    ports = _ports(chosen)
    steps = [_Steps([chosen[i] for i in port], bits) for port in ports]

    def value(taken: list[tuple[float, float]]) -> float:
        """Of variance and seconds of every port."""
        variance, longest = sum(v for v, _ in taken), max(seconds for _, seconds in taken)
        return _scaled(variance, low, high, share) + _scaled(longest, least, most, 1 - share)

    def whole(seconds: float) -> float:
        counts = [s.within(seconds) for s in steps]
        return value([(s.variance(n), s.seconds(n)) for s, n in zip(steps, counts, strict=True)])

    about = _minimum(lambda seconds: value([s.relaxed(seconds) for s in steps]), least, most)
    near = {least, most}
    for s in steps:
        n = s.within(about)
        near.update(s.seconds(count) for count in (n, min(n + 1, s.useful)))
    best = min(sorted(near), key=whole)
    for port, s in zip(ports, steps, strict=True):
        for i, widths in zip(port, s.widths(s.within(best)), strict=True):
            found[present[i]] = widths
    return found


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
    """The same as :func:`assign` by HiGHS, whose default is to end within 1e-4 of the optimum, relatively.

    Slow with more than a few thousand rows.
    """
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
    # times in units of their range: HiGHS takes what is below 1e-9 for 0, as seconds a byte on fast links are
    unit, of_time = (most - least, 1 - share) if most > least else (1.0, 0.0)
    # the last variable is the slot's exposed time
    once = sp.hstack([sp.kron(sp.identity(rows), np.ones((1, count))), sp.csr_matrix((rows, 1))])
    seconds = [
        m.link.seconds_per_byte / unit * np.tile(_sizes(m.cols, ordered), len(m.weights)) for m in present
    ]
    places = np.cumsum([0, *map(len, seconds)])
    ports = _ports(present)
    times = sp.lil_matrix((len(ports), rows * count + 1))
    for p, port in enumerate(ports):
        for i in port:
            times[p, places[i] : places[i + 1]] = seconds[i]
        times[p, rows * count] = -1
    ends = [
        (min(present[i].hidden for i in port) - sum(present[i].link.latency for i in port)) / unit
        for port in ports
    ]
    found = milp(
        np.append(of_variance * cost, of_time),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(times.tocsr(), -np.inf, ends)],
        integrality=np.append(np.ones(rows * count), 0),
        bounds=Bounds(0, np.append(np.ones(rows * count), np.inf)),
    )
    if found.x is None:
        raise RunError(f"HiGHS found no assignment of widths: {found.message}")
    chosen = np.asarray(ordered, np.uint8)[found.x[:-1].reshape(rows, count).argmax(axis=1)]
    parts = iter(np.split(chosen, np.cumsum([len(m.weights) for m in present])[:-1]))
    return [next(parts) if len(m.weights) else np.zeros(0, np.uint8) for m in messages]
