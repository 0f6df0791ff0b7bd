"""The file that commands which predict write: scores and classes of nodes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pdadmm.errors import InputError
from pdadmm.files import replacing, reserve

__all__ = ["KIND", "SCHEMA", "SCHEMA_VERSION", "require_finite", "write_predictions"]

SCHEMA, SCHEMA_VERSION = "pdadmm-predictions", 1
KIND = "file of predictions"  # what messages call it
_SLACK_BYTES = 1 << 16  # of the file besides its arrays


def require_finite(scores: np.ndarray, where: str) -> None:
    """Refuse scores that are no numbers: the largest of them names no class.

    Parameters
    ----------
    scores : ndarray (R, C)
    where
        What messages call the features.

    Raises
    ------
    InputError
    """
    if not np.isfinite(scores).all():
        raise InputError(
            f"{where}: scores are NaN or Inf; features are too large for the network, look for placeholders "
            "of missing values"
        )


def write_predictions(
    path: Path, scores: np.ndarray, where: str, *, nodes: np.ndarray | None = None, multilabel: bool = False
) -> None:
    """Write the file as a whole, in place of one that is there.

    Parameters
    ----------
    path
    scores : (R, C) float32
        Outputs of the last layer.
    where
        What messages call the features.
    nodes : (R,) int64, optional
        The node of each row; without it rows are all nodes in the order of the data set.
    multilabel
        Whether a node may have several classes: those with a score above 0, and not the largest alone.

    Raises
    ------
    InputError
        When it cannot be written, or scores are no numbers.
    """
    import h5py

    require_finite(scores, where)
    arrays = {
        "scores": scores,
        "classes": (scores > 0).astype(np.uint8) if multilabel else scores.argmax(axis=1),
    }
    if nodes is not None:
        arrays["node_id"] = nodes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            # a full disk, or a folder that may not be written to, shows here: HDF5 has its own words
            reserve(temporary, sum(array.nbytes for array in arrays.values()) + _SLACK_BYTES)
            with h5py.File(temporary, "w") as file:
                file.attrs.update(schema=SCHEMA, schema_version=SCHEMA_VERSION)
                for name, array in arrays.items():
                    file[name] = array
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be written ({reason}); choose another --out") from None
