"""The kernels that a run's ``--kernels`` means."""

from __future__ import annotations

from typing import Any

from pdadmm.admm.passes import make_kernels
from pdadmm.arrays import sources

__all__ = ["name_of", "select_kernels"]


def select_kernels(choice: str, threads: int, backend: str) -> Any:
    """:func:`pdadmm.admm.passes.make_kernels`, where ``auto`` does without a host library that is missing.

    Raises
    ------
    pdadmm.arrays.sources.LibraryError
        When compiled kernels are asked for and missing, or are another version's.
    """
    if choice == "auto" and backend == "numpy" and sources.find(sources.HOST_LIBRARY) is None:
        choice = "reference"
    return make_kernels(choice, threads, backend)


def name_of(kernels: Any, asked: str) -> str:
    """The kernels in words, for the line about what a run took."""
    if kernels.name == "fused":
        instructions = getattr(kernels, "instruction_set", "")
        return f"fused kernels ({instructions})" if instructions else "fused kernels"
    missing = " (the compiled ones are not installed: pip install .)" if asked == "auto" else ""
    return f"reference kernels{missing}"
