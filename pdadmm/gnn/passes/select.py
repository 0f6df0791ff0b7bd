"""The passes that a run's ``--kernels`` means."""

from __future__ import annotations

from pdadmm.arrays import sources
from pdadmm.errors import InputError
from pdadmm.gnn.passes.protocol import Passes

__all__ = ["make_passes"]


def make_passes(choice: str, threads: int, backend: str = "numpy") -> Passes:
    """The passes of a run.

    Parameters
    ----------
    choice
        ``fused`` takes the compiled kernels, ``reference`` array operations, ``auto`` the compiled ones
        where they are installed.
    threads
        Of a pass.
    backend
        ``numpy``.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When compiled kernels are asked for and missing, or are another version's.
    InputError
        For another backend.
    """
    if backend != "numpy":
        raise InputError(f"graph networks have no passes on {backend}; choose --backend numpy")
    # imported here: the reference needs no library
    missing = sources.find(sources.HOST_LIBRARY) is None
    if choice == "reference" or (choice == "auto" and missing):
        from pdadmm.gnn.passes.reference import ReferencePasses

        return ReferencePasses()
    from pdadmm.gnn.passes.host import HostPasses

    return HostPasses(threads)
