"""model.h5, the trained weights: a group a layer at the root, with W and b."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.errors import InputError
from pdadmm.files import Record, fresh, naming, reserve, scratch, take_place, write_at
from pdadmm.inputs import FEATURE_NORMS
from pdadmm.inputs.class_prior import CLASS_PRIORS, apart, read_shift
from pdadmm.inputs.feature_norm import FeatureNorm
from pdadmm.inputs.scaling import INPUT_NORMS

if TYPE_CHECKING:
    import h5py

    from pdadmm.comm.waiter import Waiter
    from pdadmm.files.hdf5 import Attributes, PlainFile
    from pdadmm.inputs.feature_file import Features

__all__ = [
    "SCHEMA",
    "ModelSpace",
    "Prepared",
    "check_attributes",
    "read_layer",
    "read_model",
    "read_prepared",
    "read_shape",
    "reserved",
    "save_model",
    "write_model",
]

SCHEMA, SCHEMA_VERSION = "pdadmm-model", 1
_TAG = 20001
#: W and b of every layer, not read yet
_Layers: TypeAlias = "list[tuple[h5py.Dataset, h5py.Dataset]]"
#: of the test accuracy, which is known only at the end: a NaN that nothing else in the file looks like
_PLACEHOLDER = np.array(0x7FF8_1234_5678_9ABC, "<u8").view("<f8")
_METADATA_BYTES = 1 << 13  # more than those of a layer take
#: given back when the model is written: summary.json needs room too
_SLACK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Prepared:
    """How the features were prepared that a model was trained on.

    Attributes
    ----------
    operators : str
        As `pdadmm.inputs.operators.parse_operators` keeps the list.
    norm : FeatureNorm
        Of the features, before the operators.
    """

    operators: str
    norm: FeatureNorm

    def check(self, features: Features, where: str, model: str) -> None:
        """Refuse features that were prepared in another way.

        Parameters
        ----------
        features
        where, model
            What messages call the features and the model.

        Raises
        ------
        InputError
        """
        remedy = f"prepare it with --like {model}"
        if features.operators != self.operators:
            raise InputError(
                f"{where} has the operators {features.operators}, {model} was trained on {self.operators}; "
                f"{remedy}"
            )
        self.norm.require(features.norm, where, model, remedy)


def read_model(
    path: str | os.PathLike[str],
) -> tuple[list[np.ndarray], list[np.ndarray], Record, Prepared | None]:
    """Weights, biases, first layer first, and attributes of a file.

    Returns
    -------
    weights, biases
        Float32 (n_out, n_in) and (n_out,), finite, of layers that fit together.
    attributes
        `activation`, `layers`, and what else :func:`write_model` records, where the file has it.
    prepared
        None where the file does not say.

    Raises
    ------
    InputError
        When the file is missing, damaged, or not a model.
    """
    with _opened(path) as (file, layers, attributes):
        weights = [file.weights(W) for W, _ in layers]
        biases = [file.weights(b) for _, b in layers]
        prepared = _prepared(file, attributes)
    return weights, biases, attributes, prepared


def read_prepared(path: str | os.PathLike[str]) -> Prepared | None:
    """How the features were prepared, where a file says so; raises like :func:`read_model`."""
    with _opened(path) as (file, _, attributes):
        return _prepared(file, attributes)


def _prepared(file: PlainFile, attributes: Record) -> Prepared | None:
    if "operators" not in attributes:
        return None
    columns = attributes["features_per_hop"]
    return Prepared(attributes["operators"], FeatureNorm.read(file, attributes["feature_norm"], columns))


def read_shape(path: str | os.PathLike[str]) -> tuple[list[int], Record]:
    """Widths n_0, ..., n_L and attributes of a file; raises like :func:`read_model`."""
    with _opened(path) as (_, layers, attributes):
        return [layers[0][0].shape[1], *[W.shape[0] for W, _ in layers]], attributes


def read_layer(path: str | os.PathLike[str], position: int) -> tuple[np.ndarray, np.ndarray]:
    """W (n_out, n_in) and b (n_out,) of one layer, counted from 1; raises like :func:`read_model`."""
    with _opened(path) as (file, layers, _):
        W, b = layers[position - 1]
        return file.weights(W), file.weights(b)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[PlainFile, _Layers, Record]]:
    """A file, W and b of its layers, which fit together, and its attributes."""
    from pdadmm.files.hdf5 import PlainFile

    missing = "a run writes model.h5 into its --out folder"
    with PlainFile(path, missing, "give a run's model.h5, or train again") as file, file.reading():
        attributes = _attributes(file)
        layers: _Layers = []
        for position in range(1, attributes["layers"] + 1):
            W, b = (file.array(f"layer_{position:04d}/{name}") for name in "Wb")
            if W.ndim != 2 or not W.size or b.shape != W.shape[:1]:
                raise file.wrong(f"layer {position} has W {W.shape} and b {b.shape}")
            if layers and W.shape[1] != layers[-1][0].shape[0]:
                raise file.wrong(
                    f"layer {position} takes {W.shape[1]} inputs, but the layer before it gives "
                    f"{layers[-1][0].shape[0]}"
                )
            layers.append((W, b))
        inputs, per_hop = layers[0][0].shape[1], attributes.get("features_per_hop", 1)
        if inputs % per_hop:
            raise file.wrong(f"layer 1 takes {inputs} inputs, which are no hops of {per_hop}")
        yield file, layers, read_shift(file, attributes, len(layers[-1][1]))


def _attributes(file: PlainFile) -> Record:
    """What a model says of itself, each value of its type and in its range."""
    others = {
        "pdadmm-gnn-model": "the model of a graph network; pdadmm.GraphModel and pdadmm.gnn.predict read it",
        "pdadmm-features": "a feature file, not a model",
    }
    found = file.model(SCHEMA, SCHEMA_VERSION, _ATTRIBUTES, "activation", "not a model of pdadmm", others)
    # a model of before these attributes was trained on the features as they were
    scales = (found.get("input_norm", "none"), found.get("hop_decay", 1.0)) != ("none", 1.0)
    if scales and "features_per_hop" not in found:
        raise file.wrong("scales its inputs, but lacks the attribute features_per_hop")
    if "operators" in found and not {"feature_norm", "features_per_hop"} <= found.keys():
        raise file.wrong("has operators, but lacks the attribute feature_norm or features_per_hop")
    return found


def check_attributes(attributes: Record, inputs: int) -> None:
    """Refuse attributes that no model of so many inputs has.

    Raises
    ------
    InputError
    """
    for name, value in attributes.items():
        kinds, holds = _ATTRIBUTES[name]
        if not isinstance(value, kinds) or not holds(value):
            raise InputError(f"{name} is {value!r}, which no model has; give another")
    per_hop = attributes.get("features_per_hop", 1)
    if inputs % per_hop:
        raise InputError(
            f"{inputs} inputs are no operators of {per_hop} features; give another features_per_hop"
        )


#: types and ranges of the attributes besides schema and version
_ATTRIBUTES: Attributes = {
    "layers": ((int,), lambda value: value >= 1),
    "activation": ((str,), lambda value: value in ACTIVATIONS),
    "input_norm": ((str,), lambda value: value in INPUT_NORMS),
    "hop_decay": ((int, float), lambda value: 0 < value < math.inf),
    "features_per_hop": ((int,), lambda value: value >= 1),
    "operators": ((str,), lambda value: True),
    "feature_norm": ((str,), lambda value: value in FEATURE_NORMS),
    "class_prior": ((str,), lambda value: value in CLASS_PRIORS),
    "class_shift": ((tuple,), lambda value: all(map(math.isfinite, value))),
    "dataset": ((str,), lambda value: True),
    "test_accuracy": ((int, float), lambda value: True),
    "first_depth": ((int,), lambda value: value >= 1),
}


@dataclass(frozen=True)
class ModelSpace:
    """A model of a run that goes on: complete under another name, but for its values.

    Its space on the disk is taken before training. HDF5, which does not survive a full disk, is not asked
    after that: values are written to where they belong.
    """

    path: Path  #: which the file takes at the end
    temporary: Path
    places: dict[int, tuple[int, int]]  #: where in the file W and b of a layer belong, by position
    accuracy: int  #: where the attribute test_accuracy belongs
    size: int  #: bytes of the file
    attributes: Record
    prepared: Prepared | None

    def of_widths(self, widths: list[int]) -> ModelSpace:
        """The same space for a network of fewer layers, n_0, ..., n_L.

        Raises
        ------
        OSError
            Which names the file.
        """
        shapes = list(itertools.pairwise(widths))
        if len(shapes) == len(self.places):
            return self
        with naming(self.path, self.temporary):
            space = _create(self.path, self.temporary, shapes, self.attributes, self.prepared)
            reserve(self.temporary, space.size)
        return space


@contextmanager
def reserved(
    path: Path,
    widths: list[int],
    attributes: Record,
    prepared: Prepared | None = None,
    temporary: Path | None = None,
) -> Iterator[ModelSpace]:
    """Take the space of a model; what :func:`write_model` has not used is given back at the end.

    Parameters
    ----------
    widths
        n_0, ..., n_L: W of layer l is (n_l, n_{l-1}), b is (n_l,), float32.
    attributes
        Recorded at the root of the file: must have `activation`; `first_depth` says from which position on
        hidden layers began as identities.
    prepared
        Recorded, where it is known; `attributes` then has `features_per_hop`.
    temporary
        Where it is made; by default beside `path`, under a name that only the run that holds the folder uses.

    Raises
    ------
    OSError
        When there is no room, or the file cannot be written.
    """
    shapes = list(itertools.pairwise(widths))
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    with contextlib.ExitStack() as stack:
        with naming(path, temporary):
            stack.enter_context(fresh(temporary))
            # a full disk shows here, and as an error of the system
            arrays = {} if prepared is None else prepared.norm.arrays
            values = 4 * sum(n_out * (n_in + 1) for n_in, n_out in shapes) + 4 * widths[-1]
            values += sum(array.nbytes for array in arrays.values())
            reserve(temporary, values + _METADATA_BYTES * len(shapes) + _SLACK_BYTES)
            space = _create(path, temporary, shapes, attributes, prepared)
            reserve(temporary, space.size + _SLACK_BYTES)
        yield space


def _create(
    path: Path,
    temporary: Path,
    shapes: list[tuple[int, int]],
    attributes: Record,
    prepared: Prepared | None,
) -> ModelSpace:
    """Make the file complete but for the values of the layers."""
    import h5py

    noted, arrays = apart(attributes)
    if prepared is not None:
        noted |= {"operators": prepared.operators, "feature_norm": prepared.norm.name}
        arrays |= prepared.norm.arrays

    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)  # the same network is the same file
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

    def place(group: h5py.Group, name: bytes, *shape: int) -> int:
        space = h5py.h5s.create_simple(shape)
        return int(h5py.h5d.create(group.id, name, h5py.h5t.IEEE_F32LE, space, plist).get_offset())

    with h5py.File(temporary, "w") as file:
        file.attrs.update(schema=SCHEMA, schema_version=SCHEMA_VERSION, layers=len(shapes))
        file.attrs.update(**noted)
        file.attrs.create("test_accuracy", _PLACEHOLDER, dtype="<f8")
        file.flush()
        accuracy = temporary.read_bytes().index(_PLACEHOLDER.tobytes())  # HDF5 does not say where
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        places = {}
        for position, (n_in, n_out) in enumerate(shapes, 1):
            group = file.create_group(f"layer_{position:04d}")
            places[position] = place(group, b"W", n_out, n_in), place(group, b"b", n_out)
    size = temporary.stat().st_size
    return ModelSpace(path, temporary, places, accuracy, size, attributes, prepared)


def write_model(
    space: ModelSpace | None,
    layers: Mapping[int, tuple[np.ndarray, np.ndarray]],
    blocks: Sequence[Sequence[int]],
    test_accuracy: float,
    waiter: Waiter,
) -> None:
    """Write a model on rank 0, one layer at a time, so that no rank ever holds all weights; collective.

    Parameters
    ----------
    space
        Of the file, on rank 0.
    layers
        W and b of this rank's layers by position.
    blocks
        Positions of every rank's layers, ascending; in the file they are numbered from 1.
    test_accuracy
        Recorded with the attributes.

    Raises
    ------
    OSError
        Which names the file.
    """
    rank = waiter.comm.rank
    if rank:
        for position in blocks[rank]:
            W, b = layers[position]
            for array in (np.array(W.shape, np.int64), W, b):
                waiter.all(waiter.send(array, 0, _TAG), f"the weights of layer {position} to reach rank 0")
        return
    assert space is not None

    def gathered() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        number = itertools.count(1)
        for source, block in enumerate(blocks):
            for position in block:
                if source == 0:
                    W, b = layers[position]
                else:
                    shape = np.empty(2, np.int64)
                    waiter.receive(shape, source, _TAG)
                    W, b = np.empty(tuple(shape), np.float32), np.empty(int(shape[0]), np.float32)
                    waiter.receive(W, source, _TAG)
                    waiter.receive(b, source, _TAG)
                yield next(number), W, b

    _complete(space, gathered(), test_accuracy)


def save_model(
    path: Path,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    attributes: Record,
    prepared: Prepared | None,
) -> None:
    """Write a network that is in memory; a file of that name is replaced when all is written.

    Parameters
    ----------
    path
    weights, biases
        (n_out, n_in) and (n_out,), first layer first.
    attributes, prepared
        See :func:`reserved`; `test_accuracy` is NaN without it.

    Raises
    ------
    OSError
        Which names the file.
    """
    widths = [weights[0].shape[1], *[len(W) for W in weights]]
    own = _ATTRIBUTES.keys() - {"layers", "operators", "feature_norm"}
    known = {name: value for name, value in attributes.items() if name in own}
    accuracy = known.pop("test_accuracy", math.nan)
    path = Path(os.path.realpath(path))  # what is behind a link, not the link
    with scratch(path) as temporary, reserved(path, widths, known, prepared, temporary) as space:
        _complete(space, zip(range(1, len(widths)), weights, biases, strict=True), accuracy)


def _complete(
    space: ModelSpace, layers: Iterable[tuple[int, np.ndarray, np.ndarray]], test_accuracy: float
) -> None:
    """Write position, W and b of all layers to where they belong, and give the file its name."""
    with naming(space.path, space.temporary):
        with space.temporary.open("r+b", buffering=0) as file:
            for position, W, b in layers:
                for offset, array in zip(space.places[position], (W, b), strict=True):
                    write_at(file.fileno(), np.ascontiguousarray(array, "<f4").data.cast("B"), offset)
            write_at(file.fileno(), np.array(test_accuracy, "<f8").data.cast("B"), space.accuracy)
            file.truncate(space.size)
            os.fsync(file.fileno())
        take_place(space.temporary, space.path)
