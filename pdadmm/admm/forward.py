"""The forward pass of a whole network in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["linear_outputs"]


def linear_outputs(
    x: np.ndarray, layers: Sequence[tuple[np.ndarray, np.ndarray]], f: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """(V, n_L) of scaled inputs, in the precision of these.

    Parameters
    ----------
    x : (V, n_0)
    layers
        The transpose of W, (n_{l-1}, n_l), and b, (n_l,), of every layer.
    f
        Activation of the hidden layers.
    """
    for W, b in layers[:-1]:
        x = f(x @ W + b)
    W, b = layers[-1]
    return np.asarray(x @ W + b)
