"""The passes that a run's ``--kernels`` means."""

from __future__ import annotations

from pdadmm.arrays import sources
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
        ``numpy``, or ``cupy``, which has the compiled ones alone.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When compiled kernels are asked for and missing, or are another version's.
    ValueError
        For the reference on another backend.
    """
    if backend == "cupy":
        if choice == "reference":
            raise ValueError("there are no reference passes on cupy")
        from pdadmm.gnn.passes.cuda import CudaPasses

        return CudaPasses()
    # imported here: the reference needs no library
    missing = sources.find(sources.HOST_LIBRARY) is None
    if choice == "reference" or (choice == "auto" and missing):
        from pdadmm.gnn.passes.reference import ReferencePasses

        return ReferencePasses()
    from pdadmm.gnn.passes.host import HostPasses

    return HostPasses(threads)
