"""PyTorch Geometric on one process, with the network, order and optimiser of pdadmm.gnn: a baseline.

GCN or GraphSAGE with the mean of the neighbours; LayerNorm over each node's columns, ReLU and dropout after
hidden convolutions, or dropout first; Xavier-uniform start, Adam, full batch. The adjacency is a
torch.sparse CSR tensor, with which an epoch takes a fraction of what it takes with edge_index; so are
features of which few are not zero.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.errors import InputError
from pdadmm.gnn.equations import gcn_weights, mean_weights
from pdadmm.inputs.graph_file import GraphFile

try:
    import torch
    from torch import nn
    from torch_geometric.nn import GCNConv, SAGEConv
except ImportError:  # the tables and the other runs do without; train_pyg says what is missing
    torch = None  # type: ignore[assignment, unused-ignore]

__all__ = ["build", "load", "train_pyg"]

#: share of features that are not zero below which they stay sparse
SPARSE = 0.05


def load(path: Path, model: str) -> dict[str, Any]:
    """A graph file as tensors: `x`, sparse or not, `y`, `split`, and the weighted adjacency, sparse CSR."""
    if torch is None:
        raise InputError("this needs PyTorch and PyG: pip install torch torch_geometric")
    with GraphFile(str(path)) as source:
        n = source.num_nodes
        indptr, indices = (np.asarray(a, np.int64) for a in source.adjacency(0, n))
        features, labels = source.features(0, n), np.asarray(source.labels(0, n), np.int64)
        split, degree = np.asarray(source.split(0, n)), np.asarray(source.degree(slice(0, n)), np.int64)
        classes = source.num_classes
    matrix = sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=(n, n))
    if model == "gcn":
        matrix = (matrix + sp.identity(n, np.float32, "csr")).tocsr()
        degree = degree + 1
    matrix.sort_indices()
    row = np.repeat(np.arange(n), np.diff(matrix.indptr))
    weigh = gcn_weights if model == "gcn" else lambda of_row, _: mean_weights(of_row)
    matrix.data = weigh(degree[row], degree[matrix.indices]).astype(np.float32)
    sparse = sp.issparse(features)
    if sparse and features.nnz < SPARSE * n * features.shape[1]:
        x = _csr(features)
    else:
        dense = features.toarray() if sparse else np.asarray(features)
        x = torch.from_numpy(np.ascontiguousarray(dense, np.float32))
    return {
        "x": x,
        "y": torch.from_numpy(labels),
        "split": torch.from_numpy(split),
        "adjacency": _csr(matrix),
        "classes": classes,
    }


def _csr(matrix: sp.csr_matrix) -> Any:
    """A matrix as a torch.sparse CSR tensor."""
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        torch.from_numpy(matrix.data.astype(np.float32)),
        matrix.shape,
    )


def build(model: str, widths: list[int], dropout: float, dropped_first: bool = False) -> Any:
    """The network as a torch module that takes features and adjacency."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # the weights of the adjacency are given: GCNConv and SAGEConv shall only add
            make = (
                (lambda a, b: GCNConv(a, b, normalize=False, add_self_loops=False))
                if model == "gcn"
                else (lambda a, b: SAGEConv(a, b, aggr="sum"))
            )
            pairs = list(itertools.pairwise(widths))
            self.convolutions = nn.ModuleList(make(a, b) for a, b in pairs)
            self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b in pairs[:-1])
            for convolution in self.convolutions:
                for parameter in convolution.parameters():
                    start = nn.init.xavier_uniform_ if parameter.ndim == 2 else nn.init.zeros_
                    start(parameter)

        def forward(self, x: Any, adjacency: Any) -> Any:
            *hidden, last = self.convolutions
            for convolution, norm in zip(hidden, self.norms, strict=True):
                x = convolution(x, adjacency)
                if dropped_first:
                    x = torch.relu(norm(nn.functional.dropout(x, dropout, self.training)))
                else:
                    x = nn.functional.dropout(torch.relu(norm(x)), dropout, self.training)
            return last(x, adjacency)

    return Net()


def train_pyg(
    path: Path,
    model: str,
    layers: int = 3,
    hidden: int = 256,
    epochs: int = 200,
    dropout: float = 0.5,
    rate: float = 0.01,
    seed: int = 0,
    eval_every: int = 10,
    dropped_first: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Accuracies of the last epoch and at the best one on validation, and seconds an epoch."""
    data = load(path, model)
    torch.manual_seed(seed)
    x, y, split, adjacency = (data[name].to(device) for name in ("x", "y", "split", "adjacency"))
    widths = [x.shape[1], *[hidden] * (layers - 1), data["classes"]]
    network = build(model, widths, dropout, dropped_first).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    train = split == 1
    seconds: list[float] = []
    best = (-1.0, -1.0)
    found: dict[str, float] = {}
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        network.train()
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(x, adjacency)[train], y[train])
        loss.backward()
        optimiser.step()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if epoch % eval_every == 0 or epoch == epochs:
            network.eval()
            with torch.no_grad():
                right = network(x, adjacency).argmax(1) == y
            found = {
                name: float(right[split == number].double().mean())
                for number, name in enumerate(("train", "val", "test"), 1)
            }
            if found["val"] >= best[0]:
                best = (found["val"], found["test"])
    return {
        **{f"{name}_accuracy": value for name, value in found.items()},
        "best_val_accuracy": best[0],
        "test_accuracy_at_best_val": best[1],
        "seconds_per_epoch": float(np.median(seconds)),
    }
