"""The passes on a GPU: ``kernels/graph_passes.cu``, compiled by CuPy at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays import DeviceArray as Array
from pdadmm.arrays import Scalar
from pdadmm.codec.rows import FLOAT32, WIDTHS, row_message_bytes
from pdadmm.gnn.equations import ADAM_EPSILON, ADAM_FIRST, ADAM_SECOND, dropout_threshold
from pdadmm.gnn.passes.changes import PlainChanges
from pdadmm.gnn.passes.protocol import Drop, Sparse
from pdadmm.kernels.cuda import BLOCK, MOST_BLOCKS, CudaLibrary, row_blocks

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["CudaPasses"]

_SOURCE = "graph_passes.cu"
#: threads that a row of the hidden layers and of the loss has; LANES of the kernels
_LANES = 16
_GROUPS = BLOCK // _LANES
#: rows that a block of the backward pass takes at a time; ROWS of the kernels
_ROWS = 4 * _GROUPS
#: blocks that leave sums over rows, at most: what is added up by one thread a column
_MOST_SHARES = 256


class CudaPasses(CudaLibrary, PlainChanges):
    """Kernels on CuPy arrays; methods and results as in :class:`pdadmm.gnn.passes.protocol.Passes`.

    Nothing here waits for the device: loss and hits come back as 0-d float64 arrays, and NaN or Inf in a
    message does not raise; :meth:`require_finite` looks for it. Arrays are C-contiguous. The values of
    integers are not looked at: a row outside its matrix is read or written beyond it.
    """

    def _run(self, kernel: str, grid: tuple[int, ...], *arguments: object) -> None:
        self._start(_SOURCE, kernel, grid, *arguments)

    def _totals(self, partial: Array, shares: int, sums: Array, add: bool) -> None:
        """Add up the sums of some blocks; `sums` (count,) or (k, count) float64, as in `partial`."""
        count = sums.size
        self._run(
            "column_totals", (_blocks(count, BLOCK),),
            partial, np.int64(shares), np.int64(count), sums, np.int32(add),
        )  # fmt: skip

    # ---- passes -------------------------------------------------------------------------------------

    def aggregate(self, matrix: Sparse, X: Array, out: Array, add: bool = False) -> None:
        rows, cols = out.shape
        if X.shape[1] != cols:
            raise ValueError(f"{X.shape[1]} columns of the factor and {cols} of the product differ")
        _require(np.float32, matrix.values, X, out)
        _require(np.int64, matrix.indptr, shape=(rows + 1,))
        _require(np.int32, matrix.indices, shape=matrix.values.shape)
        if not out.size:
            return
        lanes = next(width for width in (4, 8, 16, 32) if 4 * width >= cols or width == 32)
        self._run(
            f"aggregate{lanes}", (_blocks(rows, BLOCK // lanes), -(-cols // (4 * lanes))),
            matrix.indptr, matrix.indices, matrix.values, X, out, np.int64(rows), np.int64(cols),
            np.int32(add),
        )  # fmt: skip

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
        _require(np.float32, Z, N, H, shape=Z.shape)
        _require(np.float32, bias, gamma, beta, shape=(cols,))
        _require(np.float32, inverse, shape=(rows,))
        _require(np.int64, nodes, shape=(rows,))
        if rows:
            self._run(
                "hidden", (_blocks(rows, _GROUPS),),
                Z, bias, gamma, beta, nodes, N, inverse, H, np.int64(rows), np.int64(cols), *_dropout(drop),
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
        _require(np.float32, G, N, shape=G.shape)
        _require(np.float32, gamma, beta, shape=(cols,))
        _require(np.float32, inverse, shape=(rows,))
        _require(np.int64, nodes, shape=(rows,))
        _require(np.float64, sums, shape=(3, cols))
        if not rows:
            return
        shares = min(_blocks(rows, _ROWS), _MOST_SHARES)
        partial = self._scratch("columns", shares * 3 * cols, np.float64)
        self._run(
            "hidden_backward", (shares,),
            G, N, inverse, gamma, beta, nodes, np.int64(rows), np.int64(cols), *_dropout(drop), partial,
        )  # fmt: skip
        self._totals(partial, shares, sums, add=True)

    def column_sums(self, G: Array, sums: Array) -> None:
        rows, cols = G.shape
        _require(np.float32, G)
        _require(np.float64, sums, shape=(cols,))
        if not rows:
            return
        shares = min(_blocks(rows, _ROWS), _MOST_SHARES)
        partial = self._scratch("columns", shares * cols, np.float64)
        self._run("column_sums", (-(-cols // 32), shares), G, np.int64(rows), np.int64(cols), partial)
        self._totals(partial, shares, sums, add=True)

    def encode_rows(self, X: Array, rows: Array, bits: int, key: int, out: Array) -> None:
        count, cols = len(rows), X.shape[1]
        _require_message(out, count, cols, bits)
        _require(np.float32, X)
        _require(np.int32, rows, shape=(count,))
        if not count:
            return
        shape = np.int64(count), np.int64(cols)
        blocks = row_blocks(count)
        if bits == FLOAT32:
            self._run("gather_rows", (blocks,), X, rows, out, *shape, self._bad)
            return
        partial = self._scratch("largest", MOST_BLOCKS, np.int32)
        self._run("row_largest", (blocks,), X, rows, *shape, partial, self._bad)
        self._run(
            "encode_rows", (blocks,),
            X, rows, out, *shape, np.int32(bits), np.uint32(key & 0xFFFFFFFF), partial, np.int32(blocks),
        )  # fmt: skip

    def decode_rows(self, message: Array, bits: int, rows: Array, X: Array) -> None:
        count, cols = len(rows), X.shape[1]
        _require_message(message, count, cols, bits)
        _require(np.float32, X)
        _require(np.int32, rows, shape=(count,))
        if not count:
            return
        shape = np.int64(count), np.int64(cols)
        if bits == FLOAT32:
            self._run("scatter_rows", (row_blocks(count),), message, rows, X, *shape)
        else:
            self._run("decode_rows", (row_blocks(count),), message, rows, X, *shape, np.int32(bits))

    def add_variances(
        self, message: Array, bits: int, rows: Array, first: int, cols: int, sums: Array
    ) -> None:
        count = len(rows)
        _require_message(message, count, cols, bits)
        _require(np.int32, rows, shape=(count,))
        _require(np.float64, sums)
        if count:
            self._run(
                "add_variances", (_blocks(count, BLOCK),),
                message, rows, sums, np.int64(count), np.int64(cols), np.int32(bits), np.int64(first),
            )  # fmt: skip

    def softmax_loss(
        self, Z: Array, bias: Array, labels: Array, weight: float, G: Array
    ) -> tuple[Scalar, Scalar]:
        rows, cols = Z.shape
        _require(np.float32, Z, G, shape=Z.shape)
        _require(np.float32, bias, shape=(cols,))
        _require(np.int64, labels, shape=(rows,))
        found = self._cupy.zeros(2, np.float64)
        if rows:
            blocks = _blocks(rows, _GROUPS)
            partial = self._scratch("loss", 2 * MOST_BLOCKS, np.float64)
            self._run(
                "softmax_loss", (blocks,),
                Z, bias, labels, np.float32(weight), G, np.int64(rows), np.int64(cols), partial,
            )  # fmt: skip
            self._totals(partial, blocks, found, add=False)
        return found[0], found[1]

    def adam(
        self, x: Array, gradient: Array, first: Array, second: Array, step: int, rate: float, decay: float
    ) -> None:
        _require(np.float32, x, gradient, first, second, shape=x.shape)
        if not x.size:
            return
        numbers = (
            decay, ADAM_FIRST, 1 - ADAM_FIRST, ADAM_SECOND, 1 - ADAM_SECOND,
            1 - ADAM_SECOND**step, rate / (1 - ADAM_FIRST**step), ADAM_EPSILON,
        )  # fmt: skip
        self._run(
            "adam", (_blocks(x.size, BLOCK),),
            x, gradient, first, second, np.int64(x.size), *map(np.float32, numbers),
        )  # fmt: skip


def _blocks(count: int, each: int) -> int:
    """Blocks for `each` of them a block."""
    return max(1, min(-(-count // each), MOST_BLOCKS))


def _dropout(drop: Drop) -> tuple[np.int32, np.int32, np.float32, np.uint32]:
    """What the kernels of hidden layers are told of dropout."""
    scale = 1 / (1 - drop.rate) if drop.rate else 1.0
    key = np.uint32(drop.key & 0xFFFFFFFF)
    return np.int32(dropout_threshold(drop.rate)), np.int32(drop.first), np.float32(scale), key


def _require(dtype: npt.DTypeLike, *arrays: Array, shape: tuple[int, ...] | None = None) -> None:
    """Refuse what the kernels cannot read, with TypeError, and other shapes, with ValueError."""
    for x in arrays:
        if x.dtype != dtype or not x.flags.c_contiguous:
            raise TypeError(f"{x.dtype} where the CUDA kernels take C-contiguous {np.dtype(dtype)}")
        if shape is not None and x.shape != shape:
            raise ValueError(f"an array of shape {x.shape} where {shape} is wanted")


def _require_message(message: Array, rows: int, cols: int, bits: int) -> None:
    """Refuse a message of another size or place than its rows take."""
    if bits != FLOAT32 and bits not in WIDTHS:
        raise ValueError(f"messages have no {bits}-bit form")
    _require(np.uint8, message)
    wanted = row_message_bytes(rows, cols, bits)
    if message.nbytes != wanted or (wanted and message.data.ptr % 4):
        raise ValueError(
            f"a message of {message.nbytes} bytes for {rows} x {cols} entries at {bits} bits, which takes "
            f"{wanted} at a multiple of 4"
        )
