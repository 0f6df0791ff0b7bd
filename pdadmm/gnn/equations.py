"""Every line of the second system: GCN and GraphSAGE, their gradients, dropout, Adam, AdaQP's variance.

Pure functions of NumPy arrays in whatever precision they come; a weight is (n_out, n_in), the rows of
everything else are nodes. The adjacency is symmetric, so that messages back need no other structure than
messages forward: a part aggregates with the transposed weights what its neighbours send.

Sources: Kipf and Welling, *Semi-supervised classification with graph convolutional networks* (2017);
Hamilton, Ying and Leskovec, *Inductive representation learning on large graphs* (2017); Wan, Zhao and Wu,
*Adaptive message quantization and parallelization for distributed full-graph GNN training* (2023), cited
as AdaQP; Kingma and Ba, *Adam* (2015).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pdadmm.arrays import Array, namespace

__all__ = [
    "ADAM_EPSILON",
    "ADAM_FIRST",
    "ADAM_SECOND",
    "NORM_EPSILON",
    "Moments",
    "adam",
    "drop_rows",
    "dropout_keeps",
    "dropout_threshold",
    "gcn_weights",
    "hidden",
    "hidden_backward",
    "hidden_output",
    "mean_weights",
    "sigmoid_cross_entropy",
    "sigmoid_gradient",
    "softmax_cross_entropy",
    "variance_of_row",
    "xavier_uniform",
]

#: added to the variance of a row before its root, as PyTorch's LayerNorm does
NORM_EPSILON = 1e-5
#: what Adam keeps of its running means, and what it adds to a root
ADAM_FIRST, ADAM_SECOND, ADAM_EPSILON = 0.9, 0.999, 1e-8


# ---- weights of the edges ---------------------------------------------------------------------------


def gcn_weights(rows: Array, neighbours: Array) -> Array:
    """``d(v)^-1/2 d(u)^-1/2`` of edges u to v; degrees, (edges,), count the loop of the node itself."""
    return 1.0 / np.sqrt(rows.astype(np.float64) * neighbours)


def mean_weights(degrees: Array) -> Array:
    """``1 / d(v)``, 0 for a node without neighbours: SAGE's mean; with u's degrees that of Sᵀ."""
    return np.where(degrees > 0, 1.0 / np.maximum(degrees, 1), 0.0)


# ---- hidden layers ----------------------------------------------------------------------------------


def dropout_keeps(rate: float, key: int, nodes: Array, cols: int) -> Array:
    """Which entries dropout keeps, (nodes, cols) bool: each with probability ``1 - rate``.

    A hash of `key`, the node and the column (two rounds of xorshift-multiply each, of Ettinger's *Hash
    prospector*), so that whoever holds a row of a node finds the same mask and none is stored.

    Parameters
    ----------
    key
        Number below 2^32 that differs between seeds, epochs and layers.
    nodes
        (n,) int64, the nodes' numbers in the data set, below 2^32.
    """
    xp = namespace(nodes)
    rows = _mixed(nodes.astype(np.uint32) * np.uint32(0x9E3779B9) + np.uint32(key & 0xFFFFFFFF))
    columns = xp.arange(cols, dtype=np.uint32) * np.uint32(0x85EBCA6B)
    drawn: Array = _mixed(rows[:, None] + columns[None, :]) >> np.uint32(8)
    return drawn >= np.uint32(dropout_threshold(rate))


def drop_rows(X: Array, rate: float, key: int, nodes: Array) -> None:
    """Dropout of some rows in place, ``M X``; X (n, m), the rest as in :func:`dropout_keeps`."""
    if rate:
        X *= dropout_keeps(rate, key, nodes, X.shape[1]) * X.dtype.type(1 / (1 - rate))


def dropout_threshold(rate: float) -> int:
    """Of 2^24 equally likely draws those below this number are dropped."""
    return round(rate * (1 << 24))


def _mixed(x: Array) -> Array:
    """Finalizer of a 32-bit hash."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def hidden(Z: Array, gamma: Array, beta: Array, kept: Array | None, dropped_first: bool) -> tuple[Array, ...]:
    """What follows the convolution of a hidden layer.

    By default ``N = (Z - mean)/s``, ``U = gamma N + beta``, ``H = M max(U, 0)``, with ``s`` the root of the
    row's variance plus :data:`NORM_EPSILON`; with `dropped_first`, AdaQP's order, Z is ``M Z`` first and H
    is ``max(U, 0)``.

    Parameters
    ----------
    Z
        (n, m).
    gamma, beta
        (m,).
    kept
        M: (n, m), 0 where dropout strikes and ``1/(1 - rate)`` elsewhere; None without dropout.

    Returns
    -------
    N, inverse, H
        (n, m), (n, 1) 1/s, (n, m).
    """
    if kept is not None and dropped_first:
        Z = Z * kept
    centred = Z - Z.mean(axis=1, keepdims=True)
    inverse = 1.0 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + NORM_EPSILON)
    N = centred * inverse
    H = hidden_output(N, gamma, beta, None if dropped_first else kept)
    return N, inverse.astype(Z.dtype), H


