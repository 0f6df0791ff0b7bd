"""Lengths of gradient steps, decided where the norms are: on the host, or on the device without waiting.

On a device a norm that is NaN or Inf does not raise. The step that it belongs to is noted there by a
*label*, and the host reads the smallest one when it next looks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from pdadmm.admm import updates
from pdadmm.arrays import DeviceArray, Scalar
from pdadmm.arrays.sources import find_source

__all__ = ["DeviceLengths", "HostLengths", "Lengths", "label_of", "place_of"]

#: what a step length belongs to, in labels
_VARIABLES = ("p", "W")
#: larger than any label
_NEVER = np.iinfo(np.int64).max


def label_of(iteration: int, position: int, variable: str) -> int:
    """Number of a step, growing with the iteration, that tells a layer's gradient of p or W from others."""
    return (iteration << 32) | (position << 1) | _VARIABLES.index(variable)


def place_of(label: int) -> tuple[int, int, str]:
    """Iteration, position and variable of :func:`label_of`."""
    return label >> 32, (label & 0xFFFFFFFF) >> 1, _VARIABLES[label & 1]


class Lengths(Protocol):
    """Where step lengths are decided."""

    def step(
        self, curvature: float, weight: float, image: Scalar, norm: Scalar, step: str, label: int
    ) -> Scalar:
        """:func:`pdadmm.admm.updates.step_length` where the two norms are."""
        ...

    def known_bad(self, norm: Scalar) -> bool:
        """Whether a norm is NaN or Inf; False for one on the device, whose label is noted instead."""
        ...

    def first_bad(self) -> int | None:
        """Smallest label of a norm that was NaN or Inf and was not seen by :meth:`known_bad`."""
        ...


class HostLengths:
    """See :class:`Lengths`."""

    @staticmethod
    def step(curvature: float, weight: float, image: float, norm: float, step: str, label: int) -> float:
        return updates.step_length(curvature, weight, image, norm, step)

    @staticmethod
    def known_bad(norm: float) -> bool:
        return not np.isfinite(norm)

    @staticmethod
    def first_bad() -> int | None:
        return None


class DeviceLengths:
    """See :class:`Lengths`; numbers that are on the host all the same are decided there."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._iterations = 0

    @functools.cached_property
    def _kernel(self) -> Callable[..., None]:
        source = find_source("step_length.cu").read_text()
        found: Callable[..., None] = self._cupy.RawKernel(
            source, "step_length", ("--std=c++14", "--fmad=false")
        )
        return found

    @functools.cached_property
    def _first_bad(self) -> DeviceArray:
        return self._cupy.full(1, _NEVER, np.int64)

    @functools.cached_property
    def _moved(self) -> DeviceArray:
        return self._cupy.zeros(1, np.int64)

    def move(self, iterations: int) -> None:
        """Labels of steps that are launched again are those of so many iterations later, until the next call.

        Those of :meth:`step` stay what they are.
        """
        if iterations != self._iterations:
            self._iterations = iterations
            self._moved.fill(label_of(iterations, 0, "p"))

    def step(
        self, curvature: float, weight: float, image: Scalar, norm: Scalar, step: str, label: int
    ) -> Scalar:
        if isinstance(norm, float) and isinstance(image, float):  # passes that decided on the host
            return updates.step_length(curvature, weight, image, norm, step)
        # one of them may have been summed up over shards, on the host
        norm, image = (
            self._cupy.asarray(np.float64(x)) if isinstance(x, float) else x for x in (norm, image)
        )
        length = self._cupy.empty((), np.float64)
        self._kernel(
            (1,), (1,),
            (
                image, norm, np.float64(curvature), np.float64(weight), np.int32(step == "doubling"),
                np.int64(label - label_of(self._iterations, 0, "p")), self._moved, length, self._first_bad,
            ),
        )  # fmt: skip
        return length

    def known_bad(self, norm: Scalar) -> bool:
        return isinstance(norm, float) and not np.isfinite(norm)

    def first_bad(self) -> int | None:
        label = int(self._first_bad.get()[0])
        return None if label == _NEVER else label
