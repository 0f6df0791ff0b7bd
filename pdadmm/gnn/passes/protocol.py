"""What the layers of a graph network ask of the passes between their products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pdadmm.arrays import Array, Scalar
from pdadmm.arrays.backend import Backend
from pdadmm.codec import DeltaCodec

__all__ = ["Drop", "Passes", "Sparse"]


@dataclass(frozen=True)
class Sparse:
    """A matrix whose rows are sums over neighbours, in CSR.

    A row's entries are added in the order in which they are stored, whatever the thread, so that a row has
    the same bits wherever it is computed.

    Parameters
    ----------
    indptr
        (rows + 1,) int64; the first need not be 0.
    indices
        (entries,) int32, rows of the factor.
    values
        (entries,) float32, or float64 where the passes compute in it.
    """

    indptr: Array
    indices: Array
    values: Array

    @property
    def rows(self) -> int:
        """Rows of the product."""
        return len(self.indptr) - 1

    def between(self, first: int, last: int) -> Sparse:
        """Rows `first` to `last` - 1, sharing the entries."""
        return Sparse(self.indptr[first : last + 1], self.indices, self.values)

    def to(self, backend: Backend) -> Sparse:
        """The same where a backend computes."""
        return Sparse(*(backend.asarray(x) for x in (self.indptr, self.indices, self.values)))


@dataclass(frozen=True)
class Drop:
    """Dropout of a hidden layer.

    Parameters
    ----------
    rate
        Share of the entries that is dropped; 0 where nothing is.
    key
        Of :func:`pdadmm.gnn.equations.dropout_keeps`.
    first
        Before the norm, AdaQP's order, instead of after the activation.
    """

    rate: float
    key: int
    first: bool


class Passes(Protocol):
    """The passes; all of them are deterministic, and none depends on the number of threads."""

    name: str  #: ``fused`` or ``reference``

    def require_finite(self) -> None:
        """Look whether messages on a device have had NaN or Inf since the last look; waits for the device.

        Raises
        ------
        pdadmm.codec.NonFiniteError
        """
        ...

    def aggregate(self, matrix: Sparse, X: Array, out: Array, add: bool = False) -> None:
        """``out = matrix X``, or ``out += matrix X``; X (n, m), out (rows, m)."""
        ...

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
        """Bias, norm, activation, dropout of some rows: :func:`pdadmm.gnn.equations.hidden` of ``Z + bias``.

        Parameters
        ----------
        Z
            (n, m), overwritten.
        nodes
            (n,) int64, numbers of the nodes in the data set.
        N, inverse, H
            Results, (n, m), (n,), (n, m); N may be Z.
        """
        ...

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
        """:func:`pdadmm.gnn.equations.hidden_backward` of some rows, in place of G, (n, m).

        Parameters
        ----------
        sums
            (3, m) float64: the sums over these rows for gamma, beta and the bias (of G_Z) are added to it.
        """
        ...

    def column_sums(self, G: Array, sums: Array) -> None:
        """Add the sums over the rows of G, (n, m), to `sums`, (m,) float64."""
        ...

    def encode_rows(self, X: Array, rows: Array, bits: int, key: int, out: Array) -> None:
        """Write the message of some rows of X, (n, m), see :mod:`pdadmm.codec.rows`.

        Parameters
        ----------
        rows
            (k,) int32, which.
        bits
            8, 4, 2 or 1; 32 for the values as they are.
        key
            Seeds the stochastic rounding.
        out
            (row_message_bytes(k, m, bits),) uint8, at a multiple of 4 bytes.

        Raises
        ------
        pdadmm.codec.NonFiniteError
        """
        ...

    def decode_rows(self, message: Array, bits: int, rows: Array, X: Array) -> None:
        """Write the rows of a message into rows `rows`, (k,) int32, of X, (n, m)."""
        ...

    def encode_change(self, X: Array, rows: Array, codec: DeltaCodec, hat: Array, out: Array) -> None:
        """Write the change of some rows of X, (n, m), since `hat`, (k, m) float32, which takes it over.

        Parameters
        ----------
        rows
            (k,) int32, which.
        out
            (codec.nbytes(k, m),) uint8.

        Raises
        ------
        pdadmm.codec.NonFiniteError
        """
        ...

    def decode_change(self, message: Array, rows: Array, codec: DeltaCodec, hat: Array, X: Array) -> None:
        """Add the change in a message to `hat`, (k, m), and write it into rows `rows` of X, (n, m)."""
        ...

    def add_variances(
        self, message: Array, bits: int, rows: Array, first: int, cols: int, sums: Array
    ) -> None:
        """Add the variances at 1 bit of a message's rows: :func:`pdadmm.gnn.equations.variance_of_row`.

        Parameters
        ----------
        message, bits, rows
            As in :meth:`decode_rows`; not at 32 bits.
        first
            Row of the matrix whose sum is the first one of `sums`.
        cols
            Entries of a row.
        sums
            (h,) float64.
        """
        ...

    def softmax_loss(
        self, Z: Array, bias: Array, labels: Array, weight: float, G: Array
    ) -> tuple[Scalar, Scalar]:
        """Loss, hits and gradient of the output layer: :func:`pdadmm.gnn.equations.softmax_cross_entropy`.

        Parameters
        ----------
        Z
            (n, classes). The bias is added in place to the rows that take part, and to no other.
        labels
            (n,) int64; -1 where a row takes no part.
        weight
            Of the loss in the gradient.
        G
            Result, (n, classes): `weight` times the gradient of the summed loss before the bias, 0 in the
            rows without part.

        Returns
        -------
        loss, hits
            Sum over the rows that take part, unweighted, in float64; how many of them have their largest
            entry, the first of equal ones, at their label. On a device both stay there.
        """
        ...

    def adam(
        self, x: Array, gradient: Array, first: Array, second: Array, step: int, rate: float, decay: float
    ) -> None:
        """:func:`pdadmm.gnn.equations.adam` on flat arrays, in place of `x`, `first` and `second`."""
        ...
