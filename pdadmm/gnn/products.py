"""Products of matrices whose bits depend on their shapes alone, not on the number of threads.

Rows are cut into tiles, each of which is a product on one thread. BLAS with threads of its own waits for
them many times inside a product, which takes many times as long beside another busy process; tiles wait
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pdadmm.arrays import Array
from pdadmm.arrays.backend import Backend
from pdadmm.arrays.cupy_backend import CupyBackend

__all__ = ["DeviceProducts", "Products", "make_products"]

#: rows of a tile: enough to hide the start of a product, few enough to share out evenly
_TILE = 1024
#: into at most so many groups rows are cut where the product is over them
_GROUPS = 8


class Products:
    """Products of float matrices, on some threads with BLAS on one thread each.

    Parameters
    ----------
    threads
        Of this object; BLAS itself must have been limited to one.
    """

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def rows(self, A: Array, B: Array, out: Array, add: bool = False) -> None:
        """``out = A B`` or ``out += A B``; A (n, k), B (k, m), out (n, m)."""

        def tile(first: int) -> None:
            part = slice(first, first + _TILE)
            if add:
                out[part] += A[part] @ B
            else:
                np.matmul(A[part], B, out=out[part])

        self._each(tile, range(0, len(A), _TILE))

    def over_rows(self, G: Array, A: Array, out: Array) -> None:
        """``out = Gᵀ A``, the sum over the rows; G (n, m), A (n, k), out (m, k)."""
        size = max(_TILE, -(-len(G) // _GROUPS))
        starts = range(0, len(G), size)
        if len(starts) <= 1:
            np.matmul(G.T, A, out=out)
            return
        sums = np.empty((len(starts), *out.shape), out.dtype)

        def group(number: int) -> None:
            part = slice(starts[number], starts[number] + size)
            np.matmul(G[part].T, A[part], out=sums[number])

        self._each(group, range(len(starts)))
        np.add.reduce(sums, axis=0, out=out)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _each(self, work: Callable[[int], None], items: Iterable[int]) -> None:
        if self._pool is None:
            for item in items:
                work(item)
        else:
            for _ in self._pool.map(work, items):
                pass


class DeviceProducts(Products):
    """The same on a GPU, in the precision of its backend."""

    def __init__(self, backend: CupyBackend) -> None:
        super().__init__()
        self._backend = backend

    def rows(self, A: Array, B: Array, out: Array, add: bool = False) -> None:
        if add:
            self._backend.add_product(A, B, out)
        else:
            self._backend.matmul(A, B, out=out)

    def over_rows(self, G: Array, A: Array, out: Array) -> None:
        self._backend.matmul(G.T, A, out=out)


def make_products(backend: Backend, threads: int = 1) -> Products:
    """Products where a backend computes."""
    return DeviceProducts(backend) if isinstance(backend, CupyBackend) else Products(threads)
