"""Make a feature file: `python -m pdadmm.prepare NAME|FILE.npz`, alone or under mpirun.

    python -m pdadmm.prepare cora --hops 4 --out data/cora.h5
    mpirun -n 8 python -m pdadmm.prepare coauthor-physics --nodes all

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pdadmm.errors import InputError
from pdadmm.process import begin
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import (
    Reporter,
    add_data_options,
    answer,
    choose_target,
    listen,
    load_graph,
    on_first_rank,
    warn,
)

if TYPE_CHECKING:
    from pdadmm.inputs.parallel import Share

__all__ = ["main"]

_NAME = "pdadmm.prepare"


def _parser() -> Parser:
    parser = Parser(prog="python -m pdadmm.prepare", description="Make a feature file for training.")
    add_data_options(parser, "data/NAME.h5", "draws splits and the synthetic graph")
    parser.add_argument("--hops", type=int, default=4, metavar="K", help="hops of augmentation (4)")
    parser.add_argument("--nodes", choices=("split", "all"), default="split", help="rows to keep (split)")
    return parser


def _prepare(options: argparse.Namespace, share: Share, report: Reporter) -> None:
    from pdadmm.inputs.augment import Augmentation, Piece
    from pdadmm.inputs.feature_file import KIND, SCHEMA
    from pdadmm.inputs.write import write_features

    listen()
    began = time.perf_counter()
    if options.hops < 0:
        raise InputError(f"--hops {options.hops} is negative; give 0 or more")
    out = choose_target(options, ".h5", SCHEMA, KIND)
    graph, norm, entry = load_graph(options, report)
    work = Augmentation(graph, options.hops, norm, options.nodes)

    def watched(pieces: Iterator[Piece]) -> Iterator[Piece]:
        total = work.shape[1]
        done = 0
        for piece in pieces:
            yield piece
            done += piece[2].shape[1]
            report("hops", done, total)

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
    rows, columns = work.shape
    sizes = work.sizes
    print(f"{out}: {rows} rows x {columns} columns ({work.hops + 1} x {graph.num_features} features)", end="")
    print(f", {graph.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB")
    print(
        f"train {sizes['train']}, val {sizes['val']}, test {sizes['test']} nodes; "
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
