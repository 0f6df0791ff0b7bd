"""The passes that a run's ``--kernels`` means."""

from __future__ import annotations

from pdadmm.admm.passes.protocol import Passes
from pdadmm.arrays import sources
from pdadmm.codec import make_codec

__all__ = ["make_passes", "passes_in_words", "select_passes"]


def make_passes(choice: str, threads: int, backend: str = "numpy", groups: int = 0) -> Passes:
    """The passes of a run.

    Parameters
    ----------
    choice
        ``auto`` and ``fused`` take the compiled kernels, ``reference`` array operations. A missing
        library is an error, never a silent change to the reference.
    threads
        Of a pass on the host.
    backend
        ``numpy`` or ``cupy``.
    groups
        Of the nodes on the host, see :mod:`pdadmm.arrays.groups`; 0: none.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When the compiled kernels are wanted and not installed.
    """
    # imported here: the reference needs no library, and only one backend's is loaded
    if choice == "reference":
        from pdadmm.admm.passes.lengths import DeviceLengths
        from pdadmm.admm.passes.reference import ReferencePasses

        return ReferencePasses(DeviceLengths() if backend == "cupy" else None, groups)
    if backend == "cupy":
        from pdadmm.admm.passes.cuda import CudaPasses

        return CudaPasses()
    from pdadmm.admm.passes.host import HostPasses

    return HostPasses(threads, groups)


def select_passes(choice: str, threads: int, backend: str, groups: int = 0) -> Passes:
    """:func:`make_passes`, where ``auto`` does without a host library that is missing.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When compiled kernels are asked for and missing, or are another version's.
    """
    if choice == "auto" and backend == "numpy" and sources.find(sources.HOST_LIBRARY) is None:
        choice = "reference"
    return make_passes(choice, threads, backend, groups)


def passes_in_words(passes: Passes, asked: str, codec: str, bits: int) -> str:
    """The passes in words, for the line about what a run took.

    Parameters
    ----------
    asked
        The option ``--kernels``.
    codec, bits
        Of the messages: one that has no compiled form runs in the reference's.
    """
    if passes.name == "fused":
        instructions = getattr(passes, "instruction_set", "")
        words = f"fused kernels ({instructions})" if instructions else "fused kernels"
        if passes.fuses(make_codec(codec, bits, (0.0, 1.0))):
            return words
        return f"{words}, reference kernels around messages (codec {codec} has no compiled form)"
    missing = " (the compiled ones are not installed: pip install .)" if asked == "auto" else ""
    return f"reference kernels{missing}"
