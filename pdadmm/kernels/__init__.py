"""The fused passes between the matrix products of an iteration, one class a way to run them.

Every class offers the same methods as :class:`pdadmm.kernels.reference.ReferenceKernels`, which is
plain NumPy over :mod:`pdadmm.admm.updates` and what the others are tested against.
"""

from __future__ import annotations
