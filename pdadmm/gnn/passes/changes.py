"""Rows that travel as changes, in the array operations of their codec."""

from __future__ import annotations

from pdadmm.arrays import Array
from pdadmm.codec import DeltaCodec

__all__ = ["PlainChanges"]


class PlainChanges:
    """Part of :class:`pdadmm.gnn.passes.protocol.Passes`, for those without a kernel for it."""

    def encode_change(self, X: Array, rows: Array, codec: DeltaCodec, hat: Array, out: Array) -> None:
        codec.encode(X[rows], hat, out)

    def decode_change(self, message: Array, rows: Array, codec: DeltaCodec, hat: Array, X: Array) -> None:
        codec.decode(message, hat)
        X[rows] = hat
