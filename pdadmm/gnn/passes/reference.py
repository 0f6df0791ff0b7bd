"""The passes in array operations, in the precision of their arrays: the reference for the compiled ones."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from pdadmm.arrays import Array
from pdadmm.codec.rows import decode_rows, encode_rows, spans
from pdadmm.gnn.equations import (
    Moments,
    adam,
    dropout_keeps,
    hidden,
    hidden_backward,
    softmax_cross_entropy,
    variance_of_row,
)
from pdadmm.gnn.passes.changes import PlainChanges
from pdadmm.gnn.passes.protocol import Drop, Sparse

__all__ = ["ReferencePasses"]


class ReferencePasses(PlainChanges):
    """One operation at a time; see :class:`pdadmm.gnn.passes.protocol.Passes`."""

    name = "reference"

    def require_finite(self) -> None:
        """NaN and Inf are found when they are encoded."""

    def aggregate(self, matrix: Sparse, X: Array, out: Array, add: bool = False) -> None:
        first, last = int(matrix.indptr[0]), int(matrix.indptr[-1])
        parts = matrix.values[first:last], matrix.indices[first:last], matrix.indptr - first
        product = sp.csr_matrix(parts, shape=(matrix.rows, len(X))) @ X
        if add:
            out += product
        else:
            out[...] = product

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
        Z += bias
        found = hidden(Z, gamma, beta, self._kept(drop, nodes, Z), drop.first)
        N[...], inverse[...], H[...] = found[0], found[1][:, 0], found[2]

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
        kept = self._kept(drop, nodes, G)
        G[...], g_gamma, g_beta = hidden_backward(G, N, inverse[:, None], gamma, beta, kept, drop.first)
        sums[0] += g_gamma
        sums[1] += g_beta
        sums[2] += G.sum(axis=0, dtype=np.float64)

    def column_sums(self, G: Array, sums: Array) -> None:
        sums += G.sum(axis=0, dtype=np.float64)

    def encode_rows(self, X: Array, rows: Array, bits: int, key: int, out: Array) -> None:
        encode_rows(X, rows, bits, key, out)

    def decode_rows(self, message: Array, bits: int, rows: Array, X: Array) -> None:
        decode_rows(message, bits, rows, X)

    def add_variances(
        self, message: Array, bits: int, rows: Array, first: int, cols: int, sums: Array
    ) -> None:
        sums[rows - first] += variance_of_row(cols, spans(message, len(rows), bits))

    def softmax_loss(
        self, Z: Array, bias: Array, labels: Array, weight: float, G: Array
    ) -> tuple[float, int]:
        part = np.flatnonzero(labels >= 0)
        Z[part] += bias
        losses, gradient = softmax_cross_entropy(Z[part], labels[part])
        G[...] = 0
        G[part] = gradient * Z.dtype.type(weight)
        hits = Z[part].argmax(axis=1) == labels[part]
        return float(losses.sum(dtype=np.float64)), int(np.count_nonzero(hits))

    def adam(
        self, x: Array, gradient: Array, first: Array, second: Array, step: int, rate: float, decay: float
    ) -> None:
        adam(x, gradient, Moments(first, second), step, rate, decay)

    @staticmethod
    def _kept(drop: Drop, nodes: Array, like: Array) -> Array | None:
        """M in the precision of the layer."""
        if not drop.rate:
            return None
        keeps = dropout_keeps(drop.rate, drop.key, nodes, like.shape[1])
        return keeps * like.dtype.type(1 / (1 - drop.rate))
