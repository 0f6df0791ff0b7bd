"""The updates that mix products and solves, without temporaries of the size of p or z.

They compute what their namesakes in :mod:`pdadmm.admm.updates` do, up to rounding, in arrays of the
stage's workspace.
"""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np

from pdadmm.admm.updates import RidgeSystem
from pdadmm.arrays import Array, Scalar
from pdadmm.arrays.workspace import Workspace

__all__ = [
    "FactoredRidge",
    "centred",
    "dual_gram",
    "dual_ridge",
    "gram_share",
    "inverse_hessian",
    "ridge",
    "right_share",
]


def inverse_hessian(W: Array, nu: float, rho: float, work: Workspace) -> Array:
    """``(nu W^T W + rho I)^-1`` by Cholesky: :func:`pdadmm.admm.updates.inverse_hessian`."""
    W64 = W.astype(np.float64)
    hessian = work.backend.matmul(W64.T, W64)
    hessian *= nu
    hessian[np.diag_indices_from(hessian)] += rho
    lapack = _lapack()
    factor, failed = lapack.dpotrf(hessian, lower=1)
    if failed:  # W is not finite, which the next gradient's norm will tell
        return np.full_like(W, np.nan, shape=hessian.shape)
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    # the lower triangle, in Fortran order: the upper one of the transpose
    found = np.triu(inverse.T).astype(W.dtype)
    found += np.triu(found, 1).T
    return found


@functools.cache
def _lapack() -> ModuleType:
    """SciPy's LAPACK, imported where the exact solver wants it.

    It brings a BLAS of its own, kept to one thread, whenever it was loaded: other numbers of threads give
    other bits, and idle ones would spin for a while in the way of NumPy's.
    """
    from scipy.linalg import lapack
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    return lapack


class FactoredRidge:
    """A ridge regression's system by its Cholesky factor, or by LU where rounding left it indefinite.

    Solutions of a singular one, or of NaN, are no numbers, which the next gradient's norm will tell.
    """

    def __init__(self, gram: Array, penalty: Scalar) -> None:
        self.weight = max(penalty, 1e-7 * float(gram.trace()) / len(gram) + 1e-30)
        lapack = _lapack()
        self._factor, failed = lapack.dpotrf(self._matrix(gram), lower=1, overwrite_a=1)
        self._pivots: Array | None = None
        if failed:
            self._factor, self._pivots, _ = lapack.dgetrf(self._matrix(gram), overwrite_a=1)

    def _matrix(self, gram: Array) -> Array:
        found = np.array(gram, order="F")
        found[np.diag_indices_from(found)] += self.weight
        return found

    def solve(self, right: Array) -> Array:
        if self._pivots is None:
            return _lapack().dpotrs(self._factor, right, lower=1)[0]
        return _lapack().dgetrs(self._factor, self._pivots, right)[0]


def gram_share(p: Array, work: Workspace) -> Array:
    """``p^T p``, (n_in, n_in) in the workspace, of the type of p."""
    n = p.shape[1]
    return work.backend.over_rows(p, p, work.get("PP", (n, n), p.dtype))


def right_share(p: Array, z: Array, work: Workspace) -> Array:
    """``p^T z``, (n_in, n_out) in the workspace, of the type of p; :func:`ridge` adds the anchor."""
    z = z.astype(p.dtype, copy=False)
    return work.backend.over_rows(p, z, work.get("PZ", (p.shape[1], z.shape[1]), p.dtype))


def centred(products: Array, left_mean: Array, right_mean: Array, nodes: int) -> Array:
    """Products over the nodes of what is minus its means, float64, by a correction of those of what is not.

    :func:`pdadmm.admm.updates.centred_gram` without a centred copy: with m the means,
    ``C = p^T p - V m m^T``.
    """
    found = products.astype(np.float64)
    found -= np.outer(left_mean * nodes, right_mean)
    return found


def ridge(system: RidgeSystem, right: Array, W_bar: Array | float) -> Array:
    """W of ``(C + lambda) W^T = D + lambda W_bar^T``; overwrites D, `right`."""
    if not np.isscalar(W_bar):
        right += system.weight * W_bar.T  # type: ignore[union-attr]
    return np.ascontiguousarray(system.solve(right).T, np.float32)


def dual_ridge(system: RidgeSystem, p: Array, z: Array, W_bar: Array | float, work: Workspace) -> Array:
    """``W = W_bar + A^T p`` with ``(K + lambda) A = Z``, for fewer nodes than inputs.

    K is the doubly centred ``p p^T`` and Z the centred ``z - p W_bar^T``: the columns of A sum to zero
    as those of Z do, so that p need not be centred. Those of a K in single precision do nearly, which is
    mended.
    """
    target = z.astype(np.float64)  # V x n_out, no larger than the system
    if not np.isscalar(W_bar):
        target -= work.backend.matmul(p, W_bar.T, out=work.get("H", z.shape))  # type: ignore[union-attr]
    target -= target.mean(axis=0)
    A = system.solve(target)
    A -= A.mean(axis=0)
    A = A.astype(p.dtype)
    W = work.backend.matmul(A.T, p, out=work.get("W", (z.shape[1], p.shape[1])))
    W += W_bar
    return W


def dual_gram(p: Array, work: Workspace) -> Array:
    """``p p^T``, doubly centred, (V, V) float64."""
    V = len(p)
    gram = work.backend.matmul(p, p.T, out=work.get("PP", (V, V))).astype(np.float64)
    rows = gram.mean(axis=0)
    gram -= rows
    gram -= (rows - rows.mean())[:, None]
    return gram
