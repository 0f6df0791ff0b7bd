"""Augmented features as training reads them: from HDF5 files and from memory.

The format of the files is in docs/data.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pdadmm.datasets.registry import SPLITS
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.files.hdf5 import PlainFile
from pdadmm.files.names import safe_name
from pdadmm.inputs import Floats, Ids
from pdadmm.inputs.feature_norm import FeatureNorm
from pdadmm.inputs.operators import parse_operators

if TYPE_CHECKING:
    import h5py

__all__ = [
    "KIND",
    "SCHEMA",
    "SCHEMA_VERSION",
    "X_SHA256",
    "FeatureArrays",
    "FeatureFile",
    "Features",
    "hops_of",
]

SCHEMA = "pdadmm-features"
SCHEMA_VERSION = 1
KIND = "feature file"  # what messages call it
#: optional attribute: SHA-256 of the values of /x
X_SHA256 = "x_sha256"
_HASHED_BYTES = 1 << 20  # at once

_ROWS_AT_ONCE = 1 << 20  #: of labels and nodes while they are checked


def hops_of(operators: str) -> int | None:
    """K of the list ``powers:K``; None of any other."""
    found = re.fullmatch(r"powers:(\d+)", operators)
    return int(found[1]) if found else None


AnyFeatures = TypeVar("AnyFeatures", bound="Features")


class Features(ABC):
    """What the trainer reads: rows ordered train, val, test(, rest), so that a split is a slice.

    Attributes
    ----------
    dataset : str
        As `pdadmm.files.names.safe_name` makes it.
    num_classes : int
        Classes.
    num_features : int
        Columns of X, of all operators.
    operators : str
        The list, as `pdadmm.inputs.operators.parse_operators` reads it.
    n_train : int
        Rows of the training split.
    n_val : int
        Rows of the validation split.
    n_test : int
        Rows of the test split.
    rows : int
        All rows.
    attrs : dict
        The attributes of the schema.
    """

    dataset: str
    num_classes: int
    num_features: int
    operators: str
    n_train: int
    n_val: int
    n_test: int
    rows: int
    attrs: Record
    where: str

    @property
    @abstractmethod
    def norm(self) -> FeatureNorm:
        """What preparing did to the features before the operators."""

    @property
    @abstractmethod
    def node_id(self) -> Ids:
        """The node of every row, (rows,) int64."""

    def _adopt(self, attrs: Record, where: str) -> None:
        attrs = {**attrs, "dataset": safe_name(attrs["dataset"])}
        self.attrs, self.where = attrs, where
        self.dataset, self.num_classes = attrs["dataset"], attrs["num_classes"]
        self.operators = attrs["operators"]
        # a file may be damaged: what it says of powers need not agree
        blocks = attrs["hops"] + 1 if "hops" in attrs else len(parse_operators(self.operators)[1])
        self.num_features = blocks * attrs["features_per_hop"]
        self.n_train, self.n_val, self.n_test = (attrs[f"n_{name}"] for name in SPLITS)
        n_split = self.n_train + self.n_val + self.n_test
        self.rows = attrs["num_nodes"] if attrs["nodes"] == "all" else n_split

    def slice_of(self, split: str) -> tuple[int, int]:
        """First and past-the-last row of `train`, `val`, `test` or `all`."""
        train, val, test = self.n_train, self.n_val, self.n_test
        bounds = {
            "train": (0, train),
            "val": (train, train + val),
            "test": (train + val, train + val + test),
            "all": (0, self.rows),
        }
        if split not in bounds:
            raise ValueError(f"split {split!r} is not one of {', '.join(bounds)}")
        return bounds[split]

    def _range(self, split: str, start: int, stop: int | None) -> tuple[int, int]:
        first, last = self.slice_of(split)
        stop = last - first if stop is None else stop
        if not 0 <= start <= stop <= last - first:
            raise ValueError(f"rows {start} to {stop} are outside the {split} split of {last - first}")
        return first + start, first + stop

    def x(self, split: str, start: int = 0, stop: int | None = None) -> Floats:
        """Features of rows start to stop of a split.

        Returns
        -------
        ndarray (stop - start, num_features) float32, C-contiguous
            Not to be written to.

        Raises
        ------
        InputError
            When they hold NaN or Inf, or cannot be read.
        ValueError
            When there is no such split, or rows are outside of it.
        """
        first, last = self._range(split, start, stop)
        values = self._rows_x(first, last)
        if not np.isfinite(values).all():
            row = first + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise InputError(f"{self.where}: /x holds NaN or Inf in row {row}; prepare the file again")
        return values

    def y(self, split: str, start: int = 0, stop: int | None = None) -> Ids:
        """Labels (stop - start,) int64 of rows start to stop of a split; raises as `x`."""
        return self._rows_y(*self._range(split, start, stop))

    def content_hash(self) -> str:
        """Hash of what is trained on: features, operators, labels, split; not of how they are stored."""
        sizes = [self.rows, self.num_features, self.num_classes, self.n_train, self.n_val, self.n_test]
        # powers keep the hash of before there were others, so that their checkpoints stay good
        hops = self.attrs.get("hops")
        digest = hashlib.sha256(np.array([*sizes, -1 if hops is None else hops], "<i8").tobytes())
        if hops is None:
            digest.update(self.operators.encode())
        digest.update(self.x_sha256().encode())
        digest.update(np.ascontiguousarray(self._rows_y(0, self.rows), "<i8").data)
        return digest.hexdigest()

    def x_sha256(self) -> str:
        """SHA-256 of all of X, row-major float32, in hexadecimal digits."""
        digest = hashlib.sha256()
        step = max(1, _HASHED_BYTES // (4 * self.num_features))
        for first in range(0, self.rows, step):
            rows = self._rows_x(first, min(first + step, self.rows))
            digest.update(np.ascontiguousarray(rows, "<f4").data)
        return digest.hexdigest()

    @abstractmethod
    def _rows_x(self, first: int, last: int) -> Floats: ...

    @abstractmethod
    def _rows_y(self, first: int, last: int) -> Ids: ...

    @abstractmethod
    def close(self) -> None:
        """Close the file, where there is one."""

    def __enter__(self: AnyFeatures) -> AnyFeatures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FeatureArrays(Features):
    """Features held in memory; see `in_memory`."""

    def __init__(
        self, attrs: Record, x: Floats, y: Ids, node_id: Ids, norm: FeatureNorm | None = None
    ) -> None:
        self._adopt(attrs, attrs["dataset"])
        self._x, self._y, self._node_id, self._norm = x, y, node_id, norm or FeatureNorm()

    @property
    def norm(self) -> FeatureNorm:
        return self._norm

    @property
    def node_id(self) -> Ids:
        return self._node_id

    def _rows_x(self, first: int, last: int) -> Floats:
        return self._x[first:last]

    def _rows_y(self, first: int, last: int) -> Ids:
        return self._y[first:last]

    def close(self) -> None:
        """Nothing to close."""


class FeatureFile(Features):
    """A file that `pdadmm.prepare` wrote, open for reading; rows are read when asked for.

    Parameters
    ----------
    path : str or Path
        Of the file.

    Raises
    ------
    InputError
        When the file is missing, truncated, no HDF5, of another schema or version, its sizes, types or
        labels are inconsistent, or its arrays are not contiguous within the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = PlainFile(path, "make it with python -m pdadmm.prepare", "prepare it again")
        with self._file.reading():
            self._adopt(_checked_attributes(self._file), self._file.where)
            self._arrays = {name: self._array(name, *wanted) for name, wanted in self._wanted().items()}
            self._check("y", self.num_classes, "label")
            self._check("node_id", self.attrs["num_nodes"], "node")

    def _wanted(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shapes and types of the arrays."""
        return {
            "x": ((self.rows, self.num_features), np.dtype("<f4")),
            "y": ((self.rows,), np.dtype("<i8")),
            "node_id": ((self.rows,), np.dtype("<i8")),
        }

    def _array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
        found = self._file.array(name)
        if found.shape != shape or found.dtype != dtype:
            raise self._file.wrong(f"/{name} is {found.dtype} {found.shape}, not {dtype} {shape}")
        return found

    def _check(self, name: str, count: int, what: str) -> None:
        """Refuse numbers that are not from 0 to `count` - 1."""
        values = self._arrays[name]
        for first in range(0, self.rows, _ROWS_AT_ONCE):
            part = values[first : first + _ROWS_AT_ONCE]
            for value in (int(part.min()), int(part.max())):
                if not 0 <= value < count:
                    raise self._file.wrong(f"{what} {value} is out of range 0 to {count - 1}")

    @property
    def norm(self) -> FeatureNorm:
        with self._file.reading():
            return FeatureNorm.read(self._file, self.attrs["feature_norm"], self.attrs["features_per_hop"])

    @property
    def node_id(self) -> Ids:
        return self._read("node_id", 0, self.rows)

    def x_sha256(self) -> str:
        """As prepare noted it; of a file without it, all of /x is read."""
        with contextlib.suppress(InputError):  # an attribute that cannot be read
            noted = self._file.attribute(X_SHA256)
            if isinstance(noted, str) and re.fullmatch(r"[0-9a-f]{64}", noted):
                return noted
        return super().x_sha256()

    def _read(self, name: str, first: int, last: int) -> np.ndarray:
        try:
            return np.asarray(self._arrays[name][first:last])
        except OSError as exc:
            raise self._file.wrong(f"/{name} cannot be read ({exc})") from None

    def _rows_x(self, first: int, last: int) -> Floats:
        return self._read("x", first, last)

    def _rows_y(self, first: int, last: int) -> Ids:
        return self._read("y", first, last)

    def close(self) -> None:
        """Close the file; reading again is then an error."""
        self._file.close()


_ATTRIBUTES: dict[str, type] = {
    "schema": str,
    "schema_version": int,
    "dataset": str,
    "title": str,
    "licence": str,
    "citation": str,
    "features_per_hop": int,
    "feature_norm": str,
    "seed": int,
    "num_nodes": int,
    "num_classes": int,
    "n_train": int,
    "n_val": int,
    "n_test": int,
    "nodes": str,
}


#: files have `operators`, those of powers `hops` too, and those of before there were others it alone
_HOPS: dict[str, type] = {"hops": int}
_OPERATORS: dict[str, type] = {"operators": str}


def _checked_attributes(file: PlainFile) -> Record:
    others = {
        "pdadmm-graph": "a graph file, not a feature file",
        "pdadmm-model": "a model, not a feature file",
        "pdadmm-gnn-model": "a model of graphs, not a feature file",
        "pdadmm-predictions": "a file of predictions, not a feature file",
    }
    operators = file.attribute("operators")
    wanted = {**_ATTRIBUTES, **({} if operators is None else _OPERATORS)}
    if operators is None or (isinstance(operators, str) and hops_of(operators) is not None):
        wanted |= _HOPS
    attrs = file.attributes(wanted, SCHEMA, SCHEMA_VERSION, "pdadmm.prepare", others)
    attrs.setdefault("operators", f"powers:{attrs.get('hops')}")
    if "hops" not in attrs:
        try:
            canonical, _ = parse_operators(attrs["operators"])
        except InputError as error:
            raise file.wrong(f"attribute operators is no list of them ({error})") from None
        if canonical != attrs["operators"]:
            raise file.wrong(f"attribute operators is {attrs['operators']!r}, not {canonical!r}")
    for name in ("hops", "seed"):
        if attrs.get(name, 0) < 0:
            raise file.wrong(f"attribute {name} is {attrs[name]}")
    if attrs["features_per_hop"] < 1 or attrs["num_classes"] < 2:
        raise file.wrong("no features or fewer than 2 classes")
    for name in ("n_train", "n_val", "n_test"):
        if attrs[name] < 0:
            raise file.wrong(f"attribute {name} is {attrs[name]}")
    if attrs["nodes"] not in ("split", "all"):
        raise file.wrong(f"attribute nodes is {attrs['nodes']!r}, not split or all")
    in_splits = attrs["n_train"] + attrs["n_val"] + attrs["n_test"]
    if attrs["num_nodes"] < in_splits:
        raise file.wrong("splits hold more nodes than the graph")
    if not (in_splits if attrs["nodes"] == "split" else attrs["num_nodes"]):
        raise file.wrong("there are no rows")
    if attrs["n_train"] and attrs["num_classes"] > attrs["num_nodes"]:
        raise file.wrong("more classes than nodes")
    return attrs
