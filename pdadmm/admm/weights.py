"""A layer's weights: written out, or layer 1's in the row space of its input.

The input of layer 1 never changes, and the gradient of W is ``nu M^T X + mu W``. So W never leaves
``scale W_0 + C^T X``: with ``Q = X X^T`` (V, V) and ``A = X W_0^T`` (V, n_out), formed once, an iteration

    R = nu M + mu C          s = mu scale          G = R^T X + s W_0
    K = X G^T = Q R + s A    |G|^2 = <R, K> + s <R, A> + s^2 |W_0|^2
    C <- C - R/theta         scale <- (1 - mu/theta) scale

takes one product of V x V x n_out, where M^T X and X G^T are two of V x n_in x n_out: on Cora 140 nodes
against 7165 inputs. The iterates are the same up to rounding. This is the dual form of ridge regression.
It wants all nodes on one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from pdadmm.admm.passes.protocol import Passes
from pdadmm.arrays import Array, Scalar, copy_into, inner, number, single, squared_norm
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

    def penalty(self) -> Scalar:
        """``|W - W_bar|^2``."""
        ...

    def written_out(self) -> Array:
        """The present W."""
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
        self._direction = G = total
        norm = passes.weight_gradient(G, self.W, self.W_bar, nu, mu)
        lap("updates")
        return norm, self._backend.rows(inputs, G.T, work.get("H", (len(inputs), len(G))))

    def step(self, length: Scalar, passes: Passes) -> None:
        passes.subtract(self.W, self._direction, length)

    def penalty(self) -> Scalar:
        return squared_norm(self.W - self.W_bar)

    def written_out(self) -> Array:
        return self.W

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
    """

    def __init__(self, X: Array, W: Array, backend: Backend) -> None:
        self.W = W
        self._X, self._backend = X, backend
        self._start_norm = squared_norm(W)
        #: on a device always the same array
        self._scale: Scalar = backend.asarray(np.ones(())) if backend.on_device else 1.0
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
        passes.subtract(K, image, -s)
        room = work.get("R64", R.shape, np.float64)
        norm = inner(R, K, room) + s * inner(R, image, room) + s * s * self._start_norm
        return number(np.maximum(norm, 0.0)), K  # rounding may leave a sum of parts below 0

    def step(self, length: Scalar, passes: Passes) -> None:
        passes.subtract(self._coefficients, self._direction, length)
        scale = (1.0 - length * self._mu) * self._scale
        if self._backend.on_device:
            self._scale[...] = scale
        else:
            self._scale = scale

    def penalty(self) -> Scalar:
        products, start_image = self._trained
        C = self._coefficients.astype(np.float64)
        image = self._scale * start_image.astype(np.float64)
        inside = ((self._backend.matmul(products, self._coefficients) + 2 * image) * C).sum()
        return number(inside) + self._scale * self._scale * self._start_norm

    def written_out(self) -> Array:
        W = self._backend.matmul(self._coefficients.T, self._X)
        W += self.W * single(self._scale)
        return W

    def state(self) -> dict[str, Array]:
        """``W`` is the start, not the present weights."""
        scale = np.array([float(self._scale)])
        return {"W": self.W, "rows/coefficients": self._coefficients, "rows/scale": scale}

    def restore(self, saved: Mapping[str, Array]) -> None:
        scale = float(saved["rows/scale"][0])
        if self._backend.on_device:
            self._scale[...] = scale
        else:
            self._scale = scale
        copy_into(self._coefficients, saved["rows/coefficients"])
