"""What preparing does to the features before anything else: nothing, rows divided by their L1 norms, or
columns standardised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pdadmm.errors import InputError
from pdadmm.inputs import FEATURE_NORMS, Floats

if TYPE_CHECKING:
    from pdadmm.datasets.graph import Matrix
    from pdadmm.files.hdf5 import PlainFile

__all__ = ["FeatureNorm", "mostly_zeros"]

_BLOCK_BYTES = 64 << 20  # of float64, at once
_MEAN, _SCALE = "feature_mean", "feature_scale"  # arrays of a file

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureNorm:
    """A norm, and the means and scales of `standard`, which belong to the graph that they were taken of.

    Attributes
    ----------
    name : {"none", "row", "standard"}
        `row` divides every row by its L1 norm. `standard` takes its mean from every column and divides by
        its standard deviation, both of all nodes of a graph: features that are measured in units of their
        own then count alike.
    mean, scale : ndarray (F,) float64, or None
        Of `standard`; the scale of a column that does not vary is 1.
    """

    name: str = "none"
    mean: Doubles | None = None
    scale: Doubles | None = None

    @classmethod
    def of(cls, given: str | FeatureNorm, features: Matrix, where: str) -> FeatureNorm:
        """A norm by its name, fitted to features (N, F) where it has to be; or one that is fitted already.

        Parameters
        ----------
        where
            What messages call the features.

        Raises
        ------
        InputError
            When there is no such norm, it is that of other features, or `standard` would fill a sparse
            matrix.
        """
        norm = given if isinstance(given, FeatureNorm) else cls(given)
        if norm.name not in FEATURE_NORMS:
            raise InputError(
                f"feature norm {norm.name!r} is unknown; choose one of {', '.join(FEATURE_NORMS)}"
            )
        if norm.name != "standard":
            return norm
        columns = features.shape[1]
        if norm.mean is None and _is_sparse(features) and mostly_zeros(features):
            raise InputError(
                f"{where}: most features are zeros, which the norm standard would fill; "
                "give --feature-norm row or none"
            )
        if norm.mean is None:
            return cls("standard", *_moments(features))
        if norm.mean.size != columns:
            raise InputError(
                f"{where}: {columns} features, the means to standardise them by are of {norm.mean.size}; "
                "give a graph of the same kind"
            )
        extremes = np.stack(_extremes(features)) - norm.mean
        if (np.abs(extremes) > np.finfo(np.float32).max * np.asarray(norm.scale)).any():
            raise InputError(
                f"{where}: features are too far from the means to standardise them by; "
                "give a graph of the same kind"
            )
        return norm

    @classmethod
    def read(cls, file: PlainFile, name: str, columns: int) -> FeatureNorm:
        """The norm of so many features that a file notes, its name an attribute that has been read.

        Raises
        ------
        InputError
            When there is no such norm, or its arrays are missing or wrong.
        """
        if name not in FEATURE_NORMS:
            raise file.wrong(f"attribute feature_norm is {name!r}, not one of {', '.join(FEATURE_NORMS)}")
        if name != "standard":
            return cls(name)
        found = []
        for key in (_MEAN, _SCALE):
            array = file.array(key)
            if array.shape != (columns,) or array.dtype != np.dtype("<f8"):
                raise file.wrong(f"/{key} is {array.dtype} {array.shape}, not float64 {(columns,)}")
            values = np.asarray(array[...])
            if not np.isfinite(values).all() or (key == _SCALE and (values <= 0).any()):
                raise file.wrong(f"/{key} holds what no features have")
            found.append(values)
        return cls(name, *found)

    @property
    def arrays(self) -> dict[str, Doubles]:
        """What a file is to hold besides the name."""
        if self.mean is None or self.scale is None:
            return {}
        return {_MEAN: self.mean, _SCALE: self.scale}

    @property
    def by_columns(self) -> bool:
        """Whether a column needs no other."""
        return self.name != "row"

    def same(self, other: FeatureNorm) -> bool:
        """Whether both do the same."""
        mine, others = self.arrays, other.arrays
        return (self.name, mine.keys()) == (other.name, others.keys()) and all(
            np.array_equal(mine[key], others[key]) for key in mine
        )

    def require(self, found: FeatureNorm, where: str, model: str, remedy: str) -> None:
        """Refuse features of another norm than this one, that of a model.

        Parameters
        ----------
        found
            Theirs.
        where, model
            What messages call the features and the model.
        remedy
            How to prepare them.

        Raises
        ------
        InputError
        """
        if found.name != self.name:
            raise InputError(
                f"{where} has features of the norm {found.name}, {model} was trained on {self.name}; {remedy}"
            )
        if not self.same(found):
            raise InputError(
                f"{where} is standardised by means and scales of its own, not by those that {model} was "
                f"trained with; {remedy}"
            )

    def applied(self, features: Matrix, columns: slice = slice(None)) -> Matrix:
        """Features (n, w) of any nodes, of the columns that they are; `row` wants all of them.

        Returns
        -------
        scipy.sparse.csr_matrix or ndarray, float32
            Dense with `standard`; the same object where there is nothing to do.
        """
        if self.name == "row":
            return _divided_rows(features)
        if self.mean is None or self.scale is None:
            return features
        mean, scale = self.mean[columns], self.scale[columns]
        out = np.empty(features.shape, np.float32)
        for rows in _row_blocks(*features.shape):
            out[rows] = (_dense(features[rows]).astype(np.float64) - mean) / scale
        return out


def _is_sparse(features: Matrix) -> bool:
    """Of SciPy's or an array: SciPy itself, which takes long to load, is for those who make features."""
    return not isinstance(features, np.ndarray)


def mostly_zeros(features: Matrix) -> bool:
    """Whether more than half of the features are zeros, as words are and measurements are not."""
    entries = features.nnz if _is_sparse(features) else np.count_nonzero(features)
    return bool(2 * entries < math.prod(features.shape))


def _row_blocks(nodes: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (8 * max(columns, 1)))
    for start in range(0, nodes, step):
        yield slice(start, min(start + step, nodes))


def _dense(rows: Matrix) -> Floats:
    return np.asarray(rows.toarray() if _is_sparse(rows) else rows)


def _extremes(features: Matrix) -> tuple[Doubles, Doubles]:
    """Least and largest value of every column."""
    low, high = np.full(features.shape[1], math.inf), np.full(features.shape[1], -math.inf)
    for rows in _row_blocks(*features.shape):
        values = _dense(features[rows])
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
    return low, high


def _moments(features: Matrix) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation of every column; of one that does not vary, exactly its value and 1."""
    nodes, columns = features.shape
    total, squares = np.zeros(columns), np.zeros(columns)
    for rows in _row_blocks(nodes, columns):
        total += _dense(features[rows]).sum(axis=0, dtype=np.float64)
    low, high = _extremes(features)
    mean = np.where(low == high, low, total / nodes)
    for rows in _row_blocks(nodes, columns):
        apart = _dense(features[rows]) - mean
        squares += np.einsum("ij,ij->j", apart, apart)
    return mean, np.where(low == high, 1.0, np.sqrt(squares / nodes))


def _divided_rows(features: Matrix) -> Matrix:
    """Every row divided by its L1 norm; a row of zeros stays one."""
    sums = np.asarray(abs(features).sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    if _is_sparse(features):
        weights = np.repeat(scale, np.diff(features.indptr))
        data = (features.data * weights).astype(np.float32)
        return type(features)((data, features.indices, features.indptr), shape=features.shape)
    return (features * scale[:, None]).astype(np.float32)
