"""What a layer asks of the passes between its matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pdadmm.admm.activations import Activation
from pdadmm.admm.passes.lengths import Lengths
from pdadmm.admm.updates import RidgeSystem
from pdadmm.arrays import Array, Scalar
from pdadmm.arrays.workspace import Workspace
from pdadmm.codec import Codec

__all__ = ["Copies", "Coupled", "HiddenSums", "Passes", "Workspace"]


class Coupled(Protocol):
    """An end of a coupling, as the passes read and write it; all arrays (V, n) float32."""

    codec: Codec
    own: Array  #: the variable that this end sends: p above, q below
    own_hat: Array  #: its decoded copy; `own` itself for a lossless codec
    other_hat: Array  #: decoded copy of the variable that this end receives
    u: Array  #: the dual


@dataclass
class Copies:
    """A :class:`Coupled` that nothing travels from or to, for timing and testing passes."""

    codec: Codec
    own: Array
    own_hat: Array
    other_hat: Array
    u: Array


@dataclass
class HiddenSums:
    """Sums over the entries of a hidden layer after its z-, q- and u-update, float64."""

    residual: Scalar = 0.0  #: |M|^2
    relaxation: Scalar = 0.0  #: |q - f(z)|^2
    primal: Scalar = 0.0  #: |p_next - q|^2, decoded copies
    dual: Scalar = 0.0  #: <u, p_next - q>, decoded copies
    dz: Scalar = 0.0  #: squared change of z
    dq: Scalar = 0.0  #: squared change of q


class Passes(Protocol):
    """The passes over a rank's nodes, V of them; they write into their arguments where it says so.

    Sums over nodes come back unrounded in float64, and are this rank's share: the layer adds up the
    shards of its block before anything is made of them. On a device they are 0-d arrays.
    """

    name: str  #: reference | fused
    lengths: Lengths

    def fuses(self, codec: Codec) -> bool:
        """Whether a codec has a compiled form here; one that has none runs in array operations."""
        ...

    def require_finite(self) -> None:
        """Raise NonFiniteError if NaN or Inf was encoded since the last look, where encoding cannot."""
        ...

    # ---- sums and steps -----------------------------------------------------------------------------

    def squared_norm(self, x: Array) -> Scalar:
        """Sum of squares."""
        ...

    def column_sums(self, x: Array) -> Array:
        """Sums over the nodes, (cols,); valid until the next call."""
        ...

    def weight_gradient(self, G: Array, W: Array, W_bar: Array | float, nu: float, mu: float) -> Scalar:
        """``G = nu G + mu (W - W_bar)``, `G` holding ``M^T p`` on entry; returns its squared norm.

        All arrays (n_out, n_in); `W_bar` may be 0.
        """
        ...

    def subtract(self, M: Array, H: Array, length: Scalar) -> None:
        """``M -= length * H``."""
        ...

    def subtract_mean(self, M: Array, K: Array, length: Scalar | Array) -> Array:
        """``M -= length * K``; returns the sums of M over the nodes, (n_out,); valid until the next call.

        `length` may be a float64 array (n_out,), a length a column.
        """
        ...

    def column_squares(self, x: Array) -> Array:
        """Sums of squares over the nodes, (cols,); valid until the next call."""
        ...

    def weight_line_search(
        self, W: Array, G: Array, images: Array, nu: float, mu: float, lengths: Array
    ) -> Scalar:
        """``W_j -= lengths_j G_j`` with the exact line search of every neuron j.

        `W`, `G`: (n_out, n_in) float32; `images`: (n_out,) float64, the squared norms of the columns of
        ``p G^T`` over all nodes; `lengths`, (n_out,) float64, is written:
        :func:`pdadmm.admm.updates.line_lengths` with mu.

        Returns
        -------
        Scalar
            ``sum_j lengths_j |G_j|^2``.
        """
        ...

    def bias_step(self, sums: Array, nodes: int, b: Array, mean: Array) -> None:
        """``mean = sums / nodes`` and ``b -= mean``: the step to the minimiser in b.

        `sums`: (n_out,) float64 over all `nodes`; `b`, `mean`: (n_out,) float32.
        """
        ...

    def residual(self, M: Array, b: Array, z: Array) -> None:
        """``M = M + b - z``, `M` holding ``p W^T`` on entry."""
        ...

    # ---- the update of p ----------------------------------------------------------------------------

    def p_gradient(self, G: Array, end: Coupled, message: Array | None, nu: float, rho: float) -> Scalar:
        """Finish the iteration before of the layer below, then form the gradient of p.

        Decodes `message` into the copy of q and repeats the dual update ``u += rho (p_hat - q_hat)``
        that the end below made. Both are skipped when `message` is None: in a stage's first iteration, and
        where the two ends share them.
        `G` (V, n_in) holds ``M W`` on entry and the gradient on return.

        Returns
        -------
        Scalar
            Squared norm of the gradient.
        """
        ...

    def p_step(self, end: Coupled, G: Array, length: Scalar, out: Array, key: int) -> None:
        """``p -= length * G``, then encode p into `out` against its decoded copy."""
        ...

    def p_line_search(
        self, end: Coupled, G: Array, H: Array, M: Array, nu: float, rho: float, out: Array, key: int
    ) -> Scalar:
        """``p_v -= l_v G_v`` and ``M_v -= l_v H_v`` with the exact line search of every node v; encode p.

        `G`: (V, n_in), `H`: ``G W^T`` (V, n_out), `M`: (V, n_out). l_v is
        :func:`pdadmm.admm.updates.line_lengths` with rho. Encodes into `out` as :meth:`p_step` does. Not for
        codecs with a grid, whose steps are tested where p is projected to.

        Returns
        -------
        Scalar
            ``sum_v l_v |G_v|^2`` over this rank's nodes.
        """
        ...

    def projected_change(self, change: Array, end: Coupled, G: Array, length: Scalar) -> Scalar:
        """``change = project(p - length G) - p`` on the grid of the codec; returns its squared norm.

        Raises
        ------
        NonFiniteError
        """
        ...

    def encode(self, codec: Codec, x: Array, hat: Array, out: Array, key: int = 0) -> None:
        """Encode alone, see :meth:`pdadmm.codec.Codec.encode`."""
        ...

    def decode(self, codec: Codec, message: Array, hat: Array) -> None:
        """Decode alone, see :meth:`pdadmm.codec.Codec.decode`."""
        ...

    # ---- the exact solver ---------------------------------------------------------------------------

    #: whether shares are of what is minus its means; else they are of p and z as they are, and what the means
    #: add comes off the sums
    centres: bool

    def inverse_hessian(self, W: Array, nu: float, rho: float, work: Workspace) -> Array:
        """``(nu W^T W + rho I)^-1``, see :func:`pdadmm.admm.updates.inverse_hessian`."""
        ...

    def gram_share(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        """What :meth:`gram` sums over the nodes, of these, (n_in, n_in); `p_mean` over all nodes."""
        ...

    def gram(self, shares: Array, p_mean: Array, nodes: int) -> Array:
        """Centred Gram matrix over all nodes from the sum of their shares, (n_in, n_in) float64."""
        ...

    def right_share(
        self, p: Array, z: Array, p_mean: Array, z_mean: Array, W_bar: Array | float, work: Workspace
    ) -> Array:
        """What :meth:`right` sums over the nodes, of these, (n_in, n_out)."""
        ...

    def right(self, shares: Array, p_mean: Array, z_mean: Array, nodes: int) -> Array:
        """Right-hand side that belongs to :meth:`gram` in :meth:`ridge`, (n_in, n_out) float64."""
        ...

    def dual_gram(self, p: Array, p_mean: Array, work: Workspace) -> Array:
        """Gram matrix of the nodes, doubly centred, (V, V) float64; all of them must be here."""
        ...

    def system(self, gram: Array, penalty: Scalar) -> RidgeSystem:
        """The equations of :meth:`ridge` or :meth:`dual_ridge`, of either Gram matrix; `penalty` is mu/nu.

        A Gram matrix that does not change needs no other one: it may be solved any number of times.
        """
        ...

    def ridge(self, system: RidgeSystem, right: Array, W_bar: Array | float) -> Array:
        """W (n_out, n_in) from the sums of :meth:`gram` and :meth:`right`; overwrites `right`."""
        ...

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
        """W by the system of :meth:`dual_gram`, for fewer nodes than inputs."""
        ...

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
        """Bias step, z-, q- and u-update of a hidden layer with decode of p and encode of q.

        Takes `mean` off M, updates z, decodes `message` into the copy of the next layer's p (not where it is
        None: the ends share the copy), updates q, encodes it into `out` against its copy, updates u. On
        return M belongs to the new z. All arrays (V, n_out) but `mean`, (n_out,).

        When `fresh`, M holds ``p W^T`` instead of the residual, and `mean` is ``-b``.
        """
        ...

    def output(
        self, M: Array, mean: Array, z: Array, y: Array, nu: float, risk: str, fresh: bool = False
    ) -> Scalar:
        """Bias step and z-update of the output layer; returns the squared change of z.

        `M`, `z`: (V, classes), updated in place; `y`: (V,) labels; `risk`: ``cross_entropy`` or
        ``least_squares``; `fresh` as in :meth:`hidden`.
        """
        ...
