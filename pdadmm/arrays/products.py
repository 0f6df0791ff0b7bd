"""Products of matrices on the host whose bits depend on their shapes alone, not on the number of threads.

The result, or the sum behind it, is cut into tiles at fixed places, each of which is a product on one thread.
BLAS with threads of its own waits for them many times inside a product, which takes many times as long
beside another busy process; tiles wait once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from pdadmm.arrays.helpers import Array

__all__ = ["Products"]

#: multiply-adds of a product that is not worth a second thread, some 0.2 ms, and of a tile, at least
_SMALL, _WORK = 1 << 23, 1 << 24
#: rows or columns of a tile are a multiple of it: what BLAS itself takes at a time divides it
_STEP = 64
#: groups of rows into which a sum over at least so many of them is cut, where their sums are not too large
_GROUPS, _MANY, _LARGEST = 8, 2048, 1 << 20


class Products:
    """Products of float matrices, on some threads with BLAS on one thread each.

    Parameters
    ----------
    threads
        Of this object; BLAS itself must have been limited to one.
    """

    def __init__(self, threads: int = 1) -> None:
        self._helpers = max(threads, 1) - 1
        # what a thread is to say of overflow is its own; who asks for the product has been told
        quiet = partial(np.seterr, all="ignore")
        self._pool = ThreadPoolExecutor(self._helpers, initializer=quiet) if self._helpers else None
        self._room: dict[tuple[tuple[int, int], np.dtype], np.ndarray] = {}

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """``a b``, (m, k) times (k, n), either of which may be a transposed view; returns `out`."""
        (m, k), n = a.shape, b.shape[1]
        if out is None:
            out = np.empty((m, n), np.result_type(a, b))
        if a.flags.f_contiguous and k > m:
            self.over_rows(a.T, b, out)
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
            self.rows(a, b, out)
            return
        step = _tile(m * k)

        def columns(first: int) -> None:
            part = slice(first, first + step)
            np.matmul(a, b[:, part], out=out[:, part])

        self._each(columns, range(0, n, step))

    def rows(self, A: Array, B: Array, out: Array, add: bool = False) -> None:
        """``out = A B`` or ``out += A B``; A (n, k), B (k, m), out (n, m)."""
        step = _tile(max(A.shape[1] * B.shape[1], 1))

        def tile(first: int) -> None:
            part = slice(first, first + step)
            if add:
                out[part] += A[part] @ B
            else:
                np.matmul(A[part], B, out=out[part])

        self._each(tile, range(0, len(A), step))

    def over_rows(self, G: Array, A: Array, out: Array) -> None:
        """``out = Gᵀ A``, the sum over the rows; G (n, m), A (n, k), out (m, k).

        The sums of the groups of rows are added up by a binary tree; where the rows are few, or their sums
        large, the result is cut instead.
        """
        if len(G) < _MANY or out.size > _LARGEST or len(G) * out.size <= _SMALL:
            self._tiles(G.T, A, out)
            return
        size = -(-len(G) // _GROUPS)
        sums = self._sums(out)

        def group(number: int) -> None:
            part = slice(number * size, (number + 1) * size)
            np.matmul(G[part].T, A[part], out=sums[number])

        self._each(group, range(_GROUPS))
        apart = _GROUPS // 2
        while apart > 1:
            np.add(sums[:apart], sums[apart : 2 * apart], out=sums[:apart])
            apart //= 2
        np.add(sums[0], sums[1], out=out)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _sums(self, out: Array) -> np.ndarray:
        """Room for the sums of the groups, made once a shape."""
        key = (out.shape, out.dtype)
        if key not in self._room:
            self._room[key] = np.empty((_GROUPS, *out.shape), out.dtype)
        return self._room[key]

    def _each(self, work: Callable[[int], None], items: Iterable[int]) -> None:
        """Do some pieces of work, each thread the next one that nobody has begun."""
        todo = iter(items)

        def until_done() -> None:
            for item in todo:
                work(item)

        if self._pool is None:
            until_done()
            return
        helpers = [self._pool.submit(until_done) for _ in range(self._helpers)]
        until_done()
        for helper in helpers:
            helper.result()


def _tile(work_of_one: int) -> int:
    """Rows or columns of a tile, from the multiply-adds of one of them."""
    return max(256, -(-_WORK // work_of_one // _STEP) * _STEP)
