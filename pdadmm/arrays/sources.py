"""Where the compiled host library and the CUDA sources are, and how they are loaded."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

from pdadmm.errors import InputError

__all__ = ["ABI", "HOST_LIBRARY", "LibraryError", "find", "find_source", "load"]

HOST_LIBRARY = "libpdadmm_host.so"
#: version of the arguments in kernels/passes.h and kernels/graph.h
ABI = 6


class LibraryError(InputError):
    """The compiled library is missing or is another version's."""


def find(name: str) -> Path | None:
    """The first installed file of this name.

    Looks in this package's ``kernels``, then in the ``pdadmm/kernels`` of every entry of ``sys.path``:
    started in a checkout, Python takes the package from there, while ``pip install`` put the library
    elsewhere.
    """
    here = Path(__file__).parents[1] / "kernels"
    for folder in (here, *(Path(entry) / "pdadmm" / "kernels" for entry in sys.path)):
        if (folder / name).is_file():
            return folder / name
    return None


def find_source(name: str) -> Path:
    """A CUDA source or header: of the checkout this module is in, or installed.

    Raises
    ------
    LibraryError
    """
    checkout = Path(__file__).parents[2] / "kernels" / name
    path = checkout if checkout.is_file() else find(name)
    if path is None:
        raise LibraryError(f"the CUDA source {name} is not installed; run: pip install .")
    return path


@functools.cache
def load() -> ctypes.CDLL:
    """The host library, loaded once a process.

    Raises
    ------
    LibraryError
        When it is missing, cannot be loaded, or takes other arguments than this package passes.
    """
    path = find(HOST_LIBRARY)
    if path is None:
        raise LibraryError(
            f"the compiled kernels ({HOST_LIBRARY}) are not installed; run: pip install .  "
            "(needs a C++ compiler), or choose the NumPy forms with --kernels reference"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"cannot load {path}: {error}; run: pip install .") from None
    found = library.pdadmm_abi() if hasattr(library, "pdadmm_abi") else None
    if found != ABI:
        raise LibraryError(f"{path} belongs to another version of pdadmm; run: pip install .")
    library.pdadmm_isa.restype = ctypes.c_char_p
    library.pdadmm_select_isa.argtypes = [ctypes.c_char_p]
    library.pdadmm_set_threads.argtypes = [ctypes.c_int]
    library.pdadmm_calls.restype = ctypes.c_int64
    return library
