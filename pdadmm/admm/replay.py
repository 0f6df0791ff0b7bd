"""Iterations of a GPU's layers as CUDA graphs: the device is told once what an iteration does.

Small networks are bound by the host, to whom a kernel costs several times what it costs the device. Where
nothing of an iteration is measured in detail and no message leaves the rank, its kernels are captured once
and launched together from then on. The arithmetic is the same, and so are the iterates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdadmm.admm.layer import Terms
from pdadmm.admm.passes.lengths import DeviceLengths
from pdadmm.codec import Codec

if TYPE_CHECKING:
    from pdadmm.admm.stage import Stage

__all__ = ["Replay"]

#: iterations that differ in what is computed: whether they are measured, and whether the residual is fresh
Kind = tuple[bool, bool]


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
    """

    def __init__(self, stage: Stage) -> None:
        import cupy

        self._cupy, self._stage = cupy, stage
        self._pool = cupy.cuda.MemoryPool()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._met: set[Kind] = set()
        self._captured: dict[Kind, _Captured] = {}
        self.launches = 0

    @staticmethod
    def fits(stage: Stage) -> bool:
        """Whether an iteration is nothing but kernels whose arguments stay the same.

        Not where messages go to other ranks, where the host decides (grids, the exact solver, CuPy's
        operations in place of kernels), and not where rounding draws a number in every iteration.
        """
        plan, layers = stage.plan, stage.layers
        if not layers or plan.edge_below is not None or plan.edge_above is not None or stage.nodes.size > 1:
            return False
        passes = layers[0].passes
        return (
            getattr(stage.backend, "captures", False)
            and passes.name == "fused"
            and isinstance(passes.lengths, DeviceLengths)
            and layers[0].hyper.solver == "gradient"
            and all(_is_steady(end.codec) for end in stage.couplings)
            and all(f is None or f.slope_below is not None for f in (layer.activation for layer in layers))
        )

    def iterate(self, iteration: int, measure: bool) -> dict[int, Terms]:
        """:meth:`Stage.work` by a graph, from the second iteration of a kind on."""
        stage = self._stage
        refresh = stage.layers[0].hyper.refresh
        kind = measure, bool(iteration and iteration % refresh == 0)
        if kind not in self._met:  # what is made at its first use is made now
            self._met.add(kind)
            return stage.work(iteration, measure)
        counts = [(end.messages, end.bytes) for end in stage.traffic]
        captured = self._captured.get(kind)
        if captured is None:
            captured = self._captured[kind] = self._capture(iteration, measure)
        else:
            for end, (messages, total) in zip(stage.traffic, counts, strict=True):
                end.count_from(messages + 1, total + end.channel.nbytes)
        lengths = stage.layers[0].passes.lengths
        assert isinstance(lengths, DeviceLengths)
        lengths.move(iteration - captured.iteration)
        captured.graph.launch()
        self.launches += 1
        return captured.terms

    def _capture(self, iteration: int, measure: bool) -> _Captured:
        """The work of an iteration, given to a stream that only notes it down."""
        cuda, stage = self._cupy.cuda, self._stage
        with cuda.using_allocator(self._pool.malloc), self._stream:
            self._stream.begin_capture()
            terms = stage.work(iteration, measure)
            graph = self._stream.end_capture()
        return _Captured(graph, iteration, terms)


def _is_steady(codec: Codec) -> bool:
    """Whether a codec's kernels are told the same in every iteration."""
    return codec.name in ("delta", "float32")
