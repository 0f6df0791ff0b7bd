"""A trained network: read a run's model.h5, predict, hand over to PyTorch."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pdadmm.admm import torch_mlp
from pdadmm.admm.activations import make_activation
from pdadmm.admm.forward import linear_outputs
from pdadmm.admm.model_file import Prepared, check_attributes, read_model, save_model
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.files.predictions import require_finite
from pdadmm.files.tensors import write_tensors
from pdadmm.inputs.scaling import normalise_inputs

if TYPE_CHECKING:
    import torch

__all__ = ["Model"]

#: that are computed at once, to bound the memory
_ROWS = 4096


@dataclass(eq=False, repr=False)  # arrays have no single answer, and fill screens
class Model:
    """A trained network.

    Attributes
    ----------
    weights
        A float32 array (n_out, n_in) for each layer, first layer first.
    biases
        A float32 array (n_out,) for each layer.
    activation
        Name of the hidden layers' activation.
    attributes
        What the run recorded: dataset, test_accuracy, and how it scaled its inputs (input_norm,
        hop_decay, features_per_hop), which `forward` and the network of `to_torch` do too.
    prepared
        Operators and norm of the features, of which inputs were made; None where nobody recorded them.

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
    attributes: Record = field(default_factory=dict)
    prepared: Prepared | None = None

    def __repr__(self) -> str:
        widths = [self.weights[0].shape[1], *(len(b) for b in self.biases)]
        return f"<Model: {len(self.weights)} layers of widths {reprlib.repr(widths)}, {self.activation}>"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read model.h5.

        Raises
        ------
        InputError
            When the file is missing, damaged, or not a model.
        """
        weights, biases, attributes, prepared = read_model(path)
        return cls(weights, biases, attributes["activation"], attributes, prepared)

    @classmethod
    def from_torch(
        cls,
        source: torch.nn.Module | Mapping[str, Any],
        activation: str | None = None,
        *,
        input_norm: str = "none",
        hop_decay: float = 1.0,
        features_per_hop: int | None = None,
    ) -> Model:
        """An MLP that was trained in PyTorch, e.g. to go on from with ``--start``.

        Parameters
        ----------
        source
            A ``torch.nn.Sequential``, nested or not, of Linear modules with one activation between any two of
            them; dropout counts as nothing. Or a state dict: the ``*.weight`` and ``*.bias`` of the Linear
            modules from the first to the last, tensors or arrays; any floating type, taken as float32.
        activation
            Of the hidden layers; told by the modules, or relu where they have none to tell.
        input_norm
            How the network's inputs were made of the features: see
            `pdadmm.inputs.scaling.normalise_inputs`; told by a network of `to_torch`.
        hop_decay
            Weight of an operator's features against those of the one before, likewise.
        features_per_hop
            Features of an operator, likewise; None: all inputs are of one.

        Raises
        ------
        InputError
            When it holds anything else, or not what a model of this package has; names the module or key.

        Examples
        --------
        >>> Model.from_torch(network).save("start.h5")                             # doctest: +SKIP
        """
        if isinstance(source, Mapping):
            weights, biases = torch_mlp.layers_of_state(source)
            name = activation or "relu"
        else:
            weights, biases, found = torch_mlp.layers_of_module(source)
            if (input_norm, hop_decay) == ("none", 1.0) and hasattr(source, "features_per_hop"):
                # of to_torch
                input_norm, hop_decay = source.input_norm, source.hop_decay
                features_per_hop = source.features_per_hop
            name = activation or found or "relu"
            if found and name != found:
                raise InputError(f"the network's activation is {found}, not {name}; leave activation out")
        attributes: Record = {"activation": name}
        if (input_norm, hop_decay) != ("none", 1.0):
            per_hop = weights[0].shape[1] if features_per_hop is None else features_per_hop
            attributes.update(input_norm=input_norm, hop_decay=hop_decay, features_per_hop=per_hop)
        check_attributes(attributes, weights[0].shape[1])
        return cls(weights, biases, name, attributes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write model.h5, which `load` reads and ``python -m pdadmm.run --start`` goes on from.

        Raises
        ------
        OSError
            Which names the file.
        """
        attributes = {**self.attributes, "activation": self.activation}
        save_model(Path(path), self.weights, self.biases, attributes, self.prepared)

    def forward(self, X: np.ndarray) -> np.ndarray:
        """Linear outputs (V, classes) float32 of augmented features (V, n_0) as they are in a feature file.

        Computed in float64, so that a row's do not depend on the rows that it is given with: where it
        stands among others decides which of BLAS's kernels it passes through, and they round differently.

        Raises
        ------
        ValueError
            When X has not n_0 columns, or holds NaN, Inf or more than float32 can.
        InputError
            When the model scales its inputs, and not in a way that X allows.
        """
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.weights[0].shape[1]:
            raise ValueError(
                f"features of shape {X.shape} do not fit a model of {self.weights[0].shape[1]} inputs"
            )
        f = make_activation(self.activation)
        layers = [(W.T.astype(np.float64), b) for W, b in zip(self.weights, self.biases, strict=True)]
        out = np.empty((len(X), len(self.biases[-1])), np.float32)
        with np.errstate(all="ignore"):  # overflow shows as Inf or NaN in the outputs
            for start in range(0, len(X), _ROWS):
                rows = slice(start, start + _ROWS)
                out[rows] = linear_outputs(self._scaled(X[rows]).astype(np.float64), layers, f)
        return out

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        X = np.asarray(X, np.float32)
        if not np.isfinite(X).all():
            raise ValueError("the features hold NaN or Inf, or more than float32 can; replace them")
        return normalise_inputs(X, self.attributes["features_per_hop"], *self._scaling) if self._scales else X

    @property
    def _scaling(self) -> tuple[str, float]:
        # a model of before these attributes was trained on the features as they were
        return self.attributes.get("input_norm", "none"), self.attributes.get("hop_decay", 1.0)

    @property
    def _scales(self) -> bool:
        return self._scaling != ("none", 1.0)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Class of every node, (V,) int64.

        Raises
        ------
        ValueError, InputError
            As `forward`; InputError too when outputs are NaN or Inf, which features too large for the network
            make.
        """
        return self._scores(X).argmax(axis=1)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Softmax of the outputs, (V, classes). Raises as `predict`."""
        z = self._scores(X)
        s = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(s / s.sum(axis=1, keepdims=True))

    def _scores(self, X: np.ndarray) -> np.ndarray:
        scores = self.forward(X)
        require_finite(scores, "the features")
        return scores

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State of the ``torch.nn.Sequential`` of Linear and activation modules that equals this model
        on inputs that `pdadmm.inputs.scaling.normalise_inputs` has scaled as the attributes say.

        Keys are ``0.weight``, ``0.bias``, ``2.weight``, ...: the odd places hold the activations.
        """
        import torch

        state = {}
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            state[f"{2 * i}.weight"] = torch.from_numpy(W.copy())
            state[f"{2 * i}.bias"] = torch.from_numpy(b.copy())
        return state

    def to_safetensors(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as a safetensors file, by the names of `state_dict`, attributes beside.

        PyTorch takes it back with ``safetensors.torch.load_file``; it is not needed here.

        Raises
        ------
        InputError
            Without the package safetensors.
        OSError
            When the file cannot be written.
        """
        tensors = {}
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"{2 * i}.weight"], tensors[f"{2 * i}.bias"] = W, b
        write_tensors(Path(path), tensors, {**self.attributes, "activation": self.activation})

    def to_torch(self) -> torch.nn.Sequential:
        """A ``torch.nn.Sequential`` that computes the same; one that scales its inputs if need be."""
        from torch import nn

        modules = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
        parts: list[nn.Module] = []
        for W in self.weights:
            parts += [nn.Linear(W.shape[1], W.shape[0]), modules[self.activation]()]
        if self._scales:
            from pdadmm.admm.scaled_mlp import ScaledMLP

            norm, decay = self._scaling
            features = int(self.attributes["features_per_hop"])
            network = ScaledMLP(*parts[:-1], features_per_hop=features, input_norm=norm, hop_decay=decay)
        else:
            network = nn.Sequential(*parts[:-1])
        network.load_state_dict(self.state_dict())
        return network
