"""Where an epoch's time goes: the clock of a rank, told by wrapped passes and products what was done.

An epoch's parts are the layers forward, backward, and the update of the weights. Outside of training epochs
nothing is told.
"""

from __future__ import annotations

import time

from pdadmm.arrays import Array
from pdadmm.comm.channel import Incoming, Outgoing
from pdadmm.gnn.passes.protocol import Drop, Passes, Sparse
from pdadmm.gnn.products import Products
from pdadmm.trace.clock import Clock

__all__ = ["Laps", "TimedPasses", "TimedProducts", "gradients_name"]


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


class TimedPasses(Passes):
    """Passes that tell their laps; see :class:`pdadmm.gnn.passes.protocol.Passes`."""

    def __init__(self, passes: Passes, laps: Laps) -> None:
        self._passes, self._laps = passes, laps
        self.name = passes.name

    def aggregate(self, matrix: Sparse, X: Array, out: Array, add: bool = False) -> None:
        self._passes.aggregate(matrix, X, out, add)
        self._laps.lap("aggregation")

    def hidden(
        self,
        Z: Array,
        bias: Array,
        gamma: Array,
        beta: Array,
        nodes: Array,
        drop: Drop,
        N: Array,
        inverse: Array,
        H: Array,
    ) -> None:
        self._passes.hidden(Z, bias, gamma, beta, nodes, drop, N, inverse, H)
        self._laps.lap("updates")

    def hidden_backward(
        self,
        G: Array,
        N: Array,
        inverse: Array,
        gamma: Array,
        beta: Array,
        nodes: Array,
        drop: Drop,
        sums: Array,
    ) -> None:
        self._passes.hidden_backward(G, N, inverse, gamma, beta, nodes, drop, sums)
        self._laps.lap("updates")

    def column_sums(self, G: Array, sums: Array) -> None:
        self._passes.column_sums(G, sums)
        self._laps.lap("updates")

    def encode_rows(self, X: Array, rows: Array, bits: int, key: int, out: Array) -> None:
        self._passes.encode_rows(X, rows, bits, key, out)
        self._laps.lap("codec")

    def decode_rows(self, message: Array, bits: int, rows: Array, X: Array) -> None:
        self._passes.decode_rows(message, bits, rows, X)
        self._laps.lap("codec")

    def softmax_loss(
        self, Z: Array, bias: Array, labels: Array, weight: float, G: Array
    ) -> tuple[float, int]:
        found = self._passes.softmax_loss(Z, bias, labels, weight, G)
        self._laps.lap("updates")
        return found

    def adam(
        self, x: Array, gradient: Array, first: Array, second: Array, step: int, rate: float, decay: float
    ) -> None:
        self._passes.adam(x, gradient, first, second, step, rate, decay)
        self._laps.lap("updates")


class TimedProducts(Products):
    """Products that tell their laps."""

    def __init__(self, products: Products, laps: Laps) -> None:
        self._products, self._laps = products, laps

    def rows(self, A: Array, B: Array, out: Array, add: bool = False) -> None:
        self._products.rows(A, B, out, add)
        self._laps.lap("products")

    def over_rows(self, G: Array, A: Array, out: Array) -> None:
        self._products.over_rows(G, A, out)
        self._laps.lap("products")

    def close(self) -> None:
        self._products.close()
