"""Codecs and sums in array operations, of NumPy or of CuPy: what the compiled kernels are tested against."""

from __future__ import annotations

import numpy as np

from pdadmm.arrays import Array, Scalar, single, squared_norm
from pdadmm.arrays.groups import total
from pdadmm.codec import Codec

__all__ = ["PlainKernels"]


class PlainKernels:
    """One operation at a time, with temporaries of the arrays' size.

    Parameters
    ----------
    groups
        Of the rows, by which sums over them are formed (:mod:`pdadmm.arrays.groups`); 0: none.
    """

    name = "reference"

    def __init__(self, groups: int = 0) -> None:
        self.groups = groups

    def fuses(self, codec: Codec) -> bool:
        """Whether a codec has a compiled form here."""
        return False

    def require_finite(self) -> None:
        """Raise NonFiniteError if NaN or Inf was encoded since the last look, where encoding cannot.

        Nothing to look for: encoding on the host raises at once, and CuPy's operations note nothing.
        """

    def squared_norm(self, x: Array) -> Scalar:
        """Sum of squares, accumulated in float64."""
        return total(self.groups, squared_norm, x)

    def subtract(self, M: Array, H: Array, length: Scalar) -> None:
        """``M -= length * H``."""
        M -= single(length) * H

    def column_sums(self, x: Array) -> Array:
        """Sums over the rows, (cols,) float64.

        The compiled kernels return room that their next call writes over.
        """
        return total(self.groups, lambda rows: rows.sum(axis=0, dtype=np.float64), x)

    def column_squares(self, x: Array) -> Array:
        """Sums of squares over the rows, otherwise as :meth:`column_sums`."""
        return total(self.groups, lambda rows: np.square(rows).sum(axis=0, dtype=np.float64), x)

    def encode(self, codec: Codec, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        """Encode, see :meth:`pdadmm.codec.Codec.encode`."""
        codec.encode(x, hat, out, key)

    def decode(self, codec: Codec, message: Array, hat: Array) -> None:
        """Decode, see :meth:`pdadmm.codec.Codec.decode`."""
        codec.decode(message, hat)
