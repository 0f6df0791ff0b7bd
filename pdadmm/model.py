"""Trained weights: write and read model.h5, predict, hand over to PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.admm.activations import ACTIVATIONS, make_activation
from pdadmm.admm.layer import Layer
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.inputs.scaling import normalise_inputs

__all__ = ["Model", "write_model"]

SCHEMA, SCHEMA_VERSION = "pdadmm-model", 1
_TAG = 20001


@dataclass
class Model:
    """A trained network.

    Attributes
    ----------
    weights, biases
        A float32 (n_out, n_in) and a (n_out,) array for each layer, first layer first.
    activation
        Name of the hidden layers' activation.
    attributes
        What the run recorded: dataset, test_accuracy, and how it scaled its inputs (input_norm,
        hop_decay, features_per_hop), which `forward` and the network of `to_torch` do too.

    Examples
    --------
    >>> from pdadmm import Model
    >>> model = Model.load("runs/cora/model.h5")          # doctest: +SKIP
    >>> model.predict(features)                            # doctest: +SKIP
    array([3, 4, 4, ...])
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    activation: str = "relu"
    attributes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read model.h5.

        Raises
        ------
        InputError
            When the file is missing, damaged, or not a model.
        """
        import h5py

        if not Path(path).exists():
            raise InputError(f"there is no model {path}; a run writes model.h5 into its --out folder")
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("schema") != SCHEMA:
                    raise InputError(f"{path} is not a model of pdadmm; give a run's model.h5")
                if file.attrs["schema_version"] != SCHEMA_VERSION:
                    raise InputError(
                        f"{path} has schema version {file.attrs['schema_version']}, this version reads "
                        f"{SCHEMA_VERSION}; train again or use the version that wrote it"
                    )
                attributes = {k: v.item() if hasattr(v, "item") else v for k, v in file.attrs.items()}
                groups = [file[f"layer_{i:04d}"] for i in range(1, int(attributes["layers"]) + 1)]
                weights = [np.asarray(g["W"], np.float32) for g in groups]
                biases = [np.asarray(g["b"], np.float32) for g in groups]
        except (OSError, KeyError) as error:
            raise InputError(f"{path} is damaged or no HDF5 file ({error}); write it again") from None
        if attributes["activation"] not in ACTIVATIONS:
            raise InputError(f"{path} uses the unknown activation '{attributes['activation']}'")
        return cls(weights, biases, attributes["activation"], attributes)

    def forward(self, X: np.ndarray) -> np.ndarray:
        """Linear outputs (V, classes) of augmented features (V, n_0) as they are in a feature file.

        Raises
        ------
        ValueError
            When X has not n_0 columns.
        InputError
            When the model scales its inputs, and not in a way that X allows.
        """
        if X.ndim != 2 or X.shape[1] != self.weights[0].shape[1]:
            raise ValueError(
                f"features of shape {X.shape} do not fit a model of {self.weights[0].shape[1]} inputs"
            )
        f = make_activation(self.activation)
        x = self._scaled(X)
        last = len(self.weights) - 1
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ W.T + b
            if i < last:
                x = f(x)
        return x

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        X = np.asarray(X, np.float32)
        return normalise_inputs(X, self.attributes["features_per_hop"], *self._scaling) if self._scales else X

    @property
    def _scaling(self) -> tuple[str, float]:
        # a model of before these attributes was trained on the features as they were
        return self.attributes.get("input_norm", "none"), self.attributes.get("hop_decay", 1.0)

    @property
    def _scales(self) -> bool:
        return self._scaling != ("none", 1.0)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Class of every node, (V,) int64."""
        return self.forward(X).argmax(axis=1)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Softmax of the outputs, (V, classes)."""
        z = self.forward(X)
        s = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(s / s.sum(axis=1, keepdims=True))

    def state_dict(self) -> dict[str, Any]:
        """State of the ``torch.nn.Sequential`` of Linear and activation modules that equals this model
        on inputs that :func:`pdadmm.inputs.scaling.normalise_inputs` has scaled as the attributes say.

        Keys are ``0.weight``, ``0.bias``, ``2.weight``, ...: the odd places hold the activations.
        """
        import torch

        state = {}
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            state[f"{2 * i}.weight"] = torch.from_numpy(W.copy())
            state[f"{2 * i}.bias"] = torch.from_numpy(b.copy())
        return state

    def to_torch(self) -> Any:
        """A ``torch.nn.Sequential`` that computes the same; a forward hook scales the inputs if need be."""
        import torch
        from torch import nn

        modules = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
        parts: list[Any] = []
        for W in self.weights:
            parts += [nn.Linear(W.shape[1], W.shape[0]), modules[self.activation]()]
        network = nn.Sequential(*parts[:-1])
        network.load_state_dict(self.state_dict())
        if self._scales:
            network.register_forward_pre_hook(
                lambda _, inputs: torch.from_numpy(self._scaled(inputs[0].numpy(force=True))).to(
                    inputs[0].device
                )
            )
        return network


def write_model(
    path: Path, layers: dict[int, Layer], blocks: list[range], attributes: dict[str, Any], waiter: Waiter
) -> None:
    """Write model.h5 on rank 0, one layer at a time, so that no rank ever holds all weights.

    Parameters
    ----------
    path
        Of the file; it is written under a temporary name and renamed.
    layers
        This rank's layers by position.
    blocks
        Positions of every rank's layers.
    attributes
        Recorded at the root of the file: must have `activation`.
    """
    rank = waiter.comm.rank
    if rank:
        for position in blocks[rank]:
            layer = layers[position]
            shape = np.array(layer.W.shape, np.int64)
            for array in (shape, layer.W, layer.b):
                waiter.all(waiter.send(array, 0, _TAG), f"the weights of layer {position} to reach rank 0")
        return
    import h5py

    temporary = path.with_name(path.name + ".tmp")
    with h5py.File(temporary, "w") as file:
        file.attrs.update(
            schema=SCHEMA, schema_version=SCHEMA_VERSION, layers=blocks[-1].stop - 1, **attributes
        )
        for source, block in enumerate(blocks):
            for position in block:
                group = file.create_group(f"layer_{position:04d}")
                if source == 0:
                    W, b = layers[position].W, layers[position].b
                else:
                    shape = np.empty(2, np.int64)
                    waiter.receive(shape, source, _TAG)
                    W, b = np.empty(tuple(shape), np.float32), np.empty(int(shape[0]), np.float32)
                    waiter.receive(W, source, _TAG)
                    waiter.receive(b, source, _TAG)
                group["W"], group["b"] = W, b
    os.replace(temporary, path)
