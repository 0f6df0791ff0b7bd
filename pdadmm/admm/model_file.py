"""model.h5, the trained weights: a group a layer at the root, with W and b."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.errors import InputError
from pdadmm.files import Record, replacing

if TYPE_CHECKING:
    from pdadmm.admm.layer import Layer
    from pdadmm.comm.waiter import Waiter

__all__ = ["read_model", "write_model"]

SCHEMA, SCHEMA_VERSION = "pdadmm-model", 1
_TAG = 20001


def read_model(path: str | os.PathLike[str]) -> tuple[list[np.ndarray], list[np.ndarray], Record]:
    """Weights, biases, first layer first, and attributes of a file.

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
    return weights, biases, attributes


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
