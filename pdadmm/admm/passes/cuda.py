"""The passes on a GPU: ``kernels/*.cu``, compiled by CuPy at run time.

Nothing here waits for the device, see :mod:`pdadmm.kernels.cuda`.
"""

from __future__ import annotations

import numpy as np

from pdadmm.admm.activations import Activation
from pdadmm.admm.passes.lengths import DeviceLengths, Lengths
from pdadmm.admm.passes.protocol import Coupled, HiddenSums, Workspace
from pdadmm.admm.passes.reference import ReferencePasses
from pdadmm.admm.updates import RidgeSystem
from pdadmm.arrays import DeviceArray as Array
from pdadmm.arrays import Scalar
from pdadmm.codec.base import require_size
from pdadmm.kernels.cuda import (
    BLOCK,
    MOST_BLOCKS,
    NULL,
    CudaKernels,
    check,
    flat_blocks,
    length_arguments,
    row_blocks,
)

__all__ = ["CudaPasses"]


class CudaPasses(CudaKernels):
    """The passes on CuPy arrays; methods and results as in :class:`pdadmm.admm.passes.protocol.Passes`.

    Activations other than ReLU and leaky ReLU have no compiled z-update, and codecs without kernels no
    compiled form at all: CuPy's operations run for them, as for the exact solver.
    """

    centres = True

    def __init__(self) -> None:
        super().__init__()
        self.lengths: Lengths = DeviceLengths()
        self._reference = ReferencePasses(self.lengths)

    # ---- sums and steps -----------------------------------------------------------------------------

    def weight_gradient(self, G: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> Array:
        anchored = not np.isscalar(W_bar)
        check(G, W, *((W_bar,) if anchored else ()))
        return self._with_sums(
            "weight_gradient_pass", flat_blocks(G.size), 1,
            G, W, W_bar if anchored else NULL, np.float32(nu), np.float32(mu), np.int64(G.size),
        ).reshape(())  # fmt: skip

    def subtract_mean(self, M: Array, K: Array, length: Scalar | Array) -> Array:
        check(M, K)
        return self._columns(M, K, length)

    def weight_line_search(
        self, W: Array, G: Array, images: Array, nu: float, mu: float, lengths: Array
    ) -> Scalar:
        check(W, G)
        rows, cols = W.shape
        return self._with_sums(
            "weight_line_search", row_blocks(rows), 1,
            W, G, images, lengths, np.float64(nu), np.float64(mu), np.int64(rows), np.int64(cols),
        ).reshape(())  # fmt: skip

    def bias_step(self, sums: Array, nodes: int, b: Array, mean: Array) -> None:
        cols = len(sums)
        self._start(
            "updates.cu", "bias_step", (-(-cols // BLOCK),), sums, np.int64(nodes), np.int64(cols), b, mean
        )

    def residual(self, M: Array, b: Array, z: Array) -> None:
        check(M, z)
        rows, cols = M.shape
        self._start("updates.cu", "residual", (row_blocks(rows),), M, b, z, np.int64(rows), np.int64(cols))

    # ---- the update of p ----------------------------------------------------------------------------

    def p_gradient(self, G: Array, end: Coupled, message: Array | None, nu: float, rho: float) -> Scalar:
        if not self.fuses(end.codec):
            return self._reference.p_gradient(G, end, message, nu, rho)
        check(G, end.own, end.own_hat, end.other_hat, end.u)
        rows, cols = G.shape
        if message is not None:
            require_size(message, end.codec, rows, cols)
        ending, grid = self._codec(end.codec)
        return self._with_sums(
            f"p_gradient_{ending}", row_blocks(rows), 1,
            G, end.own, end.own_hat, end.other_hat, end.u, NULL if message is None else message,
            np.float32(nu), np.float32(rho), np.int64(rows), np.int64(cols), *grid,
        ).reshape(())  # fmt: skip

    def p_step(self, end: Coupled, G: Array, length: Scalar, out: Array, key: int) -> None:
        if not self.fuses(end.codec):
            self._reference.p_step(end, G, length, out, key)
            return
        check(end.own, G, end.own_hat)
        rows, cols = G.shape
        require_size(out, end.codec, rows, cols)
        ending, grid = self._codec(end.codec)
        self._start(
            "updates.cu", f"p_step_{ending}", (row_blocks(rows),),
            end.own, G, *length_arguments(length), end.own_hat, out, np.int64(rows), np.int64(cols), *grid,
            np.uint32(key), self._bad,
        )  # fmt: skip

    def p_line_search(
        self, end: Coupled, G: Array, H: Array, M: Array, nu: float, rho: float, out: Array, key: int
    ) -> Scalar:
        if not self.fuses(end.codec):
            return self._reference.p_line_search(end, G, H, M, nu, rho, out, key)
        check(end.own, G, end.own_hat)
        check(M, H)
        rows, cols = G.shape
        require_size(out, end.codec, rows, cols)
        ending, grid = self._codec(end.codec)
        return self._with_sums(
            f"p_line_search_{ending}", row_blocks(rows), 1,
            end.own, G, M, H, np.int64(M.shape[1]), np.float64(nu), np.float64(rho), end.own_hat, out,
            np.int64(rows), np.int64(cols), *grid, np.uint32(key), self._bad,
        ).reshape(())  # fmt: skip

    def projected_change(self, change: Array, end: Coupled, G: Array, length: Scalar) -> Scalar:
        if not self.fuses(end.codec):
            return self._reference.projected_change(change, end, G, length)
        check(change, end.own, G)
        ending, grid = self._codec(end.codec)
        return self._with_sums(
            f"projected_change_{ending}", flat_blocks(G.size), 1,
            change, end.own, G, *length_arguments(length), np.int64(G.size), *grid,
        ).reshape(())  # fmt: skip

    # ---- the exact solver ---------------------------------------------------------------------------

    def inverse_hessian(self, W: Array, nu: float, rho: float, work: Workspace) -> Array:
        return self._reference.inverse_hessian(W, nu, rho, work)

    def gram_share(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        return self._reference.gram_share(p, p_mean, work)

    def gram(self, shares: Array, p_mean: Array, nodes: int) -> Array:
        return shares

    def right_share(
        self, p: Array, z: Array, p_mean: Array, z_mean: Array, W_bar: Array | float, work: Workspace
    ) -> Array:
        return self._reference.right_share(p, z, p_mean, z_mean, W_bar, work)

    def right(self, shares: Array, p_mean: Array, z_mean: Array, nodes: int) -> Array:
        return shares

    def dual_gram(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        return self._reference.dual_gram(p, p_mean, work)

    def system(self, gram: Array, penalty: Scalar) -> RidgeSystem:
        return self._reference.system(gram, penalty)

    def ridge(self, system: RidgeSystem, right: Array, W_bar: Array | float) -> Array:
        return self._reference.ridge(system, right, W_bar)

    def dual_ridge(
        self,
        system: RidgeSystem,
        p: Array,
        z: Array,
        p_mean: Array,
        z_mean: Array,
        W_bar: Array | float,
        work: Workspace,
    ) -> Array:
        return self._reference.dual_ridge(system, p, z, p_mean, z_mean, W_bar, work)

    # ---- the updates of z, q and u ------------------------------------------------------------------

    def hidden(
        self,
        M: Array,
        mean: Array,
        z: Array,
        end: Coupled,
        message: Array | None,
        out: Array,
        key: int,
        f: Activation,
        nu: float,
        rho: float,
        measure: bool,
        fresh: bool = False,
    ) -> HiddenSums | None:
        slope = f.slope_below
        if slope is None or not self.fuses(end.codec):
            return self._reference.hidden(M, mean, z, end, message, out, key, f, nu, rho, measure, fresh)
        q, p_hat, q_hat, u = end.own, end.other_hat, end.own_hat, end.u
        check(M, z, q, p_hat, q_hat, u)
        rows, cols = M.shape
        for given in [out] if message is None else [message, out]:
            require_size(given, end.codec, rows, cols)
        ending, grid = self._codec(end.codec)
        blocks = row_blocks(rows)
        partial = self._scratch("partial", MOST_BLOCKS * 6, np.float64)
        self._start(
            "updates.cu", f"hidden_{ending}", (blocks,),
            M, mean, z, q, p_hat, q_hat, u, NULL if message is None else message, out,
            np.float32(nu), np.float32(rho), np.float32(slope), np.int32(fresh),
            np.int64(rows), np.int64(cols), *grid, np.uint32(key), partial, self._bad,
        )  # fmt: skip
        if not measure:
            return None
        sums = self._cupy.empty(6, np.float64)
        self._start("updates.cu", "finish", (1,), partial, np.int32(blocks), np.int32(6), sums)
        return HiddenSums(*(sums[k] for k in range(6)))

    def output(
        self, M: Array, mean: Array, z: Array, y: Array, nu: float, risk: str, fresh: bool = False
    ) -> Array:
        check(M, z)
        rows, cols = M.shape
        if y.dtype != np.int64:
            y = y.astype(np.int64)
        return self._with_sums(
            "output", row_blocks(rows), 1,
            M, mean, z, y, np.float32(nu), np.int32(risk == "cross_entropy"), np.int32(fresh),
            np.int64(rows), np.int64(cols), self._scratch("output", M.size, np.float32),
        ).reshape(())  # fmt: skip
