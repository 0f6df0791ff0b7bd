"""Scaling of the augmented features before they enter the first layer."""

from __future__ import annotations

import numpy as np

from pdadmm.errors import InputError

__all__ = ["INPUT_NORMS", "normalise_inputs"]

INPUT_NORMS = ("none", "hellinger")


def normalise_inputs(X: np.ndarray, features_per_hop: int, norm: str, hop_decay: float = 1.0) -> np.ndarray:
    """Scale what every operator makes of every node, a block of columns of X.

    ``hellinger`` takes the square root of a block divided by its sum: rows of length 1 whose scalar
    products are the Bhattacharyya coefficients of the nodes' distributions over words. It keeps frequent
    words from drowning the others (P. Legendre, E. Gallagher: Ecologically meaningful transformations
    for ordination of species data, Oecologia 129, 2001).

    Parameters
    ----------
    X : ndarray (V, K features_per_hop) float32
        Augmented features.
    norm : {"none", "hellinger"}
    hop_decay
        The block of operator k, counted from 0, is multiplied by its k-th power: with powers, k is the hop.

    Returns
    -------
    ndarray (V, K features_per_hop) float32
        Contiguous, a copy unless there is nothing to do; a block that is zero stays zero.

    Raises
    ------
    InputError
        When a feature is negative and has no square root, or the scale of a block is too large.
    """
    if norm == "none" and hop_decay == 1:
        return np.ascontiguousarray(X)
    X = np.array(X, np.float32, order="C")
    for k, first in enumerate(range(0, X.shape[1], features_per_hop)):
        block = X[:, first : first + features_per_hop]
        block_scale = np.float32(_power(hop_decay, k))
        if norm == "none":
            block *= block_scale
            continue
        if block.size and block.min() < 0:
            raise InputError(
                "--input-norm hellinger takes square roots, and features are negative; give --input-norm none"
            )
        sums = block.sum(axis=1, dtype=np.float64)
        scale = np.divide(1.0, np.sqrt(sums), out=np.zeros_like(sums), where=sums > 0)
        np.sqrt(block, out=block)
        block *= scale[:, None].astype(np.float32) * block_scale
    return X


def _power(hop_decay: float, number: int) -> float:
    """Scale of an operator's block, which float32 can hold."""
    try:
        scale = hop_decay**number
    except OverflowError:
        scale = np.inf
    if scale > float(np.finfo(np.float32).max):
        raise InputError(
            f"--hop-decay {hop_decay:g} makes the scale of operator {number} too large; give a smaller one"
        )
    return scale
