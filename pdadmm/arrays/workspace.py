"""Scratch arrays of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.arrays.helpers import Array

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Workspace"]


class Workspace:
    """Scratch arrays by name, shape and type, shared by the layers of a rank, made once a stage.

    Attributes
    ----------
    backend
        Of the arrays.
    """

    def __init__(self, backend: Backend = NUMPY) -> None:
        self.backend = backend
        self._arrays: dict[tuple[str, tuple[int, ...], np.dtype], Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
        """The array of that name, shape and type; what is in it is up to who used it last."""
        key = (name, shape, np.dtype(dtype))
        if key not in self._arrays:
            self._arrays[key] = self.backend.empty(shape, dtype)
        return self._arrays[key]
