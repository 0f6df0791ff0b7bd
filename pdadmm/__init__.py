"""Layer-parallel ADMM training of deep graph-augmented MLPs, one MPI rank a layer."""

from __future__ import annotations

__version__ = "0.1.0"
