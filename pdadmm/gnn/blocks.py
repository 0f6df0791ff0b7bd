"""Cutting a graph without METIS: breadth-first blocks, refined at their boundaries, on coarsened graphs.

The scheme is that of multilevel partitioning (G. Karypis, V. Kumar: A fast and high quality multilevel
scheme for partitioning irregular graphs, SIAM J. Sci. Comput. 20, 1998), with clusters in place of matchings
(H. Meyerhenke, P. Sanders, C. Schulz: Partitioning complex networks via size-constrained clustering, SEA
2014): nodes join the cluster to which most of their edges go, clusters become the nodes of a smaller graph,
and so on; the smallest graph is cut into breadth-first blocks of equal weight; and on the way back nodes at
boundaries move to the part to which most of their edges go. Joining a cluster and moving to a part are the
same step, made for many nodes at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order, connected_components

from pdadmm.inputs import Ids

__all__ = ["balanced", "cut_into_blocks", "most_nodes"]

_BALANCE = 1.03
_COARSEST = (10, 40, 20)  # nodes a part of the smallest graph, in turn: communities want few, others many
_FEWEST_PARTS = 6  # that many parts are reckoned with then
_SHRINKS = 0.9  # a graph that keeps more of its nodes is the smallest
_STARTS = 8  # breadth-first orders that are tried
_HIERARCHIES = (2, 6)  # least and most that are tried,
_ENTRIES = 2_000_000  # of no more entries together if there are more than the least
_JOINING = 6  # sweeps that make clusters
_PATIENCE = 5  # sweeps of boundaries have to make
_WORTH = 0.999  # the cut smaller by this factor, or are the last

Flags = npt.NDArray[np.bool_]


def most_nodes(nodes: int, parts: int) -> int:
    """Most nodes of a part: 3 % over the mean, or the mean rounded up."""
    return max(int(_BALANCE * nodes / parts), -(-nodes // parts))


def cut_into_blocks(adjacency: sp.csr_matrix, parts: int, seed: int) -> npt.NDArray[np.int32]:
    """Parts of at most `most_nodes` nodes with few edges between them.

    Parameters
    ----------
    adjacency : scipy.sparse.csr_matrix (V, V)
        Symmetric, entries 1, no self-loops.
    parts : int
        1 to V.
    seed : int
        The same seed gives the same parts.

    Returns
    -------
    ndarray (V,) int32
        Part of every node. One may be empty where there are hardly more nodes than parts.
    """
    rng = np.random.default_rng(seed)
    graph = _Level(adjacency.astype(np.float64), np.ones(adjacency.shape[0], dtype=np.int64))
    times = int(np.clip(_ENTRIES // max(adjacency.nnz, 1), *_HIERARCHIES))
    sizes = (nodes * max(parts, _FEWEST_PARTS) for nodes in itertools.cycle(_COARSEST))
    tried = [_cut_by_levels(graph, parts, size, rng) for size in itertools.islice(sizes, times)]
    return min(tried, key=graph.cut).astype(np.int32)


def balanced(
    adjacency: sp.csr_matrix, part: npt.NDArray[np.int32], parts: int, seed: int
) -> npt.NDArray[np.int32]:
    """Parts of at most `most_nodes` nodes: those too large give away nodes that lose the fewest edges."""
    held, most = np.bincount(part, minlength=parts), most_nodes(part.size, parts)
    if int(held.max()) <= most:
        return part
    moved = part.astype(np.int64)
    graph = _Level(adjacency.astype(np.float64), np.ones(part.size, dtype=np.int64))
    graph.balance(moved, held, most, np.random.default_rng(seed))
    return moved.astype(np.int32)


def _cut_by_levels(level: _Level, parts: int, smallest: int, rng: np.random.Generator) -> Ids:
    """Coarsen a graph to about `smallest` nodes, cut that, and refine on the way back."""
    levels: list[tuple[_Level, Ids]] = []
    while level.nodes > smallest:
        cluster = level.clusters(-(-level.total // smallest), rng)
        coarse = level.contracted(cluster)
        if coarse.nodes > _SHRINKS * level.nodes:
            break
        levels.append((level, cluster))
        level = coarse
    tried = [level.refined(level.blocks(parts, rng), parts, rng) for _ in range(_STARTS)]
    part = min(tried, key=level.cut)
    for finer, cluster in reversed(levels):
        part = finer.refined(part[cluster], parts, rng)
    return part


class _Level:
    """A graph of clusters.

    Attributes
    ----------
    graph : scipy.sparse.csr_matrix (n, n) float64
        Numbers of edges between clusters, without those inside.
    weight : ndarray (n,) int64
        Numbers of nodes of clusters.
    """

    def __init__(self, graph: sp.csr_matrix, weight: Ids) -> None:
        self.graph, self.weight = graph, weight
        self.nodes, self.total = int(graph.shape[0]), int(weight.sum())
        self.degree = np.diff(graph.indptr)

    def contracted(self, cluster: Ids) -> _Level:
        """The graph of the clusters 0, 1, … of this one's nodes."""
        count = int(cluster.max()) + 1
        onto = sp.csr_matrix(
            (np.ones(self.nodes), cluster, np.arange(self.nodes + 1)), shape=(self.nodes, count)
        )
        graph = (onto.T @ self.graph @ onto).tocsr()
        graph.setdiag(0)
        graph.eliminate_zeros()
        return _Level(graph, np.bincount(cluster, self.weight, count).astype(np.int64))

    def clusters(self, most: int, rng: np.random.Generator) -> Ids:
        """Clusters of neighbours, numbered from 0, (n,) int64, of at most `most` nodes of the whole graph."""
        label = np.arange(self.nodes, dtype=np.int64)
        held = self.weight.copy()
        for _ in range(_JOINING):
            rows = np.flatnonzero(rng.random(self.nodes) < 0.5)
            target, gain = self._best(rows, label, held, most, rng)
            if not self._move(rows, target, gain, gain > 0, label, held, most):
                break
        # what has no neighbours cannot join any: put together as they come
        alone = np.flatnonzero(self.degree == 0)
        packed = np.cumsum(self.weight[alone]) // most
        label[alone] = self.nodes + packed
        return np.unique(label, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def blocks(self, parts: int, rng: np.random.Generator) -> Ids:
        """Consecutive pieces of equal weight of a breadth-first order, component after component."""
        alone = np.flatnonzero(self.degree == 0)
        order = np.concatenate([alone, *self._components(rng.permutation(self.nodes))])
        weight = self.weight[order]
        part = np.empty(self.nodes, dtype=np.int64)
        part[order] = ((np.cumsum(weight) - 0.5 * weight) * parts / self.total).astype(np.int64)
        return np.minimum(part, parts - 1)

    def _components(self, starts: Ids) -> Iterator[Ids]:
        """Breadth-first orders of the components with edges, each from the first of its nodes in `starts`."""
        count, component = connected_components(self.graph, directed=False)
        # nodes of a component side by side, in their order: a search then knows of no others
        together = np.argsort(component, kind="stable")
        ends = np.concatenate([[0], np.cumsum(np.bincount(component, minlength=count))])
        graph = self.graph[together][:, together]
        graph.sort_indices()
        place = np.empty(self.nodes, dtype=np.int64)
        place[together] = np.arange(self.nodes)
        _, first = np.unique(component[starts], return_index=True)
        for start in starts[np.sort(first)]:
            begin, end = ends[component[start]], ends[component[start] + 1]
            if end - begin == 1:
                continue
            own = slice(graph.indptr[begin], graph.indptr[end])
            indptr = graph.indptr[begin : end + 1] - graph.indptr[begin]
            parts = graph.data[own], graph.indices[own] - begin, indptr
            alone = sp.csr_matrix(parts, shape=(end - begin, end - begin))
            found = breadth_first_order(alone, place[start] - begin, return_predecessors=False)
            yield together[begin + found]

    def cut(self, part: Ids) -> float:
        """Number of edges between parts."""
        return float(self.graph.data[self._across(part)].sum()) / 2

    def refined(self, part: Ids, parts: int, rng: np.random.Generator) -> Ids:
        """Move nodes at boundaries while the cut gets smaller; parts end as balanced as weights allow."""
        most = max(most_nodes(self.total, parts), self.total // parts + int(self.weight.max()) - 1)
        part = part.copy()
        held = np.bincount(part, self.weight, parts).astype(np.int64)
        self.balance(part, held, most, rng)
        best, least, cuts = part.copy(), self.cut(part), [np.inf] * _PATIENCE
        while least < cuts[-_PATIENCE] * _WORTH:
            cuts.append(least)
            at_boundary = self._at_boundary(part)
            rows = at_boundary[rng.random(at_boundary.size) < 0.5]
            target, gain = self._best(rows, part, held, most, rng)
            evens = (gain == 0) & (held[target] + self.weight[rows] < held[part[rows]])
            self._move(rows, target, gain, (gain > 0) | evens, part, held, most)
            if (cut := self.cut(part)) < least:
                best, least = part.copy(), cut
        return best

    def balance(self, part: Ids, held: Ids, most: int, rng: np.random.Generator) -> None:
        """Move nodes out of parts of more than `most`, those first that lose the fewest edges.

        Changes `part` and the weights of parts, `held`; ends, too, when no node fits anywhere else.
        """
        while (held > most).any():
            rows = np.flatnonzero(held[part] > most)
            target, gain = self._best(rows, part, held, most, rng)
            lonely = np.isinf(gain)
            target[lonely] = int(held.argmin())
            order = np.argsort(-gain, kind="stable")
            leaves = order[_fits(part[rows[order]], self.weight[rows[order]], held - most, reach=True)]
            wanted = np.zeros(rows.size, dtype=bool)
            wanted[leaves] = True
            if not self._move(rows, target, gain, wanted, part, held, most):
                break

    def _across(self, part: Ids) -> Flags:
        """Which entries of the graph join two parts."""
        return np.asarray(np.repeat(part, self.degree) != part[self.graph.indices])

    def _at_boundary(self, part: Ids) -> Ids:
        """Nodes with a neighbour in another part."""
        across = np.concatenate([[0], np.cumsum(self._across(part))])
        return np.flatnonzero(across[self.graph.indptr[1:]] > across[self.graph.indptr[:-1]])

    def _best(
        self, rows: Ids, label: Ids, held: Ids, most: int, rng: np.random.Generator
    ) -> tuple[Ids, npt.NDArray[np.float64]]:
        """The label that each row would move to, and how many edges would join it to its own then.

        Returns
        -------
        target : ndarray (r,) int64
            Of those labels of neighbours that have room for the row, the one with the most edges; its own
            where there is none.
        gain : ndarray (r,) float64
            Edges to the target less those to its own label; -inf where there is none.
        """
        graph = self.graph[rows]
        ties = sp.csr_matrix((graph.data, label[graph.indices], graph.indptr), shape=(rows.size, held.size))
        ties.sum_duplicates()
        row = np.repeat(np.arange(rows.size), np.diff(ties.indptr))
        own = ties.indices == label[rows][row]
        kept = np.zeros(rows.size)
        kept[row[own]] = ties.data[own]
        open_to = ~own & (held[ties.indices] + self.weight[rows][row] <= most)
        row, found, edges = row[open_to], ties.indices[open_to], ties.data[open_to]
        # numbers of edges are whole: less than one between them decides ties only
        score = edges + 0.5 * rng.random(edges.size)
        first = np.flatnonzero(np.diff(row, prepend=-1))
        most_of_row = np.repeat(
            np.maximum.reduceat(score, first) if first.size else score, np.diff(np.append(first, row.size))
        )
        winner = score == most_of_row
        target, gain = label[rows].copy(), np.full(rows.size, -np.inf)
        target[row[winner]], gain[row[winner]] = found[winner], edges[winner]
        return target, gain - kept

    def _move(
        self, rows: Ids, target: Ids, gain: np.ndarray, wanted: Flags, label: Ids, held: Ids, most: int
    ) -> int:
        """Move wanted rows to their targets, those that gain most first, while there is room.

        Changes `label` and `held`; returns how many were moved.
        """
        chosen = np.flatnonzero(wanted)
        chosen = chosen[np.argsort(-gain[chosen], kind="stable")]
        chosen = chosen[_fits(target[chosen], self.weight[rows[chosen]], most - held)]
        moved, goal = rows[chosen], target[chosen]
        np.subtract.at(held, label[moved], self.weight[moved])
        np.add.at(held, goal, self.weight[moved])
        label[moved] = goal
        return int(moved.size)


def _fits(group: Ids, weight: Ids, room: Ids, reach: bool = False) -> Flags:
    """Which of the items, taken in order, fit into their groups' room.

    Parameters
    ----------
    group, weight : ndarray (n,) int64
    room : ndarray (groups,) int64
    reach : bool
        Take the item that fills the room, too.
    """
    order = np.argsort(group, kind="stable")
    sums = np.cumsum(weight[order])
    sorted_groups = group[order]
    first = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    before = np.repeat(sums[first] - weight[order][first], np.diff(np.append(first, order.size)))
    inside = sums - before - (weight[order] if reach else 0)
    fits = np.empty(group.size, dtype=bool)
    fits[order] = inside < room[sorted_groups] if reach else inside <= room[sorted_groups]
    return fits
