"""Graphs in the folder format of GraphSAINT (Zeng et al., ICLR 2020)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import InputError
from .graph import (
    Graph,
    as_features,
    as_ids,
    as_label_matrix,
    as_labels,
    clean_adjacency,
    csr_from_parts,
    is_directed,
)
from .npy import load_npy, load_npz
from .raw import read_whole

__all__ = ["read_graphsaint"]

T = TypeVar("T")


def read_graphsaint(files: Mapping[str, Path], name: str) -> Graph:
    """Read adj_full.npz (SciPy CSR), feats.npy, class_map.json and role.json (keys tr, va, te).

    A node has one label (Flickr, Reddit) or a list of zeros and ones, one for every class (Yelp).

    Parameters
    ----------
    files : mapping from the published name to the path

    Raises
    ------
    InputError
        For damaged files and anything `Graph` refuses.
    """
    path = files["adj_full.npz"]
    keys = ("data", "indices", "indptr", "shape")
    arrays, _ = load_npz(path, keys)
    missing = [k for k in keys if k not in arrays]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}, so it is no SciPy CSR matrix; fetch it again")
    published = csr_from_parts([arrays[k] for k in keys], str(path))
    adjacency = clean_adjacency(published, str(path))

    path = files["feats.npy"]
    features = as_features(load_npy(path), str(path))

    path = files["class_map.json"]
    class_map = _json(path, dict)
    n = features.shape[0]
    several = any(isinstance(label, list) for label in class_map.values())
    try:
        nodes = as_ids([int(k) for k in class_map], str(path))
        if nodes.size != n or (nodes != np.arange(n)).any():
            raise InputError(f"{path}: labels are for other nodes than 0 to {n - 1}; fetch it again")
        labels = (as_label_matrix if several else as_labels)([class_map[str(i)] for i in range(n)], str(path))
    except (ValueError, TypeError, KeyError, OverflowError):
        raise InputError(f"{path}: not a mapping from node to class; fetch it again") from None

    path = files["role.json"]
    role = _json(path, dict)
    if any(not isinstance(role.get(key), list) for key in ("tr", "va", "te")):
        raise InputError(f"{path}: lacks one of the lists tr, va, te; fetch it again")
    try:
        train, val, test = (as_ids(role[key], f"{path} ({key})") for key in ("tr", "va", "te"))
    except (ValueError, OverflowError):
        raise InputError(f"{path}: holds something other than node ids; fetch it again") from None
    return Graph(
        name=name,
        adjacency=adjacency,
        features=features,
        labels=labels,
        train=train,
        val=val,
        test=test,
        num_classes=labels.shape[1] if several else int(labels.max()) + 1 if labels.size else 0,
        origin=str(path.parent),
        directed=is_directed(published, adjacency),
    )


def _json(path: Path, kind: type[T]) -> T:
    try:
        value = json.loads(read_whole(path).decode("utf-8"))
    except (ValueError, RecursionError) as exc:  # RecursionError: nested beyond reason
        raise InputError(f"{path}: damaged JSON ({type(exc).__name__}); fetch it again") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: not a JSON object; fetch it again")
    return value
