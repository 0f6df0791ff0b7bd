"""Products with a sparse matrix on CPUs: calls into the host library of ``kernels/``."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import weakref
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pdadmm.arrays import Array
from pdadmm.arrays.sources import LibraryError
from pdadmm.kernels.host import HostLibrary

__all__ = ["SparseLibrary", "SparseProduct", "set_threads"]

_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_AGGREGATE = struct.Struct("=8q").pack


class _Integers(NamedTuple):
    """What is known of an array of integers whose values the kernels count on."""

    address: int
    dtype: np.dtype
    least: int
    greatest: int
    ascending: bool
    seen: weakref.ref[np.ndarray]


class SparseLibrary(HostLibrary):
    """The library's product of a CSR matrix and dense rows.

    A row's entries are added in the order in which they are stored, so that its bits depend neither on
    the threads nor on what else is computed. Arrays of integers are checked when they are first seen and
    must not change afterwards.

    Parameters
    ----------
    threads
        Of a kernel, for the whole process; None leaves them as they are.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When the library is missing.
    """

    def __init__(self, threads: int | None = 1) -> None:
        super().__init__(threads)
        self._aggregate = self._function("aggregate", ctypes.c_int)
        self._integers: dict[int, _Integers] = {}

    def _integer_address(
        self, x: np.ndarray, dtype: np.dtype, count: int, below: int, least: int = 0, ascending: bool = False
    ) -> int:
        """Address of `count` integers from `least` to `below` - 1."""
        known = self._integers.get(id(x)) or self._see(x)
        if known.dtype != dtype or x.shape != (count,):
            raise ValueError(f"{x.dtype} {x.shape} where {dtype} ({count},) is wanted")
        if known.least < least or known.greatest >= below or (ascending and not known.ascending):
            wanted = f"{least} to {below - 1}{', ascending,' if ascending else ''}"
            raise ValueError(f"numbers from {known.least} to {known.greatest} where {wanted} are wanted")
        return known.address

    def _see(self, x: np.ndarray) -> _Integers:
        if not isinstance(x, np.ndarray) or not x.flags.c_contiguous:
            raise TypeError("the compiled kernels take C-contiguous arrays of integers")
        key, known = id(x), self._integers
        least, greatest = (int(x.min()), int(x.max())) if x.size else (0, -1)
        ascending = bool((x[1:] >= x[:-1]).all())
        # the id may be another array's once this one is gone
        seen = weakref.ref(x, lambda _: known.pop(key, None))
        entry = known[key] = _Integers(x.ctypes.data, x.dtype, least, greatest, ascending, seen)
        return entry

    def multiply(
        self, indptr: np.ndarray, indices: np.ndarray, values: Array, X: Array, out: Array, add: int = 0
    ) -> None:
        """Product of a CSR matrix and X (columns, n), plus `add` times `out`, to `out` (rows, n).

        Parameters
        ----------
        indptr
            (rows + 1,) int64; the first need not be 0.
        indices, values
            (entries,) int32 and float32.
        X, out
            float32.
        add
            0, 1 or -1.

        Raises
        ------
        TypeError, ValueError
            When arrays are of other types, shapes or layouts, or indices point outside X.
        """
        rows, cols = out.shape
        if X.shape[1] != cols:
            raise ValueError(f"{X.shape[1]} columns of the factor and {cols} of the product differ")
        at, integers, entries = self._address, self._integer_address, len(values)
        self._aggregate(
            _AGGREGATE(
                rows, cols,
                integers(indptr, _INT64, rows + 1, entries + 1, ascending=True),
                integers(indices, _INT32, entries, len(X)),
                at(values), at(X), at(out), add,
            )
        )  # fmt: skip


class SparseProduct:
    """A CSR matrix, to be multiplied with dense blocks; SciPy does it where the library is not installed.

    Parameters
    ----------
    indptr, indices : ndarray (rows + 1,), (entries,) of integers
    values : ndarray (entries,) float32
    columns : int
        Of the matrix: less than 2^31.
    """

    def __init__(
        self,
        indptr: npt.NDArray[np.integer],
        indices: npt.NDArray[np.integer],
        values: npt.NDArray[np.float32],
        columns: int,
    ) -> None:
        self.shape = len(indptr) - 1, columns
        self._indptr = np.ascontiguousarray(indptr, np.int64)
        self._indices = np.ascontiguousarray(indices, np.int32)
        self._values = np.ascontiguousarray(values, np.float32)
        try:
            self._library: SparseLibrary | None = SparseLibrary(None)
        except LibraryError:
            self._library = None

    def __call__(self, block: npt.NDArray[np.float32], out: npt.NDArray[np.float32], add: int = 0) -> None:
        """Product with `block` (columns, n), plus `add` times `out`, into `out` (rows, n).

        Both are float32 and C-contiguous; `add` is 0, 1 or -1.
        """
        if self._library is not None:
            self._library.multiply(self._indptr, self._indices, self._values, block, out, add)
            return
        import scipy.sparse as sp

        product = sp.csr_matrix((self._values, self._indices, self._indptr), shape=self.shape) @ block
        if add:
            product += np.float32(add) * out
        out[...] = product


def set_threads(threads: int) -> None:
    """Threads of the library's kernels in this process; nothing without the library."""
    with contextlib.suppress(LibraryError):
        HostLibrary(threads)
