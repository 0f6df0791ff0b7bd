"""Data sets: a registry, one reader for each file format, splits and the synthetic default.

>>> from pdadmm.datasets import load
>>> graph = load("synthetic", seed=0)
>>> graph.num_nodes, graph.num_classes
(2700, 7)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .registry import REGISTRY, Dataset, dataset

if TYPE_CHECKING:
    from .foreign import from_networkx, from_pyg, write_npz
    from .graph import Graph
    from .loading import called, load
    from .synthetic import synthetic_graph

__all__ = [
    "REGISTRY",
    "Dataset",
    "Graph",
    "called",
    "dataset",
    "from_networkx",
    "from_pyg",
    "load",
    "synthetic_graph",
    "write_npz",
]

_MODULES = {
    "Graph": "graph",
    "called": "loading",
    "from_networkx": "foreign",
    "from_pyg": "foreign",
    "load": "loading",
    "synthetic_graph": "synthetic",
    "write_npz": "foreign",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the name is)
    # lazily: readers need SciPy, a quarter of a second and 16 MB that a rank which trains can do without
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
