"""The arrays of a rank: NumPy on a CPU or CuPy on a GPU.

Both backends have the same members. On a GPU nothing in an iteration waits for the device: squared
norms stay there as 0-d arrays, the lengths of steps are computed there, and the host reads numbers
only when an iteration is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from pdadmm.admm import updates
from pdadmm.arrays.helpers import Array, Scalar

__all__ = ["NUMPY", "PRECISIONS", "Backend", "NumpyBackend", "label_of", "place_of"]

#: how products of float32 matrices are computed on a GPU
PRECISIONS = ("float32", "tf32", "bf16x3")

#: larger than any label
_NEVER = np.iinfo(np.int64).max
#: what a step length belongs to, in labels
_VARIABLES = ("p", "W")


def label_of(iteration: int, position: int, variable: str) -> int:
    """Number of a step, growing with the iteration, that tells a layer's gradient of p or W from others."""
    return (iteration << 32) | (position << 1) | _VARIABLES.index(variable)


def place_of(label: int) -> tuple[int, int, str]:
    """Iteration, position and variable of :func:`label_of`."""
    return label >> 32, (label & 0xFFFFFFFF) >> 1, _VARIABLES[label & 1]


class Backend(Protocol):
    """What the layers, the couplings and the evaluation ask of an array library."""

    name: str
    on_device: bool

    @property
    def description(self) -> str:
        """The device in words."""
        ...

    def empty(self, shape: Any, dtype: Any = np.float32) -> Array: ...

    def zeros(self, shape: Any, dtype: Any = np.float32) -> Array: ...

    def asarray(self, x: np.ndarray) -> Array:
        """A host array where this backend computes; moves data unless it is there."""
        ...

    def to_host(self, x: Array) -> np.ndarray:
        """The array on the host; moves data unless it is there, and then waits for the device."""
        ...

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Product of two float32 matrices, either of which may be a transposed view."""
        ...

    def step_length(
        self, curvature: float, weight: float, image: Scalar, norm: Scalar, step: str, label: int
    ) -> Scalar:
        """:func:`pdadmm.admm.updates.step_length` where the two norms are."""
        ...

    def known_bad(self, norm: Scalar) -> bool:
        """Whether a norm is NaN or Inf; False for one on the device, whose label is noted instead."""
        ...

    def floats(self, values: Sequence[Scalar], wait: Callable[[Callable[[], bool], str], Any]) -> list[float]:
        """Numbers on the host; `wait(done, what)` polls until the device has them."""
        ...

    def first_bad(self) -> int | None:
        """Smallest label of a norm that was NaN or Inf and was not seen by :meth:`known_bad`."""
        ...


class NumpyBackend:
    """Arrays on the host; see :class:`Backend`."""

    name = "numpy"
    on_device = False
    description = "CPU"

    @staticmethod
    def empty(shape: Any, dtype: Any = np.float32) -> Array:
        return np.empty(shape, dtype)

    @staticmethod
    def zeros(shape: Any, dtype: Any = np.float32) -> Array:
        return np.zeros(shape, dtype)

    @staticmethod
    def asarray(x: np.ndarray) -> Array:
        return x

    @staticmethod
    def to_host(x: Array) -> np.ndarray:
        return np.asarray(x)

    matmul = staticmethod(np.matmul)

    @staticmethod
    def step_length(
        curvature: float, weight: float, image: float, norm: float, step: str, label: int
    ) -> float:
        return updates.step_length(curvature, weight, image, norm, step)

    @staticmethod
    def known_bad(norm: float) -> bool:
        return not np.isfinite(norm)

    @staticmethod
    def floats(values: Sequence[float], wait: Any) -> list[float]:
        return [float(value) for value in values]

    @staticmethod
    def first_bad() -> int | None:
        return None


NUMPY = NumpyBackend()
