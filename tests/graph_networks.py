"""Small graphs in memory, cut into parts, and networks on them: what the tests of graph networks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.gnn.halo import Slot
from pdadmm.gnn.layer import Inputs, Network, Shape
from pdadmm.gnn.part import Part
from pdadmm.gnn.passes.reference import ReferencePasses
from pdadmm.gnn.products import Products


class Source:
    """A random graph with an isolated node, cut into parts of different sizes.

    With `skew` the nodes' shares of the edges are lognormal, of that standard deviation.
    """

    def __init__(
        self,
        parts: int,
        nodes: int = 60,
        features: int = 7,
        classes: int = 4,
        seed: int = 0,
        skew: float = 0.0,
    ) -> None:
        rng = np.random.default_rng(seed)
        if skew:
            of_node = rng.lognormal(0, skew, nodes)
            chance = 0.06 * np.outer(of_node, of_node) / of_node.mean() ** 2
            upper = sp.csr_matrix((rng.random((nodes, nodes)) < chance).astype(np.float64))
        else:
            upper = sp.random(nodes, nodes, 0.06, random_state=seed, format="csr")
            upper.data[:] = 1
        whole = sp.csr_matrix(((upper + upper.T) > 0).astype(np.float64))
        whole.setdiag(0)
        whole = whole.tolil()
        whole[5, :] = 0
        whole[:, 5] = 0
        self.original = sp.csr_matrix(whole)
        self.original.eliminate_zeros()
        self.x_original = rng.normal(size=(nodes, features)).astype(np.float32)
        self.y_original = rng.integers(0, classes, nodes)
        self.split_original = rng.integers(0, 4, nodes).astype(np.int8)
        ends = np.sort(rng.choice(np.arange(8, nodes - 8), parts - 1, replace=False))
        self.part_ptr = np.array([0, *ends, nodes], np.int64)
        # the numbering before the cut stays in `id`; the graph is the same for any number of parts
        self.id = np.random.default_rng(parts).permutation(nodes)
        self.matrix = self.original[self.id][:, self.id].tocsr()
        self.matrix.sort_indices()
        self.parts, self.num_nodes, self.num_features, self.num_classes = parts, nodes, features, classes
        self.multilabel, self.dataset = False, "random"
        self.num_edges = self.matrix.nnz // 2

    def adjacency(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.matrix[first:last]
        return rows.indptr.astype(np.int64), rows.indices

    def degree(self, ids: Any) -> np.ndarray:
        return np.diff(self.matrix.indptr)[ids].astype(np.int64)

    def node_id(self, ids: Any) -> np.ndarray:
        return self.id[ids]

    def features(self, first: int, last: int) -> np.ndarray:
        return self.x_original[self.id[first:last]]

    def features_of(self, ids: np.ndarray) -> np.ndarray:
        return self.x_original[self.id[ids]]

    def labels(self, first: int, last: int) -> np.ndarray:
        return self.y_original[self.id[first:last]]

    def split(self, first: int, last: int) -> np.ndarray:
        return self.split_original[self.id[first:last]]


class Copies:
    """Halos filled by copying rows from the other parts, in any precision."""

    def __init__(self, parts: Mapping[int, Part]) -> None:
        self._parts = parts
        self._sent: dict[tuple[str, int], np.ndarray] = {}

    def send(self, slot: str, part: int, X: np.ndarray) -> None:
        self._sent[slot, part] = X.copy()

    def receive(self, slot: str, part: int, X: np.ndarray) -> None:
        for other, columns in self._parts[part].receives.items():
            X[columns] = self._sent[slot, other][self._parts[other].sends[part]]


def weights_of(shape: Shape, seed: int = 0, dtype: type = np.float64) -> dict[int, dict[str, np.ndarray]]:
    """Random parameters."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: rng.normal(0, 0.5, size).astype(dtype) + (name == "gamma") for name, size in names.items()
        }
        for layer, names in ((i, shape.parameters(i)) for i in range(1, shape.layers + 1))
    }


def network_of(
    source: Source, shape: Shape, weights: Mapping[int, Mapping[str, np.ndarray]], dtype: type = np.float64
) -> tuple[Network, dict[int, Part], dict[int, dict[int, dict[str, np.ndarray]]]]:
    """A network, its parts and the gradients that it writes, by part and layer."""
    parts = {i: Part.of(source, i, shape.model, dtype) for i in range(source.parts)}
    gradients = {
        i: {layer: {name: np.zeros_like(x) for name, x in named.items()} for layer, named in weights.items()}
        for i in parts
    }
    passes = ReferencePasses()
    inputs, own = {}, {}
    for i, part in parts.items():
        X = source.features_of(np.concatenate([part.rows, part.halo])).astype(dtype)
        own[i] = Inputs(X[: part.size], dtype)
        inputs[i] = own[i]
        if shape.exact_inputs:
            A = np.empty((part.size, X.shape[1]), dtype)
            passes.aggregate(part.forward, X, A)
            inputs[i] = Inputs(A, dtype)
    own = own if shape.model == "sage" else {}
    network = Network(shape, parts, inputs, own, weights, gradients, passes, Products(), dtype)
    return network, parts, gradients


__all__ = ["Copies", "Slot", "Source", "network_of", "weights_of"]
