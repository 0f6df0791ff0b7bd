"""Graphs as `.npz` in the gnn-benchmark keys (Shchur et al., 2018), and users' own graphs in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .graph import UNLABELLED, Graph, Matrix, as_csr, as_features, csr_from_parts, mask_ids
from .npy import load_npz
from .splits import assemble

__all__ = ["read_gnn_benchmark"]

_SPLIT_KEYS = ("train_idx", "val_idx", "test_idx")
_MASK_KEYS = ("train_mask", "val_mask", "test_mask")
#: with which other names of splits begin
_SPLIT_WORDS = ("train", "val", "valid", "validation", "dev", "test")


def read_gnn_benchmark(path: Path, name: str, seed: int, classes: int = 0) -> Graph:
    """Read a graph from an .npz.

    Keys: `adj_data adj_indices adj_indptr adj_shape` (CSR adjacency); the features as
    `attr_data attr_indices attr_indptr attr_shape` (CSR) or `attr_matrix` (dense); `labels` (N,), or
    (N, C) of 0 and 1 where a node has several, -1 or NaN where it has none; optionally
    `train_idx val_idx test_idx` (node ids) or `train_mask val_mask test_mask` (N,), else a split is drawn
    from the seed. With `classes`, as of `load`, `labels` may be missing.

    Raises
    ------
    InputError
        For a damaged file, a missing key, one that looks like a split and is none, or anything `Graph`
        refuses.
    """
    where = str(path)
    adjacency_keys, attribute_keys = (
        tuple(f"{prefix}_{part}" for part in ("data", "indices", "indptr", "shape"))
        for prefix in ("adj", "attr")
    )
    wanted = (*adjacency_keys, *attribute_keys, "attr_matrix", "labels", *_SPLIT_KEYS, *_MASK_KEYS)
    arrays, others = load_npz(path, wanted)
    features_keys = ("attr_matrix",) if "attr_matrix" in arrays else attribute_keys
    needed = (*adjacency_keys, *features_keys) if classes else (*adjacency_keys, *features_keys, "labels")
    missing = [k for k in needed if k not in arrays]
    if missing:
        dense = " (or attr_matrix)" if set(missing) & set(attribute_keys) else ""
        raise InputError(f"{where}: lacks {', '.join(missing)}{dense}; see docs/data.md for the keys")

    adjacency = csr_from_parts([arrays[k] for k in adjacency_keys], f"{where} (adj_*)")
    if "attr_matrix" in arrays:
        features: Matrix = as_features(arrays["attr_matrix"], f"{where} (attr_matrix)")
    else:
        features = as_csr(csr_from_parts([arrays[k] for k in attribute_keys], f"{where} (attr_*)"))
    keys, ids = _split(arrays, others, features.shape[0], where)
    labels = arrays.get("labels", np.full(features.shape[0], UNLABELLED))
    return assemble(name, where, adjacency, features, labels, ids, seed, ("labels", *keys), classes)


def _split(
    arrays: Mapping[str, np.ndarray], others: Sequence[str], nodes: int, where: str
) -> tuple[Sequence[str], list[np.ndarray] | None]:
    """Names of the arrays of the split, and node ids; no ids where the file has none."""
    kinds = [keys for keys in (_SPLIT_KEYS, _MASK_KEYS) if any(key in arrays for key in keys)]
    unknown = [name for name in others if name.partition("_")[0] in _SPLIT_WORDS]
    if len(kinds) > 1 or unknown:
        found = ", ".join([*(key for keys in kinds for key in keys if key in arrays), *unknown])
        raise InputError(
            f"{where}: holds {found}; give a split as {', '.join(_SPLIT_KEYS)}, or as {', '.join(_MASK_KEYS)}"
        )
    keys = kinds[0] if kinds else _SPLIT_KEYS
    given = [key for key in keys if key in arrays]
    if given and len(given) < 3:
        raise InputError(f"{where}: holds {', '.join(given)} only; give all of {', '.join(keys)} or none")
    if keys is _MASK_KEYS:
        return keys, [mask_ids(arrays[key], nodes, f"{where} ({key})") for key in keys]
    return keys, [arrays[key] for key in keys] if given else None
