"""Loading a data set by name, or a user's own graph from a file."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from ..files import Record
from .fetch import Progress, raw_files
from .gnn_benchmark import read_gnn_benchmark
from .graph import Graph
from .graphsaint import read_graphsaint
from .mnist import read_mnist
from .ogb import read_ogb
from .planetoid import read_planetoid
from .registry import PLANETOID_PARTS, REGISTRY, dataset
from .splits import check_seed
from .synthetic import synthetic_graph

__all__ = ["called", "load"]

_NOT_SYNTHETIC = "options of the synthetic graph do not apply; leave them out"


def called(name: str | os.PathLike[str]) -> str:
    """What a data set is called in files and reports: its registry name, or the stem of a user's own graph.

    A user's graph whose stem is a registry name keeps its suffix: `cora.npz` is not the data set `cora`.
    """
    text = os.fspath(name)
    if not text.endswith(".npz"):
        return dataset(text).name
    path = Path(text)
    return path.name if path.stem.casefold() in REGISTRY else path.stem


def load(
    name: str | os.PathLike[str],
    *,
    raw: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verify: bool = True,
    progress: Progress | None = None,
    synthetic: Record | None = None,
    classes: int = 0,
) -> Graph:
    """Load a data set by its registry name, or a user's own graph from an .npz.

    Parameters
    ----------
    name : str or Path
        A name of the registry, or a path that ends in .npz (gnn-benchmark keys).
    raw : str or Path, optional
        Folder of the raw files; by default data/raw/NAME, filled by download.
    seed : int
        Draws the split where none is published, and the synthetic graph.
    verify : bool
        Compare raw files with the registry's checksums.
    progress : Progress, optional
        Told about downloads.
    synthetic : dict, optional
        Options of `synthetic_graph`, when that is the name.
    classes : int
        C of a user's own graph that a trained model is to predict on: it may lack labels, classes and splits.
        Where it has no split, nodes with a label are test nodes. 0: the graph is to train on.

    Raises
    ------
    InputError
        For unknown names and for files that are missing, damaged or inconsistent.
    """
    check_seed(seed)
    text = os.fspath(name)
    if text.endswith(".npz"):
        if raw is not None:
            raise InputError(f"{text}: a file needs no --raw; leave one of the two out")
        if synthetic:
            raise InputError(f"{text}: {_NOT_SYNTHETIC}")
        return read_gnn_benchmark(Path(text), called(text), seed, classes)
    entry = dataset(text)
    if classes:
        raise InputError(f"{text}: has labels of its own; --classes is for a graph of yours, leave it out")
    if synthetic and entry.format != "synthetic":
        raise InputError(f"{text}: {_NOT_SYNTHETIC}")
    if entry.format == "synthetic":
        if raw is not None:
            raise InputError("synthetic: is generated and needs no --raw; leave it out")
        return synthetic_graph(seed=seed, **(synthetic or {}))
    files = raw_files(entry, raw, verify, progress)
    if entry.format == "planetoid":
        return read_planetoid({p: files[f"ind.{text}.{p}"] for p in PLANETOID_PARTS}, text)
    if entry.format == "gnn-benchmark":
        (path,) = files.values()
        return read_gnn_benchmark(path, text, seed)
    if entry.format == "ogb":
        return read_ogb(files, text)
    if entry.format == "graphsaint":
        return read_graphsaint(files, text)
    return read_mnist(files, text, seed)
