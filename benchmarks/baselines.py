"""Gradient baselines in PyTorch: GD, Adadelta, Adagrad and Adam on the network that pdadmm trains.

The same features, splits, widths, activation and seeds. Trained directly at full depth, as in the
paper, or with the growth that pdadmm uses: identity layers inserted below the output layer.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from pdadmm.errors import InputError
from pdadmm.inputs.class_prior import logit_shift
from pdadmm.inputs.scaling import normalise_inputs

try:
    import torch
    from torch import nn
except ImportError:  # the tables and the ADMM runs do without; train_torch says what is missing
    torch = None  # type: ignore[assignment, unused-ignore]

__all__ = ["GRIDS", "OPTIMISERS", "train_torch"]

OPTIMISERS = {"gd": "SGD", "adadelta": "Adadelta", "adagrad": "Adagrad", "adam": "Adam"}

#: learning rates tried for each, chosen by validation accuracy
GRIDS = {
    "gd": (1.0, 0.1, 0.01),
    "adadelta": (1.0, 0.1, 0.01),
    "adagrad": (0.1, 0.01, 0.001),
    "adam": (0.01, 0.001, 0.0001),
}


def _network(widths: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        linear = nn.Linear(n_in, n_out)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _grown(network: nn.Sequential, depth: int) -> nn.Sequential:
    """The network with identity layers inserted below its output layer."""
    parts = list(network)
    first = parts[0]
    assert isinstance(first, nn.Linear)
    hidden = first.out_features
    new: list[nn.Module] = []
    for _ in range(depth - (len(parts) + 1) // 2):
        linear = nn.Linear(hidden, hidden)
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
        new += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1], *new, parts[-1])


#: C of scikit-learn's logistic regression
INVERSE_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


def shift_of(data: Any, prior: str) -> np.ndarray:
    """What --class-prior of pdadmm.run adds to the logits."""
    counts = [np.bincount(data.y(name), minlength=data.sizes.classes) for name in ("train", prior)]
    return logit_shift(*counts)


def train_linear(data: Any, C: float, scaling: tuple[str, float], prior: str = "train") -> dict[str, float]:
    """Logistic regression on the same inputs until it has converged; parameters as in `train_torch`."""
    from sklearn.linear_model import LogisticRegression

    started = time.perf_counter()
    x = {
        name: normalise_inputs(data.x(name), data.sizes.features_per_hop, *scaling)
        for name in ("train", "val", "test")
    }
    model = LogisticRegression(C=C, max_iter=5000).fit(x["train"], data.y("train"))
    seconds = time.perf_counter() - started
    model.intercept_ += shift_of(data, prior)
    val, test = (float(model.score(x[name], data.y(name))) for name in ("val", "test"))
    return {
        "val_accuracy": val,
        "test_accuracy": test,
        "best_val_accuracy": val,
        "test_accuracy_at_best_val": test,
        "seconds": seconds,
    }


def train_torch(
    data: Any,
    hidden: int,
    stages: list[int],
    epochs: int,
    optimiser: str,
    rate: float,
    seed: int,
    scaling: tuple[str, float] = ("none", 1.0),
    history: list[list[float]] | None = None,
    prior: str = "train",
) -> dict[str, float]:
    """Full-batch training; accuracies of the last iterate and of the best one on validation.

    Parameters
    ----------
    data
        With `x(split)` (V, n_0) float32, `y(split)` (V,) and `sizes`.
    scaling
        Of the inputs: --input-norm and --hop-decay of pdadmm.run.
    history
        Gets seconds of training, without evaluation, and validation accuracy at every evaluation.
    prior
        --class-prior of pdadmm.run.
    stages
        Depths to grow through; one depth trains directly.
    epochs
        Of every stage.
    """
    if torch is None:
        raise InputError("the gradient methods need PyTorch: pip install torch")
    torch.manual_seed(seed)

    def scaled(X: np.ndarray) -> np.ndarray:
        return normalise_inputs(X, data.sizes.features_per_hop, *scaling)

    x = {name: torch.from_numpy(scaled(data.x(name))) for name in ("train", "val", "test")}
    y = {name: torch.from_numpy(data.y(name)) for name in x}
    widths = [data.sizes.inputs, *[hidden] * (stages[0] - 1), data.sizes.classes]
    network = _network(widths)
    shift = torch.from_numpy(shift_of(data, prior))
    best = (0.0, 0.0)
    started, training = time.perf_counter(), 0.0

    def accuracy(name: str) -> float:
        with torch.no_grad():
            return float(((network(x[name]) + shift).argmax(1) == y[name]).double().mean())

    for depth in stages:
        if depth != stages[0]:
            network = _grown(network, depth)
        method = getattr(torch.optim, OPTIMISERS[optimiser])(network.parameters(), lr=rate)
        for epoch in range(epochs):
            before = time.perf_counter()
            method.zero_grad()
            loss = nn.functional.cross_entropy(network(x["train"]), y["train"])
            loss.backward()
            method.step()
            training += time.perf_counter() - before
            if (epoch + 1) % 10 == 0:
                val = accuracy("val")
                if history is not None:
                    history.append([training, val])
                if val >= best[0]:
                    best = (val, accuracy("test"))
    return {
        "train_accuracy": accuracy("train"),
        "val_accuracy": accuracy("val"),
        "test_accuracy": accuracy("test"),
        "best_val_accuracy": best[0],
        "test_accuracy_at_best_val": best[1],
        "seconds": time.perf_counter() - started,
    }
