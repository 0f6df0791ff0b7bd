"""The fused passes between the matrix products of an iteration, one class a way to run them.

Every class offers the same methods as :class:`pdadmm.admm.passes.reference.ReferenceKernels`, which is
plain NumPy over :mod:`pdadmm.admm.updates` and what the others are tested against.

On a GPU no method waits for the device. Sums that the methods return are 0-d float64 arrays there,
lengths that they take are such arrays or floats, and NaN or Inf is no reason to raise: the backend's
step_length notes where a norm first was not finite (:mod:`pdadmm.arrays.backend`).
"""

from __future__ import annotations

from typing import Any

__all__ = ["make_kernels"]


def make_kernels(choice: str, threads: int, backend: str = "numpy") -> Any:
    """The kernels of a run.

    Parameters
    ----------
    choice
        ``auto`` and ``fused`` take the compiled kernels, ``reference`` the NumPy forms. A missing
        library is an error, never a silent change to the NumPy forms.
    threads
        Of a pass on the host.
    backend
        ``numpy`` or ``cupy``.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When the compiled kernels are wanted and not installed.
    """
    # imported here: the reference needs no library, and only one backend's is loaded
    if choice == "reference":
        from pdadmm.admm.passes.reference import ReferenceKernels

        return ReferenceKernels()
    if backend == "cupy":
        from pdadmm.admm.passes.cuda import CudaKernels

        return CudaKernels()
    from pdadmm.admm.passes.host import HostKernels

    return HostKernels(threads)
