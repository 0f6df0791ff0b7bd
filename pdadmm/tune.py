"""Choose operators on validation accuracy: `python -m pdadmm.tune NAME|FILE.npz`.

    python -m pdadmm.tune mygraph.npz
    python -m pdadmm.tune mygraph.npz --try x,ppr:0.3 --try powers:2 --seeds 5 --layers 4

It trains on every list of operators, without scaling of the inputs and, where no feature is negative, with
``--input-norm hellinger``; prints a table and the commands to use. Test nodes have no say. Nothing is written
but raw files that are downloaded.

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pdadmm.errors import InputError
from pdadmm.process import begin
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import (
    Reporter,
    add_data_options,
    answer,
    data_arguments,
    listen,
    load_graph,
    on_first_rank,
    warn,
)

if TYPE_CHECKING:
    from pdadmm.admm.trial import Candidate, Outcome
    from pdadmm.datasets import Graph

__all__ = ["main"]

_NAME = "pdadmm.tune"
#: what won or came close on published data sets, docs/results.md
_LISTS = ("powers:4", "power:2", "ppr:0.2", "ppr:0.1", "ppr:0.4,ppr:0.1", "x,ppr:0.2", "x,heat:2")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pdadmm.tune", description="Choose operators of the inputs on validation accuracy."
    )
    add_data_options(parser, None, "of the first run; draws its split, too, where none is published")
    parser.add_argument(
        "--try",
        action="append",
        dest="lists",
        metavar="LIST",
        help="operators to try, as in pdadmm.prepare; again for more lists (seven of them)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each, seeds S, S+1, … (3)")
    parser.add_argument("--layers", type=int, default=10, metavar="L", help="layers of the network (10)")
    parser.add_argument(
        "--hidden", type=int, default=100, metavar="N", help="neurons of a hidden layer (100)"
    )
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="iterations of a stage (50)")
    return parser


def _tune(options: argparse.Namespace, report: Reporter) -> None:
    from pdadmm.admm.trial import ranked
    from pdadmm.inputs.operators import parse_operators

    listen()
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds} is too few; give 1 or more")
    lists = list(dict.fromkeys(parse_operators(text, "--try")[0] for text in options.lists or _LISTS))
    outcomes, graph = _train_all(options, lists, report)
    report.close()
    warn(_NAME, graph)
    print(f"{'validation':>10} {'loss':>7} {'to the best':>15}  operators, scaling")
    rows = ranked(outcomes)
    for candidate, accuracy, loss, behind, error in rows:
        name = f"{candidate.operators}, {candidate.input_norm}"
        spread = f" ± {100 * error:5.2f}" if options.seeds > 1 else " " * 8  # a single run has none
        print(f"{100 * accuracy:10.2f} {loss:7.3f} {100 * behind:+7.2f}{spread}  {name}")
    best = rows[0][0]
    given = data_arguments(options)
    print(
        f"means of {options.seeds} run{'s' if options.seeds > 1 else ''} of {options.layers} layers; "
        "differences from the best with their standard errors. The best:\n"
        f"python -m pdadmm.prepare {shlex.join([options.name, '--operators', best.operators, *given])} "
        f"--feature-norm {options.feature_norm} --out tuned.h5\n"
        f"python -m pdadmm.run tuned.h5 --layers {options.layers} --hidden {options.hidden} "
        f"--input-norm {best.input_norm} --hop-decay 1",
        flush=True,
    )


def _train_all(
    options: argparse.Namespace, lists: list[str], report: Reporter
) -> tuple[dict[Candidate, list[Outcome]], Graph]:
    """Outcomes of every candidate, seed after seed, and a graph of them."""
    from pdadmm.admm.trial import Candidate, try_out
    from pdadmm.inputs.write import in_memory

    wanted = [f"--{name}={getattr(options, name)}" for name in ("layers", "hidden", "iterations")]
    outcomes: dict[Candidate, list[Outcome]] = {}
    first, done = options.seed, 0
    for seed in range(first, first + options.seeds):
        # a split of its own, where it is drawn
        graph, entry = load_graph(argparse.Namespace(**{**vars(options), "seed": seed}), report)
        if graph.adjacency is None:
            raise InputError(f"{graph.origin}: samples without a graph have no operators to choose from")
        # of bags of words; dense features are rarely without negative ones
        scalings = ("none", "hellinger") if graph.features.min() >= 0 else ("none",)
        for operators in lists:
            features = in_memory(graph, feature_norm=options.feature_norm, operators=operators, seed=seed)
            preset = entry.preset_for(operators) if entry else {}
            for scaling in scalings:
                candidate = Candidate(operators, scaling)
                report("runs", done, len(lists) * len(scalings) * options.seeds)
                outcome = try_out(features, candidate, wanted, preset, seed)
                outcomes.setdefault(candidate, []).append(outcome)
                done += 1
    return outcomes, graph


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Under mpirun rank 0 does everything."""
    return on_first_rank(
        _NAME, lambda share: answer(_NAME, lambda report: _tune(_parser().parse_args(arguments), report))
    )


if __name__ == "__main__":
    begin()
    sys.exit(main())
