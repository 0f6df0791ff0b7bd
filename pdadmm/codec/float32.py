"""The codec of pdADMM-G: no coding at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdadmm.arrays import Array
from pdadmm.codec.base import refuse_nonfinite

__all__ = ["Float32Codec"]


@dataclass(frozen=True)
class Float32Codec:
    """The values themselves."""

    name = "float32"
    bits = 32
    lossless = True
    span = None

    def nbytes(self, rows: int, cols: int) -> int:
        return 4 * rows * cols

    def encode(self, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        refuse_nonfinite(x)
        out.view(np.float32)[:] = x.ravel()
        if hat is not x:
            hat[...] = x

    def decode(self, message: Array, hat: Array) -> None:
        hat[...] = message.view(np.float32).reshape(hat.shape)
