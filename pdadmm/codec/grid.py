"""The codec of pdADMM-G-Q: p and q themselves lie on a fixed uniform grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdadmm.arrays import Array
from pdadmm.codec.base import check_bits, refuse_nonfinite
from pdadmm.codec.packing import pack, row_bytes, unpack
from pdadmm.errors import InputError

__all__ = ["GridCodec"]


@dataclass(frozen=True)
class GridCodec:
    """Indices into ``low, low + step, ..., high``, 2^bits values."""

    bits: int
    low: float
    high: float
    name = "grid"
    lossless = True

    def __post_init__(self) -> None:
        check_bits("grid", self.bits, (8, 4, 2))
        if not self.low < self.high:
            raise InputError(
                f"the grid [{self.low}, {self.high}] is empty; give --grid-low below --grid-high"
            )

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return self.low, self.high

    @property
    def step(self) -> np.float32:
        """Distance of neighbouring values, float32."""
        return np.float32((self.high - self.low) / (2**self.bits - 1))

    def nbytes(self, rows: int, cols: int) -> int:
        return rows * row_bytes(cols, self.bits)

    def codes(self, x: Array) -> Array:
        """Index of the nearest value, saturating, uint8."""
        index = np.rint((x - np.float32(self.low)) * (np.float32(1) / self.step))
        return np.clip(index, 0, 2**self.bits - 1).astype(np.uint8)

    def values(self, codes: Array) -> Array:
        """Grid values of indices, float32."""
        return np.float32(self.low) + codes.astype(np.float32) * self.step

    def project(self, x: Array) -> Array:
        """Nearest grid value of every entry, float32.

        Raises
        ------
        NonFiniteError
            When `x` holds NaN or Inf.
        """
        refuse_nonfinite(x)
        return self.values(self.codes(x))

    def encode(self, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        refuse_nonfinite(x)
        codes = self.codes(x)
        out.reshape(x.shape[0], -1)[:] = pack(codes, self.bits)
        hat[...] = self.values(codes)

    def decode(self, message: Array, hat: Array) -> None:
        packed = message.reshape(hat.shape[0], -1)
        hat[...] = self.values(unpack(packed, hat.shape[1], self.bits))
