"""``python -m pdadmm.gnn.export DIR --out model.pt``: a trained graph network for PyTorch.

The file is a state dict with the names of PyTorch Geometric's models, for::

    from torch_geometric.nn import GCN, GraphSAGE
    network = GCN(n_0, hidden, layers, classes, norm="layer_norm", norm_kwargs={"mode": "node"})
    network.load_state_dict(torch.load("model.pt"))        # safetensors.torch.load_file, of FILE.safetensors

It computes the scores of :mod:`pdadmm.gnn.predict`: GCN with its own normalisation and self-loops, GraphSAGE
with the mean. Dropout does nothing there, so both orders of a hidden layer are this network.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pdadmm.errors import InputError, one_line
from pdadmm.files import naming, replacing
from pdadmm.files.names import model_of
from pdadmm.files.tensors import write_tensors
from pdadmm.gnn.layer import Shape
from pdadmm.gnn.model_file import read_model
from pdadmm.process import begin
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import answer, listen

__all__ = ["constructor", "main", "state_dict"]

#: of a layer of ours, the name of its convolution's parameter in PyG
_CONVOLUTION = {
    "gcn": {"W": "lin.weight", "b": "bias"},
    "sage": {"W_neighbours": "lin_l.weight", "W_self": "lin_r.weight", "b": "lin_l.bias"},
}
_NORM = {"gamma": "weight", "beta": "bias"}


def state_dict(shape: Shape, weights: Mapping[int, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Parameters by the names of ``torch_geometric.nn.GCN`` or ``GraphSAGE``, float32 arrays.

    Parameters
    ----------
    shape, weights
        As :func:`pdadmm.gnn.model_file.read_model` gives them.
    """
    found = {}
    for layer, named in weights.items():
        for name, array in named.items():
            if name in _NORM:
                found[f"norms.{layer - 1}.{_NORM[name]}"] = array
            else:
                found[f"convs.{layer - 1}.{_CONVOLUTION[shape.model][name]}"] = array
    return found


def constructor(shape: Shape) -> str:
    """The expression that makes the module which the state dict fits."""
    inputs, *_, classes = shape.widths
    name = "GCN" if shape.model == "gcn" else "GraphSAGE"
    hidden = shape.widths[1]
    return (
        f'{name}({inputs}, {hidden}, {shape.layers}, {classes}, norm="layer_norm", '
        'norm_kwargs={"mode": "node"})'
    )


def _export(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    listen()
    target = Path(options.out)
    safe = target.suffix == ".safetensors"
    if not safe and importlib.util.find_spec("torch") is None:
        raise InputError("exporting needs PyTorch; pip install torch, or name a .safetensors file with --out")
    shape, weights, *_ = read_model(model_of(options.run))
    if os.path.lexists(target):
        raise InputError(f"{target}: exists, so it stays; remove it, or name another one with --out")
    arrays = state_dict(shape, weights)
    try:
        if safe:
            write_tensors(target, arrays, {"model": constructor(shape)})
        else:
            _save(target, arrays)
    except (OSError, RuntimeError) as error:
        # torch says what the system said, but with its own exceptions
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise InputError(f"{target}: cannot be written ({reason}); choose another place") from None
    print(f"{one_line(target)}: state dict of torch_geometric.nn.{constructor(shape)}")


def _save(target: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import torch

    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    with naming(target), replacing(target) as temporary:
        torch.save(tensors, temporary)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pdadmm.gnn.export",
        description="Write a trained graph network as a state dict of PyTorch Geometric.",
    )
    parser.add_argument("run", metavar="DIR", help="folder of a run of pdadmm.gnn.run, or its model.h5")
    parser.add_argument(
        "--out", metavar="FILE", default="model.pt",
        help="what to write (model.pt): FILE.safetensors (without PyTorch), or any other name (by PyTorch)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return answer("pdadmm", lambda report: _export(arguments))


if __name__ == "__main__":
    begin()
    sys.exit(main())
