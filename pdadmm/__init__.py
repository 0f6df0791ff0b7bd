"""Layer-parallel ADMM training of deep graph-augmented MLPs, one MPI rank a layer."""

from __future__ import annotations

import os
from typing import Any

# OpenBLAS's threads spin for some 25 ms after a product, in the way of the passes between products.
# They read this when NumPy is loaded; 4 is the shortest.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

__version__ = "0.1.0"
# without ADMMClassifier, so that a star import does not need scikit-learn
__all__ = ["GraphModel", "Model", "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "ADMMClassifier"})


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the name is)
    # lazily, so that starting a command does not load what it does not need
    if name == "Model":
        from pdadmm.model import Model

        return Model
    if name == "GraphModel":
        from pdadmm.gnn.model import GraphModel

        return GraphModel
    if name == "ADMMClassifier":
        from pdadmm.estimator import ADMMClassifier

        return ADMMClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
