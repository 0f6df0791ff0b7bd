"""Make a feature file: `python -m pdadmm.prepare NAME|FILE.npz`, alone or under mpirun.

    python -m pdadmm.prepare cora --out data/cora.h5
    python -m pdadmm.prepare mygraph.npz --operators x,ppr:0.2
    mpirun -n 8 python -m pdadmm.prepare coauthor-physics --nodes all

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
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
    from pdadmm.inputs.feature_norm import FeatureNorm
    from pdadmm.inputs.parallel import Share

__all__ = ["main"]

_NAME = "pdadmm.prepare"


def _parser() -> Parser:
    parser = Parser(prog="python -m pdadmm.prepare", description="Make a feature file for training.")
    add_data_options(
        parser,
        "data/NAME.h5",
        "draws splits and the synthetic graph",
        "the data set's own, else none",
        "the operators and the norm of a feature file, or of a run's model.h5",
    )
    parser.add_argument(
        "--operators",
        metavar="LIST",
        help="of the augmentation, from x, power:K, powers:K, ppr:α and heat:t, each also with :rw "
        "(the data set's own, else powers:4)",
    )
    parser.add_argument("--hops", type=int, metavar="K", help="short for --operators powers:K")
    parser.add_argument("--nodes", choices=("split", "all"), help="rows to keep (split; all with --classes)")
    add_classes(parser)
    return parser


def _given(options: argparse.Namespace) -> tuple[str | None, str | FeatureNorm | None]:
    """The operators and the norm that the options give, looked at before any work.

    Raises
    ------
    InputError
        When they are no operators, or one option says what another does.
    """
    from pdadmm.inputs.operators import parse_operators, powers

    if options.hops is not None:
        if options.operators is not None:
            raise InputError("--hops and --operators both say what to compute; give one of them")
        if options.hops < 0:
            raise InputError(f"--hops {options.hops} is negative; give 0 or more")
    if options.like is not None:
        refuse_beside_like(options, "hops", "operators", "feature_norm")
        return _as_before(options.like)
    given = options.operators if options.hops is None else powers(options.hops)
    return None if given is None else parse_operators(given)[0], options.feature_norm


def _as_before(like: str) -> tuple[str, FeatureNorm]:
    """Operators and norm of a feature file, or of those that a model was trained on."""
    from pdadmm.admm.model_file import SCHEMA, read_prepared
    from pdadmm.files.hdf5 import schema_of
    from pdadmm.files.names import model_of
    from pdadmm.inputs.feature_file import FeatureFile
    from pdadmm.inputs.operators import parse_operators

    path = model_of(like) if Path(like).is_dir() else Path(like)
    if schema_of(path, "give a run, or what python -m pdadmm.prepare has made") != SCHEMA:
        with FeatureFile(path) as other:
            return other.operators, other.norm
    prepared = read_prepared(path)
    if prepared is None:
        raise InputError(f"{path}: does not say how its features were prepared; give the feature file")
    return parse_operators(prepared.operators, "--like")[0], prepared.norm


def _prepare(options: argparse.Namespace, share: Share, report: Reporter) -> None:
    from pdadmm.inputs.augment import Augmentation, Piece
    from pdadmm.inputs.feature_file import KIND, SCHEMA
    from pdadmm.inputs.write import write_features

    listen()
    began = time.perf_counter()
    check_classes(options)
    given, norm = _given(options)
    out = choose_target(options, ".h5", SCHEMA, KIND)
    graph, entry = load_graph(options, report)
    operators = given or (entry.operators if entry else None)
    own_norm = entry.norm_for(operators) if entry and operators else "none"
    nodes = options.nodes or ("split" if graph.complete else "all")
    work = Augmentation(graph, 4, norm or own_norm, nodes, operators)

    def watched(pieces: Iterator[Piece]) -> Iterator[Piece]:
        total = work.shape[1]
        done = 0
        for piece in pieces:
            yield piece
            done += piece[2].shape[1]
            report("columns", done, total)

    write_features(
        out,
        work,
        pieces=watched(share(work)),
        seed=options.seed,
        title=entry.title if entry else "",
        licence=entry.licence if entry else "",
        citation=entry.citation if entry else "",
    )
    report.close()
    warn(_NAME, graph)
    if graph.adjacency is None and options.operators not in (None, work.operators):
        said = f"{graph.name} has no graph, so that --operators {options.operators} are {work.operators}"
        print(f"{_NAME}: warning: {one_line(said)}", file=sys.stderr, flush=True)
    rows, columns = work.shape
    sizes, drawn = work.sizes, f" drawn from seed {options.seed}" if graph.drawn else ""
    print(
        f"{one_line(out)}: {rows} rows x {columns} columns ({work.kernel.count} x {graph.num_features} ",
        end="",
    )
    print(f"features: {work.operators}), {graph.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB")
    print(
        f"train {sizes['train']}, val {sizes['val']}, test {sizes['test']} nodes{drawn}; "
        f"{time.perf_counter() - began:.1f} s",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Under mpirun rank 0 reads, reports and writes, and the other ranks compute column blocks for it.
    """
    return on_first_rank(
        _NAME,
        lambda share: answer(_NAME, lambda report: _prepare(_parser().parse_args(arguments), share, report)),
    )


if __name__ == "__main__":
    begin()
    sys.exit(main())
