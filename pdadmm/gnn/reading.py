"""The features of a rank's parts, in the form that the first layer takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.datasets.graph import Matrix
from pdadmm.gnn.layer import Inputs, Shape
from pdadmm.gnn.part import Part
from pdadmm.gnn.passes.protocol import Passes

if TYPE_CHECKING:
    from pdadmm.inputs.graph_file import GraphSource

__all__ = ["read_inputs"]

#: features are kept sparse where fewer of them are entries: a sparse product takes several times as long
_SPARSE_BELOW = 0.15


def read_inputs(
    source: GraphSource,
    parts: Mapping[int, Part],
    shape: Shape,
    passes: Passes,
    backend: Backend = NUMPY,
) -> tuple[dict[int, Inputs], dict[int, Inputs]]:
    """What the first layer multiplies, and GraphSAGE's own features, by part.

    With exact inputs that is the aggregation of the features, for which a part reads those of its halo
    from the graph file, too: nothing travels.

    Parameters
    ----------
    passes
        Of the host, that aggregate here.
    backend
        Where the first layer multiplies.
    """
    inputs, own = {}, {}
    for number, part in parts.items():
        X = _thin(_features(source, part.rows))
        if shape.model == "sage" or not shape.exact_inputs:
            own[number] = Inputs(X, backend=backend)
        if not shape.exact_inputs:
            inputs[number] = own[number]
            continue
        halo = source.features_of(part.halo)
        whole = sp.vstack([X, halo]).tocsr() if sp.issparse(X) else np.concatenate([X, _dense(halo)])
        inputs[number] = Inputs(_thin(_aggregated(part, whole, passes)), backend=backend)
    return inputs, own if shape.model == "sage" else {}


def _features(source: GraphSource, rows: np.ndarray) -> Matrix:
    """Of rows in any order."""
    order = np.argsort(rows)
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    return source.features_of(rows[order])[place]


def _aggregated(part: Part, X: Matrix, passes: Passes) -> Matrix:
    if sp.issparse(X):
        matrix = part.forward
        shape = matrix.rows, part.extent
        return sp.csr_matrix((matrix.values, matrix.indices, matrix.indptr), shape=shape) @ X
    A = np.empty((part.size, X.shape[1]), np.float32)
    passes.aggregate(part.forward, np.ascontiguousarray(X), A)
    return A


def _thin(X: Matrix) -> Matrix:
    """Sparse features where they are thin, an array where not."""
    if not sp.issparse(X):
        return X
    filled = X.nnz / max(1, X.shape[0] * X.shape[1])
    return X if filled < _SPARSE_BELOW else X.toarray()


def _dense(X: Matrix) -> np.ndarray:
    found: np.ndarray = X.toarray() if sp.issparse(X) else X
    return found
