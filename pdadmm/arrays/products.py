"""Products of matrices on the host whose bits depend on their shapes alone, not on the number of threads.

The result, or the sum behind it, is cut into tiles at fixed places, each of which is a product on one thread.
BLAS with threads of its own waits for them many times inside a product, which takes many times as long
beside another busy process; tiles wait once. Products over nodes in groups (:mod:`pdadmm.arrays.groups`) are
cut between the groups too, so that their bits do not depend on the shards.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np

from pdadmm.arrays.groups import MOST_GROUPS, rows_of_groups
from pdadmm.arrays.helpers import Array

__all__ = ["Products"]

Item = TypeVar("Item")
#: multiply-adds of a product that is not worth a second thread, some 0.2 ms, and of a tile, at least
_SMALL, _WORK = 1 << 23, 1 << 24
#: rows or columns of a tile are a multiple of it: what BLAS itself takes at a time divides it
_STEP = 64
#: tiles of a large product, for as many threads to share, or more, of `_LONGEST` rows or columns: BLAS copies
#: the other matrix for every tile, so that larger ones are faster, up to there
_TILES, _LONGEST = 32, 1024
#: groups of rows into which a sum over at least so many of them is cut
_GROUPS, _MANY = MOST_GROUPS, 2048
#: entries of a sum of which every group has one of its own; a larger one is formed by so many columns
_LARGEST, _COLUMNS = 1 << 20, 512
#: columns of a tile of a symmetric sum
_TRIANGLE = 128


class Products:
    """Products of float matrices, on some threads with BLAS on one thread each.

    Parameters
    ----------
    threads
        Of this object; BLAS itself must have been limited to one.
    groups
        Of the rows of :meth:`rows` and :meth:`over_rows`, which are those of all this rank's nodes; 0: they
        are in none.
    """

    def __init__(self, threads: int = 1, groups: int = 0) -> None:
        self._groups = groups
        self._helpers = max(threads, 1) - 1
        # what a thread is to say of overflow is its own; who asks for the product has been told
        quiet = partial(np.seterr, all="ignore")
        self._pool = ThreadPoolExecutor(self._helpers, initializer=quiet) if self._helpers else None
        self._room: dict[tuple[int, int, tuple[int, int], np.dtype], np.ndarray] = {}

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """``a b``, (m, k) times (k, n), either of which may be a transposed view; returns `out`."""
        (m, k), n = a.shape, b.shape[1]
        if out is None:
            out = np.empty((m, n), np.result_type(a, b))
        if a.flags.f_contiguous and k > m:
            self._by_shape(a.T, b, out)
        else:
            self._tiles(a, b, out)
        return out

    def _tiles(self, a: Array, b: Array, out: Array) -> None:
        """The longer side of the result in tiles."""
        (m, k), n = a.shape, b.shape[1]
        if m * k * n <= _SMALL:
            np.matmul(a, b, out=out)
            return
        if m >= n:
            self._of_rows(a, b, out, _cut(m, 0, k * n))
            return

        def columns(part: slice) -> None:
            np.matmul(a, b[:, part], out=out[:, part])

        self._each(columns, _cut(n, 0, m * k))

    def rows(self, A: Array, B: Array, out: Array, add: bool = False) -> None:
        """``out = A B`` or ``out += A B``; A (n, k), B (k, m), out (n, m)."""
        if not self._groups and len(A) * B.size <= _SMALL:  # a single tile
            if add:
                out += A @ B
            else:
                np.matmul(A, B, out=out)
            return
        self._of_rows(A, B, out, _cut(len(A), self._groups, B.size), add)

    def _of_rows(self, A: Array, B: Array, out: Array, parts: Sequence[slice], add: bool = False) -> None:
        def tile(part: slice) -> None:
            if add:
                out[part] += A[part] @ B
            else:
                np.matmul(A[part], B, out=out[part])

        self._each(tile, parts, len(A) * B.size)

    def over_rows(self, G: Array, A: Array, out: Array) -> None:
        """``out = Gᵀ A``, the sum over the rows; G (n, m), A (n, k), out (m, k)."""
        if self._groups:
            self._in_groups(G, A, out, self._groups)
        else:
            self._by_shape(G, A, out)

    def _by_shape(self, G: Array, A: Array, out: Array) -> None:
        """``out = Gᵀ A`` in groups, or cut itself where the rows are few or the sums large."""
        if len(G) < _MANY or out.size > _LARGEST or len(G) * out.size <= _SMALL:
            self._tiles(G.T, A, out)
        else:
            self._in_groups(G, A, out, _GROUPS)

    def _in_groups(self, G: Array, A: Array, out: Array, groups: int) -> None:
        """``out = Gᵀ A``, the groups' sums added up by their tree.

        Of ``Gᵀ G`` the tiles up to the diagonal are formed, and mirrored.
        """
        work, rows = len(G) * out.size, rows_of_groups(len(G), groups)
        symmetric = A is G
        if out.size > _LARGEST and groups > 1:
            parts = _parts(out.shape[1], _COLUMNS)

            def columns(part: slice) -> None:
                upper = slice(part.stop if symmetric else len(out))
                sums = self._room_for((len(out), part.stop - part.start), out.dtype, groups)[:, upper]
                for number, of_group in enumerate(rows):
                    np.matmul(G[of_group, upper].T, A[of_group, part], out=sums[number])
                _add_up(sums, out[upper, part])

            self._each(columns, parts, work)
            if symmetric:
                _mirror(out, parts)
            return
        sums = self._room_for(out.shape, out.dtype, groups) if groups > 1 else out[None]

        def piece(item: tuple[int, slice]) -> None:
            number, part = item
            of_group, upper = rows[number], slice(part.stop if symmetric else len(out))
            np.matmul(G[of_group, upper].T, A[of_group, part], out=sums[number, upper, part])

        def parts_of(group: slice) -> tuple[slice, ...]:
            if out.size > _LARGEST:  # as above, so that a shard of a single group has the same tiles
                return _parts(out.shape[1], _COLUMNS)
            if symmetric:
                return _parts(out.shape[1], _TRIANGLE)
            # in two, or by fewer columns than `_COLUMNS`, for more threads than there are groups
            step = min(_COLUMNS, _rounded(out.shape[1] / 2))
            return _parts(out.shape[1], max(_least(len(out) * (group.stop - group.start)), step))

        pieces = [(number, part) for number, group in enumerate(rows) for part in parts_of(group)]
        self._each(piece, pieces, work)
        if groups > 1:
            _add_up(sums, out)
        if symmetric:
            _mirror(out, parts_of(rows[0]))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _room_for(self, shape: tuple[int, int], dtype: np.dtype, groups: int) -> np.ndarray:
        """Room for the sums of the groups, made once a thread and shape."""
        key = (threading.get_ident(), groups, shape, dtype)
        if key not in self._room:
            self._room[key] = np.zeros((groups, *shape), dtype)
        return self._room[key]

    def _each(self, work: Callable[[Item], None], items: Sequence[Item], size: int = _SMALL + 1) -> None:
        """Do some pieces of work of `size` together, each thread the next one that nobody has begun."""
        todo = iter(items)

        def until_done() -> None:
            for item in todo:
                work(item)

        if self._pool is None or size <= _SMALL or len(items) == 1:
            until_done()
            return
        helpers = [self._pool.submit(until_done) for _ in range(min(self._helpers, len(items) - 1))]
        until_done()
        for helper in helpers:
            helper.result()


def _add_up(sums: np.ndarray, out: Array) -> None:
    """``out`` = the sum of a power of two of arrays, two or more, by a binary tree; overwrites them."""
    apart = 1
    while 2 * apart < len(sums):
        left = sums[:: 2 * apart]
        np.add(left, sums[apart :: 2 * apart], out=left)
        apart *= 2
    np.add(sums[0], sums[apart], out=out)


def _mirror(out: Array, parts: Sequence[slice]) -> None:
    """Fill what is below the tiles on the diagonal, of a symmetric matrix, by what is above them."""
    for part in parts:
        out[part.stop :, part] = out[part, part.stop :].T


@lru_cache(1024)
def _parts(length: int, step: int) -> tuple[slice, ...]:
    """Tiles of `step` rows or columns."""
    return tuple(slice(first, min(first + step, length)) for first in range(0, length, step))


@lru_cache(1024)
def _cut(length: int, groups: int, work_of_one: int) -> tuple[slice, ...]:
    """Tiles of rows or columns, within the groups where there are some, by the multiply-adds of one of them.

    Those of a group depend on its own length, so that they are the same in any shards.
    """
    least, tiles = _least(work_of_one), _TILES // MOST_GROUPS if groups else _TILES
    found: list[slice] = []
    for group in rows_of_groups(length, groups):
        rows = group.stop - group.start
        step = max(least, min(_LONGEST, _rounded(rows / tiles)))
        found += [slice(group.start + part.start, group.start + part.stop) for part in _parts(rows, step)]
    return tuple(found)


def _least(work_of_one: int) -> int:
    """Rows or columns that a tile has at least, from the multiply-adds of one of them."""
    return max(256, _rounded(_WORK / max(work_of_one, 1)))


def _rounded(length: float) -> int:
    """The next multiple of `_STEP`."""
    return math.ceil(length / _STEP) * _STEP
