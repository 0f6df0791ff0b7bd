"""Codecs: a float32 (rows, cols) matrix to bytes and back.

Every codec keeps these promises:

* the sender's decoded copy equals the receiver's bit for bit, since the scale used for encoding is
  the rounded one that travels;
* codes saturate and never wrap;
* a zero block decodes exactly, and so does a constant one whose value float16 holds;
* any number of columns works, multiples of the block and of 8/bits or not: rows are packed one by one;
* NaN and Inf are refused with :class:`NonFiniteError`;
* the size in bytes is known from the shape, so that buffers and requests are made once.

==========  ====================================================================  ================
codec       what travels                                                          source
==========  ====================================================================  ================
``float32``  the values                                                           pdADMM-G
``grid``     indices into a fixed uniform set of 2^bits values, on which p and     pdADMM-G-Q
             q themselves are projected
``affine``   per row a float16 minimum and scale, codes with stochastic rounding   AdaQP
``delta``    the change since the last decoded copy, in blocks of up to 128        as AQ-SGD does
             columns with a float16 scale, nearest rounding; 1 bit is the sign     for activations
             times the mean absolute change
==========  ====================================================================  ================

The functions here are plain NumPy and serve as the reference for the fused kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pdadmm.admm.updates import namespace
from pdadmm.errors import InputError

__all__ = [
    "CODECS",
    "AffineCodec",
    "Codec",
    "DeltaCodec",
    "Float32Codec",
    "GridCodec",
    "NonFiniteError",
    "pack",
    "row_bytes",
    "uniform_hash",
    "unpack",
]

Array = Any

#: columns that share a scale in the delta codec
BLOCK = 128
_FLOAT16_MAX = np.float32(65504.0)


class NonFiniteError(ValueError):
    """NaN or Inf met while encoding."""


class Codec(Protocol):
    """What a coupling needs of a codec."""

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int: ...

    @property
    def lossless(self) -> bool:
        """Whether the decoded copy equals the encoded values, so that the sender needs none of its own."""
        ...

    def nbytes(self, rows: int, cols: int) -> int:
        """Size of a message, in bytes."""
        ...

    def encode(self, x: Array, hat: Array, out: Array, key: int) -> None:
        """Write the message for `x` into `out` and update the decoded copy `hat` in place.

        Parameters
        ----------
        x, hat
            (rows, cols) float32. `hat` may be `x` itself for a lossless codec.
        out
            (nbytes,) uint8.
        key
            Number that seeds stochastic rounding; the codecs that round to nearest ignore it.

        Raises
        ------
        NonFiniteError
            When `x` holds NaN or Inf.
        """
        ...

    def decode(self, message: Array, hat: Array) -> None:
        """Update `hat`, (rows, cols) float32, in place from a message of `nbytes` uint8."""
        ...


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


def uniform_hash(key: int, count: int, xp: Any = np) -> Array:
    """`count` float32 numbers in [0, 1) that depend on `key` and their index alone.

    A 32-bit integer hash of the index (the two-round xorshift-multiply of Ettinger, *Hash
    prospector*), so that any number of threads, on host or device, draws the same numbers. `xp` is the
    array module.
    """
    with np.errstate(over="ignore"):
        x = xp.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(key & 0xFFFFFFFF)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _inverse(scale: Array, levels: float) -> Array:
    """``levels / scale``, 0 where the scale is 0."""
    positive = scale > 0
    return np.where(positive, np.float32(levels) / np.where(positive, scale, np.float32(1)), np.float32(0))


def _refuse_nonfinite(x: Array) -> None:
    # on a GPU the answer would wait for the device: the norms of the next iteration's gradients tell
    if isinstance(x, np.ndarray) and not np.isfinite(x).all():
        raise NonFiniteError


@dataclass(frozen=True)
class Float32Codec:
    """The values themselves."""

    name = "float32"
    bits = 32
    lossless = True

    def nbytes(self, rows: int, cols: int) -> int:
        return 4 * rows * cols

    def encode(self, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        _refuse_nonfinite(x)
        out.view(np.float32)[:] = x.ravel()
        if hat is not x:
            hat[...] = x

    def decode(self, message: Array, hat: Array) -> None:
        hat[...] = message.view(np.float32).reshape(hat.shape)


@dataclass(frozen=True)
class GridCodec:
    """Indices into ``low, low + step, ..., high``, 2^bits values."""

    bits: int
    low: float
    high: float
    name = "grid"
    lossless = True

    def __post_init__(self) -> None:
        _check_bits("grid", self.bits, (8, 4, 2))
        if not self.low < self.high:
            raise InputError(
                f"the grid [{self.low}, {self.high}] is empty; give --grid-low below --grid-high"
            )

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
        _refuse_nonfinite(x)
        return self.values(self.codes(x))

    def encode(self, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        _refuse_nonfinite(x)
        codes = self.codes(x)
        out.reshape(x.shape[0], -1)[:] = pack(codes, self.bits)
        hat[...] = self.values(codes)

    def decode(self, message: Array, hat: Array) -> None:
        packed = message.reshape(hat.shape[0], -1)
        hat[...] = self.values(unpack(packed, hat.shape[1], self.bits))


@dataclass(frozen=True)
class AffineCodec:
    """Per row a minimum and a scale in float16, codes with stochastic rounding (AdaQP)."""

    bits: int
    name = "affine"
    lossless = False

    def __post_init__(self) -> None:
        _check_bits("affine", self.bits, (8, 4, 2))

    def nbytes(self, rows: int, cols: int) -> int:
        return 4 * rows + rows * row_bytes(cols, self.bits)

    def encode(self, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        _refuse_nonfinite(x)
        rows = len(x)
        head = out[: 4 * rows].view(np.float16).reshape(2, rows)
        # adding 0 turns -0 into +0, whose order in a minimum is not defined
        low = np.clip(x.min(axis=1), -_FLOAT16_MAX, _FLOAT16_MAX) + np.float32(0)
        half = low.astype(np.float16)
        # rounded down and up, so that the row's range is covered
        half = np.where(half.astype(np.float32) > low, np.nextafter(half, np.float16(-np.inf)), half)
        half = np.maximum(half, -np.float16(_FLOAT16_MAX))
        low = half.astype(np.float32)
        top = np.float32(2**self.bits - 1)
        wanted = np.minimum((x.max(axis=1) - low) / top, _FLOAT16_MAX) + np.float32(0)
        scale = wanted.astype(np.float16)
        scale = np.where(scale.astype(np.float32) < wanted, np.nextafter(scale, np.float16(np.inf)), scale)
        scale = np.minimum(scale, np.float16(_FLOAT16_MAX))
        head[0], head[1] = half, scale
        wide = scale.astype(np.float32)[:, None]
        t = (x - low[:, None]) * _inverse(wide, 1)
        code = np.floor(t + uniform_hash(key, x.size, namespace(x)).reshape(x.shape))
        codes = np.clip(code, 0, top).astype(np.uint8)
        out[4 * rows :].reshape(rows, -1)[:] = pack(codes, self.bits)
        hat[...] = low[:, None] + codes.astype(np.float32) * wide

    def decode(self, message: Array, hat: Array) -> None:
        rows, cols = hat.shape
        head = message[: 4 * rows].view(np.float16).astype(np.float32).reshape(2, rows)
        codes = unpack(message[4 * rows :].reshape(rows, -1), cols, self.bits)
        hat[...] = head[0][:, None] + codes.astype(np.float32) * head[1][:, None]


@dataclass(frozen=True)
class DeltaCodec:
    """The change since the last decoded copy, scaled per block of a row.

    ======  ==========================================  ======================================
    bits    levels, as multiples of the block's scale    scale
    ======  ==========================================  ======================================
    8       -127/127 ... 127/127                         largest absolute change
    4       -7/7 ... 7/7                                 largest absolute change
    2       -1, -1/3, 1/3, 1                             smaller of the largest and 3 times the
                                                         mean absolute change
    1       -1, 1                                        mean absolute change
    ======  ==========================================  ======================================

    What saturates or is rounded off is part of the next change, so that for a matrix that stands
    still the error shrinks with every message: by 3 at 2 bits, where a scale nearer to the mean
    would start lower (3 times: .46 of the change's standard deviation, 1.9 times: .34) but leave
    the outliers behind.
    """

    bits: int
    block: int = BLOCK
    name = "delta"
    lossless = False

    def __post_init__(self) -> None:
        _check_bits("delta", self.bits, (8, 4, 2, 1))

    def nbytes(self, rows: int, cols: int) -> int:
        return 2 * rows * self._blocks(cols) + rows * row_bytes(cols, self.bits)

    def _blocks(self, cols: int) -> int:
        return -(-cols // self.block)

    def _split(self, message: Array, rows: int, cols: int) -> tuple[Array, Array]:
        head = 2 * rows * self._blocks(cols)
        return message[:head].view(np.float16).reshape(rows, -1), message[head:].reshape(rows, -1)

    def _scales(self, change: Array) -> Array:
        """Float16 scales, (rows, blocks)."""
        cols = change.shape[1]
        size = self._in_blocks(np.abs(change))
        largest = size.max(axis=2)
        if self.bits > 2:
            scale = largest
        else:
            mean = self._means(size, largest, cols)
            scale = mean if self.bits == 1 else np.minimum(largest, np.float32(3) * mean)
        return np.minimum(scale, _FLOAT16_MAX).astype(np.float16)

    def _in_blocks(self, size: Array) -> Array:
        """(rows, blocks, block), the last block filled up with zeros."""
        rows, cols = size.shape
        blocks = self._blocks(cols)
        if cols != blocks * self.block:
            padded = namespace(size).zeros((rows, blocks * self.block), size.dtype)
            padded[:, :cols] = size
            size = padded
        return size.reshape(rows, blocks, self.block)

    def _means(self, size: Array, largest: Array, cols: int) -> Array:
        """Mean of every block, float32, (rows, blocks).

        Taken over the sizes in units of 2^(e-23), 2^e the power of two above the largest: sums of such
        integers are exact, so that any order of summation, on host or device, gives the same scale.
        """
        blocks = largest.shape[1]
        counts = namespace(size).full(blocks, self.block)
        counts[-1] = cols - (blocks - 1) * self.block
        exponent = np.maximum(np.frexp(largest)[1], -40)
        unit_inverse = np.ldexp(np.float32(1), 23 - exponent)
        units = np.floor(size * unit_inverse[:, :, None] + np.float32(0.5))
        total = units.sum(axis=2, dtype=np.float64)
        return (total / counts * np.ldexp(1.0, exponent - 23)).astype(np.float32)

    def _wide(self, scales: Array, cols: int) -> Array:
        return np.repeat(scales.astype(np.float32), self.block, axis=1)[:, :cols]

    def _values(self, codes: Array, scale: Array) -> Array:
        """Changes of unsigned codes, float32."""
        if self.bits == 1:
            return np.where(codes > 0, scale, -scale)
        if self.bits == 2:
            odd = codes.astype(np.float32) * np.float32(2) - np.float32(3)
            return scale * (odd * (np.float32(1) / np.float32(3)))
        top = 2 ** (self.bits - 1) - 1
        return scale * ((codes.astype(np.float32) - np.float32(top)) * (np.float32(1) / np.float32(top)))

    def _codes(self, change: Array, scale: Array) -> Array:
        """Unsigned codes of the nearest levels, saturating."""
        if self.bits == 1:
            return (change >= 0).astype(np.uint8)
        if self.bits == 2:
            t = change * _inverse(scale, 1.5)
            return np.clip(np.floor(t + np.float32(2)), 0, 3).astype(np.uint8)
        top = 2 ** (self.bits - 1) - 1
        t = change * _inverse(scale, top)
        return (np.clip(np.rint(t), -top, top) + top).astype(np.uint8)

    def encode(self, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        _refuse_nonfinite(x)
        rows, cols = x.shape
        scales, packed = self._split(out, rows, cols)
        change = x - hat
        scales[...] = self._scales(change)
        wide = self._wide(scales, cols)
        codes = self._codes(change, wide)
        packed[...] = pack(codes, self.bits)
        hat += self._values(codes, wide)

    def decode(self, message: Array, hat: Array) -> None:
        rows, cols = hat.shape
        scales, packed = self._split(message, rows, cols)
        hat += self._values(unpack(packed, cols, self.bits), self._wide(scales, cols))


#: bits each codec knows, widest first
CODECS: dict[str, tuple[int, ...]] = {
    "float32": (32,),
    "grid": (8, 4, 2),
    "affine": (8, 4, 2),
    "delta": (8, 4, 2, 1),
}


def _check_bits(name: str, bits: int, known: tuple[int, ...]) -> None:
    if bits not in known:
        raise InputError(
            f"codec {name} has no {bits}-bit form; --bits takes {', '.join(map(str, known))} with it"
        )
