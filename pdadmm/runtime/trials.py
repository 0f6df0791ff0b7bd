"""Short runs of several choices, compared by their validation accuracy run by run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeVar

from pdadmm.errors import InputError
from pdadmm.process import lost

__all__ = ["Outcome", "check_seeds", "ranked", "require_printed"]

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Outcome:
    """Of a run: validation accuracy, and the loss, which decides between equals; infinite if it diverged."""

    accuracy: float
    loss: float


def check_seeds(first: int, many: int) -> None:
    """Refuse no seeds, and a last one that no generator takes.

    Raises
    ------
    InputError
    """
    if many < 1:
        raise InputError(f"--seeds {many} is too few; give 1 or more")
    if first + many > 1 << 63:
        raise InputError(
            f"--seed {first} leaves no room for {many} of them, all below 2 to the 63; give a smaller one"
        )


def require_printed() -> None:
    """Refuse to end well where the table, which is all that a search leaves, was not taken.

    Raises
    ------
    InputError
    """
    if why := lost():
        raise InputError(f"standard output does not take the table ({why}); lead it somewhere else")


def ranked(outcomes: Mapping[Choice, Sequence[Outcome]]) -> list[tuple[Choice, float, float, float, float]]:
    """Choices, best first, by mean validation accuracy; equal ones by loss, and any that diverged last.

    Parameters
    ----------
    outcomes
        Of every choice as many, with the same seeds and splits in the same order.

    Returns
    -------
    list of tuple
        Choice; mean accuracy; mean loss; mean of the paired differences from the best one, and its
        standard error (NaN of a single run).
    """

    def order(choice: Choice) -> tuple[bool, float, float]:
        runs = outcomes[choice]
        loss = mean(run.loss for run in runs)
        return not math.isfinite(loss), -round(mean(run.accuracy for run in runs), 6), loss

    found = sorted(outcomes, key=order)
    best = outcomes[found[0]]
    table = []
    for choice in found:
        runs = outcomes[choice]
        pairs = [run.accuracy - other.accuracy for run, other in zip(runs, best, strict=True)]
        error = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
        accuracy, loss = mean(run.accuracy for run in runs), mean(run.loss for run in runs)
        table.append((choice, accuracy, loss, mean(pairs), error))
    return table
