"""The updates that mix products and solves, without temporaries of the size of p or z.

They compute what their namesakes in :mod:`pdadmm.admm.updates` do, up to rounding, in arrays of the
stage's workspace and with the passes of `kernels`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from pdadmm.admm import updates
from pdadmm.arrays import Array, namespace
from pdadmm.codec import Codec, NonFiniteError

__all__ = ["exact_weights", "inverse_hessian", "projected_step"]


def projected_step(
    p: Array,
    G: Array,
    norm: float,
    W: Array,
    nu: float,
    rho: float,
    step: str,
    codec: Codec,
    change: Array,
    image: Array,
    kernels: Any,
) -> tuple[Array, Array, float]:
    """p-step of pdADMM-G-Q: :func:`pdadmm.admm.updates.projected_step` in `change` and `image`."""
    matmul = namespace(p).matmul
    norm = float(norm)  # the search decides on the host
    if not np.isfinite(norm):
        raise NonFiniteError
    if norm == 0.0:
        return G, G, 0.0
    tau = updates.DOUBLING_START
    if step == "exact":
        tau = rho + nu * float(kernels.squared_norm(matmul(G, W.T, out=image))) / norm
    for _ in range(updates.DOUBLING_CEILING + 1):
        moved = float(kernels.projected_change(change, p, G, 1.0 / tau, codec))
        matmul(change, W.T, out=image)
        if moved == 0.0 or tau * (1 + 1e-6) >= rho + nu * float(kernels.squared_norm(image)) / moved:
            return change, image, 1.0 / tau
        tau *= 2.0
    return change, image, 0.0


def inverse_hessian(W: Array, nu: float, rho: float) -> Array:
    """``(nu W^T W + rho I)^-1`` by Cholesky: :func:`pdadmm.admm.updates.inverse_hessian`."""
    W64 = W.astype(np.float64)
    hessian = np.matmul(W64.T, W64)
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
def _lapack() -> Any:
    """SciPy's LAPACK, imported where the exact solver wants it.

    It brings a BLAS of its own, kept to one thread: its idle workers would spin for a while in the way
    of NumPy's.
    """
    from threadpoolctl import ThreadpoolController

    before = {library.filepath for library in ThreadpoolController().lib_controllers}
    from scipy.linalg import lapack

    for library in ThreadpoolController().lib_controllers:
        if library.filepath not in before:
            library.set_num_threads(1)
    return lapack


def _solve(gram: Array, right: Array) -> Array:
    """Solution of a positive definite system, by LU where rounding left it indefinite."""
    _, x, failed = _lapack().dposv(gram, right, lower=1)
    return np.linalg.solve(gram, right) if failed else x


def exact_weights(
    p: Array,
    z: Array,
    W_bar: Array | float,
    nu: float,
    mu: float,
    gram: Array | None,
    work: Any,
    kernels: Any,
) -> tuple[Array, Array]:
    """Ridge regression of z on p: :func:`pdadmm.admm.updates.exact_weights` without centred copies.

    With m the means, ``C = p^T p - V m_p m_p^T`` and ``D = p^T z - V m_p m_z^T`` give
    ``(C + lambda) W^T = D + lambda W_bar^T``. Where V < n_in, ``W = W_bar + A^T p`` with
    ``(K + lambda) A = Z``, K the doubly centred ``p p^T`` and Z the centred ``z - p W_bar^T``: the
    columns of A sum to zero as those of Z do, so that p need not be centred.
    """
    V, n = p.shape
    p_mean, z_mean = kernels.column_means(p), kernels.column_means(z)
    small = n > V
    if gram is None:
        gram = _gram(p, p_mean, work)
    else:
        gram = gram.copy()
    weight = max(mu / nu, 1e-7 * float(gram.trace()) / len(gram) + 1e-30)
    gram[np.diag_indices_from(gram)] += weight
    anchored = not np.isscalar(W_bar)
    if small:
        target = z.astype(np.float64)  # V x n_out, no larger than the system
        if anchored:
            target -= np.matmul(p, W_bar.T, out=work.get("H", z.shape))  # type: ignore[union-attr]
        target -= target.mean(axis=0)
        A = _solve(gram, target).astype(p.dtype)
        W = np.matmul(A.T, p, out=work.get("W", (z.shape[1], n)))
        W += W_bar
    else:
        right = np.matmul(p.T, z, out=work.get("PZ", (n, z.shape[1]))).astype(np.float64)
        right -= np.outer(p_mean * V, z_mean)
        if anchored:
            right += weight * W_bar.T  # type: ignore[union-attr]
        W = np.ascontiguousarray(_solve(gram, right).T, p.dtype)
    return W, (z_mean - W.astype(np.float64) @ p_mean).astype(p.dtype)


def _gram(p: Array, mean: Array, work: Any) -> Array:
    """:func:`pdadmm.admm.updates.centred_gram` by a correction in float64 instead of a centred copy."""
    V, n = p.shape
    if n > V:
        gram = np.matmul(p, p.T, out=work.get("PP", (V, V))).astype(np.float64)
        rows = gram.mean(axis=0)
        gram -= rows
        gram -= (rows - rows.mean())[:, None]
        return gram
    gram = np.matmul(p.T, p, out=work.get("PP", (n, n))).astype(np.float64)
    gram -= np.outer(mean * V, mean)
    return gram
