"""Where an epoch's time goes: the clock of a rank, told by wrapped passes and products what was done.

An epoch's parts are the layers forward, backward, and the update of the weights. Outside of training epochs
nothing is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from pdadmm.comm.channel import Incoming, Outgoing
from pdadmm.gnn.passes.protocol import Passes
from pdadmm.gnn.products import Products
from pdadmm.trace.clock import Clock

__all__ = ["Laps", "gradients_name", "timed"]

Worker = TypeVar("Worker", Passes, Products)


def gradients_name(layer: int) -> str:
    """What the sum of a layer's gradients over the ranks is called in a profile."""
    return f"gradients {layer}"


class Laps:
    """The clock while an epoch is trained; silent else.

    Parameters
    ----------
    clock
        Of the rank; None: always silent.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._of_rank = clock
        self._clock: Clock | None = None
        self._layer = 0

    def begin(self, epoch: int) -> None:
        """Begin an epoch, counted from 0 since the widths were assigned."""
        self._clock = self._of_rank
        if self._clock is not None:
            self._clock.begin_iteration(epoch)

    def end(self) -> None:
        """End it."""
        if self._clock is not None:
            self._clock.end_iteration(self._layer)
        self._clock = None

    def part(self, name: str, layer: int) -> None:
        """Begin a part of the epoch: forward, backward or update, of a layer."""
        self._layer = layer
        if self._clock is not None:
            self._clock.part(name, layer)

    def lap(self, phase: str) -> None:
        """What was done since the last lap; see :data:`pdadmm.trace.clock.PHASES`."""
        if self._clock is not None:
            self._clock.lap(phase, self._layer)

    def start(self, end: Outgoing) -> None:
        """Start a message."""
        start = time.perf_counter_ns()
        end.start()
        if self._clock is not None and end.between_ranks:
            self._clock.message("sent", end.channel.name, end.messages, start)
            self.lap("send")

    def wait(self, end: Incoming) -> None:
        """Wait for a message."""
        start = time.perf_counter_ns()
        end.wait()
        if self._clock is not None and end.between_ranks:
            self._clock.message("received", end.channel.name, end.messages, start)
            self.lap("wait")

    def reduced(self, layer: int) -> None:
        """A step of the sum of a layer's gradients was made."""
        if self._clock is not None:
            self._clock.about(gradients_name(layer))
            self.lap("reduction")


#: what the methods of passes and products count as
_PHASES = {
    "aggregate": "aggregation",
    "hidden": "updates",
    "hidden_backward": "updates",
    "column_sums": "updates",
    "encode_rows": "codec",
    "decode_rows": "codec",
    "encode_change": "codec",
    "decode_change": "codec",
    "add_variances": "codec",
    "softmax_loss": "updates",
    "adam": "updates",
    "rows": "products",
    "over_rows": "products",
}


def timed(worker: Worker, laps: Laps) -> Worker:
    """Passes or products that tell a lap after all that they do."""
    public = {name: getattr(worker, name) for name in dir(worker) if not name.startswith("_")}
    for name, phase in _PHASES.items():
        if name in public:
            public[name] = _then_lap(public[name], laps, phase)
    return cast(Worker, SimpleNamespace(**public))


def _then_lap(method: Callable[..., Any], laps: Laps, phase: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        result = method(*arguments, **named)
        laps.lap(phase)
        return result

    return call
