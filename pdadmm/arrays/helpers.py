"""Small operations on arrays that may be NumPy's or CuPy's, and on numbers that may be on a device."""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "Array",
    "DeviceArray",
    "Scalar",
    "copy_into",
    "namespace",
    "number",
    "single",
    "squared_norm",
]

#: a NumPy array, or CuPy's, whose operations have the same names
Array: TypeAlias = np.ndarray
#: an array that is certainly CuPy's
DeviceArray: TypeAlias = Any
#: a float, or a 0-d float64 array on a device, which the host reads only when it must
Scalar: TypeAlias = Any


def namespace(x: Array) -> ModuleType:
    """The array module of an array, NumPy or CuPy."""
    if isinstance(x, np.ndarray):
        return np
    import cupy

    return cupy.get_array_module(x)


def number(x: Scalar) -> Scalar:
    """A NumPy scalar as a float; a 0-d array on a GPU as it is, since a float would wait for the device."""
    return float(x) if isinstance(x, (float, np.generic, np.ndarray)) else x


def single(x: Scalar) -> Scalar:
    """A number in float32; one on a GPU stays there."""
    return np.float32(x) if isinstance(x, (float, int)) else x.astype(np.float32)


def squared_norm(x: Array) -> Scalar:
    """Sum of squares, accumulated in float64: a float, or a 0-d array for one on a GPU."""
    flat = x.ravel()
    return number((flat * flat).sum(dtype=np.float64) if flat.dtype != np.float64 else flat @ flat)


def copy_into(target: Array, source: np.ndarray) -> None:
    """Overwrite an array, on the host or on a GPU, with one of the same shape on the host."""
    if target.shape != source.shape:
        raise ValueError(f"an array of shape {source.shape} does not fit {target.shape}")
    if isinstance(target, np.ndarray):
        target[...] = source
    else:
        target.set(np.ascontiguousarray(source, target.dtype))
