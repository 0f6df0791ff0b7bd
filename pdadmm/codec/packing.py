"""Codes to bytes and back, and the numbers that round them."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from pdadmm.arrays import Array, namespace

__all__ = ["FLOAT16_MAX", "inverse", "key_from", "pack", "row_bytes", "uniform_hash", "unpack"]

FLOAT16_MAX = np.float32(65504.0)
#: between the keys of numbers that follow each other; kernels/arithmetic.h has it too
_STRIDE = 0x9E3779B9


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of one packed row."""
    return (cols * bits + 7) // 8


def pack(codes: Array, bits: int) -> Array:
    """Pack unsigned codes below 2^bits, (rows, cols) uint8, into (rows, row_bytes) uint8.

    The first column takes the lowest bits of the first byte.
    """
    if bits == 8:
        return codes
    per_byte = 8 // bits
    rows, cols = codes.shape
    width = row_bytes(cols, bits)
    if cols != width * per_byte:
        padded = namespace(codes).zeros((rows, width * per_byte), np.uint8)
        padded[:, :cols] = codes
        codes = padded
    out = codes[:, 0::per_byte].copy()
    for i in range(1, per_byte):
        out |= codes[:, i::per_byte] << np.uint8(i * bits)
    return out


def unpack(packed: Array, cols: int, bits: int) -> Array:
    """Inverse of :func:`pack`: (rows, row_bytes) uint8 to (rows, cols) uint8."""
    if bits == 8:
        return packed
    per_byte = 8 // bits
    mask = np.uint8((1 << bits) - 1)
    out = namespace(packed).empty((packed.shape[0], packed.shape[1] * per_byte), np.uint8)
    for i in range(per_byte):
        out[:, i::per_byte] = (packed >> np.uint8(i * bits)) & mask
    return out[:, :cols]


def uniform_hash(key: int, count: int, xp: ModuleType = np) -> Array:
    """`count` float32 numbers in [0, 1) that depend on `key` and their index alone.

    A 32-bit integer hash of the index (the two-round xorshift-multiply of Ettinger, *Hash
    prospector*), so that any number of threads, on host or device, draws the same numbers. `xp` is the
    array module.
    """
    with np.errstate(over="ignore"):
        x = xp.arange(count, dtype=np.uint32) * np.uint32(_STRIDE) + np.uint32(key & 0xFFFFFFFF)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def key_from(key: int, index: int) -> int:
    """The key whose numbers are those of `key` from an index on."""
    return (key + index * _STRIDE) & 0xFFFFFFFF


def inverse(scale: Array, levels: float) -> Array:
    """``levels / scale``, 0 where the scale is 0."""
    positive = scale > 0
    return np.where(positive, np.float32(levels) / np.where(positive, scale, np.float32(1)), np.float32(0))
