"""Random splits for the data sets that publish none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .graph import (
    UNLABELLED,
    Graph,
    Matrix,
    as_ids,
    as_label_matrix,
    as_labels,
    class_sizes,
    clean_adjacency,
    is_directed,
)

__all__ = ["FRACTIONS", "assemble", "check_seed", "draw_fractions", "draw_split"]

Ids = npt.NDArray[np.int64]

#: more than any model has outputs for; files keep the number as an int64
_MOST_CLASSES = (1 << 31) - 1
#: of the nodes, for training, validation and test
FRACTIONS = (0.6, 0.2, 0.2)


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes, with InputError."""
    if not 0 <= seed < 1 << 63:
        reason = "is negative; give 0 or more" if seed < 0 else "is too large; give less than 2 to the 63"
        raise InputError(f"seed {seed} {reason}")


def draw_split(
    labels: Ids, seed: int, where: str, *, per_class: int = 20, val: int = 1000, test: int = 1000
) -> tuple[Ids, Ids, Ids]:
    """Draw the usual split: `per_class` training nodes a class, then validation and test nodes.

    The rule of Shchur et al. ("Pitfalls of graph neural network evaluation", 2018) with fixed
    validation and test sizes. A permutation of the nodes is drawn from the seed; the first
    `per_class` nodes of each class in that order train. The others are permuted anew, since small
    classes lack in the front of what is left, and are for test and validation in that order. Small
    graphs scale down: a class gives at most half its nodes (at least one) to training, and when too few
    nodes are left, validation and test share them in proportion.

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
    generator = np.random.default_rng(seed)
    order = generator.permutation(labels.size)
    by_class = order[np.argsort(labels[order], kind="stable")]  # and in that order inside a class
    place = np.arange(labels.size) - np.repeat(np.cumsum(counts) - counts, counts)
    train = by_class[
        place < np.repeat(np.minimum(min(per_class, labels.size), np.maximum(1, counts // 2)), counts)
    ]
    rest = generator.permutation(order[~np.isin(order, train)])
    if rest.size < val + test:
        test = rest.size * test // (val + test)
        val = rest.size - test
    if min(test, val) < 1:
        raise InputError(
            f"{where}: {labels.size} nodes in {counts.size} classes are too few to draw training, validation "
            "and test nodes; give a split, or more nodes"
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


def assemble(
    name: str,
    where: str,
    adjacency: Matrix,
    features: Matrix,
    labels: np.ndarray,
    ids: Sequence[np.ndarray] | None,
    seed: int,
    called: Sequence[str],
    classes: int = 0,
) -> Graph:
    """A graph of its parts, with a split drawn from the seed where there is none.

    Parameters
    ----------
    name, where
        What files call it, and messages.
    adjacency : scipy.sparse.csr_matrix (N, N)
        As it was given: directions, weights and self-loops are dropped.
    features : (N, F) float32
    labels : (N,), (N, 1), or (N, C) of 0 and 1
        `UNLABELLED` or NaN where the one label of a node is not known: it is drawn for no split.
    ids
        Nodes of the three splits.
    seed
    called
        What messages call the labels and the three splits.
    classes
        C, where the graph is for predictions: any of its labels may be unknown and no class needs a node.
        Nodes without one are taken out of the splits; where there is no split, the others are test nodes.

    Raises
    ------
    InputError
    """
    if classes > _MOST_CLASSES:
        raise InputError(f"{where}: {classes} classes are too many; give at most {_MOST_CLASSES}")
    one_node = features.shape[0] == 1
    several = labels.ndim == 2 and labels.shape[1] > 1 and (one_node or labels.shape[0] > 1)
    of_labels, *of_splits = called
    found: np.ndarray = (as_label_matrix if several else as_labels)(labels, f"{where} ({of_labels})")
    known = np.arange(len(found))
    if not several:
        known = np.flatnonzero(found != UNLABELLED)
        if not classes:
            if found.size and not known.size:
                raise InputError(f"{where} ({of_labels}): no node has a label; number the classes from 0")
            class_sizes(found[known], where)
    unknown = np.ones(len(found), dtype=bool)
    unknown[known] = False
    unlabelled = np.flatnonzero(unknown)
    if ids is not None:
        train, val, test = (as_ids(part, f"{where} ({of})") for part, of in zip(ids, of_splits, strict=True))
        if classes:
            train, val, test = (part[~np.isin(part, unlabelled)] for part in (train, val, test))
    elif classes:
        train, val, test = np.zeros(0, np.int64), np.zeros(0, np.int64), known
    elif several:
        train, val, test = draw_fractions(np.arange(len(found)), seed, where)
    else:
        train, val, test = (known[part] for part in draw_split(found[known], seed, where))
    num_classes = found.shape[1] if several else classes or (int(found.max()) + 1 if found.size else 0)
    if classes and num_classes != classes:
        raise InputError(f"{where} ({of_labels}): {num_classes} classes, not the {classes} asked for")
    cleaned = clean_adjacency(adjacency, where)
    directed = is_directed(adjacency, cleaned)
    # whole numbers are edges that are there several times, as A + Aᵀ makes of a symmetric graph
    weighted = bool((adjacency.data != np.rint(adjacency.data)).any())
    found[unlabelled] = 0
    return Graph(
        name, cleaned, features, found, train, val, test, num_classes, where, directed, unlabelled,
        complete=not classes, drawn=ids is None and not classes, weighted=weighted,
    )  # fmt: skip
