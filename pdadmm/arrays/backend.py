"""The arrays of a rank: NumPy on a CPU or CuPy on a GPU.

Both backends have the same members. On a GPU nothing in an iteration waits for the device: squared
norms stay there as 0-d arrays, the lengths of steps are computed there, and the host reads numbers
only when an iteration is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from pdadmm.arrays.helpers import Array, Scalar
from pdadmm.arrays.products import Products

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["NUMPY", "PRECISIONS", "Backend", "NumpyBackend", "Wait"]

#: how products of float32 matrices are computed on a GPU
PRECISIONS = ("float32", "tf32", "bf16x3")
#: ``wait(done, what)`` polls until `done` holds
Wait: TypeAlias = Callable[[Callable[[], bool], str], object]


class Backend(Protocol):
    """What the layers, the couplings and the evaluation ask of an array library."""

    name: str
    on_device: bool
    groups: int  #: of this rank's nodes, see :mod:`pdadmm.arrays.groups`; 0: none

    @property
    def description(self) -> str:
        """The device in words."""
        ...

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array: ...

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array: ...

    def asarray(self, x: np.ndarray) -> Array:
        """A host array where this backend computes; moves data unless it is there."""
        ...

    def to_host(self, x: Array) -> np.ndarray:
        """The array on the host; moves data unless it is there, and then waits for the device."""
        ...

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Product of two matrices, float32 on a device, either of which may be a transposed view."""
        ...

    def rows(self, A: Array, B: Array, out: Array) -> Array:
        """:meth:`matmul` of what all of this rank's nodes have, (V, k), with a matrix; returns `out`."""
        ...

    def over_rows(self, G: Array, A: Array, out: Array) -> Array:
        """``Gᵀ A``, the sum over all of this rank's nodes; returns `out`."""
        ...

    def floats(self, values: Sequence[Scalar], wait: Wait) -> list[float]:
        """Numbers on the host; `wait(done, what)` polls until the device has them."""
        ...

    def settle(self, wait: Wait) -> None:
        """Poll by `wait(done, what)` until the device has done all it was given."""
        ...


class NumpyBackend:
    """Arrays on the host; see :class:`Backend`.

    Parameters
    ----------
    threads
        Of the products, whose bits do not depend on it; BLAS itself must have been limited to one.
    groups
        Of this rank's nodes, see :mod:`pdadmm.arrays.groups`; 0: none.
    """

    name = "numpy"
    on_device = False
    description = "CPU"

    def __init__(self, threads: int = 1, groups: int = 0) -> None:
        self.groups = groups
        self.products = Products(threads, groups)

    @staticmethod
    def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
        return np.empty(shape, dtype)

    @staticmethod
    def zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
        return np.zeros(shape, dtype)

    @staticmethod
    def asarray(x: np.ndarray) -> Array:
        return x

    @staticmethod
    def to_host(x: Array) -> np.ndarray:
        return np.asarray(x)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        return self.products.matmul(a, b, out)

    def rows(self, A: Array, B: Array, out: Array) -> Array:
        self.products.rows(A, B, out)
        return out

    def over_rows(self, G: Array, A: Array, out: Array) -> Array:
        self.products.over_rows(G, A, out)
        return out

    @staticmethod
    def floats(values: Sequence[float], wait: Wait) -> list[float]:
        return [float(value) for value in values]

    @staticmethod
    def settle(wait: Wait) -> None:
        """Nothing to wait for."""


NUMPY = NumpyBackend()
