"""One layer's state and its third of an iteration: p, then W and b, then z, q and u.

The layer alone adds up sums over nodes: passes give the share of the rank's nodes, and `nodes`, the
shards of the layer's block, makes the total of it (the share itself where there is one shard).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pdadmm.admm import updates
from pdadmm.admm.activations import Activation
from pdadmm.admm.coupling import CouplingEnd
from pdadmm.admm.passes.lengths import label_of
from pdadmm.admm.passes.protocol import HiddenSums, Passes
from pdadmm.admm.updates import RidgeSystem
from pdadmm.admm.weights import DenseWeights, Inputs, RowSpaceWeights, Weights
from pdadmm.arrays import Array, Scalar, copy_into, namespace, number, squared_norm
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.arrays.groups import total
from pdadmm.arrays.workspace import Workspace
from pdadmm.codec import NonFiniteError
from pdadmm.comm.grid import ALONE, Axis
from pdadmm.errors import RunError
from pdadmm.trace.clock import Clock

__all__ = ["IF_IT_DIVERGES", "Hyper", "Layer", "Terms"]

#: share of an input's mean in its mean square from which on the mean is taken off: 10 deviations
_FAR = 0.99
#: nodes a column of p from which on sums over the nodes, and not products of weights, are what counts
_MANY_NODES = 16
#: what to do
IF_IT_DIVERGES = "scale the features to about 1, or try a larger --rho, a smaller --nu or more --bits"


@dataclass
class Hyper:
    """Penalties and methods of a run; `nu` and `rho` may change under a schedule."""

    nu: float
    rho: float
    mu: float
    solver: str  #: gradient | exact
    step: str  #: exact | row | doubling
    refresh: int  #: iterations between recomputations of the residual
    risk: str  #: cross_entropy | least_squares
    damping: float = 0.0  #: of the exact W-update, in mean eigenvalues of its Gram matrix
    momentum: float = 0.0  #: of W and b in hidden layers
    z_centre: str = "previous"  #: previous | linear


@dataclass
class Terms:
    """A layer's part of the monitored sums, float64, over all nodes."""

    risk: Scalar = 0.0  #: R(z_L; y)
    residual: Scalar = 0.0  #: |p W^T + b - z|^2
    relaxation: Scalar = 0.0  #: |q - f(z)|^2
    weights: Scalar = 0.0  #: |W - W_bar|^2
    primal: Scalar = 0.0  #: |p_{l+1} - q_l|^2
    dual: Scalar = 0.0  #: <u_l, p_{l+1} - q_l>
    change: Scalar = 0.0  #: squared successive differences, weighted as in the paper's descent lemma


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

    Attributes
    ----------
    weights
        W, written out, or for layer 1 in the row space of its input.
    nodes
        The shards of the layer's nodes.
    """

    def __init__(
        self, position: int, W: Array, b: Array, W_bar: Array | float, activation: Activation | None
    ) -> None:
        self.position = position
        self.weights: Weights = DenseWeights(W, W_bar, NUMPY)
        self.b = b
        self.activation = activation
        self.below: CouplingEnd | None = None
        self.above: CouplingEnd | None = None
        self.backend: Backend = NUMPY
        self.nodes: Axis = ALONE

    def to(self, backend: Backend) -> Layer:
        """Move the weights to where `backend` computes; returns the layer."""
        self.backend = backend
        W_bar = self._dense.W_bar
        if not isinstance(W_bar, float):
            W_bar = backend.asarray(W_bar)
        self.weights = DenseWeights(backend.asarray(self.W), W_bar, backend)
        self.b = backend.asarray(self.b)
        return self

    @property
    def W(self) -> Array:
        """The weights (n_out, n_in); those it started from while it is kept in the row space."""
        return self.weights.W

    @property
    def _dense(self) -> DenseWeights:
        assert isinstance(self.weights, DenseWeights)
        return self.weights

    @property
    def n_in(self) -> int:
        return int(self.W.shape[1])

    @property
    def n_out(self) -> int:
        return int(self.W.shape[0])

    def linear(self, inputs: Inputs) -> Array:
        """``p W^T + b``, (rows, n_out), of what :meth:`Weights.inputs_of` gives for p."""
        z = self.weights.linear(inputs)
        z += self.b
        return z

    def keep_in_row_space(self, X: Array, lines: bool = False) -> None:
        """Keep the weights of layer 1 as combinations of the rows of X, the same for all of a run.

        `lines`: of steps by neurons, see :class:`~pdadmm.admm.weights.RowSpaceWeights`.
        """
        if isinstance(self.weights, DenseWeights):
            self.weights = RowSpaceWeights(X, self.W, self.backend, lines)

    def write_out(self) -> None:
        """Make `W` the present weights, once and for all."""
        if not isinstance(self.weights, DenseWeights):
            self.weights = DenseWeights(self.weights.written_out(), 0.0, self.backend)

    def snapshot(self) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """What gives the present W and b on the host, also when they have changed since."""
        W, b, host = self.weights.snapshot(), self.b.copy(), self.backend.to_host
        return lambda: (W(), host(b))

    def to_host(self) -> None:
        """Write the weights out and take them to the host."""
        self.write_out()
        self.weights = DenseWeights(self.backend.to_host(self.W), 0.0, NUMPY)
        self.b = self.backend.to_host(self.b)
        self.backend = NUMPY

    def start(
        self,
        p: Array,
        z: Array,
        y: Array | None,
        hyper: Hyper,
        passes: Passes,
        work: Workspace,
        clock: Clock,
    ) -> None:
        """Enter a stage from a forward pass: ``z = p W^T + b``, so that the residual is 0.

        `p` is kept, not copied: X in layer 1, the own variable of the coupling below elsewhere.
        """
        self.p, self.z, self.y = p, z, y
        self.inputs = self.weights.inputs_of(p)
        self.M = self.backend.zeros(z.shape)
        self.hyper, self.passes, self.work, self.clock = hyper, passes, work, clock
        #: rho of the iteration in which the messages that come next were sent
        self._rho = hyper.rho
        #: V, over all shards
        self.V = int(self.nodes.sums(len(z))[0])
        #: of the residual over the nodes, which the b-update takes off; the same array for all of a stage
        self.mean = self.backend.zeros(self.b.shape)
        self._gram: Array | None = None
        #: of layer 1, whose Gram matrix is the same in all iterations, and what its penalty was made of
        self._system: tuple[tuple[float, ...], RidgeSystem] | None = None
        self._spread: Scalar | None = None
        self._far = False
        #: last changes of W and b, which momentum repeats in part; nothing to repeat at first
        self.steps: dict[str, Array] = {}
        if hyper.momentum and self.activation is not None:
            self.steps = {"W": self.backend.zeros(self.W.shape), "b": self.backend.zeros(self.b.shape)}
        #: factors of the weighted squared changes of this iteration, in order, and whether the last of them
        #: is a sum over this rank's nodes alone
        self._changes: list[tuple[bool, tuple[Scalar, ...]]] = []

    def state(self) -> dict[str, Array]:
        """Arrays that make the next iteration the same, by name."""
        found = {"W": self.W, "b": self.b, "z": self.z, "M": self.M, **self.weights.state()}
        found.update({f"{name}/step": step for name, step in self.steps.items()})
        for end in (self.below, self.above):
            if end is not None:
                found.update(end.state())
        return found

    def restore(
        self,
        saved: Mapping[str, Array],
        below: Mapping[str, Array] | None,
        above: Mapping[str, Array] | None,
    ) -> None:
        """Take over the arrays of :meth:`state`, in a stage that was started.

        `below` and `above` are those of the neighbouring layers in the stage, since the ends of a
        coupling save what they share only once.
        """
        copy_into(self.z, saved["z"])
        copy_into(self.M, saved["M"])
        self.weights.restore(saved)
        for name, step in self.steps.items():
            copy_into(step, saved[f"{name}/step"])
        if self.below is not None:
            assert below is not None
            self.below.restore(below, saved)
        if self.above is not None:
            assert above is not None
            self.above.restore(saved, above)

    # ---- the three parts of an iteration ------------------------------------------------------------

    def update_p(self, iteration: int) -> None:
        """p-update; sends p down. In layer 1, whose p is X, no more than the refresh of the residual."""
        h, k, backend = self.hyper, self.passes, self.backend
        self._changes = []
        if self.above is not None:
            self.above.expect()
        if iteration and iteration % h.refresh == 0 and h.solver == "gradient":
            self.weights.linear_of_all(self.inputs, self.M)
            self._lap("products")
            k.residual(self.M, self.b, self.z)
            self._lap("updates")
        end = self.below
        if end is None:
            return
        G = self.work.get("G", self.p.shape)
        backend.rows(self.M, self.W, G)
        self._lap("products")
        message = end.message()
        self._lap("wait")
        if message is not None and self._rho != h.rho:
            # a schedule has changed it since q left, and the other end updated u with what it was
            k.p_gradient(G.copy(), end, message, h.nu, self._rho)
            message = None
        norm = k.p_gradient(G, end, message, h.nu, h.rho)
        self._lap("updates")
        self._require_finite(norm, "the gradient of p", iteration)
        end.expect()
        out, key = end.outgoing()
        self._lap("wait")
        try:
            if h.solver == "exact":
                self._exact_p(G, out, key)
            elif end.codec.span is not None:
                self._projected_p(G, norm, out, key)
            else:
                H = backend.rows(G, self.W.T, self.work.get("H", self.M.shape))
                self._lap("products")
                if h.step == "row":
                    decrease = k.p_line_search(end, G, H, self.M, h.nu, h.rho, out, key)
                    self._changes.append((True, (0.5, decrease)))
                    self._send(end)
                else:
                    norm, image = self._sums(norm, k.squared_norm(H))
                    length = k.lengths.step(
                        h.rho, h.nu, image, norm, h.step, label_of(iteration, self.position, "p")
                    )
                    k.p_step(end, G, length, out, key)
                    self._send(end)
                    k.subtract(self.M, H, length)
                    self._lap("updates")
                    self._changes.append((False, (0.5, norm, length)))
        except NonFiniteError:
            raise self.diverged("p", iteration) from None

    def update_weights(self, iteration: int) -> None:
        """W-update and b-update, and the mean that the latter takes off the residual."""
        h, k = self.hyper, self.passes
        if h.solver == "exact":
            self._exact_weights()
            return
        share = self.weights.gradient_share(self.M, self.inputs, self.work)
        self._lap("products")
        found = self._sum(share)
        norm, K = self.weights.gradient(found, self.inputs, h.nu, h.mu, k, self.work, self._lap)
        self._lap("products")
        self._require_finite(norm, "the gradient of W", iteration)
        length: Scalar | Array
        if h.step == "row":
            images = self._sum(k.column_squares(K))
            length = self.work.get("lengths", self.b.shape, np.float64)
            self._changes.append((False, (0.5, self.weights.line_search(images, h.nu, length, k))))
        else:
            (image,) = self._sums(k.squared_norm(K))
            length = k.lengths.step(h.mu, h.nu, image, norm, h.step, label_of(iteration, self.position, "W"))
            self.weights.step(length, k)
            self._changes.append((False, (0.5, norm, length)))
        sums = self._sum(k.subtract_mean(self.M, K, length))
        k.bias_step(sums, self.V, self.b, self.mean)
        self._lap("updates")

    def update_outputs(self, iteration: int, measure: bool) -> Terms | None:
        """z-, q- and u-update; sends q up. Returns the monitored terms when `measure` is set."""
        h = self.hyper
        self._rho = h.rho
        try:
            terms = self._hidden(measure) if self.above is not None else self._output(measure)
        except NonFiniteError:
            raise self.diverged("q", iteration) from None
        self._lap("updates")
        if terms is not None:
            terms.weights = self.weights.penalty() if h.mu else 0.0
        return terms

    def score(self, logits: Array, y: Array) -> tuple[Scalar, Scalar]:
        """Correctly classified nodes, and their risk, of these nodes' linear outputs and labels."""
        correct = number((logits.argmax(axis=1) == y).sum(dtype=np.float64))
        return correct, risk_sum(logits, y, self.hyper.risk)

    def totals(self, *shares: Scalar) -> tuple[Scalar, ...]:
        """Sums over all nodes of what this rank has of its own."""
        return self.nodes.sums(*shares)

    def span(self, x: Array) -> tuple[float, float]:
        """Smallest and largest entry of an array of the nodes, over all of them."""
        return self.nodes.span(float(x.min()), float(x.max()))

    # ---- their parts --------------------------------------------------------------------------------

    def _lap(self, phase: str) -> None:
        self.clock.lap(phase, self.position)

    def _sum(self, share: Array) -> Array:
        """Sum over the shards; a phase of its own where there are several."""
        if self.nodes.size == 1:
            return share
        self._lap("updates")
        found = self.nodes.sum(share)
        self.clock.about(self.nodes.last)
        self._lap("reduction")
        return found

    def _sums(self, *shares: Scalar) -> tuple[Scalar, ...]:
        """The same of numbers."""
        if self.nodes.size == 1:
            return shares
        self._lap("updates")
        totals = self.nodes.sums(*shares)
        self.clock.about(self.nodes.last)
        self._lap("reduction")
        return totals

    def _send(self, end: CouplingEnd) -> None:
        self._lap("updates")
        end.send()
        self._lap("send")

    def _hidden(self, measure: bool) -> Terms | None:
        """A hidden layer's z, q and u by one pass, between the arrival of p and the departure of q."""
        h, k, end = self.hyper, self.passes, self.above
        assert end is not None and self.activation is not None
        message = end.message()
        assert end.shared or message is not None
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
        sums = k.hidden(
            self.M, self.mean, self.z, end, message, out, key, self.activation, h.nu, h.rho, measure,
            fresh=fresh,
        )  # fmt: skip
        self._send(end)
        if sums is None:
            return None
        if before is not None:
            k.subtract(before, self.z, 1.0)
            sums.dz = k.squared_norm(before)
        found = HiddenSums(*self._sums(*vars(sums).values()))
        # weight of the q-term in the paper's descent lemma, where it is positive
        dq = max(0.5 * h.rho - 2 * h.nu**2 / h.rho - 0.5 * h.nu, 0.0)
        return Terms(
            residual=found.residual,
            relaxation=found.relaxation,
            primal=found.primal,
            dual=found.dual,
            change=self._change() + 0.5 * h.nu * found.dz + dq * found.dq,
        )

    def _output(self, measure: bool) -> Terms | None:
        """The output layer's z, which weighs the risk against the linear output."""
        h = self.hyper
        assert self.y is not None
        fresh = h.solver == "exact"
        dz = self.passes.output(self.M, self.mean, self.z, self.y, h.nu, h.risk, fresh=fresh)
        if not measure:
            return None
        risk = total(self.backend.groups, lambda z, y: risk_sum(z, y, h.risk), self.z, self.y)
        risk, residual, dz = self._sums(risk, self.passes.squared_norm(self.M), dz)
        return Terms(risk=risk, residual=residual, change=self._change() + 0.5 * h.nu * dz)

    def _change(self) -> Scalar:
        """Weighted squared changes of p, W and b; formed only when measured, since a GPU would sum them."""
        sums = iter(self._sums(*(factors[-1] for shared, factors in self._changes if shared)))
        change = 0.0
        for shared, factors in self._changes:
            change = change + _product((*factors[:-1], next(sums)) if shared else factors)
        if self.hyper.solver == "gradient":  # the exact solver has noted the change of b already
            change = change + 0.5 * self.hyper.nu * squared_norm(self.mean)
        return change

    def _exact_p(self, G: Array, out: Array, key: int) -> None:
        """p to the minimiser: ``p - G (nu W^T W + rho I)^-1``, since the gradient is linear in p."""
        h, k, end = self.hyper, self.passes, self.below
        assert end is not None
        inverse = k.inverse_hessian(self.W, h.nu, h.rho, self.work)
        step = self.backend.rows(G, inverse, self.work.get("S", G.shape))
        self._lap("products")
        self._changes.append((True, (0.5 * h.rho, k.squared_norm(step))))
        # on a grid, where own_hat is p itself, the encoding projects p
        k.p_step(end, step, 1.0, out, key)
        self._send(end)

    def _exact_weights(self) -> None:
        """W and b to the minimisers, a ridge regression of z on p, with damping and momentum."""
        h = self.hyper
        weights = self._dense
        W_bar, mu = weights.W_bar, h.mu
        if h.damping:
            if self._spread is None or self.below is not None:
                self._spread = self._mean_eigenvalue()
            W_bar, mu = updates.damped_anchor(self.W, W_bar, mu, h.damping * h.nu * self._spread)
        W, b = self._ridge(W_bar, mu / h.nu)
        if self.steps:
            W = W + np.float32(h.momentum) * self.steps["W"]
            b = b + np.float32(h.momentum) * self.steps["b"]
            self.steps["W"][...] = W - self.W
            self.steps["b"][...] = b - self.b
        self._changes.append((False, (0.5 * mu, squared_norm(W - self.W))))
        self._changes.append((False, (0.5 * h.nu, squared_norm(b - self.b))))
        self.W[...] = W
        self.b[...] = b
        self._lap("updates")
        weights.linear_of_all(self.p, self.M)
        self._lap("products")
        np.negative(self.b, out=self.mean)
        self._lap("updates")

    def _ridge(self, W_bar: Array | float, penalty: Scalar) -> tuple[Array, Array]:
        """W and b of the regression, from sums over the nodes or, for few of them, the dual system."""
        k, p, z = self.passes, self.p, self.z
        p_mean = self._sum(k.column_sums(p)) / self.V
        z_mean = self._sum(k.column_sums(z)) / self.V
        dual = self.n_in > self.V and self.nodes.whole
        rest = p_mean
        if self.below is None:  # X never changes, nor does its Gram matrix
            if self._gram is None:
                self._gram = updates.centred_gram(p) if dual else self._centred_gram()
                self._far = not k.centres and self._is_far(p_mean, self._sum(k.column_squares(p)))
            if self._far:
                p, rest = self._near_zero(p_mean)
            of = (self.hyper.nu, self.hyper.mu, self.hyper.damping)
            if self._system is None or self._system[0] != of:
                self._system = of, k.system(self._gram, penalty)
            system = self._system[1]
        elif dual:
            if not k.centres and self._is_far(p_mean, k.column_squares(p)):
                p, rest = self._near_zero(p_mean)
            system = k.system(k.dual_gram(p, rest, self.work), penalty)
        else:
            shares = self._sum(k.gram_share(self._summed(p), p_mean, self.work))
            if not k.centres and self._is_far(p_mean, shares.diagonal()):
                p, rest = self._near_zero(p_mean)
                shares = self._sum(k.gram_share(self._summed(p), rest, self.work))
            system = k.system(k.gram(shares, rest, self.V), penalty)
        if dual:
            W = k.dual_ridge(system, p, z, rest, z_mean, W_bar, self.work)
        else:
            share = k.right_share(self._summed(p), z, rest, z_mean, W_bar, self.work)
            right = k.right(self._sum(share), rest, z_mean, self.V)
            W = k.ridge(system, right, W_bar)
        return W, updates.ridge_bias(W, p_mean, z_mean)

    def _summed(self, p: Array) -> Array:
        """p as it enters sums over the nodes: in double precision where these are fewer than the inputs.

        Their Gram matrix then has no full rank, and what rounding leaves of single precision where there is
        nothing would be larger than the floor under the penalty.
        """
        return p.astype(np.float64) if self.n_in > self.V else p

    def _is_far(self, p_mean: Array, squares: Array) -> bool:
        """Whether an input's mean is far larger than what it varies by; `squares` are summed over the nodes.

        Then products of p itself in single precision lose the variation. For passes that do not take the
        means off themselves.
        """
        return bool((self.V * p_mean * p_mean > _FAR * squares).any())

    def _near_zero(self, p_mean: Array) -> tuple[Array, Array]:
        """p less its mean, and the mean that is left: a regression does not mind what comes off an input."""
        mean = p_mean.astype(self.p.dtype)
        return np.subtract(self.p, mean, out=self.work.get("P", self.p.shape)), p_mean - mean

    def _centred_gram(self) -> Array:
        """The Gram matrix of p minus its mean over the nodes, (n_in, n_in) float64."""
        # a copy of the sums, which lie where the kernels' next ones will
        mean = self._sum(self.passes.column_sums(self.p)) / self.V
        centred = self._summed(self.p - mean.astype(self.p.dtype))
        share = self.backend.empty((self.n_in, self.n_in), centred.dtype)
        return self._sum(self.backend.over_rows(centred, centred, share)).astype(np.float64)

    def _mean_eigenvalue(self) -> Scalar:
        """Trace over order of the centred Gram matrix of p: V times the mean variance of an input."""
        means = self._sum(self.passes.column_sums(self.p)) / self.V
        (norm,) = self._sums(self.passes.squared_norm(self.p))
        return abs(norm - self.V * (means * means).sum()) / self.n_in  # rounding, where inputs do not vary

    def _projected_p(self, G: Array, norm: Scalar, out: Array, key: int) -> None:
        """p-step of pdADMM-G-Q: the sufficient-decrease test is made at the projected point."""
        h, k, end = self.hyper, self.passes, self.below
        assert end is not None
        change, image = self.work.get("S", G.shape), self.work.get("H", self.M.shape)
        mine: Scalar = 0.0  # of the change, this rank's share

        def trial(length: float) -> tuple[float, float]:
            nonlocal mine
            mine = k.projected_change(change, end, G, length)
            self.backend.rows(change, self.W.T, image)
            moved, of_image = self._sums(mine, k.squared_norm(image))
            return float(moved), float(of_image)

        # the search decides on the host
        (found,) = self._sums(norm)
        norm, length, tau = float(found), 0.0, updates.DOUBLING_START
        if not np.isfinite(norm):
            raise NonFiniteError
        if norm:
            if h.step != "doubling":  # one length for all nodes: the test is of the projected point of all
                tau = h.rho + h.nu * self._image_norm(G) / norm
            length = updates.projected_length(h.rho, h.nu, tau, trial)
        if not length:  # p goes to the grid all the same, off which a stage begins
            trial(0.0)
        self._lap("products")
        if length:
            self._changes.append((True, (0.5 / length, mine)))
        k.p_step(end, change, -1.0, out, key)
        self._send(end)
        k.subtract(self.M, image, -1.0)
        self._lap("updates")

    def _image_norm(self, G: Array) -> float:
        """``|G W^T|^2`` over all nodes.

        Of many nodes as ``<G^T G, W^T W>``: symmetry saves a third of a product on the host, and the image,
        of which no more is wanted, is not written.
        """
        if self.backend.on_device or self.n_in > self.n_out or _MANY_NODES * self.n_in > self.V:
            image = self.backend.rows(G, self.W.T, self.work.get("H", self.M.shape))
            return float(self._sums(self.passes.squared_norm(image))[0])
        square = self.n_in, self.n_in
        found = self._sum(self.backend.over_rows(G, G, self.work.get("GG", square)))
        weights = self.backend.matmul(self.W.T, self.W, self.work.get("WW", square))
        return float(np.multiply(found, weights, out=weights).sum(dtype=np.float64))

    def _require_finite(self, norm: Scalar, what: str, iteration: int) -> None:
        if self.passes.lengths.known_bad(norm):
            raise self.diverged(what, iteration)

    def diverged(self, what: str, iteration: int) -> RunError:
        """The error for what turned out NaN or Inf in an iteration, counted from 0 in the stage."""
        return RunError(
            f"layer {self.position}, iteration {iteration + 1} of the stage: {what} is NaN or Inf; "
            f"the run diverges; {IF_IT_DIVERGES}"
        )


def _product(factors: tuple[Scalar, ...]) -> Scalar:
    first, *others = factors
    for factor in others:
        first = first * factor
    return first


def risk_sum(z: Array, y: Array, risk: str) -> Scalar:
    """Risk summed over the nodes, float64: cross-entropy of softmax, or half the squared error.

    Of these nodes; a float, or a 0-d array for one on a GPU.
    """
    z64 = z.astype(np.float64)
    rows = namespace(z).arange(len(z64))
    if risk == "cross_entropy":
        top = z64.max(axis=1)
        return number((np.log(np.exp(z64 - top[:, None]).sum(axis=1)) + top - z64[rows, y]).sum())
    z64[rows, y] -= 1
    return 0.5 * number((z64 * z64).sum())
