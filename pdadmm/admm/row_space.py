"""Weights of the first layer kept in the row space of its input, for fewer nodes than inputs.

The input of layer 1 never changes, and the gradient of W is ``nu M^T X + mu W``. So W never leaves
``scale W_0 + C^T X``: with ``Q = X X^T`` (V, V) and ``A = X W_0^T`` (V, n_out), formed once, an iteration

    R = nu M + mu C          s = mu scale          G = R^T X + s W_0
    K = X G^T = Q R + s A    |G|^2 = <R, K> + s <R, A> + s^2 |W_0|^2
    C <- C - R/theta         scale <- (1 - mu/theta) scale

takes one product of V x V x n_out, where M^T X and X G^T are two of V x n_in x n_out: on Cora 140 nodes
against 7165 inputs. The iterates are the same up to rounding. This is the dual form of ridge regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pdadmm.arrays import Array, copy_into, inner, number, single, squared_norm

__all__ = ["RowSpaceWeights"]


class RowSpaceWeights:
    """``W = scale W_0 + C^T X``, anchored at zero.

    Parameters
    ----------
    X
        (V, n_in) float32, the training nodes' input.
    W
        (n_out, n_in) float32, the weights to start from; kept, not copied.
    backend
        Of the arrays.

    Attributes
    ----------
    products, image
        Of the training nodes: ``X X^T`` (V, V) and ``X W_0^T`` (V, n_out).
    """

    def __init__(self, X: Array, W: Array, backend: Any) -> None:
        self._X, self._start, self._backend = X, W, backend
        self._start_norm = squared_norm(W)
        self._scale: Any = 1.0
        self._coefficients = backend.zeros((X.shape[0], W.shape[0]))
        self.products, self.image = self.project(X)

    def project(self, x: Array) -> tuple[Array, Array]:
        """``x X^T`` (rows, V) and ``x W_0^T`` (rows, n_out), what :meth:`linear` wants of nodes ``x``."""
        return self._backend.matmul(x, self._X.T), self._backend.matmul(x, self._start.T)

    def linear(self, products: Array, image: Array, out: Array | None = None) -> Array:
        """``x W^T`` (rows, n_out) from the nodes' :meth:`project`."""
        z = self._backend.matmul(products, self._coefficients, out=out)
        z += image * single(self._scale)
        return z

    def gradient(self, M: Array, nu: float, mu: float, kernels: Any, work: Any) -> tuple[Any, Array]:
        """``|G|^2`` and ``K = X G^T`` (V, n_out) of the gradient G at residual M, which stays.

        K lies in `work`, and so does what :meth:`step` goes on with.
        """
        self._mu = mu
        self._direction = R = work.get("R", M.shape)
        R[...] = M
        kernels.weight_gradient(R, self._coefficients, 0.0, nu, mu)
        K = self._backend.matmul(self.products, R, out=work.get("H", M.shape))
        s = mu * self._scale
        kernels.subtract(K, self.image, -s)
        room = work.get("R64", M.shape, np.float64)
        norm = inner(R, K, room) + s * inner(R, self.image, room) + s * s * self._start_norm
        return number(np.maximum(norm, 0.0)), K  # rounding may leave a sum of parts below 0

    def step(self, length: Any, kernels: Any) -> None:
        """``W - length G`` for the gradient found last."""
        kernels.subtract(self._coefficients, self._direction, length)
        self._scale = (1.0 - length * self._mu) * self._scale

    def squared_norm(self) -> Any:
        """``|W|^2``, float64."""
        C = self._coefficients.astype(np.float64)
        image = self._scale * self.image.astype(np.float64)
        inside = ((self._backend.matmul(self.products, self._coefficients) + 2 * image) * C).sum()
        return number(inside) + self._scale * self._scale * self._start_norm

    def weights(self) -> Array:
        """W (n_out, n_in), written out."""
        W = self._backend.matmul(self._coefficients.T, self._X)
        W += self._start * single(self._scale)
        return W

    def state(self) -> dict[str, Array]:
        """Arrays that make the next iteration the same; ``W`` is the start, not the present weights."""
        scale = np.array([float(self._scale)])
        return {"W": self._start, "rows/coefficients": self._coefficients, "rows/scale": scale}

    def restore(self, saved: Mapping[str, Array]) -> None:
        """Take over the arrays of :meth:`state`, whose ``W`` was given to the constructor."""
        self._scale = float(saved["rows/scale"][0])
        copy_into(self._coefficients, saved["rows/coefficients"])
