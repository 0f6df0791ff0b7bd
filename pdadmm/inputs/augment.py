"""Multi-hop augmentation of features, X = [H, ÃH, …, ÃᴷH], computed column block by column block.

Ã = D^(-1/2) (A + I) D^(-1/2) is the normalised adjacency of Kipf and Welling; the augmentation is
that of GA-MLP (Chen et al., 2019), as pdADMM-G uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

from pdadmm.datasets.graph import SPLITS, Graph, Matrix
from pdadmm.errors import InputError
from pdadmm.inputs import Floats, Ids

__all__ = ["Augmentation", "ColumnBlocks", "Hops", "Piece", "Plan", "normalise_rows", "normalised_adjacency"]

FEATURE_NORMS = ("none", "row")

Piece: TypeAlias = tuple[int, int, Floats]
"""Hop, first feature column, values (rows, columns): a part of X."""

# Bounds on working memory, in bytes. They hold for any number of hops.
_BLOCK_BYTES = 64 << 20  # one column block of the whole graph
_HOPS_BYTES = 256 << 20  # all hops of a column block
_PANEL_BYTES = 448 << 20  # columns gathered before they are written
_BLOCK_COLUMNS = 64


def normalised_adjacency(adjacency: sp.csr_matrix) -> sp.csr_matrix:
    """Ã = D^(-1/2) (A + I) D^(-1/2), D the degrees of A + I.

    Parameters
    ----------
    adjacency : scipy.sparse.csr_matrix (N, N)
        Symmetric, entries 1, no self-loops.

    Returns
    -------
    scipy.sparse.csr_matrix (N, N) float32
        Weights are formed in float64 and rounded once.
    """
    looped = (adjacency.astype(np.float64) + sp.identity(adjacency.shape[0], format="csr")).tocsr()
    looped.sort_indices()
    scale = 1.0 / np.sqrt(np.diff(looped.indptr).astype(np.float64))
    rows = np.repeat(np.arange(looped.shape[0]), np.diff(looped.indptr))
    weights = (scale[rows] * scale[looped.indices]).astype(np.float32)
    return sp.csr_matrix((weights, looped.indices, looped.indptr), shape=looped.shape)


def normalise_rows(features: Matrix, feature_norm: str) -> Matrix:
    """Divide every row by its L1 norm (`row`) or leave the features alone (`none`)."""
    if feature_norm == "none":
        return features
    if feature_norm != "row":
        raise InputError(
            f"feature norm {feature_norm!r} is unknown; choose one of {', '.join(FEATURE_NORMS)}"
        )
    sums = np.asarray(abs(features).sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    if sp.issparse(features):
        weights = np.repeat(scale, np.diff(features.indptr))
        data = (features.data * weights).astype(np.float32)
        return sp.csr_matrix((data, features.indices, features.indptr), shape=features.shape)
    return (features * scale[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """How X is cut into column blocks. Depends on sizes only, never on the number of processes.

    Since every block is computed by the same code whoever computes it, X has the same bits however
    the blocks are shared.
    """

    nodes: int
    features: int
    rows: int
    hops: int

    @property
    def block(self) -> int:
        """Columns of H in a block."""
        by_graph = _BLOCK_BYTES // (4 * max(self.nodes, 1))
        by_hops = _HOPS_BYTES // (4 * max(self.rows, 1) * (self.hops + 1))
        return max(1, min(_BLOCK_COLUMNS, by_graph, by_hops))

    @property
    def panel(self) -> int:
        """Columns of H that are gathered, with all their hops, before they are written."""
        budget = max(_PANEL_BYTES, 4 * self.nodes * self.features)
        columns = budget // (4 * max(self.rows, 1) * (self.hops + 1))
        return min(self.features, max(1, columns // self.block) * self.block)

    def blocks(self) -> list[tuple[int, int]]:
        """First and past-the-last column of every block."""
        step = self.block
        return [(c, min(c + step, self.features)) for c in range(0, self.features, step)]


class Hops:
    """Planned once for a graph and a choice of rows; then computes the hops of column blocks.

    Parameters
    ----------
    normalised : scipy.sparse.csr_matrix (N, N) float32, or None when hops is 0
    rows : ndarray (R,) int64
        The nodes whose features are wanted, in the order of the output.
    hops : int
    """

    def __init__(self, normalised: sp.csr_matrix, rows: Ids, hops: int) -> None:
        self.normalised, self.rows, self.hops = normalised, rows, hops
        # The last hop is needed at these rows only.
        self._last: Matrix = normalised[rows] if hops else None

    def of(self, block: Floats) -> Iterator[Floats]:
        """Yield hop 0 to K of a dense block (N, w) float32 at the rows: K+1 arrays (R, w) float32."""
        yield block[self.rows]
        for hop in range(1, self.hops + 1):
            if hop == self.hops:
                yield self._last @ block
            else:
                block = self.normalised @ block
                yield block[self.rows]


class ColumnBlocks:
    """Dense column blocks (N, w) of H, which is CSR or dense."""

    def __init__(self, features: Matrix) -> None:
        self._features = features.tocsc() if sp.issparse(features) else features

    def __call__(self, start: int, stop: int) -> Floats:
        """Columns start to stop, C-contiguous float32."""
        block = self._features[:, start:stop]
        return np.ascontiguousarray(block.toarray() if sp.issparse(block) else block, dtype=np.float32)


class Augmentation:
    """X of a graph, piece by piece: what is to be computed, in which order, with which labels."""

    def __init__(self, graph: Graph, hops: int, feature_norm: str = "none", nodes: str = "split") -> None:
        if hops < 0:
            raise InputError(f"hops {hops} is negative; give 0 or more")
        if nodes not in ("split", "all"):
            raise InputError(f"nodes {nodes!r} is unknown; choose split or all")
        if graph.multilabel:
            raise InputError(
                f"{graph.origin}: several labels a node, which python -m pdadmm.gnn.prepare takes; "
                "feature files hold one"
            )
        if graph.adjacency is None:
            hops = 0  # samples without a graph have themselves for a neighbourhood
        self.graph, self.hops, self.feature_norm, self.nodes = graph, hops, feature_norm, nodes
        self.sizes = {name: int(graph.split(name).size) for name in SPLITS}
        order = np.concatenate([graph.split(name) for name in SPLITS])
        if nodes == "all":
            rest = np.ones(graph.num_nodes, dtype=bool)
            rest[order] = False
            order = np.concatenate([order, np.flatnonzero(rest)])
        self.node_id: Ids = order.astype(np.int64)
        self.plan = Plan(graph.num_nodes, graph.num_features, self.node_id.size, hops)
        self.columns = ColumnBlocks(normalise_rows(graph.features, feature_norm))
        self.kernel = Hops(normalised_adjacency(graph.adjacency) if hops else None, self.node_id, hops)

    @property
    def labels(self) -> Ids:
        """Labels (R,) int64 in the order of the rows."""
        return self.graph.labels[self.node_id]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of X."""
        return self.node_id.size, (self.hops + 1) * self.graph.num_features

    def pieces(self) -> Iterator[Piece]:
        """Compute X in this process: blocks in ascending order, each with all its hops."""
        for start, stop in self.plan.blocks():
            for hop, values in enumerate(self.kernel.of(self.columns(start, stop))):
                yield hop, start, values
