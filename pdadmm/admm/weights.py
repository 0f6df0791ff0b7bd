"""A layer's weights: written out, or layer 1's in the row space of its input.

The input of layer 1 never changes, and the gradient of W is ``nu M^T X + mu W``. So W never leaves
``scale W_0 + C^T X``: with ``Q = X X^T`` (V, V) and ``A = X W_0^T`` (V, n_out), formed once, an iteration

    R = nu M + mu C          s = mu scale          G = R^T X + s W_0
    K = X G^T = Q R + s A    |G|^2 = <R, K> + s <R, A> + s^2 |W_0|^2
    C <- C - R/theta         scale <- (1 - mu/theta) scale

takes one product of V x V x n_out, where M^T X and X G^T are two of V x n_in x n_out: on Cora 140 nodes
against 7165 inputs. The iterates are the same up to rounding. This is the dual form of ridge regression.
It wants all nodes on one rank. Where every neuron has a length of its own, the scale, s and theta are one a
column of these matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from pdadmm.admm.passes.protocol import Passes
from pdadmm.admm.updates import line_lengths
from pdadmm.arrays import Array, Scalar, copy_into, namespace, number, single, squared_norm
from pdadmm.arrays.backend import Backend
from pdadmm.arrays.workspace import Workspace

__all__ = ["DenseWeights", "Inputs", "RowSpaceWeights", "Weights"]

#: what stands for the nodes' inputs in products with the weights
Inputs: TypeAlias = Array | tuple[Array, Array]
Form = TypeVar("Form")
#: told of a phase that ends
Lap = Callable[[str], None]


class Weights(Protocol[Form]):
    """W (n_out, n_in) with the anchor of its L2 penalty, and its update by a gradient step."""

    #: the present weights; where they are kept otherwise, those that they were made from
    W: Array

    def inputs_of(self, x: Array) -> Form:
        """What :meth:`linear` wants of nodes with inputs `x` (rows, n_in)."""
        ...

    def rows_of(self, inputs: Form, start: int, stop: int) -> Form:
        """The part of some of these nodes."""
        ...

    def linear(self, inputs: Form) -> Array:
        """``x W^T`` (rows, n_out) of some nodes."""
        ...

    def linear_of_all(self, inputs: Form, out: Array) -> None:
        """``out = x W^T`` (V, n_out) of all of this rank's nodes that train."""
        ...

    def gradient_share(self, M: Array, inputs: Form, work: Workspace) -> Array:
        """What the gradient sums over the nodes, of these, at residual M (V, n_out), which stays."""
        ...

    def gradient(
        self, total: Array, inputs: Form, nu: float, mu: float, passes: Passes, work: Workspace, lap: Lap
    ) -> tuple[Scalar, Array]:
        """``|G|^2`` and ``K = x G^T`` (V, n_out) of the gradient, from the sum of the shares.

        K lies in `work`, and so does what :meth:`step` goes on with.
        """
        ...

    def step(self, length: Scalar, passes: Passes) -> None:
        """``W - length G`` for the gradient found last."""
        ...

    def line_search(self, images: Array, nu: float, lengths: Array, passes: Passes) -> Scalar:
        """``W_j - lengths_j G_j``, the exact line search of every neuron along the gradient found last.

        `images`, `lengths` and what is returned as in
        :meth:`pdadmm.admm.passes.protocol.Passes.weight_line_search`.
        """
        ...

    def penalty(self) -> Scalar:
        """``|W - W_bar|^2``."""
        ...

    def written_out(self) -> Array:
        """The present W."""
        ...

    def snapshot(self) -> Callable[[], np.ndarray]:
        """What gives the present W on the host, also when it has changed since."""
        ...

    def state(self) -> dict[str, Array]:
        """Arrays that make the next step the same, by name."""
        ...

    def restore(self, saved: Mapping[str, Array]) -> None:
        """Take over the arrays of :meth:`state`, whose ``W`` these weights were made from."""
        ...


