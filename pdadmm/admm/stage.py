"""A rank's part of a growth stage: its layers, its couplings, one iteration, forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.admm.coupling import CouplingEnd
from pdadmm.admm.growth import stage_positions
from pdadmm.admm.layer import Hyper, Layer, Terms, Workspace
from pdadmm.comm.codec import Codec
from pdadmm.comm.local import local_pair
from pdadmm.comm.mpi import MPILink, ProgressThread
from pdadmm.comm.waiting import Waiter
from pdadmm.trace import Clock

__all__ = ["FORWARD_ROWS", "Plan", "Stage"]

Array = Any

#: nodes that move through the ranks together in a forward pass
FORWARD_ROWS = 2048
_FORWARD_TAG = 20000


@dataclass
class Plan:
    """Who owns what in a stage.

    Parameters
    ----------
    depth
        Layers of the stage.
    layers
        Layers of the finished network.
    blocks
        Positions of each rank's layers in the finished network.
    rank
        This rank.
    """

    depth: int
    layers: int
    blocks: list[range]
    rank: int

    def __post_init__(self) -> None:
        self.positions = stage_positions(self.depth, self.layers)
        owner = {position: r for r, block in enumerate(self.blocks) for position in block}
        self.owners = [owner[position] for position in self.positions]
        self.mine = [p for p, r in zip(self.positions, self.owners, strict=True) if r == self.rank]
        #: rank of the layer below this rank's first one, and above its last one; None at the ends
        self.previous: int | None = None
        self.next: int | None = None
        if self.mine:
            first, last = self.positions.index(self.mine[0]), self.positions.index(self.mine[-1])
            self.previous = self.owners[first - 1] if first else None
            self.next = self.owners[last + 1] if last + 1 < len(self.positions) else None

    @property
    def output_rank(self) -> int:
        """Rank of the output layer."""
        return self.owners[-1]


class Stage:
    """This rank's active layers and how they talk.

    Parameters
    ----------
    plan
        Who owns what.
    layers
        This rank's layers that take part, in order.
    waiter
        Waits for MPI.
    clock
        Times the iterations.
    progress
        Keeps large messages moving; None without overlap.
    """

    def __init__(
        self,
        plan: Plan,
        layers: list[Layer],
        waiter: Waiter,
        clock: Clock,
        progress: ProgressThread | None = None,
    ) -> None:
        self.plan = plan
        self.layers = layers
        self.waiter = waiter
        self.clock = clock
        self.progress = progress

    # ---- forward passes -----------------------------------------------------------------------------

    def forward(
        self,
        rows: int,
        source: Callable[[int, int], Array],
        visit: Callable[[Layer, int, int, Array, Array], None] | None = None,
        output: Callable[[int, int, Array], None] | None = None,
    ) -> None:
        """Forward pass of `rows` nodes, pipelined over the ranks in chunks of FORWARD_ROWS.

        Parameters
        ----------
        source
            ``source(start, stop)`` gives the network's input; called on the rank of layer 1 only.
        visit
            Called for every layer of this rank with the chunk's bounds, input and linear output.
        output
            Called on the output layer's rank with the chunk's bounds and linear output.
        """
        if not self.layers:
            return
        pending: list[Any] = []
        for start in range(0, rows, FORWARD_ROWS):
            stop = min(start + FORWARD_ROWS, rows)
            if self.plan.previous is None:
                x = source(start, stop)
            else:
                x = np.empty((stop - start, self.layers[0].n_in), np.float32)
                self.waiter.receive(x, self.plan.previous, _FORWARD_TAG)
            for layer in self.layers:
                z = layer.linear(x)
                if visit is not None:
                    visit(layer, start, stop, x, z)
                x = z if layer.activation is None else layer.activation(z)
            if self.plan.next is not None:
                pending.append((x, self.waiter.send(x, self.plan.next, _FORWARD_TAG)))
            elif output is not None:
                output(start, stop, x)
        for _, requests in pending:
            self.waiter.all(requests, f"activations to reach rank {self.plan.next}")

    # ---- training -----------------------------------------------------------------------------------

    def start(
        self,
        X: Array | None,
        y: Array | None,
        nodes: int,
        make_codec: Callable[[Array], Codec],
        hyper: Hyper,
        kernels: Any,
        seed: int,
    ) -> None:
        """Reset z, p, q from a forward pass and u to 0, and plan the messages.

        Parameters
        ----------
        X
            (V, n_0) training features, on the rank of layer 1; None elsewhere.
        y
            (V,) training labels, on the output layer's rank.
        nodes
            V.
        make_codec
            Codec of a coupling from the activations it starts from; must give the same on both ends.
        """
        p: dict[int, Array] = {}
        z = {layer.position: np.empty((nodes, layer.n_out), np.float32) for layer in self.layers}
        for layer in self.layers:
            if self.plan.previous is None and layer is self.layers[0]:
                assert X is not None
                p[layer.position] = X
            else:
                p[layer.position] = np.empty((nodes, layer.n_in), np.float32)

        def keep(layer: Layer, start: int, stop: int, x: Array, linear: Array) -> None:
            z[layer.position][start:stop] = linear
            if p[layer.position] is not X:
                p[layer.position][start:stop] = x

        self.forward(nodes, lambda start, stop: X[start:stop], visit=keep)  # type: ignore[index]
        for layer in self.layers:
            layer.below = layer.above = None
        self._connect(p, z, nodes, make_codec, seed)
        work = Workspace()
        for layer in self.layers:
            own = p[layer.position] if layer.below is None else layer.below.own
            layer.start(
                own,
                z[layer.position],
                y if layer.activation is None else None,
                hyper,
                kernels,
                work,
                self.clock,
            )

    def _connect(
        self,
        p: dict[int, Array],
        z: dict[int, Array],
        nodes: int,
        make_codec: Callable[[Array], Codec],
        seed: int,
    ) -> None:
        for lower, upper in zip(self.layers, self.layers[1:], strict=False):
            start = p[upper.position]
            codec = make_codec(start)
            size = codec.nbytes(nodes, lower.n_out)
            ends = local_pair(size, size)
            lower.above = CouplingEnd(
                lower.position, codec, ends[0], start, upper=False, seed=seed, clock=self.clock
            )
            upper.below = CouplingEnd(
                lower.position, codec, ends[1], start, upper=True, seed=seed, clock=self.clock
            )
        if self.plan.previous is not None:
            layer = self.layers[0]
            start = p[layer.position]
            codec = make_codec(start)
            size = codec.nbytes(nodes, layer.n_in)
            index = self.plan.positions[self.plan.positions.index(layer.position) - 1]
            link = MPILink(self.waiter, self.plan.previous, index, True, size, size, self.progress)
            layer.below = CouplingEnd(index, codec, link, start, upper=True, seed=seed, clock=self.clock)
        if self.plan.next is not None:
            layer = self.layers[-1]
            assert layer.activation is not None
            start = layer.activation(z[layer.position])
            codec = make_codec(start)
            size = codec.nbytes(nodes, layer.n_out)
            link = MPILink(self.waiter, self.plan.next, layer.position, False, size, size, self.progress)
            layer.above = CouplingEnd(
                layer.position, codec, link, start, upper=False, seed=seed, clock=self.clock
            )

    @property
    def couplings(self) -> list[CouplingEnd]:
        """All coupling ends of this rank."""
        return [end for layer in self.layers for end in (layer.below, layer.above) if end is not None]

    def iterate(self, iteration: int, measure: bool) -> dict[int, Terms]:
        """One ADMM iteration of this rank's layers.

        The p-updates run from the top down and the q-updates from the bottom up, so that the two
        couplings to other ranks wait last and their messages have the most work to hide behind.

        Returns
        -------
        dict
            Monitored terms by position when `measure` is set, else empty.
        """
        if not self.layers:
            return {}
        self.clock.begin_iteration(iteration)
        for layer in reversed(self.layers):
            layer.update_p(iteration)
        for layer in self.layers:
            layer.update_weights(iteration)
        terms = {}
        for layer in self.layers:
            found = layer.update_outputs(iteration, measure)
            if found is not None:
                terms[layer.position] = found
        self.clock.end_iteration(self.layers[-1].position)
        return terms

    def finish(self) -> None:
        """Take in the last messages and free the requests."""
        for end in self.couplings:
            if end.upper:
                end.message()
        for end in self.couplings:
            end.link.close()
