"""The fused passes in plain NumPy: the reference for the compiled kernels.

The methods write into their arguments where the docstring says so. `V` is the number of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.admm import updates
from pdadmm.admm.activations import Activation
from pdadmm.arrays import Array, number, single, squared_norm
from pdadmm.codec import Codec

__all__ = ["HiddenSums", "ReferenceKernels"]


@dataclass
class HiddenSums:
    """Sums over the entries of a hidden layer after its z-, q- and u-update, float64."""

    residual: float = 0.0  #: |M|^2
    relaxation: float = 0.0  #: |q - f(z)|^2
    primal: float = 0.0  #: |p_next - q|^2, decoded copies
    dual: float = 0.0  #: <u, p_next - q>, decoded copies
    dz: float = 0.0  #: squared change of z
    dq: float = 0.0  #: squared change of q


class ReferenceKernels:
    """NumPy, or CuPy on its arrays, one pass an operation."""

    name = "reference"

    def require_finite(self) -> None:
        """Nothing to look for: encoding on the host raises at once, and CuPy's operations note nothing."""

    def squared_norm(self, x: Array) -> float:
        """Sum of squares, accumulated in float64."""
        return squared_norm(x)

    def weight_gradient(self, G: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> float:
        """``G = nu G + mu (W - W_bar)``, `G` holding ``M^T p`` on entry; returns its squared norm.

        All arrays (n_out, n_in); `W_bar` may be 0.
        """
        G[...] = updates.weight_gradient(G, W, W_bar, nu, mu)
        return squared_norm(G)

    def p_gradient(
        self,
        G: Array,
        p: Array,
        p_hat: Array,
        q_hat: Array,
        u: Array,
        codec: Codec,
        message: Array | None,
        nu: float,
        rho: float,
    ) -> float:
        """Finish the neighbour's last iteration, then form the gradient of p.

        Decodes `message` into `q_hat` and repeats the dual update ``u += rho (p_hat - q_hat)`` that
        the lower end made (both skipped when `message` is None, in a stage's first iteration). `G`
        holds ``M W`` on entry and the gradient on return. All arrays (V, n_in).

        Returns
        -------
        float
            Squared norm of the gradient.
        """
        if message is not None:
            codec.decode(message, q_hat)
            u[...] = updates.u_update(u, p_hat, q_hat, rho)
        G[...] = updates.p_gradient(G, p, q_hat, u, nu, rho)
        return squared_norm(G)

    def p_step(
        self, p: Array, G: Array, length: float, p_hat: Array, codec: Codec, out: Array, key: int
    ) -> None:
        """``p -= length * G``, then encode p into `out` against its decoded copy `p_hat`."""
        p -= single(length) * G
        codec.encode(p, p_hat, out, key)

    def projected_change(self, change: Array, p: Array, G: Array, length: float, codec: Codec) -> float:
        """``change = project(p - length G) - p`` on the grid of `codec`; returns its squared norm.

        Raises
        ------
        NonFiniteError
        """
        change[...] = codec.project(p - single(length) * G) - p  # type: ignore[attr-defined]
        return squared_norm(change)

    def subtract(self, M: Array, H: Array, length: float) -> None:
        """``M -= length * H``."""
        M -= single(length) * H

    def subtract_mean(self, M: Array, K: Array, length: float) -> Array:
        """``M -= length * K``; returns the mean of M over the nodes, (n_out,), still part of M."""
        M -= single(length) * K
        return updates.bias_step(M)

    def column_means(self, x: Array) -> Array:
        """Means over the nodes, (cols,) float64."""
        return x.mean(axis=0, dtype=np.float64)

    def residual(self, M: Array, b: Array, z: Array) -> None:
        """``M = M + b - z``, `M` holding ``p W^T`` on entry."""
        M += b
        M -= z

    def projected_step(
        self,
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
    ) -> tuple[Array, Array, float]:
        """p-step of pdADMM-G-Q, see :func:`pdadmm.admm.updates.projected_step`.

        `change` (V, n_in) and `image` (V, n_out) are room that a form without temporaries works in.
        """
        return updates.projected_step(p, G, norm, W, nu, rho, step, codec.project)  # type: ignore[attr-defined]

    def exact_weights(
        self, p: Array, z: Array, W_bar: Array | float, nu: float, mu: float, gram: Array | None, work: Any
    ) -> tuple[Array, Array]:
        """Minimisers in W and b, see :func:`pdadmm.admm.updates.exact_weights`.

        `work` is the stage's :class:`pdadmm.admm.layer.Workspace`, for a form without temporaries.
        """
        return updates.exact_weights(p, z, W_bar, nu, mu, gram)

    def inverse_hessian(self, W: Array, nu: float, rho: float) -> Array:
        """``(nu W^T W + rho I)^-1``, see :func:`pdadmm.admm.updates.inverse_hessian`."""
        return updates.inverse_hessian(W, nu, rho)

    def hidden(
        self,
        M: Array,
        mean: Array,
        z: Array,
        q: Array,
        p_hat: Array,
        q_hat: Array,
        u: Array,
        codec: Codec,
        message: Array,
        out: Array,
        key: int,
        f: Activation,
        nu: float,
        rho: float,
        measure: bool,
        fresh: bool = False,
    ) -> HiddenSums | None:
        """Bias step, z-, q- and u-update of a hidden layer with decode of p and encode of q.

        Takes `mean` off M, updates z, decodes `message` into `p_hat` (the next layer's p), updates
        q, encodes it into `out` against `q_hat`, updates u. On return M belongs to the new z. All
        arrays (V, n_out) but `mean`, (n_out,).

        When `fresh`, M holds ``p W^T`` instead of the residual, and `mean` is ``-b``.
        """
        M -= mean
        if not fresh:
            M += z
        # M is now a = p W^T + b
        z_new = updates.z_update(M, q, z, f)
        M -= z_new
        codec.decode(message, p_hat)
        fz = f(z_new)
        q_new = updates.q_update(p_hat, u, fz, np.float32(nu), np.float32(rho))
        if codec.name == "grid":
            q_new = codec.project(q_new)  # type: ignore[attr-defined]
        dz = squared_norm(z_new - z) if measure else 0.0
        dq = squared_norm(q_new - q) if measure else 0.0
        z[...] = z_new
        q[...] = q_new
        codec.encode(q, q_hat, out, key)
        u[...] = updates.u_update(u, p_hat, q_hat, np.float32(rho))
        if not measure:
            return None
        gap = p_hat - q_hat
        return HiddenSums(
            residual=squared_norm(M),
            relaxation=squared_norm(q - fz),
            primal=squared_norm(gap),
            dual=number((u * gap).sum(dtype=np.float64)),
            dz=dz,
            dq=dq,
        )

    def output(
        self, M: Array, mean: Array, z: Array, y: Array, nu: float, risk: str, fresh: bool = False
    ) -> float:
        """Bias step and z-update of the output layer; returns the squared change of z.

        `M`, `z`: (V, classes), updated in place; `y`: (V,) labels; `risk`: ``cross_entropy`` or
        ``least_squares``; `fresh` as in :meth:`hidden`.
        """
        M -= mean
        if not fresh:
            M += z
        if risk == "cross_entropy":
            z_new = updates.z_last_cross_entropy(M, y, z, nu)
        else:
            z_new = updates.z_last_least_squares(M, y, nu)
        M -= z_new
        change = squared_norm(z_new - z)
        z[...] = z_new
        return change

    def encode(self, codec: Codec, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        """Encode alone, see :meth:`pdadmm.codec.Codec.encode`."""
        codec.encode(x, hat, out, key)

    def decode(self, codec: Codec, message: Array, hat: Array) -> None:
        """Decode alone, see :meth:`pdadmm.codec.Codec.decode`."""
        codec.decode(message, hat)
