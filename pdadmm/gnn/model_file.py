"""model.h5 of a graph network: a group a layer at the root, with its parameters by name."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.files import Record, fresh, naming, reserve, take_place, write_at
from pdadmm.gnn.layer import Shape
from pdadmm.gnn.part import MODELS
from pdadmm.inputs import FEATURE_NORMS
from pdadmm.inputs.class_prior import CLASS_PRIORS, apart, read_shift
from pdadmm.inputs.feature_norm import FeatureNorm

if TYPE_CHECKING:
    import h5py

    from pdadmm.files.hdf5 import Attributes, PlainFile

__all__ = ["SCHEMA", "ModelRoom", "read_model", "reserved"]

SCHEMA, SCHEMA_VERSION = "pdadmm-gnn-model", 1
#: for summary.json and profile.json, which are written when the model has left this room
_SLACK_BYTES = 1 << 20

#: by layer and name
Weights = Mapping[int, Mapping[str, np.ndarray]]


def _group(layer: int) -> str:
    return f"layer_{layer:04d}"


@dataclass(frozen=True)
class ModelRoom:
    """Space on the disk for model.h5 of a run that goes on, which the run's own model then fits into."""

    path: Path  #: which the file takes at the end
    temporary: Path

    def write(self, shape: Shape, weights: Weights, attributes: Record, norm: FeatureNorm) -> None:
        """Write the file, which is whole or not there; on one rank.

        Parameters
        ----------
        attributes
            Recorded at the root of the file besides the layers' shape.
        norm
            What preparing did to the features.

        Raises
        ------
        OSError
            Which names the file.
        """
        content = _content(shape, weights, attributes, norm)
        with naming(self.path, self.temporary):
            with self.temporary.open("r+b", buffering=0) as file:
                write_at(file.fileno(), memoryview(content), 0)
                file.truncate(len(content))
                os.fsync(file.fileno())
            take_place(self.temporary, self.path)


@contextmanager
def reserved(path: Path, shape: Shape, attributes: Record, norm: FeatureNorm) -> Iterator[ModelRoom]:
    """Take the space of model.h5; what is not written is given back at the end.

    Parameters
    ----------
    attributes, norm
        As long as those that :meth:`ModelRoom.write` will get.

    Raises
    ------
    OSError
        When there is no room.
    """
    layers = range(1, shape.layers + 1)
    zeros = {
        layer: {name: np.zeros(size, np.float32) for name, size in shape.parameters(layer).items()}
        for layer in layers
    }
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.ExitStack() as stack:
        with naming(path, temporary):
            stack.enter_context(fresh(temporary))
            reserve(temporary, len(_content(shape, zeros, attributes, norm)) + _SLACK_BYTES)
        yield ModelRoom(path, temporary)


def _content(shape: Shape, weights: Weights, attributes: Record, norm: FeatureNorm) -> bytes:
    """The file, in memory: HDF5 does not survive a full disk."""
    import h5py

    noted, arrays = apart(attributes)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update(
            schema=SCHEMA,
            schema_version=SCHEMA_VERSION,
            model=shape.model,
            layers=shape.layers,
            **noted,
        )
        for name, array in (arrays | norm.arrays).items():
            file[name] = array
        for layer, named in weights.items():
            group = file.create_group(_group(layer))
            for name, array in named.items():
                group[name] = array
    return buffer.getvalue()


def read_model(
    path: str | os.PathLike[str],
) -> tuple[Shape, dict[int, dict[str, np.ndarray]], Record, FeatureNorm]:
    """Shape, float32 parameters by layer and name, attributes, and norm of the features of a file.

    Raises
    ------
    InputError
        When the file is missing, damaged, or not the model of a graph network.
    """
    from pdadmm.files.hdf5 import PlainFile

    missing = "a run writes model.h5 into its --out folder"
    remedy = "give what pdadmm.gnn.run has left, or train again"
    with PlainFile(path, missing, remedy) as file, file.reading():
        attributes = file.model(SCHEMA, SCHEMA_VERSION, _ATTRIBUTES, "model", _NONE, _OTHERS)
        kind = attributes["model"]
        # their weights say how wide the layers are
        neighbours = Shape(kind, ()).neighbours
        main = _of_all_layers(file, neighbours, attributes["layers"])
        shape = Shape(kind, (main[1].shape[1], *(array.shape[0] for array in main.values())))
        weights = {}
        for layer, array in main.items():
            wanted = shape.parameters(layer)
            others = wanted.keys() - {neighbours}
            arrays = {neighbours: array, **{name: file.array(f"{_group(layer)}/{name}") for name in others}}
            for name, found in arrays.items():
                if found.shape != wanted[name]:
                    raise file.wrong(f"/{_group(layer)}/{name} is {found.shape}, not {wanted[name]}")
            weights[layer] = {name: file.weights(arrays[name]) for name in wanted}
        norm = FeatureNorm.read(file, attributes.get("feature_norm", "none"), shape.widths[0])
        attributes = read_shift(file, attributes, shape.widths[-1])
    return shape, weights, attributes, norm


def _of_all_layers(file: PlainFile, name: str, layers: int) -> dict[int, h5py.Dataset]:
    """A matrix that all layers have, by layer, not read yet."""
    arrays = {layer: file.array(f"{_group(layer)}/{name}") for layer in range(1, layers + 1)}
    for layer, array in arrays.items():
        if array.ndim != 2 or not array.size:
            raise file.wrong(f"/{_group(layer)}/{name} is {array.shape}, which no layer has")
    return arrays


_NONE = "not the model of a graph network"
_OTHERS = {"pdadmm-model": f"{_NONE}; pdadmm.Model reads it"}
#: types and ranges of the attributes besides schema and version
_ATTRIBUTES: Attributes = {
    "model": ((str,), lambda value: value in MODELS),
    "layers": ((int,), lambda value: value >= 1),
    "dataset": ((str,), lambda value: True),
    "order": ((str,), lambda value: True),
    "multilabel": ((int,), lambda value: value in (0, 1)),
    "class_prior": ((str,), lambda value: value in CLASS_PRIORS),
    "class_shift": ((tuple,), lambda value: all(map(math.isfinite, value))),
    "feature_norm": ((str,), lambda value: value in FEATURE_NORMS),
    "test_accuracy": ((int, float), lambda value: True),
}
