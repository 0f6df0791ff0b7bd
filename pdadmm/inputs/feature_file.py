"""Augmented features as training reads them: from HDF5 files and from memory.

The format of the files is in docs/data.md.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import h5py
import numpy as np

from pdadmm.datasets.graph import SPLITS
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.inputs import Floats, Ids

__all__ = ["SCHEMA", "SCHEMA_VERSION", "FeatureArrays", "FeatureFile", "Features"]

SCHEMA = "pdadmm-features"
SCHEMA_VERSION = 1

AnyFeatures = TypeVar("AnyFeatures", bound="Features")


class Features(ABC):
    """What the trainer reads: rows ordered train, val, test(, rest), so that a split is a slice.

    Attributes
    ----------
    dataset : str
    num_classes, num_features : int
        Classes; columns of X (all hops).
    n_train, n_val, n_test, rows : int
    attrs : dict
        The attributes of the schema.
    """

    dataset: str
    num_classes: int
    num_features: int
    n_train: int
    n_val: int
    n_test: int
    rows: int
    attrs: Record
    where: str

    def _adopt(self, attrs: Record, where: str) -> None:
        self.attrs, self.where = attrs, where
        self.dataset, self.num_classes = attrs["dataset"], attrs["num_classes"]
        self.num_features = (attrs["hops"] + 1) * attrs["features_per_hop"]
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
        """
        first, last = self._range(split, start, stop)
        values = self._rows_x(first, last)
        if not np.isfinite(values).all():
            row = first + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise InputError(f"{self.where}: /x holds NaN or Inf in row {row}; prepare the file again")
        return values

    def y(self, split: str, start: int = 0, stop: int | None = None) -> Ids:
        """Labels (stop - start,) int64 of rows start to stop of a split."""
        return self._rows_y(*self._range(split, start, stop))

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

    def __init__(self, attrs: Record, x: Floats, y: Ids, node_id: Ids) -> None:
        self._adopt(attrs, attrs["dataset"])
        self._x, self._y, self.node_id = x, y, node_id

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

    Raises
    ------
    InputError
        When the file is missing, truncated, no HDF5, of another schema or version, or its sizes,
        types or labels are inconsistent.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        where = str(path)
        if not Path(path).is_file():
            raise InputError(f"{where}: no such file; make it with python -m pdadmm.prepare")
        try:
            self._file = h5py.File(path, "r")
        except OSError as exc:
            reason = str(exc)
            if isinstance(exc, PermissionError) or exc.errno == 13:
                raise InputError(f"{where}: cannot be read (permission denied)") from None
            kind = "truncated" if "truncated" in reason else "not a readable HDF5 file"
            raise InputError(f"{where}: {kind}; prepare it again") from None
        try:
            self._adopt(_checked_attributes(self._file, where), where)
            self._check()
        except (OSError, KeyError, RuntimeError) as exc:
            self._file.close()
            raise InputError(f"{where}: damaged ({type(exc).__name__}); prepare it again") from None
        except BaseException:
            self._file.close()
            raise

    def _check(self) -> None:
        wanted = {
            "x": ((self.rows, self.num_features), np.dtype("<f4")),
            "y": ((self.rows,), np.dtype(np.int64)),
            "node_id": ((self.rows,), np.dtype(np.int64)),
        }
        for name, (shape, dtype) in wanted.items():
            found = self._file.get(name)
            if not isinstance(found, h5py.Dataset):
                raise InputError(f"{self.where}: lacks /{name}; prepare it again")
            if found.shape != shape or found.dtype != dtype:
                raise InputError(
                    f"{self.where}: /{name} is {found.dtype} {found.shape}, not {dtype} {shape}; "
                    "prepare it again"
                )
        y = self._file["y"][...]
        if y.size and (int(y.min()) < 0 or int(y.max()) >= self.num_classes):
            bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
            raise InputError(f"{self.where}: label {bad} is out of range 0 to {self.num_classes - 1}")
        ids = self._file["node_id"][...]
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.attrs["num_nodes"]):
            raise InputError(f"{self.where}: /node_id is out of range; prepare it again")

    @property
    def node_id(self) -> Ids:
        """The node of every row, (rows,) int64."""
        return np.asarray(self._file["node_id"][...])

    def _read(self, name: str, first: int, last: int) -> np.ndarray:
        try:
            return np.asarray(self._file[name][first:last])
        except OSError as exc:
            raise InputError(f"{self.where}: /{name} cannot be read ({exc}); prepare it again") from None

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
    "hops": int,
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


def _checked_attributes(file: h5py.File, where: str) -> Record:
    attrs: Record = {}
    for name, kind in _ATTRIBUTES.items():
        if name not in file.attrs:
            if name == "schema":
                raise InputError(f"{where}: not a file of pdadmm.prepare (no schema); prepare the data set")
            raise InputError(f"{where}: lacks the attribute {name}; prepare it again")
        value = file.attrs[name]
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, kind):
            raise InputError(f"{where}: attribute {name} is {value!r}, not of type {kind.__name__}")
        attrs[name] = value
        if name == "schema" and value == "pdadmm-graph":
            raise InputError(
                f"{where}: a graph file, not a feature file; make one with python -m pdadmm.prepare"
            )
        if name == "schema" and value != SCHEMA:
            raise InputError(f"{where}: schema {value!r}, not {SCHEMA!r}; prepare the data set")
        if name == "schema_version" and value != SCHEMA_VERSION:
            raise InputError(
                f"{where}: schema version {value}, this program reads {SCHEMA_VERSION}; prepare it again"
            )
    for name in ("hops", "seed"):
        if attrs[name] < 0:
            raise InputError(f"{where}: attribute {name} is {attrs[name]}; prepare it again")
    if attrs["features_per_hop"] < 1 or attrs["num_classes"] < 2:
        raise InputError(f"{where}: no features or fewer than 2 classes; prepare it again")
    for name in ("n_train", "n_val", "n_test"):
        if attrs[name] < 1:
            raise InputError(f"{where}: {name} is {attrs[name]}; every split needs a node")
    if attrs["nodes"] not in ("split", "all"):
        raise InputError(f"{where}: attribute nodes is {attrs['nodes']!r}, not split or all")
    if attrs["num_nodes"] < attrs["n_train"] + attrs["n_val"] + attrs["n_test"]:
        raise InputError(f"{where}: splits hold more nodes than the graph; prepare it again")
    return attrs
