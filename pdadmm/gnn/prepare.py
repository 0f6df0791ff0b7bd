"""Make a graph file: `python -m pdadmm.gnn.prepare NAME|FILE.npz --parts P`.

    python -m pdadmm.gnn.prepare amazon-computers --parts 4
    python -m pdadmm.gnn.prepare mygraph.npz --parts 8 --partitioner mine.npy --split random

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pdadmm.errors import InputError, one_line
from pdadmm.process import begin
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import (
    Reporter,
    add_classes,
    add_data_options,
    answer,
    check_classes,
    choose_target,
    listen,
    load_graph,
    on_first_rank,
    refuse_beside_like,
    warn,
)

if TYPE_CHECKING:
    from pdadmm.files import Record
    from pdadmm.inputs.feature_norm import FeatureNorm

__all__ = ["main"]

_NAME = "pdadmm.gnn.prepare"


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is not a list of numbers; give three, as in .6,.2,.2"
        ) from None


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pdadmm.gnn.prepare",
        description="Cut a graph into parts, for training.",
    )
    add_data_options(
        parser,
        "data/NAME-Pparts.h5",
        "draws splits, the synthetic graph and the partition",
        "none",
        "the norm of a graph file, or of a run's model.h5",
    )
    parser.add_argument("--parts", type=int, required=True, metavar="P", help="parts to cut the graph into")
    parser.add_argument(
        "--partitioner",
        default="auto",
        metavar="auto|metis|blocks|random|FILE.npy",
        help="how: METIS where it is installed and else blocks (auto); FILE.npy holds every node's part",
    )
    parser.add_argument(
        "--split",
        choices=("public", "random"),
        default="public",
        help="the data set's own rule (public), or shuffled and cut by --fractions",
    )
    parser.add_argument(
        "--fractions",
        type=_fractions,
        metavar="T,V,T",
        help="of training, validation and test nodes with --split random (.6,.2,.2)",
    )
    add_classes(parser)
    return parser


def _norm(options: argparse.Namespace) -> str | FeatureNorm:
    """The norm that the options give, looked at before any work."""
    from pdadmm.files.hdf5 import schema_of
    from pdadmm.files.names import model_of
    from pdadmm.gnn.model_file import SCHEMA, read_model
    from pdadmm.inputs.graph_file import GraphFile

    if options.like is None:
        return options.feature_norm or "none"
    refuse_beside_like(options, "feature_norm")
    path = model_of(options.like) if Path(options.like).is_dir() else Path(options.like)
    if schema_of(path, "give a run, or what python -m pdadmm.gnn.prepare has made") == SCHEMA:
        return read_model(path)[-1]
    with GraphFile(path) as other:
        return other.norm


def _prepare(options: argparse.Namespace, report: Reporter) -> None:
    import numpy as np

    from pdadmm.datasets.splits import FRACTIONS, draw_fractions
    from pdadmm.gnn.partition import cut
    from pdadmm.inputs.graph_file import KIND, SCHEMA
    from pdadmm.inputs.write_graph import write_graph

    listen()
    began = time.perf_counter()
    if options.parts < 1:
        raise InputError(f"--parts {options.parts} is too few; give 1 or more")
    check_classes(options)
    if options.fractions is not None and options.split != "random":
        raise InputError("--fractions needs --split random; give that, too, or leave it out")
    out = choose_target(options, f"-{options.parts}parts.h5", SCHEMA, KIND)
    norm = _norm(options)
    graph, entry = load_graph(options, report)
    facts: Record = {"split": options.split, "feature_norm": norm}
    if options.split == "random":
        fractions = options.fractions or FRACTIONS
        labelled = np.delete(np.arange(graph.num_nodes), graph.unlabelled)
        train, val, test = draw_fractions(labelled, options.seed, graph.origin, fractions)
        graph = replace(graph, train=train, val=val, test=test, drawn=True)
        facts["fractions"] = ",".join(f"{fraction:g}" for fraction in fractions)
    if entry:
        facts |= {"title": entry.title, "licence": entry.licence, "citation": entry.citation}
    report("partition", 0, 1)
    arrays = cut(graph, options.parts, options.partitioner, options.seed, **facts)
    report("partition", 1, 1)
    write_graph(out, arrays, report)
    report.close()
    warn(_NAME, graph)

    sizes, rows = arrays.sizes, np.diff(arrays.part_ptr)
    drawn = f" drawn from seed {options.seed}" if graph.drawn else ""
    edge_cut, halo_rows = arrays.attrs["edge_cut"], arrays.attrs["halo_rows"]
    print(
        f"{one_line(out)}: {arrays.num_nodes} rows, {arrays.num_edges} edges, {arrays.num_features} features "
        f"({arrays.attrs['features']}), {arrays.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB\n"
        f"{arrays.parts} parts ({arrays.attrs['partitioner']}) of {rows.min()} to {rows.max()} rows, balance "
        f"{rows.max() / rows.mean():.3f}; edge cut {edge_cut} ({edge_cut / max(arrays.num_edges, 1):.1%}); "
        f"halo rows {halo_rows} ({halo_rows / arrays.num_nodes:.2f} a node)\n"
        f"train {sizes['train']}, val {sizes['val']}, test {sizes['test']} nodes{drawn}; "
        f"{time.perf_counter() - began:.1f} s",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Under mpirun rank 0 does everything."""
    return on_first_rank(
        _NAME, lambda share: answer(_NAME, lambda report: _prepare(_parser().parse_args(arguments), report))
    )


if __name__ == "__main__":
    begin()
    sys.exit(main())
