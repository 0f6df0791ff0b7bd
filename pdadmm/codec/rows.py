"""Messages of a graph network: chosen rows of a matrix, each as a minimum, a scale and codes of few bits.

The affine rows of AdaQP with stochastic rounding, unbiased at every width, for values of any size: a
message has a power of two by which its heads are scaled, so that in float16 neither the minima of large
activations overflow nor the scales of small gradients vanish. A message of k rows of m entries is, in
this order::

    int32               exponent e
    float16 (k,)        minima, times 2^-e, rounded down
    float16 (k,)        scales, times 2^-e, rounded up
    uint8 (k, ceil(m bits / 8))   codes, the first column in the lowest bits of the first byte
    padding to a multiple of 4 bytes

An entry is ``(minimum + code scale) 2^e``. At 32 bits a message is the rows themselves, float32.
"""

from __future__ import annotations

import numpy as np

from pdadmm.codec.affine import affine_heads
from pdadmm.codec.base import refuse_nonfinite
from pdadmm.codec.packing import inverse, pack, row_bytes, uniform_hash, unpack

__all__ = ["FLOAT32", "WIDTHS", "decode_rows", "encode_rows", "row_message_bytes", "spans"]

#: bits of an entry
WIDTHS = (8, 4, 2, 1)
#: stands among the widths for rows that travel as they are
FLOAT32 = 32

#: heads are at most 2^14 times 2^e, so that a difference of two fits float16
_HEAD_EXPONENT = 14
#: so that 2^-e is a float32
_LEAST_EXPONENT = -126
_START = 4


def row_message_bytes(rows: int, cols: int, bits: int) -> int:
    """Size of a message, a multiple of 4; 0 without rows."""
    if not rows:
        return 0
    if bits == FLOAT32:
        return 4 * rows * cols
    return -(-(_START + 4 * rows + rows * row_bytes(cols, bits)) // 4) * 4


def encode_rows(X: np.ndarray, rows: np.ndarray, bits: int, key: int, out: np.ndarray) -> None:
    """Write the message of some rows.

    Parameters
    ----------
    X
        (n, m) float32.
    rows
        (k,) integers, k > 0.
    bits
        One of :data:`WIDTHS`, or :data:`FLOAT32`.
    key
        Below 2^32; rounding draws a hash of it and of the place in the message.
    out
        (row_message_bytes(k, m, bits),) uint8.

    Raises
    ------
    pdadmm.codec.NonFiniteError
    """
    x = X[rows]
    refuse_nonfinite(x)
    count, cols = x.shape
    if bits == FLOAT32:
        out.view(np.float32).reshape(count, cols)[:] = x
        return
    out[:_START].view(np.int32)[0] = exponent = _exponent(x)
    with np.errstate(under="ignore"):
        x = x * np.float32(2.0**-exponent)
    heads = out[_START : _START + 4 * count].view(np.float16).reshape(2, count)
    heads[0], heads[1] = affine_heads(x.min(axis=1), x.max(axis=1), bits)
    low, scale = heads[0].astype(np.float32)[:, None], heads[1].astype(np.float32)[:, None]
    code = np.floor((x - low) * inverse(scale, 1) + uniform_hash(key, x.size).reshape(x.shape))
    codes = np.clip(code, 0, 2**bits - 1).astype(np.uint8)
    packed = pack(codes, bits).reshape(-1)
    end = _START + 4 * count
    out[end : end + packed.size] = packed
    out[end + packed.size :] = 0


def decode_rows(message: np.ndarray, bits: int, rows: np.ndarray, X: np.ndarray) -> None:
    """Write the rows of a message of :func:`encode_rows` into rows `rows` of X, (n, m) float32."""
    count, cols = len(rows), X.shape[1]
    if bits == FLOAT32:
        X[rows] = message.view(np.float32).reshape(count, cols)
        return
    up = np.float32(2.0 ** int(message[:_START].view(np.int32)[0]))
    end = _START + 4 * count
    heads = message[_START:end].view(np.float16).reshape(2, count).astype(np.float32)
    packed = message[end : end + count * row_bytes(cols, bits)].reshape(count, -1)
    codes = unpack(packed, cols, bits).astype(np.float32)
    X[rows] = (heads[0][:, None] + codes * heads[1][:, None]) * up


def spans(message: np.ndarray, rows: int, bits: int) -> np.ndarray:
    """Largest less smallest entry of every row of a message as its head has them, (rows,) float64."""
    up = 2.0 ** int(message[:_START].view(np.int32)[0])
    scales = message[_START + 2 * rows : _START + 4 * rows].view(np.float16)
    return scales.astype(np.float64) * (up * (2**bits - 1))


def _exponent(x: np.ndarray) -> int:
    """Power of two by which a message is scaled."""
    most = max(abs(float(x.max(initial=0))), abs(float(x.min(initial=0))))
    return max(int(np.frexp(most)[1]) - _HEAD_EXPONENT, _LEAST_EXPONENT) if most else 0
