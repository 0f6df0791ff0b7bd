"""Sums, extremes and an even sample of rows of numbers, in memory that does not grow with the rows."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

__all__ = ["SAMPLE", "Spread", "Tally"]

#: rows of a sample, at most; when there are more, every second one goes
SAMPLE = 256
#: rows that are added up at once
_BLOCK = 64


@dataclass(frozen=True)
class Spread:
    """How long something took, in seconds: `median` of a sample, all else of everything that was added."""

    mean: float = 0.0
    median: float = 0.0
    least: float = 0.0
    most: float = 0.0


class Tally:
    """Rows of nanoseconds, added up column by column.

    The sample for the medians is every n-th row from the first one, where n doubles whenever there are
    more than SAMPLE of them. Which rows these are follows from their number alone: ranks that add as
    many rows keep the same ones.

    Parameters
    ----------
    width
        Numbers of a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._block = array("q")  # rows that are not added up yet
        self._added = 0
        self._sums = np.zeros(width, np.int64)
        self._least = np.full(width, np.iinfo(np.int64).max)
        self._most = np.full(width, np.iinfo(np.int64).min)
        self._sample = np.empty((0, width), np.int64)
        self._stride = 1

    @property
    def rows(self) -> int:
        """How many were added."""
        return self._added + len(self._block) // self.width

    @property
    def sums(self) -> list[int]:
        """Nanoseconds of all rows, exact, a number a column."""
        self._settle()
        found: list[int] = self._sums.tolist()
        return found

    @property
    def spreads(self) -> list[Spread]:
        """Of every column; zeros where there are no rows."""
        self._settle()
        if not self._added:
            return [Spread()] * self.width
        columns = (self._sums / self._added, np.median(self._sample, axis=0), self._least, self._most)
        return [Spread(*(1e-9 * float(value) for value in values)) for values in zip(*columns, strict=True)]

    def add(self, row: list[int]) -> None:
        """Add a row of :attr:`width` nanoseconds."""
        self._block.fromlist(row)
        if len(self._block) >= _BLOCK * self.width:
            self._settle()

    def _settle(self) -> None:
        """Add up what is waiting."""
        if not self._block:
            return
        rows = np.array(self._block, np.int64).reshape(-1, self.width)
        del self._block[:]
        self._sums += rows.sum(axis=0)
        np.minimum(self._least, rows.min(axis=0), out=self._least)
        np.maximum(self._most, rows.max(axis=0), out=self._most)
        self._sample = np.concatenate([self._sample, rows[(-self._added) % self._stride :: self._stride]])
        self._added += len(rows)
        while len(self._sample) > SAMPLE:
            self._sample = self._sample[::2].copy()
            self._stride *= 2
