"""model.h5 of a graph network: a group a layer at the root, with its parameters by name."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdadmm.errors import InputError
from pdadmm.files import Record, naming, reserve, write_at
from pdadmm.gnn.layer import Shape
from pdadmm.gnn.part import MODELS

__all__ = ["ModelRoom", "read_model", "reserved"]

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

    def write(self, shape: Shape, weights: Weights, attributes: Record) -> None:
        """Write the file, which is whole or not there; on one rank.

        Parameters
        ----------
        attributes
            Recorded at the root of the file besides the layers' shape.

        Raises
        ------
        OSError
            Which names the file.
        """
        content = _content(shape, weights, attributes)
        with naming(self.path, self.temporary):
            with self.temporary.open("r+b", buffering=0) as file:
                write_at(file.fileno(), memoryview(content), 0)
                file.truncate(len(content))
                os.fsync(file.fileno())
            os.replace(self.temporary, self.path)


@contextmanager
def reserved(path: Path, shape: Shape, attributes: Record) -> Iterator[ModelRoom]:
    """Take the space of model.h5; what is not written is given back at the end.

    Parameters
    ----------
    attributes
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
    try:
        with naming(path, temporary):
            temporary.unlink(missing_ok=True)  # of a run that was killed
            reserve(temporary, len(_content(shape, zeros, attributes)) + _SLACK_BYTES)
        yield ModelRoom(path, temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _content(shape: Shape, weights: Weights, attributes: Record) -> bytes:
    """The file, in memory: HDF5 does not survive a full disk."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update(
            schema=SCHEMA,
            schema_version=SCHEMA_VERSION,
            model=shape.model,
            layers=shape.layers,
            **attributes,
        )
        for layer, named in weights.items():
            group = file.create_group(_group(layer))
            for name, array in named.items():
                group[name] = array
    return buffer.getvalue()


def read_model(path: str | os.PathLike[str]) -> tuple[Shape, dict[int, dict[str, np.ndarray]], Record]:
    """Shape, float32 parameters by layer and name, and attributes of a file.

    Raises
    ------
    InputError
        When the file is missing, damaged, or not the model of a graph network.
    """
    import h5py

    where = Path(path)
    if not where.is_file():
        raise InputError(f"there is no model {path}; a run writes model.h5 into its --out folder")
    try:
        with h5py.File(where, "r") as file:
            attributes = {k: v.item() if hasattr(v, "item") else v for k, v in file.attrs.items()}
            _require_schema(attributes, path)
            found = {
                layer: {name: np.asarray(x) for name, x in file[_group(layer)].items()}
                for layer in range(1, int(attributes["layers"]) + 1)
            }
        model = attributes["model"]
        name = "W" if model == "gcn" else "W_neighbours"
        widths = (found[1][name].shape[1], *(found[layer][name].shape[0] for layer in found))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged or no HDF5 file ({reason}); write it again") from None
    shape = Shape(model, widths)
    for layer, named in found.items():
        expected = shape.parameters(layer)
        if {key: x.shape for key, x in named.items()} != expected:
            raise InputError(f"{path}: the parameters of layer {layer} do not fit the layers; write it again")
        if any(x.dtype != np.float32 or not np.isfinite(x).all() for x in named.values()):
            raise InputError(f"{path}: layer {layer} holds NaN, Inf or no float32 numbers; train again")
    return shape, found, attributes


def _require_schema(attributes: Record, path: str | os.PathLike[str]) -> None:
    if attributes.get("schema") != SCHEMA:
        raise InputError(f"{path} is not the model of a graph network; give one that pdadmm.gnn.run has left")
    if attributes["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {attributes['schema_version']}, this version reads {SCHEMA_VERSION}; "
            "train again or use the version that wrote it"
        )
    if attributes["model"] not in MODELS:
        raise InputError(f"{path} holds the unknown model '{attributes['model']}'")
