"""Classes of the nodes of a graph by a trained network, on any graph, in any number of parts and ranks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdadmm.arrays.backend import Backend
from pdadmm.codec.rows import FLOAT32
from pdadmm.comm.waiter import Waiter
from pdadmm.datasets.registry import SPLITS
from pdadmm.errors import InputError, one_line
from pdadmm.files.names import model_of
from pdadmm.files.predictions import KIND, SCHEMA, write_predictions
from pdadmm.files.target import target_of
from pdadmm.gnn.command import open_graph
from pdadmm.gnn.fit import require_kind, require_norm
from pdadmm.gnn.halo import Exchange, uniform_widths
from pdadmm.gnn.layer import Inputs, Network, Shape, slots_of
from pdadmm.gnn.measure import Targets, measure
from pdadmm.gnn.model_file import read_model
from pdadmm.gnn.part import Part, parts_of_rank
from pdadmm.gnn.passes.protocol import Drop, Passes
from pdadmm.gnn.passes.select import make_passes
from pdadmm.gnn.products import make_products
from pdadmm.gnn.reading import read_inputs
from pdadmm.inputs.graph_file import GraphFile, GraphSource
from pdadmm.runtime.devices import ON_CPUS, make_backend, make_transport
from pdadmm.runtime.launch import agree, parse
from pdadmm.runtime.options import check_section
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.sections import Run
from pdadmm.runtime.threads import set_threads

__all__ = ["predict"]

_TAG = 20040


def predict(waiter: Waiter, arguments: list[str]) -> None:
    """Write the predictions that a command line asks for; collective.

    Raises
    ------
    InputError
        On all ranks.
    """
    parser = Parser(prog="python -m pdadmm.gnn.predict", description="Classes of the nodes of a graph.")
    parser.add_argument("run", metavar="DIR", help="folder of a run of pdadmm.gnn.run, or its model.h5")
    parser.add_argument("graph", metavar="FILE.h5", help="graph, made by pdadmm.gnn.prepare")
    parser.add_argument("--out", metavar="FILE.h5", default="predictions.h5", help="what to write")
    parser.add_argument("--threads", type=int, default=0, help="threads of a rank")
    options = parse(waiter, parser, arguments)
    shape, weights, facts, norm = agree(waiter, lambda: read_model(model_of(options.run)))
    run = Run(threads=options.threads, backend="numpy", transport="mpi")
    agree(waiter, lambda: check_section(run))
    threads = set_threads(run, waiter.comm)

    def check() -> None:
        if waiter.comm.rank == 0:
            target_of(options.out, SCHEMA, KIND, [options.graph])
        with open_graph(options.graph, waiter.comm.size) as source:
            require_kind(source, shape, facts, options.graph)
            require_norm(source, norm, options.graph, model_of(options.run))
            if source.parts < waiter.comm.size:
                raise InputError(
                    f"{source.parts} parts cannot occupy {waiter.comm.size} ranks; start at most "
                    f"{source.parts} ranks"
                )
            if waiter.comm.rank == 0 and isinstance(source, GraphFile):
                source.check_symmetry()
                source.cut()

    agree(waiter, check)
    backend = make_backend(ON_CPUS, waiter.comm.rank, run.precision, threads)
    passes = make_passes("auto", threads)
    with open_graph(options.graph, waiter.comm.size) as source:
        total, classes, count, sizes = source.num_nodes, source.num_classes, source.parts, source.sizes
        # one rank may find rows wrong that the others do not read
        share = agree(waiter, lambda: _Share.of(source, shape, waiter, passes))
    with np.errstate(all="ignore"):  # overflow shows as Inf or NaN in the scores
        found = _scores(share, count, shape, weights, waiter, run, passes, backend)
        measured = measure(found, share.targets, count, classes, waiter)
    accuracies = {name: measured[f"{name}_accuracy"] for name in SPLITS if sizes[name]}
    several = bool(facts.get("multilabel", False))
    scores = _collected(found, share, (total, classes), waiter)

    def write() -> None:
        if scores is not None:
            write_predictions(Path(options.out), scores, options.graph, multilabel=several)

    agree(waiter, write)
    if waiter.comm.rank == 0:
        said = ", ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
        score = f"{'micro-F1' if several else 'accuracy'} {said}" if said else "none has a label"
        print(f"{one_line(options.out)}: {total} nodes; {score}", file=sys.stdout, flush=True)


@dataclass
class _Share:
    """What a rank reads of a graph, by its parts."""

    parts: dict[int, Part]
    inputs: dict[int, Inputs]
    own: dict[int, Inputs]
    targets: dict[int, Targets]
    nodes: dict[int, np.ndarray]  #: ids in the data set, in the graph's order
    first: dict[int, int]  #: row of the graph with which it begins

    @classmethod
    def of(cls, source: GraphSource, shape: Shape, waiter: Waiter, passes: Passes) -> _Share:
        numbers = parts_of_rank(source.parts, waiter.comm.size, waiter.comm.rank)
        parts = {number: Part.of(source, number, shape.model) for number in numbers}
        inputs, own = read_inputs(source, parts, shape, passes)
        share = cls(parts, inputs, own, {}, {}, {})
        for number in numbers:
            first, last = int(source.part_ptr[number]), int(source.part_ptr[number + 1])
            share.targets[number] = Targets.of(source, number)
            share.nodes[number] = np.asarray(source.node_id(slice(first, last)))
            share.first[number] = first
        return share


def _scores(
    share: _Share,
    count: int,
    shape: Shape,
    weights: dict[int, dict[str, np.ndarray]],
    waiter: Waiter,
    run: Run,
    passes: Passes,
    backend: Backend,
) -> dict[int, np.ndarray]:
    """Outputs of the last layer for the parts of this rank, of `count`, (n, classes) in the graph's order.

    Collective.
    """
    ranks, rank, parts = waiter.comm.size, waiter.comm.rank, share.parts
    products = make_products(backend)
    network = Network(shape, parts, share.inputs, share.own, weights, {}, passes, products, backward=False)
    slots = [slot for slot in slots_of(shape) if not slot.back]
    transport = None
    if ranks > 1:
        transport = make_transport(ON_CPUS, backend, waiter, run, [])
    plain = uniform_widths(parts, slots, FLOAT32)
    exchange = Exchange(parts, count, slots, plain, transport, ranks, rank, passes, 0, finite=False)
    exchange.begin(1)
    network.forward(exchange, {layer: Drop(0.0, 0, False) for layer in range(1, shape.layers)})
    exchange.close()
    if transport is not None:
        transport.close()
    products.close()
    found = {}
    for number, part in parts.items():
        scores = np.empty_like(network.output(number))
        scores[part.rows - share.first[number]] = network.output(number)
        found[number] = scores
    return found


def _collected(
    found: dict[int, np.ndarray], share: _Share, shape: tuple[int, int], waiter: Waiter
) -> np.ndarray | None:
    """All nodes' scores on rank 0, in the order of the data set, part after part; None elsewhere."""
    sizes = waiter.gather([len(scores) for scores in found.values()])
    if sizes is None:
        for number, scores in found.items():
            sent = waiter.send(share.nodes[number], 0, _TAG) + waiter.send(scores, 0, _TAG)
            waiter.all(sent, "rank 0 to take scores")
        return None
    collected = np.empty(shape, np.float32)
    for number, scores in found.items():
        collected[share.nodes[number]] = scores
    for rank, of_parts in enumerate(sizes):
        for rows in of_parts if rank else ():
            nodes, scores = np.empty(rows, np.int64), np.empty((rows, shape[1]), np.float32)
            waiter.receive(nodes, rank, _TAG)
            waiter.receive(scores, rank, _TAG)
            collected[nodes] = scores
    return collected
