"""Random splits for the data sets that publish none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .graph import class_sizes

__all__ = ["FRACTIONS", "draw_fractions", "draw_split"]

Ids = npt.NDArray[np.int64]

#: of the nodes, for training, validation and test
FRACTIONS = (0.6, 0.2, 0.2)


def draw_split(
    labels: Ids, seed: int, where: str, *, per_class: int = 20, val: int = 1000, test: int = 1000
) -> tuple[Ids, Ids, Ids]:
    """Draw the usual split: `per_class` training nodes a class, then validation and test nodes.

    The rule of Shchur et al. ("Pitfalls of graph neural network evaluation", 2018) with fixed
    validation and test sizes. One permutation of the nodes is drawn from the seed; the first
    `per_class` nodes of each class in that order train, and the next nodes are for test and
    validation. Small graphs scale down: a class gives at most half its nodes (at least one) to
    training, and when too few nodes are left, validation and test share them in proportion.

    Parameters
    ----------
    labels : ndarray (N,) int64
        Every class from 0 to the largest must occur.
    seed : int
    where : str
        What messages name.

    Returns
    -------
    train, val, test : ndarray int64
        Sorted and disjoint.

    Raises
    ------
    InputError
        When a class has no node, a label is negative or no node is left for validation or test.
    """
    counts = class_sizes(labels, where)
    order = np.random.default_rng(seed).permutation(labels.size)
    by_class = order[np.argsort(labels[order], kind="stable")]  # and in that order inside a class
    place = np.arange(labels.size) - np.repeat(np.cumsum(counts) - counts, counts)
    train = by_class[
        place < np.repeat(np.minimum(min(per_class, labels.size), np.maximum(1, counts // 2)), counts)
    ]
    rest = order[~np.isin(order, train)]
    if rest.size < val + test:
        test = rest.size * test // (val + test)
        val = rest.size - test
    if min(test, val) < 1:
        raise InputError(
            f"{where}: {labels.size} nodes are too few to draw training, validation and test nodes"
        )
    ids = train, rest[test : test + val], rest[:test]
    a, b, c = (np.sort(i).astype(np.int64) for i in ids)
    return a, b, c


def draw_fractions(
    nodes: Ids, seed: int, where: str, fractions: Sequence[float] = FRACTIONS
) -> tuple[Ids, Ids, Ids]:
    """Shuffle nodes with the seed and cut them by fractions.

    Parameters
    ----------
    nodes : ndarray (n,) int64
        Those with a label.
    seed : int
    where : str
        What messages name.
    fractions : three floats
        For training, validation and test; positive, with the sum 1.

    Returns
    -------
    train, val, test : ndarray int64
        Sorted and disjoint; together all nodes.

    Raises
    ------
    InputError
        When the fractions are others or leave a split empty.
    """
    shown = ",".join(f"{f:g}" for f in fractions)
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or not abs(sum(fractions) - 1) <= 1e-6:
        raise InputError(f"--fractions {shown}: give three positive numbers with the sum 1, as .6,.2,.2")
    order = np.random.default_rng(seed).permutation(nodes)
    ends = [round(fractions[0] * order.size), round((fractions[0] + fractions[1]) * order.size)]
    train, val, test = (np.sort(ids).astype(np.int64) for ids in np.split(order, ends))
    if min(train.size, val.size, test.size) == 0:
        raise InputError(f"{where}: {order.size} nodes are too few for --fractions {shown}; a split is empty")
    return train, val, test
