"""The layers of an MLP that was trained in PyTorch, which need not be there for its state dict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pdadmm.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["layers_of_module", "layers_of_state"]

#: modules that do nothing to what a trained network computes
_PASSING = ("Dropout", "AlphaDropout", "Identity")
_ACTIVATIONS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}

Layers = tuple[list[np.ndarray], list[np.ndarray]]


def layers_of_state(state: Mapping[str, Any]) -> Layers:
    """Weights and biases, float32, of a state dict that has those of Linear modules in order, and no others.

    Parameters
    ----------
    state
        Tensors or arrays by name: ``*.weight`` (n_out, n_in) and, where there is one, ``*.bias`` (n_out,).

    Raises
    ------
    InputError
        Names the key that does not belong.
    """
    for key in state:
        stem, _, kind = str(key).rpartition(".")
        if kind not in ("weight", "bias") or (kind == "bias" and f"{stem}.weight" not in state):
            raise InputError(f"{key} is no weight or bias of a Linear module; give those of the MLP alone")
    stems = [str(key).removesuffix(".weight") for key in state if str(key).endswith(".weight")]
    return _checked([(stem, state[f"{stem}.weight"], state.get(f"{stem}.bias")) for stem in _in_order(stems)])


def _in_order(stems: list[str]) -> list[str]:
    """Names by their numbers, where they differ in nothing else: files may have sorted them as texts."""
    parts = {stem: re.split(r"(\d+)", stem) for stem in stems}
    if len({tuple(part[::2]) for part in parts.values()}) > 1:
        return stems
    return sorted(stems, key=lambda stem: [int(number) for number in parts[stem][1::2]])


def layers_of_module(module: torch.nn.Module) -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """Weights, biases and activation (empty: there is none) of a sequence of Linear modules.

    Raises
    ------
    InputError
        Names the module that is none of these.
    """
    from torch import nn

    pairs: list[tuple[str, Any, Any]] = []
    between: list[str] = []  # activations since the last Linear module
    found: set[str] = set()
    for name, part in _parts(module):
        kind = type(part).__name__
        if isinstance(part, nn.Linear):
            if pairs and len(between) != 1:
                raise InputError(
                    f"before module {name} there are {len(between)} activations; there must be one between "
                    "Linear modules"
                )
            found.update(between)
            between = []
            pairs.append((name, part.weight, part.bias))
        elif kind in _ACTIVATIONS and getattr(part, "negative_slope", 0.01) == 0.01 and pairs:
            between.append(_ACTIVATIONS[kind])
        elif kind not in _PASSING:
            known = ", ".join(["Linear", *_ACTIVATIONS, *_PASSING])
            raise InputError(f"module {name}, {part}, is none that a model has; there may be {known}")
    if between:
        raise InputError(
            f"the last layer is followed by {between[0]}; leave that out, the outputs are linear"
        )
    if len(found) > 1:
        raise InputError(f"the network has the activations {' and '.join(sorted(found))}; a model has one")
    return *_checked(pairs), found.pop() if found else ""


def _parts(module: torch.nn.Module, name: str = "") -> Iterator[tuple[str, Any]]:
    """The modules of nested sequences, in order, one that is there more than once each time."""
    from torch import nn

    from pdadmm.admm.scaled_mlp import ScaledMLP

    called = f"module {name}" if name else "the network"
    if module._forward_hooks or module._forward_pre_hooks:
        raise InputError(f"{called} has forward hooks, which a model has not; give the modules alone")
    plain = (nn.Sequential, nn.Linear, *([] if name else [ScaledMLP]))  # whose scaling is the model's
    kind = next((kind for kind in plain if isinstance(module, kind)), None)
    if kind and type(module).forward not in {of.forward for of in plain}:
        raise InputError(
            f"{called}, a {type(module).__name__}, has a forward of its own, which a model has not; give the "
            "modules alone"
        )
    if not isinstance(module, nn.Sequential):
        yield name or "network", module
        return
    for child, part in module._modules.items():
        if part is not None:
            yield from _parts(part, f"{name}.{child}".lstrip("."))


def _checked(pairs: list[tuple[str, Any, Any]]) -> Layers:
    """Arrays of layers that fit together."""
    if not pairs:
        raise InputError("there is no Linear module; give an MLP")
    weights: list[np.ndarray] = []
    biases: list[np.ndarray] = []
    for stem, weight, bias in pairs:
        W = _array(weight)
        b = np.zeros(W.shape[:1], np.float32) if bias is None else _array(bias)
        if W.ndim != 2 or not W.size or b.shape != W.shape[:1]:
            raise InputError(
                f"{stem} has weights {W.shape} and biases {b.shape}, which are of no Linear module; "
                "give those of the MLP alone"
            )
        if weights and W.shape[1] != weights[-1].shape[0]:
            raise InputError(
                f"{stem} takes {W.shape[1]} inputs, but the layer before it gives {weights[-1].shape[0]}; "
                "give the layers in their order"
            )
        if not (np.isfinite(W).all() and np.isfinite(b).all()):
            raise InputError(f"{stem} holds NaN or Inf; give a network that training left finite")
        weights.append(W)
        biases.append(b)
    return weights, biases


def _array(tensor: Any) -> np.ndarray:  # noqa: ANN401
    """A float32 copy of a tensor or an array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    with np.errstate(over="ignore"):
        return np.array(tensor, np.float32)
