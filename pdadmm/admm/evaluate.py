"""Accuracy and loss of the network as it stands, by a forward pass over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from pdadmm.admm.stage import Stage
from pdadmm.admm.weights import Inputs, Weights
from pdadmm.arrays import Array, Scalar
from pdadmm.arrays.groups import rows_of_groups, tree

__all__ = ["Split", "evaluate"]


@dataclass
class Split:
    """A split's nodes as this rank needs them.

    Attributes
    ----------
    rows
        Number of nodes, of this rank's shard.
    x
        (rows, n_0) features on the rank of layer 1, else None.
    y
        (rows,) labels on the output layer's rank, else None.
    """

    rows: int
    x: Array | None
    y: Array | None
    _inputs: tuple[Weights, Inputs] | None = None

    def inputs_of(self, weights: Weights) -> Inputs:
        """What the weights of layer 1 take for x, formed by the first evaluation."""
        assert self.x is not None
        if self._inputs is None or self._inputs[0] is not weights:
            self._inputs = weights, weights.inputs_of(self.x)
        return self._inputs[1]


def evaluate(stage: Stage, split: Split, shift: Array | None = None) -> tuple[float, float]:
    """Number of correctly classified nodes and the summed risk, over all shards.

    Parameters
    ----------
    stage
    split
    shift
        (classes,) float32, added to the logits; wanted on the output layer's rank alone.

    Returns
    -------
    correct, loss
        Zeros on every rank but the output layer's.
    """
    groups = rows_of_groups(split.rows, stage.backend.groups)
    correct: list[Scalar] = [0.0] * len(groups)
    loss: list[Scalar] = [0.0] * len(groups)
    group = 0

    def count(start: int, stop: int, logits: Array) -> None:
        nonlocal group
        assert split.y is not None
        while start >= groups[group].stop:
            group += 1
        y = split.y[start:stop]
        # on a GPU both stay there until the pass is over
        right, risk = stage.layers[-1].score(logits if shift is None else logits + shift, y)
        correct[group], loss[group] = correct[group] + right, loss[group] + risk

    def source(start: int, stop: int) -> Inputs:
        return stage.layers[0].weights.rows_of(split.inputs_of(stage.layers[0].weights), start, stop)

    stage.forward(split.rows, source, output=count)
    found = [tree(correct), tree(loss)]
    if stage.layers:
        found = list(stage.layers[-1].totals(*found))
    number, risk = stage.floats(found)
    return number, risk
