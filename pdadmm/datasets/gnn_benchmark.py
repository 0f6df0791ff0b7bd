"""Graphs as `.npz` in the gnn-benchmark keys (Shchur et al., 2018), and users' own graphs in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .graph import (
    Graph,
    Matrix,
    as_csr,
    as_features,
    as_ids,
    as_label_matrix,
    as_labels,
    clean_adjacency,
    csr_from_parts,
    is_directed,
)
from .npy import load_npz
from .splits import draw_fractions, draw_split

__all__ = ["read_gnn_benchmark"]

_SPLIT_KEYS = ("train_idx", "val_idx", "test_idx")


def read_gnn_benchmark(path: Path, name: str, seed: int) -> Graph:
    """Read a graph from an .npz.

    Keys: `adj_data adj_indices adj_indptr adj_shape` (CSR adjacency); the features as
    `attr_data attr_indices attr_indptr attr_shape` (CSR) or `attr_matrix` (dense); `labels` (N,), or
    (N, C) of 0 and 1 where a node has several; optionally `train_idx val_idx test_idx` (node ids), else a
    split is drawn from the seed.

    Raises
    ------
    InputError
        For a damaged file, a missing key, or anything `Graph` refuses.
    """
    where = str(path)
    adjacency_keys, attribute_keys = (
        tuple(f"{prefix}_{part}" for part in ("data", "indices", "indptr", "shape"))
        for prefix in ("adj", "attr")
    )
    arrays = load_npz(path, (*adjacency_keys, *attribute_keys, "attr_matrix", "labels", *_SPLIT_KEYS))
    features_keys = ("attr_matrix",) if "attr_matrix" in arrays else attribute_keys
    missing = [k for k in (*adjacency_keys, *features_keys, "labels") if k not in arrays]
    if missing:
        raise InputError(f"{where}: lacks {', '.join(missing)}; see docs/data.md for the keys")

    adjacency = csr_from_parts([arrays[k] for k in adjacency_keys], f"{where} (adj_*)")
    if "attr_matrix" in arrays:
        features: Matrix = as_features(arrays["attr_matrix"], f"{where} (attr_matrix)")
    else:
        features = as_csr(csr_from_parts([arrays[k] for k in attribute_keys], f"{where} (attr_*)"))
    several = arrays["labels"].ndim == 2 and 1 not in arrays["labels"].shape
    labels: np.ndarray = (as_label_matrix if several else as_labels)(arrays["labels"], f"{where} (labels)")
    given = [k for k in _SPLIT_KEYS if k in arrays]
    if given and len(given) < 3:
        raise InputError(
            f"{where}: holds {', '.join(given)} only; give all of {', '.join(_SPLIT_KEYS)} or none"
        )
    if given:
        train, val, test = (as_ids(arrays[k], f"{where} ({k})") for k in _SPLIT_KEYS)
    elif several:
        train, val, test = draw_fractions(np.arange(len(labels)), seed, where)
    else:
        train, val, test = draw_split(labels, seed, where)
    num_classes = labels.shape[1] if several else int(labels.max()) + 1 if labels.size else 0
    cleaned = clean_adjacency(adjacency, where)
    directed = is_directed(adjacency, cleaned)
    return Graph(name, cleaned, features, labels, train, val, test, num_classes, where, directed)
