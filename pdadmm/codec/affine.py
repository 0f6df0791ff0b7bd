"""The codec of AdaQP: a minimum and a scale per row, stochastic rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdadmm.arrays import Array, namespace
from pdadmm.codec.base import check_bits, refuse_nonfinite
from pdadmm.codec.packing import FLOAT16_MAX, inverse, pack, row_bytes, uniform_hash, unpack

__all__ = ["AffineCodec", "affine_heads"]


def affine_heads(least: Array, greatest: Array, bits: int) -> tuple[Array, Array]:
    """Minimum and scale of rows that hold values from `least` to `greatest`, (rows,) float32, as float16.

    Rounded down and up, so that the rows' ranges are covered.
    """
    # adding 0 turns -0 into +0, whose order in a minimum is not defined
    low = np.clip(least, -FLOAT16_MAX, FLOAT16_MAX) + np.float32(0)
    half = low.astype(np.float16)
    half = np.where(half.astype(np.float32) > low, np.nextafter(half, np.float16(-np.inf)), half)
    half = np.maximum(half, -np.float16(FLOAT16_MAX))
    wanted = (greatest - half.astype(np.float32)) / np.float32(2**bits - 1)
    wanted = np.minimum(wanted, FLOAT16_MAX) + np.float32(0)
    scale = wanted.astype(np.float16)
    scale = np.where(scale.astype(np.float32) < wanted, np.nextafter(scale, np.float16(np.inf)), scale)
    return half, np.minimum(scale, np.float16(FLOAT16_MAX))


@dataclass(frozen=True)
class AffineCodec:
    """Per row a minimum and a scale in float16, codes with stochastic rounding (AdaQP)."""

    bits: int
    name = "affine"
    lossless = False
    span = None

    def __post_init__(self) -> None:
        check_bits("affine", self.bits, (8, 4, 2))

    def nbytes(self, rows: int, cols: int) -> int:
        return 4 * rows + rows * row_bytes(cols, self.bits)

    def encode(self, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        refuse_nonfinite(x)
        rows = len(x)
        head = out[: 4 * rows].view(np.float16).reshape(2, rows)
        half, scale = affine_heads(x.min(axis=1), x.max(axis=1), self.bits)
        low, top = half.astype(np.float32), np.float32(2**self.bits - 1)
        head[0], head[1] = half, scale
        wide = scale.astype(np.float32)[:, None]
        t = (x - low[:, None]) * inverse(wide, 1)
        code = np.floor(t + uniform_hash(key, x.size, namespace(x)).reshape(x.shape))
        codes = np.clip(code, 0, top).astype(np.uint8)
        out[4 * rows :].reshape(rows, -1)[:] = pack(codes, self.bits)
        hat[...] = low[:, None] + codes.astype(np.float32) * wide

    def decode(self, message: Array, hat: Array) -> None:
        rows, cols = hat.shape
        head = message[: 4 * rows].view(np.float16).astype(np.float32).reshape(2, rows)
        codes = unpack(message[4 * rows :].reshape(rows, -1), cols, self.bits)
        hat[...] = head[0][:, None] + codes.astype(np.float32) * head[1][:, None]
