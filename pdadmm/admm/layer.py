"""One layer's state and its third of an iteration: p, then W and b, then z, q and u."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.admm import updates
from pdadmm.admm.activations import Activation
from pdadmm.admm.coupling import CouplingEnd
from pdadmm.admm.row_space import RowSpaceWeights
from pdadmm.arrays import Array, copy_into, namespace, number, squared_norm
from pdadmm.arrays.backend import NUMPY, label_of
from pdadmm.codec import NonFiniteError
from pdadmm.errors import RunError
from pdadmm.trace.clock import Clock

__all__ = ["Hyper", "Layer", "Terms", "Workspace"]


@dataclass
class Hyper:
    """Penalties and methods of a run; `nu` and `rho` may change under a schedule."""

    nu: float
    rho: float
    mu: float
    solver: str  #: gradient | exact
    step: str  #: exact | doubling
    refresh: int  #: iterations between recomputations of the residual
    risk: str  #: cross_entropy | least_squares
    damping: float = 0.0  #: of the exact W-update, in mean eigenvalues of its Gram matrix
    momentum: float = 0.0  #: of W and b in hidden layers
    z_centre: str = "previous"  #: previous | linear


@dataclass
class Terms:
    """A layer's share of the monitored sums, float64, over its nodes."""

    risk: float = 0.0  #: R(z_L; y)
    residual: float = 0.0  #: |p W^T + b - z|^2
    relaxation: float = 0.0  #: |q - f(z)|^2
    weights: float = 0.0  #: |W - W_bar|^2
    primal: float = 0.0  #: |p_{l+1} - q_l|^2
    dual: float = 0.0  #: <u_l, p_{l+1} - q_l>
    change: float = 0.0  #: squared successive differences, weighted as in the paper's descent lemma


