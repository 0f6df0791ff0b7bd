"""Graphs as `.npz` in the gnn-benchmark keys (Shchur et al., 2018), and users' own graphs in them."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .graph import Graph, Matrix, as_csr, as_features, csr_from_parts
from .npy import load_npz
from .splits import assemble

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
        dense = " (or attr_matrix)" if set(missing) & set(attribute_keys) else ""
        raise InputError(f"{where}: lacks {', '.join(missing)}{dense}; see docs/data.md for the keys")

    adjacency = csr_from_parts([arrays[k] for k in adjacency_keys], f"{where} (adj_*)")
    if "attr_matrix" in arrays:
        features: Matrix = as_features(arrays["attr_matrix"], f"{where} (attr_matrix)")
    else:
        features = as_csr(csr_from_parts([arrays[k] for k in attribute_keys], f"{where} (attr_*)"))
    given = [k for k in _SPLIT_KEYS if k in arrays]
    if given and len(given) < 3:
        raise InputError(
            f"{where}: holds {', '.join(given)} only; give all of {', '.join(_SPLIT_KEYS)} or none"
        )
    ids = [arrays[k] for k in _SPLIT_KEYS] if given else None
    called = ("labels", *_SPLIT_KEYS)
    return assemble(name, where, adjacency, features, arrays["labels"], ids, seed, called)