def hidden_output(N: Array, gamma: Array, beta: Array, kept: Array | None) -> Array:
    """``M max(gamma N + beta, 0)``."""
    H = np.maximum(gamma * N + beta, 0)
    return H if kept is None else H * kept


def hidden_backward(
    G_H: Array,
    N: Array,
    inverse: Array,
    gamma: Array,
    beta: Array,
    kept: Array | None,
    dropped_first: bool,
) -> tuple[Array, Array, Array]:
    """Gradient before a hidden layer's norm from that of its output.

    Returns
    -------
    G_Z, g_gamma, g_beta
        (n, m), (m,), (m,).
    """
    if kept is not None and not dropped_first:
        G_H = G_H * kept
    G_U = np.where(gamma * N + beta > 0, G_H, 0)
    G_N = G_U * gamma
    G_Z = (G_N - G_N.mean(axis=1, keepdims=True) - N * (G_N * N).mean(axis=1, keepdims=True)) * inverse
    if kept is not None and dropped_first:
        G_Z = G_Z * kept
    return G_Z, (G_U * N).sum(axis=0), G_U.sum(axis=0)


# ---- loss -------------------------------------------------------------------------------------------


def softmax_cross_entropy(Z: Array, labels: Array) -> tuple[Array, Array]:
    """Loss of every row and gradient of their sum.

    Parameters
    ----------
    Z
        (n, classes).
    labels
        (n,) integers.

    Returns
    -------
    losses, G_Z
        (n,), (n, classes).
    """
    shifted = Z - Z.max(axis=1, keepdims=True)
    raised = np.exp(shifted)
    total = raised.sum(axis=1, keepdims=True)
    rows = namespace(Z).arange(len(Z))
    losses = np.log(total[:, 0]) - shifted[rows, labels]
    G_Z = raised / total
    G_Z[rows, labels] -= 1
    return losses, G_Z


def sigmoid_cross_entropy(Z: Array, labels: Array) -> tuple[Array, Array]:
    """The same with labels (n, classes) of 0 and 1: every class is a question of its own, a row's loss
    their sum."""
    losses = (np.maximum(Z, 0) - Z * labels + np.log1p(np.exp(-np.abs(Z)))).sum(axis=1)
    raised = np.exp(-np.abs(Z))
    sigmoid = np.where(Z >= 0, 1, raised) / (1 + raised)
    return losses, sigmoid - labels


def sigmoid_gradient(Z: Array, labels: Array, G: Array) -> None:
    """Write the gradient of :func:`sigmoid_cross_entropy` into G; 0 where a label is NaN.

    Parameters
    ----------
    Z, labels, G
        (n, classes).
    """
    raised = np.exp(-np.abs(Z))
    sigmoid = np.where(Z >= 0, 1, raised) / (1 + raised)
    G[...] = np.where(np.isnan(labels), 0, sigmoid - labels)


# ---- weights ----------------------------------------------------------------------------------------


def xavier_uniform(n_out: int, n_in: int, rng: np.random.Generator) -> np.ndarray:
    """Start of a weight, (n_out, n_in) float32: uniform within the root of ``6/(n_in + n_out)``."""
    bound = np.sqrt(6.0 / (n_in + n_out))
    return rng.uniform(-bound, bound, (n_out, n_in)).astype(np.float32)


class Moments(NamedTuple):
    """Adam's two running means of a parameter, of its shape."""

    first: Array
    second: Array


def adam(
    x: Array,
    gradient: Array,
    moments: Moments,
    step: int,
    rate: float,
    decay: float = 0.0,
    first: float = ADAM_FIRST,
    second: float = ADAM_SECOND,
    epsilon: float = ADAM_EPSILON,
) -> None:
    """A step of Adam, in place, as published; `decay` adds ``decay x`` to the gradient.

    Parameters
    ----------
    step
        From 1.
    """
    if decay:
        gradient = gradient + x.dtype.type(decay) * x
    m, v = moments
    m *= first
    m += x.dtype.type(1 - first) * gradient
    v *= second
    v += x.dtype.type(1 - second) * gradient * gradient
    root = np.sqrt(v / x.dtype.type(1 - second**step))
    x -= x.dtype.type(rate / (1 - first**step)) * m / (root + x.dtype.type(epsilon))


# ---- AdaQP ------------------------------------------------------------------------------------------


def variance_of_row(cols: int, span: Array) -> Array:
    """Variance of a message at 1 bit, ``D (max - min)^2 / 6`` (AdaQP, theorem 1); at b, over ``(2^b - 1)^2``.

    Parameters
    ----------
    cols
        Entries D of a row.
    span
        Largest less smallest entry of every row.
    """
    return cols / 6.0 * span.astype(np.float64) ** 2
