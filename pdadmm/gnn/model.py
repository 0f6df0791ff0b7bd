"""A trained graph network: read a run's model.h5, predict on graphs in memory, hand over to PyTorch."""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from pdadmm.datasets.graph import Graph, Matrix
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.files.predictions import require_finite
from pdadmm.files.tensors import write_tensors
from pdadmm.gnn.equations import gcn_weights, hidden, mean_weights
from pdadmm.gnn.export import constructor, state_dict
from pdadmm.gnn.layer import Shape
from pdadmm.gnn.model_file import read_model
from pdadmm.inputs.feature_norm import FeatureNorm

if TYPE_CHECKING:
    import torch

__all__ = ["GraphModel"]


@dataclass(eq=False, repr=False)
class GraphModel:
    """A trained GCN or GraphSAGE.

    Prediction is a few sparse products in this process; ``python -m pdadmm.gnn.predict`` does it on many
    ranks, for graphs that one does not hold.

    Attributes
    ----------
    shape
        The layers' model, ``gcn`` or ``sage``, and widths.
    weights
        By layer, from 1, and name: float32 arrays, a matrix (n_out, n_in).
    attributes
        What the run recorded: dataset, test_accuracy, multilabel, feature_norm.
    norm
        What preparing did to the features, which is done to those of a graph here.

    Examples
    --------
    >>> from pdadmm import GraphModel
    >>> from pdadmm.datasets import from_pyg
    >>> model = GraphModel.load("runs/computers/model.h5")      # doctest: +SKIP
    >>> model.predict(from_pyg(data))                      # doctest: +SKIP
    array([3, 4, 4, ...])
    """

    shape: Shape
    weights: dict[int, dict[str, np.ndarray]]
    attributes: Record = field(default_factory=dict)
    norm: FeatureNorm = field(default_factory=FeatureNorm)

    def __repr__(self) -> str:
        widths = reprlib.repr(list(self.shape.widths))
        return f"<GraphModel {self.shape.model}: {self.shape.layers} layers of widths {widths}>"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GraphModel:
        """Read model.h5.

        Raises
        ------
        InputError
            When the file is missing, damaged, or not the model of a graph network.
        """
        return cls(*read_model(path))

    def forward(self, graph: Graph) -> np.ndarray:
        """Outputs (V, classes), float32, before softmax or sigmoid; features as they are in the data set.

        Raises
        ------
        InputError
            When it is no graph or has no adjacency, or another number of features than the model takes.
        """
        if not isinstance(graph, Graph):
            raise InputError(
                f"{type(graph).__name__} is no graph; give that of pdadmm.datasets.load, or of "
                f"from_pyg(data, classes={self.shape.widths[-1]})"
            )
        adjacency, X = graph.adjacency, graph.features
        if adjacency is None:
            raise InputError(f"{graph.origin}: samples without a graph; pdadmm.Model is for these")
        if X.shape[1] != self.shape.widths[0]:
            raise InputError(
                f"{graph.origin}: {X.shape[1]} features, the model takes {self.shape.widths[0]}; "
                "give a graph of the same kind"
            )
        H = FeatureNorm.of(self.norm, X, graph.origin).applied(X)
        with np.errstate(all="ignore"):  # overflow shows as Inf or NaN in the outputs
            return self._outputs(self._operator(adjacency), H)

    def _outputs(self, A: sp.csr_matrix, H: Matrix) -> np.ndarray:
        for layer, named in self.weights.items():
            if self.shape.model == "gcn":
                Z = _aggregated(A, H, named["W"])
            else:
                Z = _aggregated(A, H, named["W_neighbours"]) + H @ named["W_self"].T
            H = Z + named["b"]
            if layer < self.shape.layers:
                H = hidden(H, named["gamma"], named["beta"], None, False)[2]
        return np.asarray(H, np.float32)

    def _operator(self, adjacency: sp.csr_matrix) -> sp.csr_matrix:
        """What a layer aggregates by, (V, V) float32."""
        degrees = np.diff(adjacency.indptr)
        rows, columns = np.repeat(np.arange(degrees.size), degrees), adjacency.indices
        if self.shape.model == "gcn":
            values = gcn_weights(degrees[rows] + 1, degrees[columns] + 1)
            loops = sp.diags(1.0 / (degrees + 1.0))
        else:
            values = mean_weights(degrees[rows])
            loops = sp.csr_matrix(adjacency.shape)
        edges = sp.csr_matrix((values, columns, adjacency.indptr), adjacency.shape)
        return (edges + loops).tocsr().astype(np.float32)

    def predict(self, graph: Graph) -> np.ndarray:
        """Class of every node, (V,) int64; with several labels a node, (V, classes) uint8 of 0 and 1.

        Raises
        ------
        InputError
            As `forward`; or when outputs are NaN or Inf, which features too large for the network make.
        """
        scores = self._scores(graph)
        return (scores > 0).astype(np.uint8) if self.multilabel else scores.argmax(axis=1)

    def predict_proba(self, graph: Graph) -> np.ndarray:
        """Softmax of the outputs, (V, classes); of several labels a node the sigmoid; raises as `predict`."""
        z = self._scores(graph).astype(np.float64)
        if self.multilabel:
            return np.asarray(np.exp(-np.logaddexp(0, -z)), np.float32)
        s = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(s / s.sum(axis=1, keepdims=True), np.float32)

    def _scores(self, graph: Graph) -> np.ndarray:
        scores = self.forward(graph)
        require_finite(scores, graph.origin)
        return scores

    @property
    def multilabel(self) -> bool:
        """Whether a node has several labels."""
        return bool(self.attributes.get("multilabel", 0))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State of the PyTorch Geometric module that `pdadmm.gnn.export` describes."""
        import torch

        return {name: torch.from_numpy(x.copy()) for name, x in state_dict(self.shape, self.weights).items()}

    def to_safetensors(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as a safetensors file, by the names of `state_dict`; without PyTorch.

        Raises
        ------
        InputError
            Without the package safetensors.
        OSError
            When the file cannot be written.
        """
        attributes = {**self.attributes, "model": constructor(self.shape)}
        write_tensors(Path(path), state_dict(self.shape, self.weights), attributes)


def _aggregated(A: sp.csr_matrix, H: Matrix, W: np.ndarray) -> np.ndarray:
    """``A H Wᵀ``, the narrower side aggregated."""
    if W.shape[0] < W.shape[1]:
        return np.asarray(A @ (H @ W.T))
    return np.asarray((A @ H) @ W.T)
