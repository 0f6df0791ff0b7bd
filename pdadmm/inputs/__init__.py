"""Inputs of training: features of graphs augmented, written, read and scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["FEATURE_NORMS", "Floats", "Ids"]

#: of --feature-norm, see `pdadmm.inputs.feature_norm`
FEATURE_NORMS = ("none", "row", "standard")

Floats: TypeAlias = "npt.NDArray[np.float32]"
Ids: TypeAlias = "npt.NDArray[np.int64]"
