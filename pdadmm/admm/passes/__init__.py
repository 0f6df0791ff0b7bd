"""The passes between the matrix products of an iteration, one class a way to run them.

Every class has the methods of :class:`pdadmm.admm.passes.protocol.Passes`. The reference is array
operations over :mod:`pdadmm.admm.updates`, which the compiled ones are tested against.

On a GPU no method waits for the device. Sums that the methods return are 0-d float64 arrays there,
lengths that they take are such arrays or floats, and NaN or Inf is no reason to raise
(:mod:`pdadmm.admm.passes.lengths`).
"""

from pdadmm.admm.passes.protocol import Copies, Coupled, HiddenSums, Passes
from pdadmm.admm.passes.select import make_passes, passes_in_words, select_passes

__all__ = ["Copies", "Coupled", "HiddenSums", "Passes", "make_passes", "passes_in_words", "select_passes"]
