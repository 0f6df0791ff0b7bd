"""The passes on CPUs: calls into the compiled library of ``kernels/``."""

from __future__ import annotations

import ctypes
import struct

import numpy as np

from pdadmm.arrays import Array
from pdadmm.codec import DeltaCodec, NonFiniteError
from pdadmm.codec.rows import FLOAT32, WIDTHS, row_message_bytes, spans
from pdadmm.gnn.equations import ADAM_EPSILON, ADAM_FIRST, ADAM_SECOND, dropout_threshold, variance_of_row
from pdadmm.gnn.passes.protocol import Drop, Sparse
from pdadmm.kernels.host import HostKernels, same_shape
from pdadmm.kernels.sparse import SparseLibrary

__all__ = ["HostPasses"]

_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_DROPOUT = "2qdq"
_HIDDEN = struct.Struct("=10q" + _DROPOUT).pack
_HIDDEN_BACKWARD = struct.Struct("=9q" + _DROPOUT).pack
_COLUMN_SUMS = struct.Struct("=5q").pack
_ENCODE_ROWS = struct.Struct("=7q").pack
_DECODE_ROWS = struct.Struct("=6q").pack
_SOFTMAX_LOSS = struct.Struct("=5qd2q").pack
_ADAM = struct.Struct("=6q8d").pack


