"""A rank's part of a growth stage: its layers, its couplings, one iteration, forward passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pdadmm.admm.coupling import CouplingEnd, Edge
from pdadmm.admm.growth import stage_positions
from pdadmm.admm.layer import Hyper, Layer, Terms
from pdadmm.admm.passes.lengths import place_of
from pdadmm.admm.passes.protocol import Passes
from pdadmm.admm.replay import Replay
from pdadmm.admm.weights import Inputs
from pdadmm.arrays import Array, Scalar
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.arrays.groups import rows_of_groups
from pdadmm.arrays.workspace import Workspace
from pdadmm.codec import Codec, NonFiniteError
from pdadmm.comm.channel import Ends, Incoming, Outgoing
from pdadmm.comm.grid import ALONE, Axis
from pdadmm.comm.local import local_ends
from pdadmm.comm.mpi import MPITransport
from pdadmm.comm.rounds import Round, Rounds
from pdadmm.comm.transport import Transport
from pdadmm.comm.waiter import Waiter
from pdadmm.files import Record
from pdadmm.trace.clock import Clock

__all__ = ["FORWARD_ROWS", "Plan", "Stage"]

#: a codec, from what gives the smallest and largest value that it is for
MakeCodec = Callable[[Callable[[], tuple[float, float]]], Codec]

#: nodes that move through the ranks together in a forward pass
FORWARD_ROWS = 2048


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
        Positions of each block's layers in the finished network.
    block
        That of this rank.
    rank_of
        The rank that this one talks to in another block; by default a block is a rank.
    """

    depth: int
    layers: int
    blocks: list[range]
    block: int
    rank_of: Callable[[int], int] = int

    def __post_init__(self) -> None:
        self.positions = stage_positions(self.depth, self.layers)
        owner = {position: b for b, block in enumerate(self.blocks) for position in block}
        #: blocks of these layers
        self.owners = [owner[position] for position in self.positions]
        self.mine = [p for p, b in zip(self.positions, self.owners, strict=True) if b == self.block]
        #: rank of the layer below this rank's first one, and above its last one; None at the ends
        self.below: int | None = None
        self.above: int | None = None
        #: those layers with their neighbours here
        self.edge_below: Edge | None = None
        self.edge_above: Edge | None = None
        for place, edge in enumerate(itertools.starmap(Edge, itertools.pairwise(self.positions))):
            below, above = self.owners[place : place + 2]
            if below != above == self.block:
                self.below, self.edge_below = self.rank_of(below), edge
            if above != below == self.block:
                self.above, self.edge_above = self.rank_of(above), edge

    def rounds(self, below_bytes: int = 0, above_bytes: int = 0) -> Rounds:
        """What this rank sends and receives in an iteration: P, all that goes down, then Q, what goes up.

        The sizes of the messages to and from the rank below and the rank above may be left out where
        only their order counts.
        """
        couplings = []
        if self.below is not None and self.edge_below is not None:
            couplings.append(self.edge_below.channels(self.below, below_bytes, at_above=True))
        if self.above is not None and self.edge_above is not None:
            couplings.append(self.edge_above.channels(self.above, above_bytes, at_above=False))
        return Rounds(
            (Round("P", tuple(p for p, _ in couplings)), Round("Q", tuple(q for _, q in couplings)))
        )


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
    transport
        How messages travel between ranks; None: over MPI between arrays on the host.
    backend
        Of the arrays.
    nodes
        The shards of this rank's block.
    """

    def __init__(
        self,
        plan: Plan,
        layers: list[Layer],
        waiter: Waiter,
        clock: Clock,
        transport: Transport | None = None,
        backend: Backend = NUMPY,
        nodes: Axis = ALONE,
    ) -> None:
        self.transport = transport or MPITransport(waiter)
        self.backend = backend
        self.nodes = nodes
        self.plan = plan
        self.layers = layers
        self.waiter = waiter
        self.clock = clock
        self._ends = Ends({}, {})
        self._replay: Replay | None = None

    # ---- forward passes -----------------------------------------------------------------------------

    def forward(
        self,
        rows: int,
        source: Callable[[int, int], Inputs],
        visit: Callable[[Layer, int, int, Inputs, Array], None] | None = None,
        output: Callable[[int, int, Array], None] | None = None,
    ) -> None:
        """Forward pass of `rows` nodes, pipelined over the ranks in chunks of a group, at most FORWARD_ROWS.

        Parameters
        ----------
        source
            ``source(start, stop)`` gives what layer 1's ``linear`` takes; called on its rank only.
        visit
            Called for every layer of this rank with the chunk's bounds, input and linear output.
        output
            Called on the output layer's rank with the chunk's bounds and linear output.
        """
        if not self.layers:
            return
        pipeline = self.transport.pipeline(self.plan.below, self.plan.above)
        for start, stop in self._chunks(rows):
            if self.plan.below is None:
                inputs = source(start, stop)
            else:
                inputs = pipeline.receive((stop - start, self.layers[0].n_in))
            for layer in self.layers:
                z = layer.linear(inputs)
                if visit is not None:
                    visit(layer, start, stop, inputs, z)
                inputs = x = z if layer.activation is None else layer.activation(z)
            if self.plan.above is not None:
                pipeline.send(x)
            elif output is not None:
                output(start, stop, x)
        pipeline.finish()

    def _chunks(self, rows: int) -> Iterator[tuple[int, int]]:
        for group in rows_of_groups(rows, self.backend.groups):
            for start in range(group.start, group.stop, FORWARD_ROWS):
                yield start, min(start + FORWARD_ROWS, group.stop)

    # ---- training -----------------------------------------------------------------------------------

    def start(
        self,
        X: Array | None,
        y: Array | None,
        nodes: int,
        make_codec: MakeCodec,
        hyper: Hyper,
        passes: Passes,
        seed: int,
        first: int = 0,
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
            Codec of a coupling; must give the same on both ends. It may ask for the range of the
            activations that p and q start from.
        first
            This rank's first node among those of all shards.
        """
        p: dict[int, Array] = {}
        empty = self.backend.empty
        z = {layer.position: empty((nodes, layer.n_out)) for layer in self.layers}
        for layer in self.layers:
            if self.plan.below is None and layer is self.layers[0]:
                assert X is not None
                p[layer.position] = X
            else:
                p[layer.position] = empty((nodes, layer.n_in))

        def keep(layer: Layer, start: int, stop: int, x: Inputs, linear: Array) -> None:
            z[layer.position][start:stop] = linear
            if p[layer.position] is not X:
                p[layer.position][start:stop] = x

        def source(start: int, stop: int) -> Inputs:
            assert X is not None
            weights = self.layers[0].weights
            return weights.rows_of(weights.inputs_of(X), start, stop)

        self.forward(nodes, source, visit=keep)
        for layer in self.layers:
            layer.below = layer.above = None
            layer.nodes = self.nodes
        self._connect(p, z, nodes, make_codec, seed, first)
        work = Workspace(self.backend)
        for layer in self.layers:
            own = p[layer.position] if layer.below is None else layer.below.own
            labels = y if layer.activation is None else None
            layer.start(own, z[layer.position], labels, hyper, passes, work, self.clock)
        alone = self.plan.edge_below is self.plan.edge_above is None and self.nodes.size == 1
        codecs = [end.codec for end in self.couplings]
        fits = alone and Replay.fits(self.layers, codecs, self.backend)
        self._replay = Replay(self.layers, self.traffic, self.work) if fits else None

    def _connect(
        self,
        p: dict[int, Array],
        z: dict[int, Array],
        nodes: int,
        make_codec: MakeCodec,
        seed: int,
        first_node: int,
    ) -> None:
        """Make both ends of the couplings within this rank, and this rank's ends of those to others."""
        plan = self.plan

        def couple(
            edge: Edge,
            ends: Ends,
            codec: Codec,
            start: Array,
            is_above: bool,
            partner: CouplingEnd | None = None,
        ) -> CouplingEnd:
            sent, received = (edge.p, edge.q) if is_above else (edge.q, edge.p)
            outgoing, incoming = ends.outgoing[sent], ends.incoming[received]
            return CouplingEnd(
                edge.below, codec, outgoing, incoming, start, is_above, seed, self.clock, first_node, partner
            )

        for below, above in itertools.pairwise(self.layers):
            edge = Edge(below.position, above.position)
            start = p[above.position]
            codec = make_codec(partial(above.span, start))
            size = codec.nbytes(nodes, below.n_out)
            ends = local_ends(edge.channels(plan.rank_of(plan.block), size, at_above=True), self.backend)
            below.above = couple(edge, ends, codec, start, is_above=False)
            above.below = couple(edge, ends, codec, start, is_above=True, partner=below.above)
        if not self.layers:
            return
        first, last = self.layers[0], self.layers[-1]
        below_bytes = above_bytes = 0
        if plan.edge_below is not None:
            start_below = p[first.position]
            codec_below = make_codec(partial(first.span, start_below))
            below_bytes = codec_below.nbytes(nodes, first.n_in)
        if plan.edge_above is not None:
            assert last.activation is not None
            start_above = last.activation(z[last.position])
            codec_above = make_codec(partial(last.span, start_above))
            above_bytes = codec_above.nbytes(nodes, last.n_out)
        # the ends of both are made together, since the order of the rounds couples them
        self._ends = self.transport.open(plan.rounds(below_bytes, above_bytes))
        if plan.edge_below is not None:
            first.below = couple(plan.edge_below, self._ends, codec_below, start_below, is_above=True)
        if plan.edge_above is not None:
            last.above = couple(plan.edge_above, self._ends, codec_above, start_above, is_above=False)

    @property
    def couplings(self) -> list[CouplingEnd]:
        """All coupling ends of this rank."""
        return [end for layer in self.layers for end in (layer.below, layer.above) if end is not None]

    @property
    def traffic(self) -> list[Outgoing | Incoming]:
        """The ends of all messages of this rank, those within it too."""
        return [end for coupling in self.couplings for end in coupling.ends]

    @property
    def float32_bytes(self) -> dict[str, int]:
        """What every message would be as float32, by name."""
        return {end.channel.name: c.float32_bytes for c in self.couplings for end in c.ends}

    @property
    def facts(self) -> dict[str, Record]:
        """What a profile keeps of every message and sum beside its name, and of a step that concerns none."""
        none = {"coupling": -1, "upward": False}
        found: dict[str, Record] = {"": none}
        for layer in self.layers:
            found.update({name: {**none, **sizes} for name, sizes in layer.nodes.facts.items()})
        for coupling in self.couplings:
            sent, received = (end.channel.name for end in coupling.ends)
            found[sent] = {"coupling": coupling.index, "upward": not coupling.is_above}
            found[received] = {"coupling": coupling.index, "upward": coupling.is_above}
        return found

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
        if self._replay is not None and not self.clock.detailed:
            terms = self._replay.iterate(iteration, measure)
        else:
            terms = self.work(iteration, measure)
        if measure and self.backend.on_device:
            terms = self._from_device(terms, iteration)
        self.clock.end_iteration(self.layers[-1].position)
        return terms

    def work(self, iteration: int, measure: bool) -> dict[int, Terms]:
        """The updates of an iteration; the terms of a device stay there."""
        for layer in reversed(self.layers):
            self.clock.part("p", layer.position)
            layer.update_p(iteration)
        for layer in self.layers:
            self.clock.part("W", layer.position)
            layer.update_weights(iteration)
        terms = {}
        for layer in self.layers:
            self.clock.part("z", layer.position)
            found = layer.update_outputs(iteration, measure)
            if found is not None:
                terms[layer.position] = found
        return terms

    def floats(self, values: list[Scalar]) -> list[float]:
        """Numbers on the host; waits for the device, which is not a wait for messages."""
        if self.waiter is None:
            return self.backend.floats(values, None)
        return self.waiter.floats(self.backend, values)

    def _from_device(self, terms: dict[int, Terms], iteration: int) -> dict[int, Terms]:
        """Terms as floats, in one copy; RunError when a gradient was NaN or Inf since the last time."""
        values = self.floats([value for found in terms.values() for value in vars(found).values()])
        passes = self.layers[0].passes
        bad = passes.lengths.first_bad()
        if bad is not None:
            iteration, position, variable = place_of(bad)
            layer = next(layer for layer in self.layers if layer.position == position)
            raise layer.diverged(f"the gradient of {variable}", iteration)
        try:
            passes.require_finite()
        except NonFiniteError:
            raise self.layers[0].diverged("what this rank sends", iteration) from None
        width = len(values) // max(len(terms), 1)
        return {position: Terms(*values[i * width : (i + 1) * width]) for i, position in enumerate(terms)}

    def finish(self) -> None:
        """Take in the last messages and free the requests."""
        for end in self.couplings:
            if end.is_above:
                end.message()
        self._ends.close()
