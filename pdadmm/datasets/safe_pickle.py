"""Unpickling that can build arrays and containers but cannot call anything else."""

from __future__ import annotations

import collections
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .graph import csr_from_parts

__all__ = ["load_pickle"]


class _SparseParts:
    """Stands in for SciPy's sparse classes: receives their pickled state and runs no SciPy code on it."""


def _encode_latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as array pickles use it: bytes written as latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _admitted() -> dict[tuple[str, str], object]:
    names: dict[tuple[str, str], object] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode_latin1,
        ("collections", "defaultdict"): collections.defaultdict,
    }
    # The function behind np.ndarray.__reduce__ has moved over the years; its own pickle says where it is.
    reconstruct = np.zeros(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "_reconstruct"] = reconstruct
    for module in ("__builtin__", "builtins"):
        names.update({(module, kind.__name__): kind for kind in (list, dict, int)})
    for module in ("scipy.sparse.csr", "scipy.sparse._csr"):
        names.update({(module, kind): _SparseParts for kind in ("csr_matrix", "csr_array")})
    return names


class _Unpickler(pickle.Unpickler):
    admitted = _admitted()

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # pickles of Python 2 keep array bytes in str
        self.path = path

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.admitted[module, name]
        except KeyError:
            raise InputError(
                f"{self.path}: refused: the pickle asks for {module}.{name}, which is neither an array nor a "
                "plain container; fetch the file again from its publisher"
            ) from None


def load_pickle(path: Path) -> Any:  # noqa: ANN401  (the readers check what it is)
    """Load a pickle of NumPy arrays, SciPy CSR matrices, dicts and lists; refuse anything else.

    Raises
    ------
    InputError
        When the file is missing or damaged, or names any other class or function. Nothing that the
        pickle names is imported or called.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's notes on array pickles of NumPy 1
            loaded = _Unpickler(io.BytesIO(content), path).load()
    except InputError:
        raise
    except Exception as exc:  # a damaged pickle can raise nearly anything
        kind = type(exc).__name__
        raise InputError(f"{path}: truncated or damaged ({kind}); fetch the file again") from None
    if isinstance(loaded, _SparseParts):
        state = vars(loaded)
        return csr_from_parts([state.get(k) for k in ("data", "indices", "indptr", "_shape")], str(path))
    return loaded