class HostPasses(SparseLibrary):
    """The compiled passes; methods and results as in :class:`pdadmm.gnn.passes.protocol.Passes`.

    Arrays are C-contiguous. Those of rows, nodes, labels and the adjacency are checked when they are first
    seen and must not change afterwards; the rows that a message is decoded into are different ones.
    """

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        integer = ctypes.c_int
        self._hidden = self._function("hidden_layer", integer)
        self._hidden_backward = self._function("hidden_layer_backward", integer)
        self._column_sums = self._function("column_sums", integer)
        self._encode_rows = self._function("encode_rows", integer)
        self._decode_rows = self._function("decode_rows", integer)
        self._softmax_loss = self._function("softmax_loss", integer)
        self._adam = self._function("adam", integer)
        self._changes = HostKernels(threads)
        self._loss = np.zeros(2)
        self._loss_address = self._loss.ctypes.data

    # ---- arguments ----------------------------------------------------------------------------------

    def _dropout(self, drop: Drop) -> tuple[int, bool, float, int]:
        """What the structs of hidden layers say of dropout."""
        scale = 1 / (1 - drop.rate) if drop.rate else 1.0
        return dropout_threshold(drop.rate), drop.first, scale, drop.key & 0xFFFFFFFF

    def _message_address(self, message: Array, rows: int, cols: int, bits: int) -> int:
        if bits != FLOAT32 and bits not in WIDTHS:
            raise ValueError(f"messages have no {bits}-bit form")
        wanted = row_message_bytes(rows, cols, bits)
        address = self._address(message)
        if message.nbytes != wanted or address % 4:
            raise ValueError(
                f"a message of {message.nbytes} bytes at {address:#x} for {rows} x {cols} entries at {bits} "
                f"bits, which takes {wanted} at a multiple of 4"
            )
        return address

    # ---- passes -------------------------------------------------------------------------------------

    def aggregate(self, matrix: Sparse, X: Array, out: Array, add: bool = False) -> None:
        self.multiply(matrix.indptr, matrix.indices, matrix.values, X, out, add)

    def hidden(
        self,
        Z: Array,
        bias: Array,
        gamma: Array,
        beta: Array,
        nodes: Array,
        drop: Drop,
        N: Array,
        inverse: Array,
        H: Array,
    ) -> None:
        rows, cols = Z.shape
        same_shape(Z, N, H)
        _require(bias, gamma, beta, length=cols)
        _require(inverse, length=rows)
        at = self._address
        self._hidden(
            _HIDDEN(
                rows, cols, at(Z), at(bias), at(gamma), at(beta),
                self._integer_address(nodes, _INT64, rows, 1 << 32), at(N), at(inverse), at(H),
                *self._dropout(drop),
            )
        )  # fmt: skip

    def hidden_backward(
        self,
        G: Array,
        N: Array,
        inverse: Array,
        gamma: Array,
        beta: Array,
        nodes: Array,
        drop: Drop,
        sums: Array,
    ) -> None:
        rows, cols = G.shape
        same_shape(G, N)
        _require(gamma, beta, length=cols)
        _require(inverse, length=rows)
        found, found_address = self._column_room(3 * cols)
        at = self._address
        self._hidden_backward(
            _HIDDEN_BACKWARD(
                rows, cols, at(G), at(N), at(inverse), at(gamma), at(beta),
                self._integer_address(nodes, _INT64, rows, 1 << 32), found_address, *self._dropout(drop),
            )
        )  # fmt: skip
        sums += found.reshape(3, cols)

    def column_sums(self, G: Array, sums: Array) -> None:
        rows, cols = G.shape
        found, found_address = self._column_room(cols)
        self._column_sums(_COLUMN_SUMS(rows, cols, self._address(G), found_address, 0))
        sums += found

    def encode_rows(self, X: Array, rows: Array, bits: int, key: int, out: Array) -> None:
        count, cols = len(rows), X.shape[1]
        chosen = self._integer_address(rows, _INT32, count, len(X))
        message = self._message_address(out, count, cols, bits)
        if self._encode_rows(
            _ENCODE_ROWS(count, cols, self._address(X), chosen, message, bits, key & 0xFFFFFFFF)
        ):
            raise NonFiniteError

    def decode_rows(self, message: Array, bits: int, rows: Array, X: Array) -> None:
        count, cols = len(rows), X.shape[1]
        chosen = self._integer_address(rows, _INT32, count, len(X))
        at = self._message_address(message, count, cols, bits)
        self._decode_rows(_DECODE_ROWS(count, cols, at, chosen, self._address(X), bits))

    def require_finite(self) -> None:
        """NaN and Inf are found when they are encoded."""

    def encode_change(self, X: Array, rows: Array, codec: DeltaCodec, hat: Array, out: Array) -> None:
        self._changes.encode(codec, X[rows], hat, out)

    def decode_change(self, message: Array, rows: Array, codec: DeltaCodec, hat: Array, X: Array) -> None:
        self._changes.decode(codec, message, hat)
        X[rows] = hat

    def add_variances(
        self, message: Array, bits: int, rows: Array, first: int, cols: int, sums: Array
    ) -> None:
        sums[rows - first] += variance_of_row(cols, spans(message, len(rows), bits))

    def softmax_loss(
        self, Z: Array, bias: Array, labels: Array, weight: float, G: Array
    ) -> tuple[float, int]:
        rows, cols = Z.shape
        same_shape(Z, G)
        _require(bias, length=cols)
        at = self._address
        self._softmax_loss(
            _SOFTMAX_LOSS(
                rows, cols, at(Z), at(bias), self._integer_address(labels, _INT64, rows, cols, least=-1),
                weight, at(G), self._loss_address,
            )
        )  # fmt: skip
        return float(self._loss[0]), int(self._loss[1])

    def adam(
        self, x: Array, gradient: Array, first: Array, second: Array, step: int, rate: float, decay: float
    ) -> None:
        same_shape(x, gradient, first, second)
        at = self._address
        self._adam(
            _ADAM(
                x.size, 1, at(x), at(gradient), at(first), at(second),
                decay, ADAM_FIRST, 1 - ADAM_FIRST, ADAM_SECOND, 1 - ADAM_SECOND,
                1 - ADAM_SECOND**step, rate / (1 - ADAM_FIRST**step), ADAM_EPSILON,
            )
        )  # fmt: skip


def _require(*vectors: Array, length: int) -> None:
    """Refuse vectors of another length, with ValueError."""
    for x in vectors:
        if x.shape != (length,):
            raise ValueError(f"a vector of shape {x.shape} where ({length},) is wanted")