class DenseWeights:
    """See :class:`Weights`; the inputs are p itself.

    Parameters
    ----------
    W
        (n_out, n_in) float32; kept, not copied.
    W_bar
        Anchor of the L2 penalty: an array of the same shape, or 0.
    backend
        Of the arrays.
    """

    def __init__(self, W: Array, W_bar: Array | float, backend: Backend) -> None:
        self.W, self.W_bar = W, W_bar
        self._backend = backend
        self._direction = W
        self._mu = 0.0

    def inputs_of(self, x: Array) -> Array:
        return x

    def rows_of(self, inputs: Array, start: int, stop: int) -> Array:
        return inputs[start:stop]

    def linear(self, inputs: Array) -> Array:
        return self._backend.matmul(inputs, self.W.T)

    def linear_of_all(self, inputs: Array, out: Array) -> None:
        self._backend.rows(inputs, self.W.T, out)

    def gradient_share(self, M: Array, inputs: Array, work: Workspace) -> Array:
        return self._backend.over_rows(M, inputs, work.get("GW", self.W.shape))

    def gradient(
        self, total: Array, inputs: Array, nu: float, mu: float, passes: Passes, work: Workspace, lap: Lap
    ) -> tuple[Scalar, Array]:
        self._mu = mu
        self._direction = G = total
        norm = passes.weight_gradient(G, self.W, self.W_bar, nu, mu)
        lap("updates")
        return norm, self._backend.rows(inputs, G.T, work.get("H", (len(inputs), len(G))))

    def step(self, length: Scalar, passes: Passes) -> None:
        passes.subtract(self.W, self._direction, length)

    def line_search(self, images: Array, nu: float, lengths: Array, passes: Passes) -> Scalar:
        return passes.weight_line_search(self.W, self._direction, images, nu, self._mu, lengths)

    def penalty(self) -> Scalar:
        return squared_norm(self.W - self.W_bar)

    def written_out(self) -> Array:
        return self.W

    def snapshot(self) -> Callable[[], np.ndarray]:
        W, host = self.W.copy(), self._backend.to_host  # at once, a device would have to be waited for
        return lambda: host(W)

    def state(self) -> dict[str, Array]:
        return {"W": self.W}

    def restore(self, saved: Mapping[str, Array]) -> None:
        """Nothing but W."""


