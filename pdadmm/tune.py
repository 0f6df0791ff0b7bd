"""Choose the inputs on validation accuracy: `python -m pdadmm.tune NAME|FILE.npz`.

    python -m pdadmm.tune mygraph.npz
    python -m pdadmm.tune mygraph.npz --try x,ppr:0.3 --try powers:2 --seeds 5 --layers 4

It trains on every list of operators: on the features as they are, where most are not zeros with
``--feature-norm standard``, and where none is negative with ``--input-norm hellinger``; on the best lists
with other penalties of the network's weights, and under hellinger with ``--feature-norm row``; on the best of
these with other weights of its operators, once more with other penalties, and with ``--class-prior val``.
Then it prints a table and the commands to use. Test nodes have no say. Nothing is written but raw files that
are downloaded.

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pdadmm.errors import InputError, one_line
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
    from pdadmm.admm.trial import Candidate
    from pdadmm.datasets import Dataset, Graph
    from pdadmm.runtime.trials import Outcome

__all__ = ["main"]

_NAME = "pdadmm.tune"
#: what won or came close on published data sets, docs/results.md
_LISTS = ("powers:4", "power:2", "ppr:0.2", "ppr:0.1", "ppr:0.4,ppr:0.1", "x,ppr:0.2", "x,heat:2")
#: scalings of the inputs, and the penalty that each is tried with first: rows of length 1 take larger weights
#: than bags of words do
_SCALINGS = {"none": 0.01, "hellinger": 0.0003}
#: how many lists go on after the first runs
_BEST = 3
_DECAYS = (0.65, 1.5, 2.0)
_PENALTIES = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01)


def _parser() -> Parser:
    parser = Parser(prog="python -m pdadmm.tune", description="Choose the inputs on validation accuracy.")
    seed = "of the first run; draws its split, too, where none is published"
    add_data_options(parser, None, seed, norm_text="those that suit the features are tried")
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


class _Search:
    """Trains candidates in groups, every one with the same seeds.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command.
    report : Reporter
    """

    def __init__(self, options: argparse.Namespace, report: Reporter) -> None:
        self._options, self._report = options, report
        self.outcomes: dict[Candidate, list[Outcome]] = {}

    def load(self, seed: int) -> tuple[Graph, Dataset | None]:
        """The graph with the split of a seed, where it is drawn, and its entry in the registry."""
        return load_graph(argparse.Namespace(**{**vars(self._options), "seed": seed}), self._report)

    def leading(self, input_norm: str | None = None) -> list[Candidate]:
        """The best so far of every list of operators, of one scaling or of all, best first."""
        from pdadmm.runtime.trials import ranked

        found: dict[str, Candidate] = {}
        for candidate, *_ in ranked(self.outcomes):
            if input_norm in (None, candidate.input_norm):
                found.setdefault(candidate.operators, candidate)
        return list(found.values())

    def train(self, group: str, candidates: Sequence[Candidate]) -> None:
        """Train on those of them that have not been."""
        from pdadmm.admm.trial import try_out
        from pdadmm.inputs.write import in_memory

        wanted = [f"--{name}={getattr(self._options, name)}" for name in ("layers", "hidden", "iterations")]
        new = [candidate for candidate in candidates if candidate not in self.outcomes]
        first, done = self._options.seed, 0
        for seed in range(first, first + self._options.seeds) if new else ():
            graph, entry = self.load(seed)
            made = None
            for candidate in new:
                operators, norm = candidate.operators, candidate.feature_norm
                if made != (operators, norm):
                    features = in_memory(graph, feature_norm=norm, operators=operators, seed=seed)
                    made = operators, norm
                self._report(group, done, len(new) * self._options.seeds)
                preset = entry.preset_for(operators) if entry else {}
                outcome = try_out(features, candidate, wanted, preset, seed)
                self.outcomes.setdefault(candidate, []).append(outcome)
                done += 1


def _try_all(options: argparse.Namespace, lists: list[str], search: _Search) -> Graph:
    """Try the lists, then what goes with the best of them, one after the other; returns a graph of them."""
    from pdadmm.admm.trial import Candidate
    from pdadmm.inputs.feature_norm import mostly_zeros
    from pdadmm.inputs.operators import parse_operators

    graph, _ = search.load(options.seed)
    if graph.adjacency is None:
        raise InputError(f"{graph.origin}: samples without a graph have no operators to choose from")
    words = graph.features.min() >= 0  # square roots want bags of words, which have no negative numbers
    norms = ["none"] if mostly_zeros(graph.features) else ["none", "standard"]
    scalings = [
        (norm, scaling, mu)
        for norm in ([options.feature_norm] if options.feature_norm else norms)
        for scaling, mu in _SCALINGS.items()
        if scaling == "none" or (norm != "standard" and words)
    ]

    def penalties(candidates: Sequence[Candidate]) -> list[Candidate]:
        return [replace(candidate, mu=mu) for candidate in candidates for mu in _PENALTIES]

    search.train("lists", [Candidate(text, *scaling, 1.0) for text in lists for scaling in scalings])
    search.train("penalties of the best", penalties(search.leading()[:_BEST]))
    if options.feature_norm is None:  # unscaled, normalised features are too small to train on
        best = search.leading("hellinger")[:_BEST]
        search.train("normalised features", [replace(candidate, feature_norm="row") for candidate in best])
    best = search.leading()[:1]
    if len(parse_operators(best[0].operators)[1]) > 1:
        search.train("weights of operators", [replace(best[0], hop_decay=decay) for decay in _DECAYS])
    search.train("penalties", penalties(search.leading()[:1]))
    if len(graph.val) > 1:  # shares of one half are measured on the other
        search.train("label shift", [replace(search.leading()[0], class_prior="val")])
    return graph


def _tune(options: argparse.Namespace, report: Reporter) -> None:
    from pdadmm.inputs.operators import parse_operators
    from pdadmm.runtime.trials import check_seeds, ranked, require_printed

    listen()
    check_seeds(options.seed, options.seeds)
    for name in ("layers", "hidden", "iterations"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} is too few; give 1 or more")
    lists = list(dict.fromkeys(parse_operators(text, "--try")[0] for text in options.lists or _LISTS))
    search = _Search(options, report)
    graph = _try_all(options, lists, search)
    report.close()
    warn(_NAME, graph)
    rows = ranked(search.outcomes)
    if not any(math.isfinite(run.loss) for runs in search.outcomes.values() for run in runs):
        raise InputError(
            f"{graph.origin}: every run diverged; scale the features, or give another list with --try"
        )
    width = max(len("operators"), *(len(row[0].operators) for row in rows))
    norm = max(len("norm"), *(len(row[0].feature_norm) for row in rows))
    print(f"{'validation':>10} {'loss':>7} {'to the best':>15}  {'operators':{width}}", end="")
    print(f"  {'norm':{norm}}  {'scaling':9}  {'decay':>5}  {'mu':>6}  prior")
    for c, accuracy, loss, behind, error in rows:
        spread = f" ± {100 * error:5.2f}" if options.seeds > 1 else " " * 8  # a single run has none
        print(f"{100 * accuracy:10.2f} {loss:7.3f} {100 * behind:+7.2f}{spread}  ", end="")
        print(
            f"{c.operators:{width}}  {c.feature_norm:{norm}}  {c.input_norm:9}  {c.hop_decay:5g}  {c.mu:6g}  "
            f"{c.class_prior}"
        )
    best = rows[0][0]
    data = [one_line(options.name), "--operators", best.operators, *map(one_line, data_arguments(options))]
    print(
        f"means of {options.seeds} run{'s' if options.seeds > 1 else ''} of {options.layers} layers, "
        f"{options.iterations} iterations a stage; differences from the best with their standard errors. "
        "The best, to be trained for longer:\n"
        f"python -m pdadmm.prepare {shlex.join(data)} "
        f"--feature-norm {best.feature_norm} --out tuned.h5\n"
        f"python -m pdadmm.run tuned.h5 --layers {options.layers} --hidden {options.hidden} "
        f"{shlex.join(best.arguments())}{f' --seed {options.seed}' if options.seed else ''}",
        flush=True,
    )
    require_printed()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Under mpirun rank 0 does everything."""
    return on_first_rank(
        _NAME, lambda share: answer(_NAME, lambda report: _tune(_parser().parse_args(arguments), report))
    )


if __name__ == "__main__":
    begin()
    sys.exit(main())
