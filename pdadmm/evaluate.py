"""Accuracy and loss of the network as it stands, by a forward pass over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdadmm.admm.layer import risk_sum
from pdadmm.admm.stage import Array, Stage

__all__ = ["SPLITS", "Split", "evaluate"]

SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """A split's nodes as this rank needs them.

    Attributes
    ----------
    rows
        Number of nodes.
    x
        (rows, n_0) features on the rank of layer 1, else None.
    y
        (rows,) labels on the output layer's rank, else None.
    """

    rows: int
    x: Array | None
    y: Array | None


def evaluate(stage: Stage, split: Split, risk: str) -> tuple[float, float]:
    """Number of correctly classified nodes and the summed risk.

    Returns
    -------
    correct, loss
        Zeros on every rank but the output layer's.
    """
    correct, loss = 0.0, 0.0

    def count(start: int, stop: int, logits: Array) -> None:
        nonlocal correct, loss
        assert split.y is not None
        y = split.y[start:stop]
        correct += float((logits.argmax(axis=1) == y).sum())
        loss += risk_sum(logits, y, risk)

    def source(start: int, stop: int) -> Array:
        assert split.x is not None
        return np.ascontiguousarray(split.x[start:stop])

    stage.forward(split.rows, source, output=count)
    return correct, loss