class RowSpaceWeights:
    """See :class:`Weights`: ``W = scale W_0 + C^T X``, anchored at zero.

    The inputs of nodes x are ``x X^T`` (rows, V) and ``x W_0^T`` (rows, n_out).

    Parameters
    ----------
    X
        (V, n_in) float32, the training nodes' input.
    W
        (n_out, n_in) float32, the weights to start from; kept, not copied.
    backend
        Of the arrays.
    lines
        Whether steps are made by :meth:`line_search`, so that every neuron has a scale of its own.
    """

    def __init__(self, X: Array, W: Array, backend: Backend, lines: bool = False) -> None:
        self.W = W
        self._X, self._backend, self._lines = X, backend, lines
        #: |W_0|^2, a sum a neuron or one
        self._start_norm = np.square(W).sum(axis=1, dtype=np.float64) if lines else squared_norm(W)
        #: on a device always the same array
        self._scale: Scalar | Array = 1.0
        if lines or backend.on_device:
            self._scale = backend.asarray(np.ones(len(W) if lines else ()))
        self._norms: Scalar | Array = 0.0
        self._coefficients = backend.zeros((X.shape[0], W.shape[0]))
        self._direction = self._coefficients
        self._mu = 0.0
        self._trained = backend.matmul(X, X.T), backend.matmul(X, W.T)

    def inputs_of(self, x: Array) -> tuple[Array, Array]:
        if x is self._X:
            return self._trained
        return self._backend.matmul(x, self._X.T), self._backend.matmul(x, self.W.T)

    def rows_of(self, inputs: tuple[Array, Array], start: int, stop: int) -> tuple[Array, Array]:
        products, image = inputs
        return products[start:stop], image[start:stop]

    def linear(self, inputs: tuple[Array, Array]) -> Array:
        products, image = inputs
        z = self._backend.matmul(products, self._coefficients)
        z += image * single(self._scale)
        return z

    def linear_of_all(self, inputs: tuple[Array, Array], out: Array) -> None:
        products, image = inputs
        self._backend.matmul(products, self._coefficients, out)
        out += image * single(self._scale)

    def gradient_share(self, M: Array, inputs: tuple[Array, Array], work: Workspace) -> Array:
        R = work.get("R", M.shape)
        R[...] = M
        return R

    def gradient(
        self,
        total: Array,
        inputs: tuple[Array, Array],
        nu: float,
        mu: float,
        passes: Passes,
        work: Workspace,
        lap: Lap,
    ) -> tuple[Scalar, Array]:
        products, image = inputs
        self._mu = mu
        self._direction = R = total
        passes.weight_gradient(R, self._coefficients, 0.0, nu, mu)
        K = self._backend.matmul(products, R, out=work.get("H", R.shape))
        s = mu * self._scale
        if self._lines:
            K += image * single(s)
        else:
            passes.subtract(K, image, -s)
        room = work.get("R64", R.shape, np.float64)

        def along(x: Array) -> Scalar | Array:
            """<R, x>, a sum a neuron or one."""
            namespace(R).multiply(R, x, out=room, dtype=np.float64)
            return room.sum(axis=0) if self._lines else number(room.sum())

        norms = along(K) + s * along(image) + s * s * self._start_norm
        self._norms = np.maximum(norms, 0.0)  # rounding may leave a sum of parts below 0
        return number(self._norms.sum() if self._lines else self._norms), K

    def step(self, length: Scalar, passes: Passes) -> None:
        passes.subtract(self._coefficients, self._direction, length)
        self._shrink(length)

    def line_search(self, images: Array, nu: float, lengths: Array, passes: Passes) -> Scalar:
        lengths[...] = line_lengths(self._mu, nu, images, self._norms)
        self._coefficients -= self._direction * single(lengths)
        self._shrink(lengths)
        return number((lengths * self._norms).sum())

    def _shrink(self, length: Scalar | Array) -> None:
        self._set_scale((1.0 - length * self._mu) * self._scale)

    def _set_scale(self, scale: Scalar | Array) -> None:
        if self._backend.on_device:
            self._scale[...] = scale
        else:
            self._scale = scale

    def penalty(self) -> Scalar:
        products, start_image = self._trained
        C = self._coefficients.astype(np.float64)
        image = self._scale * start_image.astype(np.float64)
        inside = ((self._backend.matmul(products, self._coefficients) + 2 * image) * C).sum()
        start = self._scale * self._scale * self._start_norm
        return number(inside) + (number(start.sum()) if self._lines else start)

    def written_out(self) -> Array:
        return self._combined(self._coefficients, single(self._scale))

    def _combined(self, coefficients: Array, scale: Scalar | Array) -> Array:
        W = self._backend.matmul(coefficients.T, self._X)
        W += self.W * (scale[:, None] if self._lines else scale)
        return W

    def snapshot(self) -> Callable[[], np.ndarray]:
        # the product is for those who ask
        coefficients, scale = self._coefficients.copy(), single(self._scale)
        return lambda: self._backend.to_host(self._combined(coefficients, scale))

    def state(self) -> dict[str, Array]:
        """``W`` is the start, not the present weights; ``rows/scale`` is one number, or one a neuron."""
        scale = self._backend.to_host(self._scale) if self._backend.on_device else np.asarray(self._scale)
        return {"W": self.W, "rows/coefficients": self._coefficients, "rows/scale": scale.reshape(-1)}

    def restore(self, saved: Mapping[str, Array]) -> None:
        scale = saved["rows/scale"]
        self._set_scale(self._backend.asarray(scale) if self._lines else float(scale[0]))
        copy_into(self._coefficients, saved["rows/coefficients"])
