"""Activation functions and the proximal problem that the z-update solves for each.

``proximal(a, q, z)`` minimises ``(x - a)^2 + (q - f(x))^2 + (x - z)^2`` entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from pdadmm.arrays import Array

__all__ = ["ACTIVATIONS", "Activation", "LeakyReLU", "ReLU", "Sigmoid", "Tanh", "make_activation"]


#: f and its first two derivatives
Values = Callable[[Array], tuple[Array, Array, Array]]


class Activation(Protocol):
    """An activation f with its derivative-free proximal map."""

    name: str

    @property
    def slope_below(self) -> float | None:
        """Slope below zero of an activation with two linear branches; None for a smooth one."""
        ...

    def __call__(self, z: Array) -> Array: ...

    def proximal(self, a: Array, q: Array, z: Array) -> Array: ...


class ReLU:
    """max(z, 0)."""

    name = "relu"
    slope_below = 0.0

    def __call__(self, z: Array) -> Array:
        return np.maximum(z, 0)

    def proximal(self, a: Array, q: Array, z: Array) -> Array:
        return _two_branches(a, q, z, 0.0)


class LeakyReLU:
    """z where positive, ``slope * z`` elsewhere."""

    name = "leaky_relu"

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    @property
    def slope_below(self) -> float:
        return self.slope

    def __call__(self, z: Array) -> Array:
        return np.where(z > 0, z, np.multiply(z, self.slope, dtype=z.dtype))

    def proximal(self, a: Array, q: Array, z: Array) -> Array:
        return _two_branches(a, q, z, self.slope)


class Tanh:
    """tanh(z)."""

    name = "tanh"
    slope_below = None

    def __call__(self, z: Array) -> Array:
        return np.tanh(z)

    def proximal(self, a: Array, q: Array, z: Array) -> Array:
        def value(x: Array) -> tuple[Array, Array, Array]:
            f = np.tanh(x)
            df = 1 - f * f
            return f, df, -2 * f * df

        return _safeguarded_newton(a, q, z, value, slope=1.0)


class Sigmoid:
    """1 / (1 + exp(-z))."""

    name = "sigmoid"
    slope_below = None

    def __call__(self, z: Array) -> Array:
        return (0.5 * (1 + np.tanh(0.5 * z))).astype(z.dtype)

    def proximal(self, a: Array, q: Array, z: Array) -> Array:
        def value(x: Array) -> tuple[Array, Array, Array]:
            f = 0.5 * (1 + np.tanh(0.5 * x))
            df = f * (1 - f)
            return f, df, df * (1 - 2 * f)

        return _safeguarded_newton(a, q, z, value, slope=0.25)


def _two_branches(a: Array, q: Array, z: Array, slope: float) -> Array:
    """Best point of each linear branch, clipped to its side; the better of the two wins."""
    above = np.maximum((a + q + z) / 3, 0)
    below = np.minimum((a + slope * q + z) / (2 + slope * slope), 0)

    def cost(x: Array, fx: Array) -> Array:
        return (x - a) ** 2 + (q - fx) ** 2 + (x - z) ** 2

    return np.where(cost(above, above) <= cost(below, slope * below), above, below).astype(a.dtype)


def _safeguarded_newton(a: Array, q: Array, z: Array, value: Values, slope: float) -> Array:
    """Stationary point downhill from z: Newton's method kept inside a shrinking bracket.

    Half the derivative is ``2x - a - z + (f(x) - q) f'(x)`` with ``|f'| <= slope`` and ``|f| <= 1``,
    so it is negative below and positive above ``(a + z)/2 -+ (1 + |q|) slope / 2``. The bracket runs
    from z to that bound on its downhill side; entries that end no lower than z stay at z.
    """

    def half_derivatives(x: Array) -> tuple[Array, Array]:
        f, df, ddf = value(x)
        return 2 * x - a - z + (f - q) * df, 2 + df * df + (f - q) * ddf

    def cost(x: Array) -> Array:
        return (x - a) ** 2 + (q - value(x)[0]) ** 2 + (x - z) ** 2

    reach = (1 + np.abs(q)) * slope / 2
    start, _ = half_derivatives(z)
    low = np.where(start > 0, np.minimum((a + z) / 2 - reach, z), z)
    high = np.where(start > 0, z, np.maximum((a + z) / 2 + reach, z))
    noise = 16 * np.finfo(a.dtype).eps * (1 + np.abs(a) + np.abs(z))
    before = np.inf
    x = z
    for _ in range(40):
        d, curvature = half_derivatives(x)
        low = np.where(d < 0, x, low)
        high = np.where(d > 0, x, high)
        x_new = x - d / np.where(curvature > 0, curvature, 1)
        inside = (x_new >= low) & (x_new <= high) & (curvature > 0)
        size = np.abs(d)
        slow = (size > 0.5 * before) & (size > noise)  # Newton's method can cycle
        before = size
        x_new = np.where(inside & ~slow, x_new, (low + high) / 2)
        if np.array_equal(x_new, x):
            break
        x = x_new
    best: Array = np.where(cost(x) <= cost(z), x, z)
    return best.astype(a.dtype)


ACTIVATIONS = {f.name: f for f in (ReLU, LeakyReLU, Tanh, Sigmoid)}


def make_activation(name: str) -> Activation:
    """The activation called `name`; KeyError if there is none."""
    return ACTIVATIONS[name]()
