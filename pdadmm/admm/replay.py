"""Iterations of a GPU's layers as CUDA graphs: the device is told once what an iteration does.

Small networks are bound by the host, to whom a kernel costs several times what it costs the device. Where
nothing of an iteration is measured in detail and no message leaves the rank, its kernels are captured once
and launched together from then on. The arithmetic is the same, and so are the iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pdadmm.admm.layer import Layer, Terms
from pdadmm.admm.passes.lengths import DeviceLengths
from pdadmm.arrays.backend import Backend
from pdadmm.codec import Codec
from pdadmm.comm.channel import Incoming, Outgoing

__all__ = ["Replay"]

#: iterations that differ in what kernels are told: whether they are measured, whether the residual is made
#: anew, and the penalties, which a schedule may change
Kind = tuple[bool, bool, float, float]


@dataclass(frozen=True)
class _Captured:
    """An iteration that can be launched."""

    graph: Any
    iteration: int  #: that its labels were made for
    terms: dict[int, Terms]  #: on the device, where every launch writes them anew


class Replay:
    """The graphs of a stage; see :meth:`fits` for which.

    Arrays that an iteration makes and drops come from a memory pool of their own, which lives as long as the
    graphs, so that nothing else is ever there.

    Parameters
    ----------
    layers
        Of the stage.
    ends
        Of its messages.
    work
        ``work(iteration, measure)`` gives the device an iteration; returns the monitored terms by position.

    Attributes
    ----------
    launches
        Of graphs so far.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        ends: Sequence[Outgoing | Incoming],
        work: Callable[[int, bool], dict[int, Terms]],
    ) -> None:
        import cupy

        self._cupy, self._layers, self._ends, self._work = cupy, layers, ends, work
        self._pool = cupy.cuda.MemoryPool()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._met: set[Kind] = set()
        self._captured: dict[Kind, _Captured] = {}
        self.launches = 0

    @staticmethod
    def fits(layers: Sequence[Layer], codecs: Sequence[Codec], backend: Backend) -> bool:
        """Whether an iteration of these layers, alone on a rank, is kernels whose arguments stay the same.

        Not where the host decides (grids, the exact solver, CuPy's operations in place of kernels), and not
        where rounding draws a number in every iteration.
        """
        if not layers or not getattr(backend, "captures", False):
            return False
        passes = layers[0].passes
        return (
            passes.name == "fused"
            and isinstance(passes.lengths, DeviceLengths)
            and layers[0].hyper.solver == "gradient"
            and all(codec.name in ("delta", "float32") for codec in codecs)
            and all(f is None or f.slope_below is not None for f in (layer.activation for layer in layers))
        )

    def iterate(self, iteration: int, measure: bool) -> dict[int, Terms]:
        """What `work` does, by a graph from the second iteration of a kind on."""
        h = self._layers[0].hyper
        kind = measure, bool(iteration and iteration % h.refresh == 0), h.nu, h.rho
        if kind not in self._met:  # what is made at its first use is made now
            self._met.add(kind)
            return self._work(iteration, measure)
        captured = self._captured.get(kind)
        lengths = self._layers[0].passes.lengths
        assert isinstance(lengths, DeviceLengths)
        if captured is None:
            lengths.move(0)  # what is noted down names the iteration that it is
            captured = self._captured[kind] = self._capture(iteration, measure)
        else:
            for end in self._ends:
                end.count_from(end.messages + 1, end.bytes + end.channel.nbytes)
        lengths.move(iteration - captured.iteration)
        captured.graph.launch()
        self.launches += 1
        return captured.terms

    def _capture(self, iteration: int, measure: bool) -> _Captured:
        """The work of an iteration, given to a stream that only notes it down."""
        cuda = self._cupy.cuda
        with cuda.using_allocator(self._pool.malloc), self._stream:
            self._stream.begin_capture()
            terms = self._work(iteration, measure)
            graph = self._stream.end_capture()
        return _Captured(graph, iteration, terms)
