"""Classes of the nodes of a graph by a trained network, on any graph, in any number of parts and ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.codec.rows import FLOAT32
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.files import naming, replacing
from pdadmm.files.target import target_of
from pdadmm.gnn.command import open_graph
from pdadmm.gnn.halo import Exchange, uniform_widths
from pdadmm.gnn.layer import Network, Shape, slots_of
from pdadmm.gnn.model_file import read_model
from pdadmm.gnn.part import Part, parts_of_rank
from pdadmm.gnn.passes.protocol import Drop
from pdadmm.gnn.passes.select import make_passes
from pdadmm.gnn.products import make_products
from pdadmm.gnn.reading import read_inputs
from pdadmm.runtime.devices import ON_CPUS, make_backend, make_transport
from pdadmm.runtime.launch import agree, parse
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.sections import Run
from pdadmm.runtime.threads import set_threads

if TYPE_CHECKING:
    from pdadmm.inputs.graph_file import GraphSource

__all__ = ["predict", "scores_of"]

SCHEMA, SCHEMA_VERSION = "pdadmm-predictions", 1


def predict(waiter: Waiter, arguments: list[str]) -> None:
    """Write the predictions that a command line asks for; collective.

    Raises
    ------
    InputError
        On all ranks.
    """
    parser = Parser(prog="python -m pdadmm.gnn.predict", description="Classes of the nodes of a graph.")
    parser.add_argument("run", metavar="DIR", help="folder of a run of pdadmm.gnn.run")
    parser.add_argument("graph", metavar="FILE.h5", help="graph, made by pdadmm.gnn.prepare")
    parser.add_argument("--out", metavar="FILE.h5", default="predictions.h5", help="what to write")
    parser.add_argument("--threads", type=int, default=0, help="threads of a rank")
    options = parse(waiter, parser, arguments)
    shape, weights, _ = agree(waiter, lambda: read_model(Path(options.run) / "model.h5"))
    run = Run(threads=options.threads, backend="numpy", transport="mpi")
    threads = set_threads(run, waiter.comm)

    def check() -> None:
        if waiter.comm.rank == 0:
            target_of(options.out, SCHEMA, "file of predictions", options.graph)
        with open_graph(options.graph, waiter.comm.size) as source:
            _require_fit(source, shape, waiter.comm.size, options.graph)

    agree(waiter, check)
    with open_graph(options.graph, waiter.comm.size) as source:
        found = scores_of(source, shape, weights, waiter, run, threads)
        nodes = {i: np.asarray(source.node_id(_rows(source, i))) for i in found}
        accuracies = _accuracies(source, found, waiter)
        total, labels = source.num_nodes, source.multilabel
    gathered = waiter.gather([(nodes[i], scores) for i, scores in found.items()])

    def write() -> None:
        if gathered is None:
            return
        scores = np.empty((total, shape.widths[-1]), np.float32)
        for ids, values in (piece for of_rank in gathered for piece in of_rank):
            scores[ids] = values
        _write(Path(options.out), scores, labels)

    agree(waiter, write)
    if waiter.comm.rank == 0:
        said = ", ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
        print(f"{options.out}: {total} nodes; accuracy {said}", file=sys.stdout, flush=True)


def _rows(source: GraphSource, part: int) -> slice:
    return slice(int(source.part_ptr[part]), int(source.part_ptr[part + 1]))


def _require_fit(source: GraphSource, shape: Shape, ranks: int, path: str) -> None:
    if (source.num_features, source.num_classes) != (shape.widths[0], shape.widths[-1]):
        raise InputError(
            f"{path} has {source.num_features} features and {source.num_classes} classes, the model "
            f"{shape.widths[0]} and {shape.widths[-1]}; give a graph of the same kind"
        )
    if source.parts < ranks:
        raise InputError(
            f"{source.parts} parts cannot occupy {ranks} ranks; start at most {source.parts} ranks"
        )


def scores_of(
    source: GraphSource,
    shape: Shape,
    weights: dict[int, dict[str, np.ndarray]],
    waiter: Waiter,
    run: Run,
    threads: int,
) -> dict[int, np.ndarray]:
    """Outputs of the last layer for the parts of this rank, (n, classes) in the graph's order; collective."""
    ranks, rank = waiter.comm.size, waiter.comm.rank
    mine = parts_of_rank(source.parts, ranks, rank)
    parts = {number: Part.of(source, number, shape.model) for number in mine}
    backend = make_backend(ON_CPUS, rank, run.precision, threads)
    passes, products = make_passes("auto", threads), make_products(backend)
    inputs, own = read_inputs(source, parts, shape, passes)
    network = Network(shape, parts, inputs, own, weights, {}, passes, products, backward=False)
    slots = [slot for slot in slots_of(shape) if not slot.back]
    transport = None
    if ranks > 1:
        transport = make_transport(ON_CPUS, backend, waiter, run, None, [])
    plain = uniform_widths(parts, slots, FLOAT32)
    exchange = Exchange(parts, source.parts, slots, plain, transport, ranks, rank, passes, 0)
    exchange.begin(1)
    network.forward(exchange, {layer: Drop(0.0, 0, False) for layer in range(1, shape.layers)})
    exchange.close()
    products.close()
    found = {}
    for number, part in parts.items():
        scores = np.empty_like(network.output(number))
        scores[part.rows - int(source.part_ptr[number])] = network.output(number)
        found[number] = scores
    return found


def _accuracies(source: GraphSource, found: dict[int, np.ndarray], waiter: Waiter) -> dict[str, float]:
    """By split, the same on all ranks; collective."""
    from pdadmm.datasets.registry import SPLITS
    from pdadmm.gnn.measure import Targets, measure

    targets = {}
    for number in found:
        rows = _rows(source, number)
        targets[number] = Targets(
            np.asarray(source.labels(rows.start, rows.stop)), np.asarray(source.split(rows.start, rows.stop))
        )
    measured = measure(found, targets, source.parts, source.num_classes, waiter)
    return {name: measured[f"{name}_accuracy"] for name in SPLITS}


def _write(path: Path, scores: np.ndarray, multilabel: bool) -> None:
    """Write the file: nodes in the order of the data set."""
    import h5py

    classes = (scores > 0).astype(np.uint8) if multilabel else scores.argmax(axis=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), replacing(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update(schema=SCHEMA, schema_version=SCHEMA_VERSION)
            file["classes"], file["scores"] = classes, scores
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be written ({reason}); choose another --out") from None
