"""A contextual stochastic block model: the embedded default, which needs no download."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import InputError
from .graph import Graph, Matrix, clean_adjacency
from .raw import physical_memory
from .splits import Ids, check_seed, draw_split

__all__ = ["synthetic_graph"]

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_LOCAL = 0.9  # share of the edges drawn inside a community, where there are any


def synthetic_graph(
    *,
    nodes: int = 2700,
    classes: int = 7,
    features: int = 500,
    degree: float = 4.0,
    homophily: float = 0.75,
    words: float = 18.0,
    topic: float = 0.28,
    train_per_class: int = 20,
    communities: int = 0,
    seed: int = 0,
) -> Graph:
    """Draw a graph whose edges and features both say something about the classes, neither all.

    A contextual stochastic block model (Deshpande et al., NeurIPS 2018) with bag-of-words features
    in place of Gaussian ones. The defaults resemble Cora: with 20 training
    nodes a class, multinomial logistic regression reaches about .55 on H alone and .87 on four hops.

    With communities it is a planted partition besides, so that it can be cut well at any size: every
    community has nodes of all classes, and most edges stay in theirs.

    Parameters
    ----------
    nodes, classes, features : int
    degree : float
        Mean degree.
    homophily : float
        Share of the edges drawn inside a class; the others join two classes.
    words : float
        Mean number of words (non-zero features) of a node, before repeats are merged.
    topic : float
        Share of a node's words that come from the vocabulary of its class; the others come from a
        vocabulary common to all, with Zipf-like frequencies.
    train_per_class : int
        Training nodes a class; validation and test get 1000 each, fewer on small graphs.
    communities : int
        Number of communities; .9 of the edges are drawn inside one, the others without regard to them.
        0 for none.
    seed : int
        The same seed gives the same graph and the same split.

    Returns
    -------
    Graph
        Features are a float32 CSR matrix of zeros and ones.

    Raises
    ------
    InputError
        For sizes that make no graph.
    """
    _check_sizes(nodes, classes, features, degree, homophily, words, topic, train_per_class, communities)
    check_seed(seed)
    rng = np.random.default_rng([seed, 0x5B])  # not the stream that draws the split
    labels = rng.permutation(np.arange(nodes, dtype=np.int64) % classes)
    adjacency = _draw_edges(rng, labels, classes, degree, homophily, communities)
    bag = _draw_words(rng, labels, classes, features, words, topic)
    train, val, test = draw_split(labels, seed, "synthetic", per_class=train_per_class)
    clean = clean_adjacency(adjacency, "synthetic")
    return Graph("synthetic", clean, bag, labels, train, val, test, classes, drawn=True)


def _check_sizes(
    nodes: int,
    classes: int,
    features: int,
    degree: float,
    homophily: float,
    words: float,
    topic: float,
    train_per_class: int,
    communities: int,
) -> None:
    """Refuse sizes that make no graph, with InputError."""
    if classes < 2 or nodes < 4 * classes or features < classes:
        raise InputError(
            f"synthetic: {nodes} nodes, {classes} classes, {features} features; at least 2 classes, "
            "4 nodes a class and as many features as classes are needed"
        )
    if not (
        0 <= homophily <= 1 and 0 < degree < nodes and words > 0 and 0 <= topic <= 1 and train_per_class > 0
    ):
        raise InputError(
            f"synthetic: degree {degree} must be over 0 and under the number of nodes, homophily {homophily} "
            f"from 0 to 1, training nodes a class {train_per_class} positive"
        )
    # Drawing takes about 64 bytes an edge or word; more than 40 bits of anything is too much, and no float.
    if max(nodes, features) >> 40 or 64 * (nodes * (1 + degree + words) + features) > physical_memory():
        raise InputError(
            f"synthetic: {nodes} nodes of degree {degree}, {features} features: more than fits into memory"
        )
    if communities < 0 or nodes < 2 * classes * communities:
        raise InputError(
            f"synthetic: {communities} communities of {nodes} nodes; give 0 or more, with 2 nodes of each of "
            f"the {classes} classes in every one"
        )


def _draw_edges(
    rng: np.random.Generator, labels: Ids, classes: int, degree: float, homophily: float, communities: int
) -> Matrix:
    """The edges, each in one direction and perhaps more than once, (N, N)."""
    nodes = labels.size
    # Nodes sorted by class: a neighbour inside or outside the class is then one uniform draw.
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=classes)
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    edges = max(1, round(nodes * degree / 2))
    source = rng.integers(0, nodes, edges)
    c = labels[source]
    inside = rng.random(edges) < homophily
    draw = rng.random(edges)
    position = np.where(
        inside,
        first[c] + (draw * counts[c]).astype(np.int64),
        (first[c] + counts[c] + (draw * (nodes - counts[c])).astype(np.int64)) % nodes,
    )
    target = by_class[position]
    if communities:
        local = np.flatnonzero(rng.random(edges) < _LOCAL)
        community = np.empty(nodes, dtype=np.int64)
        community[by_class] = (np.arange(nodes) - np.repeat(first, counts)) % communities
        target[local] = _inside_communities(
            community * classes + labels, source[local], classes, inside[local], draw[local]
        )
    ones = np.ones(edges, dtype=np.float32)
    return sp.coo_matrix((ones, (source, target)), shape=(nodes, nodes))


def _draw_words(
    rng: np.random.Generator, labels: Ids, classes: int, features: int, words: float, topic: float
) -> Matrix:
    """The features of the nodes, (N, F) float32 CSR of zeros and ones."""
    nodes = labels.size
    lengths = 1 + rng.poisson(max(words - 1, 0), nodes)
    owner = np.repeat(np.arange(nodes), lengths)
    vocabulary = rng.permutation(features)
    share = features // classes
    draw = rng.random(owner.size)
    from_topic = rng.random(owner.size) < topic
    word = np.where(
        from_topic,
        labels[owner] * share + (draw * share).astype(np.int64),
        (draw**2 * features).astype(np.int64),  # density ~ rank^(-1/2): few frequent words, many rare
    )
    # The common frequencies are over another order of the words than the topics'.
    word = np.where(from_topic, word, vocabulary[np.minimum(word, features - 1)])
    bag = sp.csr_matrix((np.ones(owner.size, dtype=np.float32), (owner, word)), shape=(nodes, features))
    bag.sum_duplicates()
    bag.sort_indices()
    bag.data[:] = 1.0
    return bag


def _inside_communities(cell: Ids, source: Ids, classes: int, inside: Flags, draw: Floats) -> Ids:
    """The other ends of edges that stay in a community.

    Parameters
    ----------
    cell : ndarray (N,) int64
        Community times number of classes plus class, of every node.
    source : ndarray (E,) int64
        The node at one end.
    inside : ndarray (E,) bool
        Whether the other is of the same class.
    draw : ndarray (E,) float64
        Uniform in [0, 1).
    """
    # Nodes sorted by community and class: cells are ranges, and so are communities.
    by_cell = np.argsort(cell, kind="stable")
    counts = np.bincount(cell)
    first = np.cumsum(counts) - counts
    own = cell[source]
    start = first[own // classes * classes]
    size = counts.reshape(-1, classes).sum(axis=1)[own // classes]
    place = np.where(
        inside,
        first[own] + (draw * counts[own]).astype(np.int64),
        start + (first[own] - start + counts[own] + (draw * (size - counts[own])).astype(np.int64)) % size,
    )
    return by_cell[place]