class Workspace:
    """Scratch arrays by name and shape, shared by the layers of a rank, made once a stage."""

    def __init__(self, backend: Any = NUMPY) -> None:
        self._backend = backend
        self._arrays: dict[tuple[str, tuple[int, ...]], Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        key = (name, shape)
        if key not in self._arrays:
            self._arrays[key] = self._backend.empty(shape, dtype)
        return self._arrays[key]


class Layer:
    """Layer `position` of the network, its variables, and its part of an iteration.

    Parameters
    ----------
    position
        From 1 to L, its place in the finished network.
    W, b, W_bar
        (n_out, n_in), (n_out,), and the anchor of the L2 penalty: an array or 0.
    activation
        f, None for the output layer.
    """

    def __init__(
        self, position: int, W: Array, b: Array, W_bar: Array | float, activation: Activation | None
    ) -> None:
        self.position = position
        self.W = W
        self.b = b
        self.W_bar = W_bar
        self.activation = activation
        self.below: CouplingEnd | None = None
        self.above: CouplingEnd | None = None
        self.backend: Any = NUMPY
        #: where the weights are while they are kept in the row space of X; `W` is then what they started from
        self.rows: RowSpaceWeights | None = None

    def to(self, backend: Any) -> Layer:
        """Move the weights to where `backend` computes; returns the layer."""
        self.backend = backend
        self.W, self.b = backend.asarray(self.W), backend.asarray(self.b)
        if not isinstance(self.W_bar, float):
            self.W_bar = backend.asarray(self.W_bar)
        return self

    @property
    def n_in(self) -> int:
        return int(self.W.shape[1])

    @property
    def n_out(self) -> int:
        return int(self.W.shape[0])

    def linear(self, p: Any) -> Array:
        """``p W^T + b``, (V, n_out); `p` as :meth:`RowSpaceWeights.project` gives it while there is one."""
        z = self.backend.matmul(p, self.W.T) if self.rows is None else self.rows.linear(*p)
        z += self.b
        return z

    def keep_in_row_space(self, X: Array) -> None:
        """Keep the weights of layer 1 as combinations of the rows of X, the same for all of a run."""
        self.rows = RowSpaceWeights(X, self.W, self.backend)

    def write_out(self) -> None:
        """Make `W` the present weights, once and for all."""
        if self.rows is not None:
            self.W, self.rows = self.rows.weights(), None

    def start(
        self,
        p: Array,
        z: Array,
        y: Array | None,
        hyper: Hyper,
        kernels: Any,
        work: Workspace,
        clock: Clock,
    ) -> None:
        """Enter a stage from a forward pass: ``z = p W^T + b``, so that the residual is 0.

        `p` is kept, not copied: X in layer 1, the own variable of the coupling below elsewhere.
        """
        self.p, self.z, self.y = p, z, y
        self.M = self.backend.zeros(z.shape)
        self.hyper, self.kernels, self.work, self.clock = hyper, kernels, work, clock
        self._gram: Array | None = None
        self._spread: Any = None
        #: last changes of W and b, which momentum repeats in part; nothing to repeat at first
        self.steps: dict[str, Array] = {}
        if hyper.momentum and self.activation is not None:
            self.steps = {"W": self.backend.zeros(self.W.shape), "b": self.backend.zeros(self.b.shape)}
        self._changes: list[tuple[Any, ...]] = []

    def state(self) -> dict[str, Array]:
        """Arrays that make the next iteration the same, by name."""
        found = {"W": self.W, "b": self.b, "z": self.z, "M": self.M}
        if self.rows is not None:
            found.update(self.rows.state())
        found.update({f"{name}/step": step for name, step in self.steps.items()})
        for end in (self.below, self.above):
            if end is not None:
                found.update(end.state())
        return found

    def restore(
        self,
        saved: Mapping[str, Array],
        previous: Mapping[str, Array] | None,
        following: Mapping[str, Array] | None,
    ) -> None:
        """Take over the arrays of :meth:`state`, in a stage that was started.

        `previous` and `following` are those of the layers below and above in the stage, since the
        ends of a coupling save what they share only once.
        """
        copy_into(self.z, saved["z"])
        copy_into(self.M, saved["M"])
        if self.rows is not None:
            self.rows.restore(saved)
        for name, step in self.steps.items():
            copy_into(step, saved[f"{name}/step"])
        if self.below is not None:
            assert previous is not None
            self.below.restore(previous, saved)
        if self.above is not None:
            assert following is not None
            self.above.restore(saved, following)

    # ---- the three parts of an iteration ------------------------------------------------------------

    def update_p(self, iteration: int) -> None:
        """p-update; sends p down. Nothing to do in layer 1, whose p is X."""
        h, k, backend = self.hyper, self.kernels, self.backend
        self._changes = []
        if self.above is not None:
            self.above.expect()
        if iteration and iteration % h.refresh == 0 and h.solver == "gradient":
            if self.rows is not None:
                self.rows.linear(self.rows.products, self.rows.image, out=self.M)
            else:
                backend.matmul(self.p, self.W.T, out=self.M)
            self._lap("products")
            k.residual(self.M, self.b, self.z)
            self._lap("updates")
        end = self.below
        if end is None:
            return
        G = self.work.get("G", self.p.shape)
        backend.matmul(self.M, self.W, out=G)
        self._lap("products")
        message = end.message()
        self._lap("wait")
        norm = k.p_gradient(G, self.p, end.own_hat, end.other_hat, end.u, end.codec, message, h.nu, h.rho)
        self._lap("updates")
        self._require_finite(norm, "the gradient of p", iteration)
        end.expect()
        out, key = end.outgoing()
        self._lap("wait")
        try:
            if h.solver == "exact":
                self._exact_p(G, out, key)
            elif end.codec.name == "grid":
                self._projected_p(G, norm, out, key)
            else:
                H = backend.matmul(G, self.W.T, out=self.work.get("H", self.M.shape))
                self._lap("products")
                label = label_of(iteration, self.position, "p")
                length = backend.step_length(h.rho, h.nu, k.squared_norm(H), norm, h.step, label)
                k.p_step(self.p, G, length, end.own_hat, end.codec, out, key)
                self._send(end)
                k.subtract(self.M, H, length)
                self._lap("updates")
                self._changes.append((0.5, norm, length))
        except NonFiniteError:
            raise self.diverged("p", iteration) from None

    def update_weights(self, iteration: int) -> None:
        """W-update, and the mean that the b-update takes off the residual."""
        h, k, backend = self.hyper, self.kernels, self.backend
        if h.solver == "exact":
            self._exact_weights()
            return
        if self.rows is not None:
            norm, K = self.rows.gradient(self.M, h.nu, h.mu, k, self.work)
            self._require_finite(norm, "the gradient of W", iteration)
        else:
            G = self.work.get("GW", self.W.shape)
            backend.matmul(self.M.T, self.p, out=G)
            self._lap("products")
            norm = k.weight_gradient(G, self.W, self.W_bar, h.nu, h.mu)
            self._lap("updates")
            self._require_finite(norm, "the gradient of W", iteration)
            K = backend.matmul(self.p, G.T, out=self.work.get("H", self.M.shape))
        self._lap("products")
        label = label_of(iteration, self.position, "W")
        length = backend.step_length(h.mu, h.nu, k.squared_norm(K), norm, h.step, label)
        if self.rows is not None:
            self.rows.step(length, k)
        else:
            k.subtract(self.W, G, length)
        self.mean = k.subtract_mean(self.M, K, length)
        self.b -= self.mean
        self._changes.append((0.5, norm, length))
        self._lap("updates")

    def update_outputs(self, iteration: int, measure: bool) -> Terms | None:
        """z-, q- and u-update; sends q up. Returns the monitored terms when `measure` is set."""
        h = self.hyper
        try:
            terms = self._hidden(measure) if self.above is not None else self._output(measure)
        except NonFiniteError:
            raise self.diverged("q", iteration) from None
        self._lap("updates")
        if terms is not None:
            terms.weights = self._weight_penalty() if h.mu else 0.0
        return terms

    # ---- their parts --------------------------------------------------------------------------------

    def _lap(self, phase: str) -> None:
        self.clock.lap(phase, self.position)

    def _send(self, end: CouplingEnd) -> None:
        self._lap("updates")
        end.send()
        self._lap("send")

    def _hidden(self, measure: bool) -> Terms | None:
        h, end = self.hyper, self.above
        assert end is not None and self.activation is not None
        message = end.message()
        out, key = end.outgoing()
        self._lap("wait")
        fresh = h.solver == "exact"
        before = None
        if h.z_centre == "linear":
            if measure:
                before = self.work.get("H", self.z.shape)
                before[...] = self.z
            if not fresh:
                self.M += self.z
                fresh = True
            np.subtract(self.M, self.mean, out=self.z)
        sums = self.kernels.hidden(
            self.M, self.mean, self.z, end.own, end.other_hat, end.own_hat, end.u,
            end.codec, message, out, key, self.activation, h.nu, h.rho, measure, fresh=fresh,
        )  # fmt: skip
        self._send(end)
        if sums is None:
            return None
        if before is not None:
            self.kernels.subtract(before, self.z, 1.0)
            sums.dz = self.kernels.squared_norm(before)
        # weight of the q-term in the paper's descent lemma, where it is positive
        dq = max(0.5 * h.rho - 2 * h.nu**2 / h.rho - 0.5 * h.nu, 0.0)
        return Terms(
            residual=sums.residual,
            relaxation=sums.relaxation,
            primal=sums.primal,
            dual=sums.dual,
            change=self._change() + 0.5 * h.nu * sums.dz + dq * sums.dq,
        )

    def _output(self, measure: bool) -> Terms | None:
        h = self.hyper
        assert self.y is not None
        fresh = h.solver == "exact"
        dz = self.kernels.output(self.M, self.mean, self.z, self.y, h.nu, h.risk, fresh=fresh)
        if not measure:
            return None
        return Terms(
            risk=risk_sum(self.z, self.y, h.risk),
            residual=squared_norm(self.M),
            change=self._change() + 0.5 * h.nu * dz,
        )

    def _change(self) -> Any:
        """Weighted squared changes of p, W and b; formed only when measured, since a GPU would sum them."""
        total = 0.0
        for weight, *factors in self._changes:
            for factor in factors:
                weight = weight * factor
            total = total + weight
        if self.hyper.solver == "gradient":  # the exact solver has noted the change of b already
            total = total + 0.5 * self.hyper.nu * squared_norm(self.mean)
        return total

    def _exact_p(self, G: Array, out: Array, key: int) -> None:
        h, end = self.hyper, self.below
        assert end is not None
        inverse = self.kernels.inverse_hessian(self.W, h.nu, h.rho)
        step = self.backend.matmul(G, inverse, out=self.work.get("S", G.shape))
        self._lap("products")
        self._changes.append((0.5 * h.rho, self.kernels.squared_norm(step)))
        # on a grid, where own_hat is p itself, the encoding projects p
        self.kernels.p_step(self.p, step, 1.0, end.own_hat, end.codec, out, key)
        self._send(end)

    def _exact_weights(self) -> None:
        h = self.hyper
        gram = None
        if self.below is None:  # X never changes, nor does its Gram matrix
            if self._gram is None:
                self._gram = updates.centred_gram(self.p)
            gram = self._gram
        W_bar, mu = self.W_bar, h.mu
        if h.damping:
            if self._spread is None or self.below is not None:
                self._spread = self._mean_eigenvalue()
            W_bar, mu = updates.damped_anchor(self.W, W_bar, mu, h.damping * h.nu * self._spread)
        W, b = self.kernels.exact_weights(self.p, self.z, W_bar, h.nu, mu, gram, self.work)
        if self.steps:
            W = W + np.float32(h.momentum) * self.steps["W"]
            b = b + np.float32(h.momentum) * self.steps["b"]
            self.steps["W"][...] = W - self.W
            self.steps["b"][...] = b - self.b
        self._changes.append((0.5 * mu, squared_norm(W - self.W)))
        self._changes.append((0.5 * h.nu, squared_norm(b - self.b)))
        self.W[...] = W
        self.b[...] = b
        self._lap("updates")
        self.backend.matmul(self.p, self.W.T, out=self.M)
        self._lap("products")
        self.mean = -self.b
        self._lap("updates")

    def _mean_eigenvalue(self) -> Any:
        """Trace over order of the centred Gram matrix of p: V times the mean variance of an input."""
        V, n = self.p.shape
        means = self.kernels.column_means(self.p)
        return (self.kernels.squared_norm(self.p) - V * (means * means).sum()) / n

    def _projected_p(self, G: Array, norm: float, out: Array, key: int) -> None:
        h, end = self.hyper, self.below
        assert end is not None
        k = self.kernels
        change, image = self.work.get("S", G.shape), self.work.get("H", self.M.shape)
        change, image, length = k.projected_step(
            self.p, G, norm, self.W, h.nu, h.rho, h.step, end.codec, change, image
        )
        self._lap("products")
        if length:
            k.subtract(self.p, change, -1.0)
            k.subtract(self.M, image, -1.0)
            self._changes.append((0.5 / length, k.squared_norm(change)))
        k.encode(end.codec, self.p, end.own_hat, out, key)
        self._send(end)

    def _weight_penalty(self) -> float:
        if self.rows is not None:
            return self.rows.squared_norm()
        return squared_norm(self.W - self.W_bar)

    def _require_finite(self, norm: float, what: str, iteration: int) -> None:
        if self.backend.known_bad(norm):
            raise self.diverged(what, iteration)

    def diverged(self, what: str, iteration: int) -> RunError:
        """The error for what turned out NaN or Inf in an iteration, counted from 0 in the stage."""
        return RunError(
            f"layer {self.position}, iteration {iteration + 1} of the stage: {what} is NaN or Inf; "
            "the run diverges, try a larger --rho or a smaller --nu"
        )


def risk_sum(z: Array, y: Array, risk: str) -> Any:
    """Risk summed over the nodes, float64: cross-entropy of softmax, or half the squared error.

    A float, or a 0-d array for one on a GPU.
    """
    z64 = z.astype(np.float64)
    rows = namespace(z).arange(len(z64))
    if risk == "cross_entropy":
        top = z64.max(axis=1)
        return number((np.log(np.exp(z64 - top[:, None]).sum(axis=1)) + top - z64[rows, y]).sum())
    z64[rows, y] -= 1
    return 0.5 * number((z64 * z64).sum())
