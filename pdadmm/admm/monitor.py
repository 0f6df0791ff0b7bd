"""What a run measures: the terms of the Lagrangian summed over ranks, accuracies, and their record."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pdadmm.admm.layer import Hyper, Terms
from pdadmm.files import Record

__all__ = ["Monitor"]

_TERMS = [f.name for f in dataclasses.fields(Terms)]


class Monitor:
    """Combines what the ranks measured into the numbers of one evaluated iteration.

    Every rank fills in the rows of its own layers and leaves the rest 0, so that a sum over the
    ranks gathers them exactly and the result does not depend on how the layers are spread.

    Parameters
    ----------
    layers
        Depth of the finished network.
    splits
        Names of the splits and their numbers of nodes.
    """

    def __init__(self, layers: int, splits: dict[str, int]) -> None:
        self.layers = layers
        self.splits = splits
        self.smallest_change = float("inf")

    def begin_stage(self) -> None:
        """Forget the changes of the stage before."""
        self.smallest_change = float("inf")

    def pack(self, terms: dict[int, Terms], counts: dict[str, tuple[float, float]]) -> np.ndarray:
        """This rank's contribution, float64."""
        table = np.zeros((self.layers, len(_TERMS)))
        for position, found in terms.items():
            table[position - 1] = dataclasses.astuple(found)
        tail = [value for split in self.splits for value in counts.get(split, (0.0, 0.0))]
        return np.concatenate([table.ravel(), tail])

    def unpack(self, total: np.ndarray, hyper: Hyper, stage_iteration: int) -> Record:
        """Objective, Lagrangian, residual, successive change, accuracies and losses.

        `stage_iteration` counts from 1 within the stage; ``c_k`` is the smallest change of the iterations of
        the stage that were evaluated.
        """
        table = total[: self.layers * len(_TERMS)].reshape(self.layers, -1)
        sums = dict(zip(_TERMS, (float(v) for v in table.sum(axis=0)), strict=True))
        objective = (
            sums["risk"]
            + 0.5 * hyper.nu * (sums["residual"] + sums["relaxation"])
            + 0.5 * hyper.mu * sums["weights"]
        )
        self.smallest_change = min(self.smallest_change, sums["change"])
        record: Record = {
            "objective": objective,
            "lagrangian": objective + sums["dual"] + 0.5 * hyper.rho * sums["primal"],
            "primal_residual": sums["primal"],
            "change": sums["change"],
            "c_k": self.smallest_change,
            "k_c_k": stage_iteration * self.smallest_change,
        }
        tail = total[self.layers * len(_TERMS) :]
        for i, (split, rows) in enumerate(self.splits.items()):
            # of a split without rows nothing is known
            record[f"{split}_accuracy"] = float(tail[2 * i]) / rows if rows else math.nan
            record[f"{split}_loss"] = float(tail[2 * i + 1]) / rows if rows else math.nan
        return record
