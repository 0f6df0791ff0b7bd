"""Accuracy and loss of the network as it stands, by a forward pass over the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.admm.layer import risk_sum
from pdadmm.admm.stage import Stage
from pdadmm.arrays import Array, number

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
    projected
        Of x, while layer 1 is kept in the row space of the training nodes' x; see
        :meth:`pdadmm.admm.row_space.RowSpaceWeights.project`. Formed by the first evaluation.
    """

    rows: int
    x: Array | None
    y: Array | None
    projected: tuple[Array, Array] | None = None


def evaluate(stage: Stage, split: Split, risk: str) -> tuple[float, float]:
    """Number of correctly classified nodes and the summed risk.

    Returns
    -------
    correct, loss
        Zeros on every rank but the output layer's.
    """
    correct: Any = 0.0
    loss: Any = 0.0

    def count(start: int, stop: int, logits: Array) -> None:
        nonlocal correct, loss
        assert split.y is not None
        y = split.y[start:stop]
        # on a GPU both stay there until the pass is over
        correct = correct + number((logits.argmax(axis=1) == y).sum(dtype=np.float64))
        loss = loss + risk_sum(logits, y, risk)

    def source(start: int, stop: int) -> Any:
        assert split.x is not None
        rows = stage.layers[0].rows
        if rows is None:
            return split.x[start:stop]
        if split.projected is None:
            split.projected = rows.project(split.x)
        return tuple(part[start:stop] for part in split.projected)

    stage.forward(split.rows, source, output=count)
    correct, loss = stage.floats([correct, loss])
    return correct, loss
