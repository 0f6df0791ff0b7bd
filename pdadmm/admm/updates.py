"""The updates of pdADMM-G, one function an equation, in the order of an iteration.

Every function is pure: it returns new arrays (or floats) and changes none of its arguments. They
take NumPy or CuPy arrays alike, and any floating dtype, so that tests can run them in float64. They
are the reference for the fused kernels, which compute the same in place and in fewer passes;
:func:`exact_weights` and :func:`projected_step` put whole updates together, for comparison with those alone.

Symbols follow Wang et al., *Towards Quantized Model Parallelism for Graph-Augmented MLPs Based on
Gradient-Free ADMM Framework* (TNNLS 2022, arXiv 2105.09837), except that arrays are nodes-first:

=========  ===============  ==========================================================
symbol     shape            meaning
=========  ===============  ==========================================================
``p``      (V, n_in)        input of the layer; ``p = X`` in layer 1
``W``      (n_out, n_in)    weights, anchored at ``W_bar`` by the penalty ``mu``
``b``      (n_out,)         bias
``z``      (V, n_out)       linear output
``q``      (V, n_out)       activation output, tied to the next layer's ``p``
``u``      (V, n_out)       dual of ``p_next = q``
``M``      (V, n_out)       residual ``p W^T + b - z``, carried through the iteration
=========  ===============  ==========================================================

``nu`` weighs the relaxed equations ``z = p W^T + b`` and ``q = f(z)``, ``rho`` the coupling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pdadmm.admm.activations import Activation
from pdadmm.arrays import Array, Scalar, namespace, squared_norm

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "DOUBLING_CEILING",
    "DOUBLING_START",
    "bias_step",
    "centred_gram",
    "column_mean",
    "damped_anchor",
    "dual_ridge",
    "exact_weights",
    "inverse_hessian",
    "line_lengths",
    "p_gradient",
    "projected_length",
    "projected_step",
    "q_update",
    "residual",
    "ridge",
    "ridge_bias",
    "ridge_right",
    "step_length",
    "u_update",
    "weight_gradient",
    "z_last_cross_entropy",
    "z_last_least_squares",
    "z_update",
]

#: first trial of the authors' search, and how often it doubles
DOUBLING_START = 20.0
DOUBLING_CEILING = 10


def residual(p: Array, W: Array, b: Array, z: Array) -> Array:
    """``M = p W^T + b - z``, shape (V, n_out)."""
    return p @ W.T + b - z


def step_length(curvature: float, weight: float, image: float, norm: float, step: str) -> float:
    """Length ``1/tau`` of a gradient step under the sufficient-decrease test.

    The penalty ``phi`` is quadratic, so along ``-G`` it satisfies
    ``phi(x+) <= phi(x) + <G, x+ - x> + tau/2 |x+ - x|^2`` exactly when
    ``tau >= tau* = curvature + weight * |image|^2 / |G|^2``.

    Parameters
    ----------
    curvature
        Isotropic part of the Hessian: ``rho`` for p, ``mu`` for W.
    weight
        ``nu``.
    image, norm
        Squared norms of the direction's image (``G W^T`` or ``p G^T``) and of ``G``.
    step
        ``"exact"`` takes ``tau*``, the exact line search. ``"doubling"`` takes the first of
        ``20 * 2^k``, ``k <= 10``, that passes, as the authors' code does.

    Returns
    -------
    float
        ``1/tau``; 0 when the gradient is zero, no trial of the doubling passes, or ``tau*`` is 0: without
        a curvature the image of a tiny gradient may vanish in single precision.
    """
    if norm == 0.0:
        return 0.0
    tau = curvature + weight * image / norm
    if step == "exact":
        return 1.0 / tau if tau else 0.0
    for k in range(DOUBLING_CEILING + 1):
        trial = DOUBLING_START * 2.0**k
        if trial >= tau:
            return 1.0 / trial
    return 0.0


def line_lengths(curvature: float, weight: float, images: Array, norms: Array) -> Array:
    """Lengths of exact line searches along the rows of a gradient, one a row, float64.

    The penalty ``phi`` is a sum over the nodes in p, and over the neurons in W. So the search of
    :func:`step_length` can be made for each of them alone: no node's step is shorter for the others' sake.

    Parameters
    ----------
    curvature, weight
        As in :func:`step_length`.
    images, norms
        Squared norms of the rows of the gradient, ``|G_v|^2``, and of their images: rows of ``G W^T`` in p,
        columns of ``p G^T`` in W. Float64, (rows,).

    Returns
    -------
    Array
        ``1/(curvature + weight images/norms)``; 0 where a row of the gradient is zero, or the sum.
    """
    xp = namespace(norms)
    moving = norms != 0
    tau = curvature + weight * images / xp.where(moving, norms, 1.0)
    moving &= tau != 0
    return xp.where(moving, 1.0 / xp.where(moving, tau, 1.0), 0.0)


def p_gradient(MW: Array, p: Array, q_prev: Array, u_prev: Array, nu: float, rho: float) -> Array:
    """Gradient of the penalty in p: ``nu M W + u_{l-1} + rho (p - q_{l-1})``, shape (V, n_in)."""
    return nu * MW + u_prev + rho * (p - q_prev)


def weight_gradient(Mp: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> Array:
    """Gradient of the penalty in W: ``nu M^T p + mu (W - W_bar)``, shape (n_out, n_in)."""
    return nu * Mp + mu * (W - W_bar)


def bias_step(M: Array) -> Array:
    """Step to the minimiser in b: the mean of the residual over the nodes, shape (n_out,)."""
    return column_mean(M).astype(M.dtype)


def column_mean(x: Array) -> Array:
    """Mean over the nodes, float64."""
    return x.sum(axis=0, dtype=np.float64) / len(x)


def z_update(a: Array, q: Array, z: Array, f: Activation) -> Array:
    """Minimise ``(z' - a)^2 + (q - f(z'))^2 + (z' - z)^2`` for every entry.

    Parameters
    ----------
    a
        ``p W^T + b``, (V, n_out).
    q, z
        Current activation output and the proximal centre, (V, n_out).
    f
        Piecewise linear activations are solved in closed form on their two branches, smooth ones
        by a safeguarded Newton method.
    """
    return f.proximal(a, q, z)


def q_update(p_next: Array, u: Array, fz: Array, nu: float, rho: float) -> Array:
    """``q = (rho p_{l+1} + u + nu f(z)) / (rho + nu)``."""
    return (rho * p_next + u + nu * fz) / (rho + nu)


def u_update(u: Array, p_next: Array, q: Array, rho: float) -> Array:
    """Dual ascent: ``u + rho (p_{l+1} - q)``."""
    return u + rho * (p_next - q)


def z_last_cross_entropy(
    a: Array, y: Array, z: Array, nu: float, tolerance: float = 1e-5, iterations: int = 50
) -> Array:
    """Minimise ``logsumexp(z) - z_y + (nu/2) |z - a|^2`` for every node by damped Newton.

    The Hessian ``diag(s + nu) - s s^T`` (s the softmax) is inverted by Sherman-Morrison. Steps are
    damped by ``log(1 + D)/D``, D the range of the step's entries: logsumexp is generalised
    self-concordant with its third derivative at most D times the second, so that this length
    decreases the objective without a line search (Sun and Tran-Dinh, *Generalized
    self-concordant functions*, Math. Program. 2019, theorem 2 with nu = 2).

    Parameters
    ----------
    a, z
        Centre and starting point, (V, classes).
    y
        Labels, (V,), integers.
    tolerance
        Of |d| / (1 + |z|), d the entries of a step of all nodes: one that is no longer is the last.
    iterations
        After which it ends in any case.
    """
    n = a.shape[0]
    xp = namespace(a)
    z = z.copy()
    onehot = xp.zeros_like(a)
    onehot[xp.arange(n), y] = 1
    for _ in range(iterations):
        s = xp.exp(z - z.max(axis=1, keepdims=True))
        s /= s.sum(axis=1, keepdims=True)
        g = s - onehot + nu * (z - a)
        inverse = 1 / (s + nu)
        sd = s * inverse
        # the factor of sd is sum(sd g) / (1 - sum(s sd)); as s and onehot sum to 1 it is
        # sum(z - a - g inverse) / sum(sd), which does not cancel for small nu
        d = g * inverse
        d += sd * (((z - a) - d).sum(axis=1, keepdims=True) / sd.sum(axis=1, keepdims=True))
        near = float((xp.abs(d) - tolerance * xp.abs(z)).max()) <= tolerance
        spread = d.max(axis=1, keepdims=True) - d.min(axis=1, keepdims=True)
        damping = xp.where(spread > 1e-3, xp.log1p(spread) / xp.maximum(spread, 1e-3), 1 - spread / 2)
        z -= damping.astype(z.dtype) * d
        if near:
            break
    return z


def z_last_least_squares(a: Array, y: Array, nu: float) -> Array:
    """Minimise ``1/2 |z - onehot(y)|^2 + (nu/2) |z - a|^2``: ``(onehot(y) + nu a) / (1 + nu)``."""
    z = nu * a
    z[namespace(a).arange(a.shape[0]), y] += 1
    return z / (1 + nu)


def inverse_hessian(W: Array, nu: float, rho: float) -> Array:
    """``(nu W^T W + rho I)^-1``, (n_in, n_in): p minus the gradient times it is the minimiser in p."""
    xp = namespace(W)
    W64 = W.astype(np.float64)
    hessian = nu * (W64.T @ W64)
    diagonal = xp.arange(len(hessian))
    hessian[diagonal, diagonal] += rho
    return xp.linalg.inv(hessian).astype(W.dtype)


def centred_gram(p: Array, p_mean: Array | None = None, dual: bool | None = None) -> Array:
    """Gram matrix of p minus its mean over the nodes, float64.

    Parameters
    ----------
    p_mean
        (n_in,) float64, where the mean is over more nodes than those of p.
    dual
        (V, V) or else (n_in, n_in); the smaller of them when None.
    """
    centred = p - (column_mean(p) if p_mean is None else p_mean).astype(p.dtype)
    V, n = p.shape
    dual = n > V if dual is None else dual
    return (centred @ centred.T if dual else centred.T @ centred).astype(np.float64)


def ridge_right(p: Array, z: Array, p_mean: Array, z_mean: Array, W_bar: Array | float) -> Array:
    """Right-hand side of :func:`ridge`: the centred ``p^T (z - p W_bar^T)``, (n_in, n_out) float64."""
    centred, target = _centred(p, z, p_mean, z_mean, W_bar)
    return (centred.T @ target).astype(np.float64)


class RidgeSystem(Protocol):
    """Normal equations of a ridge regression: a centred Gram matrix and a weight on its diagonal."""

    weight: Scalar

    def solve(self, right: Array) -> Array:
        """The solution for right-hand sides, any number of times; (n, m) float64."""
        ...


class PlainRidge:
    """A system solved anew for every right-hand side.

    Parameters
    ----------
    gram
        :func:`centred_gram`, (n_in, n_in), or (V, V) for :func:`dual_ridge`; it stays as it is.
    penalty
        ``mu/nu``.
    """

    def __init__(self, gram: Array, penalty: Scalar) -> None:
        # a floor keeps the system solvable when mu is 0 or vanishes against float32 products
        self.weight = np.maximum(1e-7 * gram.trace() / len(gram) + 1e-30, penalty)
        self._matrix = gram.copy()
        diagonal = namespace(gram).arange(len(gram))
        self._matrix[diagonal, diagonal] += self.weight

    def solve(self, right: Array) -> Array:
        return namespace(right).linalg.solve(self._matrix, right)


def ridge(
    system: RidgeSystem, right: Array, W_bar: Array | float, dtype: npt.DTypeLike = np.float32
) -> Array:
    """W (n_out, n_in) of the ridge regression by its n_in x n_in normal equations.

    Parameters
    ----------
    right
        :func:`ridge_right`, summed over all nodes.
    """
    delta = system.solve(right)
    return namespace(right).ascontiguousarray(delta.astype(dtype).T) + W_bar


def dual_ridge(
    system: RidgeSystem, p: Array, z: Array, p_mean: Array, z_mean: Array, W_bar: Array | float
) -> Array:
    """The same W by the V x V dual system, for V < n_in."""
    centred, target = _centred(p, z, p_mean, z_mean, W_bar)
    return system.solve(target.astype(np.float64)).astype(p.dtype).T @ centred + W_bar


def _centred(p: Array, z: Array, p_mean: Array, z_mean: Array, W_bar: Array | float) -> tuple[Array, Array]:
    centred, target = p - p_mean.astype(p.dtype), z - z_mean.astype(z.dtype)
    return centred, target if np.isscalar(W_bar) else target - centred @ W_bar.T  # type: ignore[union-attr]


def ridge_bias(W: Array, p_mean: Array, z_mean: Array) -> Array:
    """The free bias of a ridge regression, ``mean(z) - W mean(p)``, (n_out,) in the dtype of W."""
    return (z_mean - W.astype(np.float64) @ p_mean).astype(W.dtype)


def exact_weights(
    p: Array, z: Array, W_bar: Array | float, nu: float, mu: float, gram: Array | None = None
) -> tuple[Array, Array]:
    """Ridge regression of z on p towards ``W_bar`` with penalty ``mu/nu``; the bias is free.

    Solves the n_in x n_in normal equations, or the V x V dual ones where V < n_in.

    Parameters
    ----------
    gram
        :func:`centred_gram` of p where the caller has it already.

    Returns
    -------
    W, b
        (n_out, n_in) and (n_out,), in the dtype of p.
    """
    p_mean, z_mean = column_mean(p), column_mean(z)
    system = PlainRidge(centred_gram(p, p_mean) if gram is None else gram, mu / nu)
    if p.shape[1] > len(p):
        W = dual_ridge(system, p, z, p_mean, z_mean, W_bar)
    else:
        W = ridge(system, ridge_right(p, z, p_mean, z_mean, W_bar), W_bar, p.dtype)
    return W, ridge_bias(W, p_mean, z_mean)


def damped_anchor(W: Array, W_bar: Array | float, mu: float, weight: float) -> tuple[Array, Any]:
    """Anchor and penalty of one term in place of ``mu |W' - W_bar|^2 + weight |W' - W|^2``."""
    total = mu + weight
    none = total == 0  # then W stays where nothing else pulls
    share = (weight + none) / (total + none)
    return (W * share + W_bar * (mu / (total + none))).astype(W.dtype), total


def projected_length(
    curvature: float, weight: float, tau: float, trial: Callable[[float], tuple[float, float]]
) -> float:
    """Search of pdADMM-G-Q: first of ``tau * 2^k``, k <= 10, whose test passes at the projected point.

    Parameters
    ----------
    curvature, weight
        ``rho`` and ``nu``.
    trial
        Makes the projected step of a length ``1/tau`` and gives the squared norms of the change and of
        the change's image under W.

    Returns
    -------
    float
        The accepted ``1/tau``; 0 when no trial passes.
    """
    for _ in range(DOUBLING_CEILING + 1):
        moved, image = trial(1.0 / tau)
        if moved == 0.0 or tau * (1 + 1e-6) >= curvature + weight * image / moved:
            return 1.0 / tau
        tau *= 2.0
    return 0.0


def projected_step(
    p: Array,
    G: Array,
    norm: float,
    W: Array,
    nu: float,
    rho: float,
    step: str,
    project: Callable[[Array], Array],
) -> tuple[Array, Array, float]:
    """p-step of pdADMM-G-Q: the sufficient-decrease test is made at the projected point.

    Parameters
    ----------
    p, G, norm
        (V, n_in), its gradient, and the gradient's squared norm.
    step
        ``"doubling"`` tries the authors' ``20 * 2^k``; any other starts at the length of the unprojected line
        search and halves it until the test passes.
    project
        Nearest point of the grid.

    Returns
    -------
    change, image, length
        The step (V, n_in), its image ``change W^T`` (V, n_out), and the accepted ``1/tau``: 0 when there is
        no gradient or no trial passes, and then p goes to the grid alone.
    """
    norm = float(norm)  # the search decides on the host
    change, image = G, G

    def trial(length: float) -> tuple[float, float]:
        nonlocal change, image
        change = project(p - G.dtype.type(length) * G) - p
        image = change @ W.T
        return float(squared_norm(change)), float(squared_norm(image))

    length, tau = 0.0, DOUBLING_START
    if norm:
        if step != "doubling":
            tau = rho + nu * float(squared_norm(G @ W.T)) / norm
        length = projected_length(rho, nu, tau, trial)
    if not length:
        trial(0.0)
    return change, image, length
