"""Trials: short runs in this process on features in memory, for their validation accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.admm.activations import make_activation
from pdadmm.admm.command import resolve
from pdadmm.admm.forward import linear_outputs
from pdadmm.admm.options import Config, parse
from pdadmm.admm.trainer import Sizes, Trainer, largest_product
from pdadmm.comm.start import start_alone
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import RunError
from pdadmm.files import Record
from pdadmm.inputs.class_prior import crossed
from pdadmm.inputs.scaling import normalise_inputs
from pdadmm.runtime.threads import set_threads
from pdadmm.runtime.trials import Outcome

if TYPE_CHECKING:
    from pdadmm.inputs.feature_file import Features

__all__ = ["Candidate", "try_out"]


@dataclass(frozen=True)
class Candidate:
    """What is tried.

    Attributes
    ----------
    operators : str
        As :func:`pdadmm.inputs.operators.parse_operators` keeps it.
    feature_norm : {"none", "row", "standard"}
        Of the features before the operators.
    input_norm : str
        Of :data:`pdadmm.inputs.scaling.INPUT_NORMS`.
    mu, hop_decay : float
    class_prior : str
        Options of ``pdadmm.run``.
    """

    operators: str
    feature_norm: str
    input_norm: str
    mu: float
    hop_decay: float
    class_prior: str = "train"

    def arguments(self) -> list[str]:
        """What ``pdadmm.run`` is to be told."""
        values = {"--input-norm": self.input_norm, "--hop-decay": self.hop_decay, "--mu": self.mu}
        found = [word for name, value in values.items() for word in (name, f"{value}".removesuffix(".0"))]
        return [*found, "--class-prior", self.class_prior]


def try_out(
    features: Features, candidate: Candidate, options: Sequence[str], preset: Record, seed: int
) -> Outcome:
    """Train once in this process; what comes apart has accuracy 0.

    Parameters
    ----------
    features
        Of the candidate's operators and feature norm.
    candidate
    options
        Of ``pdadmm.run``, as on its command line.
    preset
        Options that count less than these.
    seed
        Of the weights.

    Returns
    -------
    Outcome
        On the validation nodes; the test nodes have no say. With the shares of the classes among them, of
        halves of them with the shares of the other (`pdadmm.inputs.class_prior.crossed`).

    Raises
    ------
    InputError
        When an option is wrong, the features do not go with the candidate's scaling, or there is no MPI
        library.
    """
    MPI = start_alone()
    own = ["--seed", str(seed), "--quiet"]
    own += ["--backend", "numpy", "--eval-every", "1000000"]  # evaluated at the end of a stage only
    own += ["--class-prior", "train"]  # another is measured below
    config = parse([*options, *candidate.arguments(), *own], lambda _: preset)
    resolve(config, 1)
    sizes = Sizes.of(features)
    threads = set_threads(config.run, MPI.COMM_SELF, largest_product(config, sizes))
    records: list[Record] = []
    with np.errstate(all="ignore"):  # overflow shows as a non-finite gradient, which ends the run
        trainer = Trainer(
            config, sizes, lambda: features, Waiter(MPI.COMM_SELF), progress=records.append, threads=threads
        )
        try:
            trainer.run()
        except RunError:
            return Outcome(0.0, math.inf)
        finally:
            trainer.close()
    if candidate.class_prior != "train":
        train = np.bincount(features.y("train"), minlength=sizes.classes)
        return Outcome(*crossed(_logits(trainer, features, config), features.y("val"), train))
    return Outcome(records[-1]["val_accuracy"], records[-1]["val_loss"])


def _logits(trainer: Trainer, features: Features, config: Config) -> np.ndarray:
    """(V, classes) of the validation nodes, by the network as it was trained, on one rank."""
    n = config.network
    x = normalise_inputs(features.x("val"), features.attrs["features_per_hop"], n.input_norm, n.hop_decay)
    layers = [(layer.W.T, layer.b) for _, layer in sorted(trainer.layers.items())]
    return linear_outputs(x, layers, make_activation(n.activation))
