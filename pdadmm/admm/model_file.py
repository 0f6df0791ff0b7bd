"""model.h5, the trained weights: a group a layer at the root, with W and b."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.files import Record, replacing
from pdadmm.files.names import safe_name
from pdadmm.inputs.scaling import INPUT_NORMS

if TYPE_CHECKING:
    from pdadmm.admm.layer import Layer
    from pdadmm.comm.waiter import Waiter
    from pdadmm.files.hdf5 import PlainFile

__all__ = ["read_model", "write_model"]

SCHEMA, SCHEMA_VERSION = "pdadmm-model", 1
_TAG = 20001


def read_model(path: str | os.PathLike[str]) -> tuple[list[np.ndarray], list[np.ndarray], Record]:
    """Weights, biases, first layer first, and attributes of a file.

    Returns
    -------
    weights, biases
        Float32 (n_out, n_in) and (n_out,), finite, of layers that fit together.
    attributes
        `activation`, `layers`, and what else :func:`write_model` records, where the file has it.

    Raises
    ------
    InputError
        When the file is missing, damaged, or not a model.
    """
    from pdadmm.files.hdf5 import PlainFile

    missing = "a run writes model.h5 into its --out folder"
    with PlainFile(path, missing, "give a run's model.h5, or train again") as file, file.reading():
        attributes = _attributes(file)
        weights: list[np.ndarray] = []
        biases: list[np.ndarray] = []
        for position in range(1, attributes["layers"] + 1):
            W, b = (_array(file, f"layer_{position:04d}/{name}") for name in "Wb")
            if W.ndim != 2 or not W.size or b.shape != W.shape[:1]:
                raise file.wrong(f"layer {position} has W {W.shape} and b {b.shape}")
            if weights and W.shape[1] != weights[-1].shape[0]:
                raise file.wrong(
                    f"layer {position} takes {W.shape[1]} inputs, but the layer before it gives "
                    f"{weights[-1].shape[0]}"
                )
            weights.append(W)
            biases.append(b)
        per_hop = attributes.get("features_per_hop", 1)
        if weights[0].shape[1] % per_hop:
            raise file.wrong(f"layer 1 takes {weights[0].shape[1]} inputs, which are no hops of {per_hop}")
    return weights, biases, attributes


def _array(file: PlainFile, name: str) -> np.ndarray:
    """An array of finite numbers, as float32."""
    found = file.array(name)
    if found.dtype not in (np.dtype("<f4"), np.dtype("<f8")):
        raise file.wrong(f"/{name} is {found.dtype}, not float32")
    with np.errstate(over="ignore"):
        values = np.asarray(found[...], np.float32)
    if not np.isfinite(values).all():
        raise file.wrong(f"/{name} holds NaN or Inf")
    return values


def _attributes(file: PlainFile) -> Record:
    """What a model says of itself, each value of its type and in its range."""
    if file.attribute("schema") != SCHEMA:
        raise file.wrong("not a model of pdadmm")
    version = file.attribute("schema_version")
    if version != SCHEMA_VERSION:
        raise file.wrong(f"schema version {version}, this program reads {SCHEMA_VERSION}")
    found: Record = {}
    for name, (kinds, holds) in _ATTRIBUTES.items():
        value = file.attribute(name)
        if value is None:
            continue
        if not isinstance(value, kinds) or not holds(value):
            raise file.wrong(f"attribute {name} is {value!r}, which is none that a model has")
        found[name] = value
    for name in ("activation", "layers"):
        if name not in found:
            raise file.wrong(f"lacks the attribute {name}")
    groups = sum(name.startswith("layer_") for name in file.names())
    if groups != found["layers"]:
        raise file.wrong(f"holds {groups} layers, not {found['layers']}")
    # a model of before these attributes was trained on the features as they were
    scales = (found.get("input_norm", "none"), found.get("hop_decay", 1.0)) != ("none", 1.0)
    if scales and "features_per_hop" not in found:
        raise file.wrong("scales its inputs, but lacks the attribute features_per_hop")
    if "dataset" in found:
        found["dataset"] = safe_name(found["dataset"])
    return found


#: types and ranges of the attributes besides schema and version
_ATTRIBUTES: dict[str, tuple[tuple[type, ...], Callable[[Any], bool]]] = {
    "layers": ((int,), lambda value: value >= 1),
    "activation": ((str,), lambda value: value in ACTIVATIONS),
    "input_norm": ((str,), lambda value: value in INPUT_NORMS),
    "hop_decay": ((int, float), lambda value: 0 < value < math.inf),
    "features_per_hop": ((int,), lambda value: value >= 1),
    "dataset": ((str,), lambda value: True),
    "test_accuracy": ((int, float), lambda value: True),
}


def write_model(
    path: Path, layers: dict[int, Layer], blocks: list[range], attributes: Record, waiter: Waiter
) -> None:
    """Write model.h5 on rank 0, one layer at a time, so that no rank ever holds all weights.

    Parameters
    ----------
    path
        Of the file, which is whole or not there.
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

    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
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
