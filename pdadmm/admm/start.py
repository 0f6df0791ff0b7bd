"""What training may start from: the layers of a trained network in place of random ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.admm.model_file import read_layer, read_shape
from pdadmm.errors import InputError
from pdadmm.files import Record

if TYPE_CHECKING:
    from pdadmm.admm.options import Config

__all__ = ["Start"]


@dataclass(frozen=True)
class Start:
    """A trained network of D layers: the first stage of a run has these, and none of random weights.

    Attributes
    ----------
    name : str
        Of it, in messages.
    widths : list of int
        n_0, ..., n_D.
    attributes : Record
        Those of a model.h5: its activation, how it scales inputs, `first_depth`.
    layer
        W (n_out, n_in) and b (n_out,) of a layer, counted from 1.
    """

    name: str
    widths: list[int]
    attributes: Record
    layer: Callable[[int], tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Start:
        """A model.h5, of which layers are read when they are asked for.

        Raises
        ------
        InputError
            When it is missing, damaged, or not a model.
        """
        widths, attributes = read_shape(path)
        return cls(str(path), widths, attributes, partial(read_layer, path))

    @classmethod
    def of_arrays(
        cls, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], attributes: Record
    ) -> Start:
        """A network in memory."""
        layers = [
            (np.array(W, np.float32), np.array(b, np.float32)) for W, b in zip(weights, biases, strict=True)
        ]
        widths = [layers[0][0].shape[1], *[len(b) for _, b in layers]]
        return cls("the network of start", widths, attributes, lambda position: layers[position - 1])

    @property
    def depth(self) -> int:
        """D."""
        return len(self.widths) - 1

    @property
    def first_depth(self) -> int:
        """Hidden layers from this position on began as identities, and are pulled towards them."""
        found: int = self.attributes.get("first_depth", self.depth)
        return max(2, min(found, self.depth))

    @property
    def options(self) -> Record:
        """Options of the network that go on from it."""
        found = {
            "activation": self.attributes["activation"],
            "input_norm": self.attributes.get("input_norm", "none"),
            "hop_decay": self.attributes.get("hop_decay", 1.0),
        }
        if self.depth > 1:
            found["hidden"] = self.widths[1]
        return found

    def check(self, config: Config) -> None:
        """Refuse options that the network does not go with.

        Raises
        ------
        InputError
        """
        if len(set(self.widths[1:-1])) > 1:
            raise InputError(
                f"{self.name} has hidden layers of {_listed(self.widths[1:-1])} neurons; "
                "training can start from one with as many in each"
            )
        for name, value in self.options.items():
            given = getattr(config.network, name)
            if given != value:
                option = name.replace("_", "-")
                raise InputError(
                    f"--{option} is {given}, but {self.name} was trained with {value}; "
                    f"give --{option} {value}"
                )
        stages = config.training.stages
        if stages and stages[0] != self.depth:
            raise InputError(
                f"--stages {','.join(map(str, stages))} begins with {stages[0]} layers, but {self.name} has "
                f"{self.depth}; begin with {self.depth}"
            )
        layers = config.network.layers
        if layers and layers < self.depth:
            raise InputError(
                f"--layers is {layers}, but {self.name} has {self.depth}; give --layers {self.depth} or more"
            )

    def check_data(self, inputs: int, features_per_hop: int, classes: int, where: str) -> None:
        """Refuse data that the network does not take.

        Parameters
        ----------
        inputs
            Columns of X.
        features_per_hop
            Of which an operator has that many.
        classes
        where
            The file of the data.

        Raises
        ------
        InputError
        """
        if inputs != self.widths[0]:
            raise InputError(
                f"{self.name} takes {self.widths[0]} inputs, but {where} has {inputs}; "
                "prepare it with the operators that the model was trained on"
            )
        if classes != self.widths[-1]:
            labels = "y" if where == "X" else where
            raise InputError(
                f"{self.name} tells {self.widths[-1]} classes apart, but {labels} has {classes}; "
                "give a model of that data set"
            )
        per_hop = self.attributes.get("features_per_hop", features_per_hop)
        scales = self.options["input_norm"] != "none" or self.options["hop_decay"] != 1
        if per_hop != features_per_hop and scales:
            raise InputError(
                f"{self.name} scales operators of {per_hop} features each, but those of {where} have "
                f"{features_per_hop}; prepare it with the operators that the model was trained on"
            )


def _listed(widths: list[int]) -> str:
    found = ", ".join(map(str, widths[:6]))
    return found + (", ..." if len(widths) > 6 else "")
