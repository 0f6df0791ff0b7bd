"""What is measured of a graph network's output: losses, accuracies, areas under the curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pdadmm.arrays import Array
from pdadmm.comm.waiter import Waiter
from pdadmm.datasets.registry import SPLITS
from pdadmm.files import Record
from pdadmm.gnn.equations import sigmoid_cross_entropy, softmax_cross_entropy
from pdadmm.inputs.graph_file import GraphSource

__all__ = ["Targets", "area_under_curve", "measure"]

_BLOCK_BYTES = 16 << 20  # of outputs that are looked at at once


@dataclass(frozen=True)
class Targets:
    """Labels of a part's rows.

    Parameters
    ----------
    labels
        (n,) integers, or (n, classes) of 0 and 1 where every class is a question of its own.
    split
        (n,) 0 for none, 1 + the place in :data:`pdadmm.datasets.registry.SPLITS`.
    """

    labels: np.ndarray
    split: np.ndarray

    @classmethod
    def of(cls, source: GraphSource, number: int, rows: np.ndarray | None = None) -> Targets:
        """Of a part, in the order of the graph, or in that of its `rows`, numbers in the graph."""
        first, last = (int(end) for end in source.part_ptr[number : number + 2])
        order = slice(None) if rows is None else rows - first
        return cls(
            np.asarray(source.labels(first, last))[order], np.asarray(source.split(first, last))[order]
        )

    @property
    def multilabel(self) -> bool:
        """Whether every class is a question of its own."""
        return self.labels.ndim == 2

    def rows(self, name: str) -> np.ndarray:
        """Rows of a split."""
        return np.flatnonzero(self.split == 1 + SPLITS.index(name))

    def loss(self, Z: Array, rows: np.ndarray) -> float:
        """Summed loss of some rows."""
        entropy = sigmoid_cross_entropy if self.multilabel else softmax_cross_entropy
        losses = [entropy(Z[some], self.labels[some])[0] for some in _blocks(rows, Z)]
        return float(np.concatenate(losses).sum(dtype=np.float64)) if losses else 0.0


def _blocks(rows: np.ndarray, Z: Array) -> Iterator[np.ndarray]:
    """The rows in turn, as many at once as need little memory beside the outputs."""
    step = max(1, _BLOCK_BYTES // (4 * Z.shape[1]))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _counts(targets: Targets, Z: Array, rows: np.ndarray) -> tuple[float, float]:
    """Hits and tries: accuracy is their ratio, the micro-averaged F1 where classes are questions."""
    hits = tries = 0
    for some in _blocks(rows, Z):
        if targets.multilabel:
            said, true = Z[some] > 0, targets.labels[some] > 0
            hits += 2 * np.count_nonzero(said & true)
            tries += np.count_nonzero(said) + np.count_nonzero(true)
        else:
            hits += np.count_nonzero(Z[some].argmax(axis=1) == targets.labels[some])
            tries += len(some)
    return float(hits), float(tries)


def measure(
    outputs: Mapping[int, Array],
    targets: Mapping[int, Targets],
    parts: int,
    classes: int,
    waiter: Waiter,
    shift: np.ndarray | None = None,
) -> Record:
    """Loss of the training nodes, and accuracies of all splits over all parts, on all ranks; collective.

    Parameters
    ----------
    outputs
        (n, classes) of the parts of this rank.
    parts
        Of the graph: numbers are added up in their order, whoever has them.
    shift
        (classes,), added to the outputs of validation and test nodes.
    """
    table = np.zeros((parts, len(SPLITS), 4))
    for part, Z in outputs.items():
        shifted = Z if shift is None else Z + shift
        for i, name in enumerate(SPLITS):
            rows = targets[part].rows(name)
            loss = targets[part].loss(Z, rows) if name == "train" else 0.0  # of the others nobody asks
            table[part, i] = loss, len(rows), *_counts(targets[part], Z if name == "train" else shifted, rows)
    total = np.add.reduce(waiter.sum(table), axis=0)
    found: Record = {}
    for i, name in enumerate(SPLITS):
        loss, rows, hits, tries = total[i].tolist()
        if name == "train":
            found["loss"] = loss / max(rows, 1)
        found[f"{name}_accuracy"] = hits / max(tries, 1)
    if classes == 2 and not any(t.multilabel for t in targets.values()):
        found.update(_areas(outputs, targets, waiter))
    return found


def _areas(outputs: Mapping[int, Array], targets: Mapping[int, Targets], waiter: Waiter) -> Record:
    """Areas under the curve of two classes, by split."""
    found = {}
    for name in SPLITS:
        mine = []
        for part, Z in outputs.items():
            rows = targets[part].rows(name)
            scores = Z[rows, 1].astype(np.float64) - Z[rows, 0]
            mine.append((scores, targets[part].labels[rows]))
        gathered = waiter.gather(mine)
        area = None
        if gathered is not None:
            pieces = [piece for of_rank in gathered for piece in of_rank]
            scores, labels = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 1))
            area = area_under_curve(scores, labels)
        found[f"{name}_auc"] = waiter.broadcast(area)
    return found


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a node of class 1 scores above one of class 0, ties half; .5 where a class is missing."""
    order = np.argsort(scores, kind="stable")
    _, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    ranks = np.empty(len(scores))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return 0.5
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
