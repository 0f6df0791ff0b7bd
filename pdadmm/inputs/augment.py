"""Augmentation of features, X = [ψ_1 H, …, ψ_K H], computed column block by column block.

The augmentation is that of GA-MLP (Chen, Chen, Bruna, ICLR 2021), which pdADMM-G trains on with ψ the powers
of Ã; the operators are those of :mod:`pdadmm.inputs.operators`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pdadmm.datasets.graph import Graph, Matrix
from pdadmm.datasets.registry import SPLITS
from pdadmm.errors import InputError
from pdadmm.inputs import Floats, Ids
from pdadmm.inputs.feature_norm import FeatureNorm
from pdadmm.inputs.operators import Operator, parse_operators, powers
from pdadmm.kernels.sparse import SparseProduct, set_threads

__all__ = ["Augmentation", "ColumnBlocks", "Diffusion", "Piece", "Plan", "with_loops"]

Piece: TypeAlias = tuple[int, int, Floats]
"""Operator by number, first feature column, values (rows, columns): a part of X."""

# Bounds on working memory, in bytes. They hold for any number of operators.
_BLOCK_BYTES = 64 << 20  # one column block of the whole graph
_HOPS_BYTES = 256 << 20  # all operators of a column block
_PANEL_BYTES = 448 << 20  # columns gathered before they are written
_BLOCK_COLUMNS = 64
#: terms, the features themselves among them, that are not worth another order of the nodes
_FEW_TERMS = 2
_HUB = 1000  # neighbours of a node that no order brings near


def with_loops(adjacency: sp.csr_matrix) -> sp.csr_matrix:
    """A + I, whose structure is all that the normalised adjacencies need.

    Parameters
    ----------
    adjacency : scipy.sparse.csr_matrix (N, N)
        Symmetric, entries 1, no self-loops.

    Returns
    -------
    scipy.sparse.csr_matrix (N, N) float32
        Entries 1, indices in ascending order.
    """
    looped = (adjacency.astype(np.float32) + sp.identity(adjacency.shape[0], np.float32, "csr")).tocsr()
    looped.sort_indices()
    return looped


def near_order(looped: sp.csr_matrix) -> Ids:
    """An order of the nodes in which neighbours are near: reverse Cuthill-McKee.

    Products read rows of a block at a node's neighbours. What is near has just been in the cache: on Coauthor
    Physics a product takes half the time. Nodes with very many neighbours, which are near to none, come last:
    SciPy sorts a node's neighbours in time that grows with the square of their number.
    """
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    hub = np.diff(looped.indptr) > _HUB
    if not hub.any():
        return np.asarray(reverse_cuthill_mckee(looped, symmetric_mode=True), np.int64)
    few = np.flatnonzero(~hub)
    if not few.size:
        return np.flatnonzero(hub)
    order = reverse_cuthill_mckee(looped[few][:, few], symmetric_mode=True)
    return np.concatenate([few[order], np.flatnonzero(hub)])


def relabelled(looped: sp.csr_matrix, order: Ids, numbers: Ids) -> sp.csr_matrix:
    """The matrix with its nodes in another order, `numbers` the new number of each.

    A row's entries stay in the order in which they were, so that sums over them have the same bits.
    """
    rows = looped[order]
    indices = numbers.astype(looped.indices.dtype)[rows.indices]
    return sp.csr_matrix((rows.data, indices, rows.indptr), shape=looped.shape)


def _weights(looped: sp.csr_matrix, walk: bool) -> Floats:
    """Entries of Ã = D^(-1/2) (A + I) D^(-1/2), or of D^(-1) (A + I) for a walk, D the degrees of A + I.

    They are formed in float64 and rounded once.
    """
    degrees = np.diff(looped.indptr)
    if walk:
        return np.repeat((1.0 / degrees).astype(np.float32), degrees)
    scale = 1.0 / np.sqrt(degrees.astype(np.float64))
    return (np.repeat(scale, degrees) * scale[looped.indices]).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """How X is cut into column blocks. Depends on sizes only, never on the number of processes.

    Since every block is computed by the same code whoever computes it, X has the same bits however
    the blocks are shared.
    """

    nodes: int
    features: int
    rows: int
    operators: int

    @property
    def block(self) -> int:
        """Columns of H in a block."""
        by_graph = _BLOCK_BYTES // (4 * max(self.nodes, 1))
        by_operators = _HOPS_BYTES // (4 * max(self.rows, 1) * self.operators)
        return max(1, min(_BLOCK_COLUMNS, by_graph, by_operators))

    @property
    def panel(self) -> int:
        """Columns of H that are gathered, with all their operators, before they are written."""
        budget = max(_PANEL_BYTES, 4 * self.nodes * self.features)
        columns = budget // (4 * max(self.rows, 1) * self.operators)
        return min(self.features, max(1, columns // self.block) * self.block)

    def blocks(self) -> list[tuple[int, int]]:
        """First and past-the-last column of every block."""
        step = self.block
        return [(c, min(c + step, self.features)) for c in range(0, self.features, step)]


class Diffusion:
    """Planned once for a graph, a choice of rows and operators; then applies these to column blocks.

    Operators of one normalisation share their terms: the longest expansion says how many products there are.
    Powers and Chebyshev polynomials are terms of their own, so that neither changes the others' bits.

    Parameters
    ----------
    looped : scipy.sparse.csr_matrix (N, N), or None when there is no graph
        A + I as :func:`with_loops` makes it, or :func:`relabelled`; its values are not looked at.
    rows : ndarray (R,) int64
        The nodes whose features are wanted, in the order of the output, by their rows in `looped`.
    operators : sequence of Operator
    """

    def __init__(self, looped: sp.csr_matrix | None, rows: Ids, operators: Sequence[Operator]) -> None:
        self.looped, self.rows, self.count = looped, rows, len(operators)
        self._parts: list[_Recurrence] = []
        for walk, chebyshev in itertools.product((False, True), repeat=2):
            expansions = {
                number: operator.coefficients()
                for number, operator in enumerate(operators)
                if (operator.walk, operator.chebyshev) == (walk, chebyshev)
            }
            if expansions:
                self._parts.append(_Recurrence(looped, rows, expansions, walk, chebyshev))

    @property
    def products(self) -> int:
        """Products with the adjacency that a block takes."""
        return sum(part.last for part in self._parts)

    def of(self, block: Floats) -> Iterator[Floats]:
        """Yield ψ_1 to ψ_K of a dense block (N, w) float32 at the rows: K arrays (R, w) float32."""
        due = 0
        early: dict[int, Floats] = {}
        for part in self._parts:
            for number, values in part.of(block):
                early[number] = values
                while due in early:  # powers come as soon as they are there
                    yield early.pop(due)
                    due += 1


class _Recurrence:
    """Terms of one normalisation, each added to the sums that want it.

    They are block, P block, P² block, … or, in Chebyshev polynomials, T_0 block, T_1 block, T_2 block, … with
    T_0 = I, T_1 = P and T_k = 2P T_(k-1) - T_(k-2).
    """

    def __init__(
        self,
        looped: sp.csr_matrix | None,
        rows: Ids,
        expansions: dict[int, npt.NDArray[np.float64]],
        walk: bool,
        chebyshev: bool,
    ) -> None:
        self._rows, self._expansions, self._chebyshev = rows, expansions, chebyshev
        self.last = max(map(len, expansions.values())) - 1
        if not self.last:
            return
        assert looped is not None
        indptr, indices, values = looped.indptr, looped.indices, _weights(looped, walk)
        if chebyshev:
            values *= 2
        nodes = looped.shape[0]
        if self.last > 1:
            self._product = SparseProduct(indptr, indices, values, nodes)
        # the last term is needed at these rows only
        chosen = sp.csr_matrix((values, indices, indptr), shape=looped.shape)[rows]
        self._product_at_rows = SparseProduct(chosen.indptr, chosen.indices, chosen.data, nodes)

    def of(self, block: Floats) -> Iterator[tuple[int, Floats]]:
        """Number and values (R, w) of every operator, in the order in which they are done."""
        sums: dict[int, Floats] = {}
        for k, at_rows in enumerate(self._terms(block)):
            for number, coefficients in self._expansions.items():
                if k < len(coefficients) and coefficients[k]:
                    assert at_rows is not None
                    self._add(sums, number, at_rows, float(coefficients[k]))
                if k == len(coefficients) - 1:
                    if self._chebyshev and k:
                        # these operators make nothing negative of a feature that is not; where they are cut
                        # and rounded, they may
                        least = np.where(block.min(axis=0) < 0, -np.inf, 0).astype(np.float32)
                        np.maximum(sums[number], least, out=sums[number])
                    yield number, sums.pop(number)

    def _terms(self, block: Floats) -> Iterator[Floats | None]:
        """Every term at the rows (R, w), or None of one that no operator wants."""
        wanted = [
            any(k < len(coefficients) and coefficients[k] for coefficients in self._expansions.values())
            for k in range(self.last + 1)
        ]
        yield block[self._rows] if wanted[0] else None
        before, term = block, block
        for k in range(1, self.last):
            if before is block:  # it was given and is not ours
                before = block.copy() if self._chebyshev else np.empty_like(block)
            self._step(self._product, k, term, before)
            before, term = term, before
            yield term[self._rows] if wanted[k] else None
        if self.last:
            at_rows = before[self._rows]
            self._step(self._product_at_rows, self.last, term, at_rows)
            yield at_rows

    def _step(self, product: SparseProduct, k: int, term: Floats, out: Floats) -> None:
        """Term k into `out`, which holds term k - 2, from term k - 1."""
        product(term, out, -1 if self._chebyshev and k > 1 else 0)
        if self._chebyshev and k == 1:
            out *= np.float32(0.5)  # of 2P, as exact as P

    @staticmethod
    def _add(sums: dict[int, Floats], number: int, values: Floats, weight: float) -> None:
        term = values if weight == 1 else values * np.float32(weight)
        if number in sums:
            sums[number] += term
        else:
            sums[number] = term


class ColumnBlocks:
    """Dense column blocks (N, w) of H, CSR or dense, after its norm.

    Where an order of the nodes is given, with the new number of each, the rows are in that order.
    """

    def __init__(
        self, features: Matrix, norm: FeatureNorm, order: Ids | None = None, numbers: Ids | None = None
    ) -> None:
        self._norm = norm if norm.by_columns else None
        features = features if norm.by_columns else norm.applied(features)
        self._features = features.tocsc() if sp.issparse(features) else features
        self._rows: Ids | slice = slice(None)
        if order is None or numbers is None:
            return
        if sp.issparse(features):  # a column's entries need no order
            columns = self._features
            indices = numbers.astype(columns.indices.dtype)[columns.indices]
            self._features = sp.csc_matrix((columns.data, indices, columns.indptr), shape=columns.shape)
        else:
            self._rows = order

    def __call__(self, start: int, stop: int) -> Floats:
        """Columns start to stop, C-contiguous float32."""
        block = self._features[self._rows, start:stop]
        dense = block.toarray() if sp.issparse(block) else block
        if self._norm is not None:
            dense = self._norm.applied(dense, slice(start, stop))
        return np.ascontiguousarray(dense, dtype=np.float32)


class Augmentation:
    """X of a graph, piece by piece: what is to be computed, in which order, with which labels.

    Parameters
    ----------
    graph : Graph
    hops : int
        K of I, Ã, …, Ã^K, where `operators` says nothing else.
    feature_norm : {"none", "row", "standard"}, or FeatureNorm
    nodes : {"split", "all"}
        Rows: the nodes in a split, or every node.
    operators : str, optional
        As :func:`pdadmm.inputs.operators.parse_operators` reads it; without a graph taken as ``powers:0``.

    Raises
    ------
    InputError
        When an argument is none of these, or nodes have several labels.
    """

    def __init__(
        self,
        graph: Graph,
        hops: int = 4,
        feature_norm: str | FeatureNorm = "none",
        nodes: str = "split",
        operators: str | None = None,
    ) -> None:
        if nodes not in ("split", "all"):
            raise InputError(f"nodes {nodes!r} is unknown; choose split or all")
        if graph.multilabel:
            raise InputError(
                f"{graph.origin}: several labels a node, which python -m pdadmm.gnn.prepare takes; "
                "feature files hold one"
            )
        # the list is looked at even where samples without a graph are their own neighbourhoods
        parsed = parse_operators(powers(hops) if operators is None else operators)
        if graph.adjacency is None:
            parsed = parse_operators(powers(0))
        self.operators, found = parsed
        self.graph, self.nodes = graph, nodes
        self.norm = FeatureNorm.of(feature_norm, graph.features, graph.origin)
        self.sizes = {name: int(graph.split(name).size) for name in SPLITS}
        order = np.concatenate([graph.split(name) for name in SPLITS])
        if nodes == "all":
            rest = np.ones(graph.num_nodes, dtype=bool)
            rest[order] = False
            order = np.concatenate([order, np.flatnonzero(rest)])
        if not order.size:
            raise InputError(f"{graph.origin}: no node is in a split; give --nodes all")
        self.node_id: Ids = order.astype(np.int64)
        self.plan = Plan(graph.num_nodes, graph.num_features, self.node_id.size, len(found))
        looped = None if graph.adjacency is None else with_loops(graph.adjacency)
        near = numbers = None
        rows = self.node_id
        if looped is not None and max(len(operator.coefficients()) for operator in found) > _FEW_TERMS:
            near = near_order(looped)
            numbers = np.argsort(near)
            looped, rows = relabelled(looped, near, numbers), numbers[rows]
        self.columns = ColumnBlocks(graph.features, self.norm, near, numbers)
        self.kernel = Diffusion(looped, rows, found)

    @property
    def labels(self) -> Ids:
        """Labels (R,) int64 in the order of the rows."""
        return self.graph.labels[self.node_id]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of X."""
        return self.node_id.size, self.kernel.count * self.graph.num_features

    def pieces(self, threads: int | None = None) -> Iterator[Piece]:
        """Compute X in this process: blocks in ascending order, each with all its operators.

        Parameters
        ----------
        threads
            Of the products, for the whole process; None leaves them as they are. The bits are the same.
        """
        if threads is not None:
            set_threads(threads)
        for start, stop in self.plan.blocks():
            for number, values in enumerate(self.kernel.of(self.columns(start, stop))):
                yield number, start, values
