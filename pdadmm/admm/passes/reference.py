"""The passes in array operations, one an equation: the reference for the compiled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from pdadmm.admm import updates
from pdadmm.admm.activations import Activation
from pdadmm.admm.passes.lengths import HostLengths, Lengths
from pdadmm.admm.passes.protocol import Coupled, HiddenSums, Workspace
from pdadmm.admm.updates import RidgeSystem
from pdadmm.arrays import Array, Scalar, number, single, squared_norm
from pdadmm.arrays.groups import rows_of_groups, total
from pdadmm.codec import Projecting
from pdadmm.kernels.plain import PlainKernels

__all__ = ["ReferencePasses"]


class ReferencePasses(PlainKernels):
    """NumPy over :mod:`pdadmm.admm.updates`, or CuPy on its arrays; see :class:`~.protocol.Passes`.

    Parameters
    ----------
    lengths
        Where step lengths are decided; on the host when None.
    groups
        Of the nodes, by which sums over them are formed, and what ends when all of them are done.
    """

    centres = True

    def __init__(self, lengths: Lengths | None = None, groups: int = 0) -> None:
        super().__init__(groups)
        self.lengths: Lengths = lengths or HostLengths()

    # ---- sums and steps -----------------------------------------------------------------------------

    def weight_gradient(self, G: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> Scalar:
        G[...] = updates.weight_gradient(G, W, W_bar, nu, mu)
        return squared_norm(G)

    def subtract_mean(self, M: Array, K: Array, length: Scalar | Array) -> Array:
        M -= single(length) * K
        return self.column_sums(M)

    def weight_line_search(
        self, W: Array, G: Array, images: Array, nu: float, mu: float, lengths: Array
    ) -> Scalar:
        norms = _row_squares(G)
        lengths[...] = updates.line_lengths(mu, nu, images, norms)
        W -= single(lengths)[:, None] * G
        return number((lengths * norms).sum())

    def bias_step(self, sums: Array, nodes: int, b: Array, mean: Array) -> None:
        mean[...] = sums / nodes
        b -= mean

    def residual(self, M: Array, b: Array, z: Array) -> None:
        M += b
        M -= z

    # ---- the update of p ----------------------------------------------------------------------------

    def p_gradient(self, G: Array, end: Coupled, message: Array | None, nu: float, rho: float) -> Scalar:
        if message is not None:
            end.codec.decode(message, end.other_hat)
            end.u[...] = updates.u_update(end.u, end.own_hat, end.other_hat, rho)
        G[...] = updates.p_gradient(G, end.own, end.other_hat, end.u, nu, rho)
        return self.squared_norm(G)

    def p_step(self, end: Coupled, G: Array, length: Scalar, out: Array, key: int) -> None:
        end.own -= single(length) * G
        end.codec.encode(end.own, end.own_hat, out, key)

    def p_line_search(
        self, end: Coupled, G: Array, H: Array, M: Array, nu: float, rho: float, out: Array, key: int
    ) -> Scalar:
        norms = _row_squares(G)
        lengths = updates.line_lengths(rho, nu, _row_squares(H), norms)
        M -= single(lengths)[:, None] * H
        end.own -= single(lengths)[:, None] * G
        end.codec.encode(end.own, end.own_hat, out, key)
        return total(self.groups, lambda rows: number(rows.sum()), lengths * norms)

    def projected_change(self, change: Array, end: Coupled, G: Array, length: Scalar) -> Scalar:
        change[...] = cast(Projecting, end.codec).project(end.own - single(length) * G) - end.own
        return self.squared_norm(change)

    # ---- the exact solver ---------------------------------------------------------------------------

    def inverse_hessian(self, W: Array, nu: float, rho: float, work: Workspace) -> Array:
        try:
            return updates.inverse_hessian(W, nu, rho)
        except np.linalg.LinAlgError:  # which the next gradient's norm will tell
            return np.full_like(W, np.nan, shape=(W.shape[1], W.shape[1]))

    def gram_share(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        return total(self.groups, lambda p: updates.centred_gram(p, p_mean, dual=False), p)

    def gram(self, shares: Array, p_mean: Array, nodes: int) -> Array:
        return shares

    def right_share(
        self, p: Array, z: Array, p_mean: Array, z_mean: Array, W_bar: Array | float, work: Workspace
    ) -> Array:
        return total(self.groups, lambda p, z: updates.ridge_right(p, z, p_mean, z_mean, W_bar), p, z)

    def right(self, shares: Array, p_mean: Array, z_mean: Array, nodes: int) -> Array:
        return shares

    def dual_gram(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        return updates.centred_gram(p, p_mean, dual=True)

    def system(self, gram: Array, penalty: Scalar) -> RidgeSystem:
        return updates.PlainRidge(gram, penalty)

    def ridge(self, system: RidgeSystem, right: Array, W_bar: Array | float) -> Array:
        return updates.ridge(system, right, W_bar)

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
        return updates.dual_ridge(system, p, z, p_mean, z_mean, W_bar)

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
        codec, q, p_hat, q_hat, u = end.codec, end.own, end.other_hat, end.own_hat, end.u
        M -= mean
        if not fresh:
            M += z
        # M is now a = p W^T + b
        z_new = self._each(lambda a, q, z: updates.z_update(a, q, z, f), M, q, z)
        M -= z_new
        if message is not None:
            codec.decode(message, p_hat)
        fz = f(z_new)
        q_new = updates.q_update(p_hat, u, fz, np.float32(nu), np.float32(rho))
        if codec.span is not None:
            q_new = cast(Projecting, codec).project(q_new)
        dz = self.squared_norm(z_new - z) if measure else 0.0
        dq = self.squared_norm(q_new - q) if measure else 0.0
        z[...] = z_new
        q[...] = q_new
        codec.encode(q, q_hat, out, key)
        u[...] = updates.u_update(u, p_hat, q_hat, np.float32(rho))
        if not measure:
            return None
        gap = p_hat - q_hat
        return HiddenSums(
            residual=self.squared_norm(M),
            relaxation=self.squared_norm(q - fz),
            primal=self.squared_norm(gap),
            dual=total(self.groups, lambda rows: number(rows.sum(dtype=np.float64)), u * gap),
            dz=dz,
            dq=dq,
        )

    def output(
        self, M: Array, mean: Array, z: Array, y: Array, nu: float, risk: str, fresh: bool = False
    ) -> Scalar:
        M -= mean
        if not fresh:
            M += z
        if risk == "cross_entropy":
            z_new = self._each(lambda a, y, z: updates.z_last_cross_entropy(a, y, z, nu), M, y, z)
        else:
            z_new = updates.z_last_least_squares(M, y, nu)
        M -= z_new
        change = self.squared_norm(z_new - z)
        z[...] = z_new
        return change

    def _each(self, function: Callable[..., Array], *arrays: Array) -> Array:
        """What a function gives of rows; by group, since it may go on until all of its rows are done."""
        if self.groups <= 1:
            return function(*arrays)
        parts = [part for part in rows_of_groups(len(arrays[0]), self.groups) if part.start < part.stop]
        return np.concatenate([function(*(x[part] for x in arrays)) for part in parts])


def _row_squares(x: Array) -> Array:
    """Sums of squares of the rows, float64."""
    return np.square(x).sum(axis=1, dtype=np.float64)
