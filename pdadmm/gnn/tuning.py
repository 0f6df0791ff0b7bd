"""Choosing the options of a graph network: short runs on a prepared graph, on the ranks that there are."""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.files import Record
from pdadmm.gnn import command
from pdadmm.gnn.options import Config
from pdadmm.gnn.trainer import Facts
from pdadmm.runtime.devices import Choice
from pdadmm.runtime.launch import agree, parse
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.progress import Progress
from pdadmm.runtime.threads import set_threads
from pdadmm.runtime.trials import Outcome, check_seeds, ranked, require_printed

__all__ = ["tune"]

_EVALUATED = 5  #: epochs between evaluations
#: by option, the values that are tried where it is not given
_TRIED: dict[str, Sequence[Any]] = {
    "model": ("gcn", "sage"),
    "lr": (0.01, 0.003, 0.001),
    "layers": (2, 3, 4),
    "dropout": (0.2, 0.5, 0.8),
    "weight_decay": (0.0, 0.0005),
}


@dataclass(frozen=True)
class Candidate:
    """What is tried: options of ``pdadmm.gnn.run``."""

    model: str
    lr: float
    layers: int
    dropout: float
    weight_decay: float

    def arguments(self) -> list[str]:
        """What ``pdadmm.gnn.run`` is to be told."""
        return [
            word
            for name, value in asdict(self).items()
            for word in (f"--{name.replace('_', '-')}", f"{value}".removesuffix(".0"))
        ]

    def put_into(self, config: Config) -> Config:
        """A configuration with these options."""
        network = replace(config.network, model=self.model, layers=self.layers, dropout=self.dropout)
        training = replace(config.training, lr=self.lr, weight_decay=self.weight_decay)
        return replace(config, network=network, training=training)


class _Search:
    """Trains candidates in groups, every one with the same seeds; collective."""

    def __init__(
        self, config: Config, facts: Facts, waiter: Waiter, threads: int, choice: Choice, runs: int
    ) -> None:
        self._config, self._facts, self._waiter = config, facts, waiter
        self._threads, self._choice, self._runs = threads, choice, runs
        self.outcomes: dict[Candidate, list[Outcome]] = {}

    @property
    def best(self) -> Candidate:
        """The best so far."""
        return ranked(self.outcomes)[0][0]

    def train(self, group: str, candidates: Sequence[Candidate]) -> None:
        """Train on those of them that have not been."""
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self.outcomes]
        done, total = 0, len(new) * self._runs
        enabled = self._waiter.comm.rank == 0 and not self._config.output.quiet
        with Progress(group, total, enabled=enabled) as progress:
            for candidate in new:
                for seed in range(self._runs):
                    self.outcomes.setdefault(candidate, []).append(self._try_out(candidate, seed))
                    done += 1
                    progress.update(done, group, f"{group}: {done} runs" if done == total else None)

    def _try_out(self, candidate: Candidate, seed: int) -> Outcome:
        """Train once: the evaluated epoch that is best on validation nodes; what diverges has accuracy 0."""
        config = candidate.put_into(self._config)
        config = replace(config, training=replace(config.training, seed=config.training.seed + seed))
        records: list[Record] = []
        w = self._waiter
        with w.patient():
            trainer = agree(
                w,
                lambda: command.make_trainer(
                    config, self._facts, w, self._threads, self._choice, None, records.append
                ),
            )
        try:
            trainer.run()
        except RunError as error:
            if not error.everywhere and w.comm.size > 1:
                raise  # the other ranks know nothing of it, so that nothing collective can follow
            outcome = Outcome(0.0, math.inf)
        else:
            best = max(records, key=lambda record: (record["val_accuracy"], -record["loss"]))
            outcome = Outcome(best["val_accuracy"], best["loss"])
        trainer.close()
        return outcome


def tune(waiter: Waiter, arguments: list[str]) -> None:
    """Try options on validation nodes and print a table and the command to use; collective.

    Raises
    ------
    InputError
        On all ranks.
    """
    np.seterr(all="ignore")  # overflow shows as NaN in a message or the loss, which ends a run
    options = parse(waiter, _parser(), arguments)
    config, facts = command.configure(waiter, _of_run(options))
    check_seeds(config.training.seed, options.seeds)
    choice = command.choose_arrays(config, waiter)
    threads = set_threads(config.run, waiter.comm)
    search = _Search(config, facts, waiter, threads, choice, options.seeds)
    _try_all(search, config, options)
    if not math.isfinite(ranked(search.outcomes)[0][2]):  # on all ranks
        raise InputError("every run diverged; prepare the graph with --feature-norm standard or row")

    def show() -> None:
        if waiter.comm.rank == 0:
            _print(search, options, waiter.comm.size)
            require_printed()

    agree(waiter, show)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pdadmm.gnn.tune", description="Choose the options of training on validation accuracy."
    )
    parser.add_argument("graph", nargs="?", default="", metavar="FILE.h5", help="made by pdadmm.gnn.prepare")
    add = parser.add_argument
    for name, tried in _TRIED.items():
        shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in tried)
        add(f"--{name.replace('_', '-')}", metavar="X", help=f"the one to take (else {shown} are tried)")
    add("--hidden", metavar="N", default="256", help="columns of a hidden layer (256)")
    add("--epochs", metavar="N", default="60", help="epochs of a run (60)")
    add("--seeds", type=int, metavar="N", default=3, help="runs of each, with seeds S, S+1, ... (3)")
    add("--seed", metavar="S", default="0", help="of the first run (0)")
    add("--messages", metavar="SCHEME", default="lean", help="lean, adaqp or float32 (lean)")
    add("--threads", metavar="N", default="0", help="threads of a rank")
    add("--timeout", metavar="X", default="0", help="seconds without a sign of a neighbour; 0: never")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _of_run(options: argparse.Namespace) -> list[str]:
    """What ``pdadmm.gnn.run`` would be told of all that is not tried."""
    names = ("hidden", "epochs", "seed", "messages", "threads", "timeout")
    fixed = [name for name in (*names, *_TRIED) if getattr(options, name) is not None]
    found = [word for name in fixed for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    quiet = ["--quiet"] if options.quiet else []
    return [*([options.graph] if options.graph else []), *found, *quiet, "--eval-every", str(_EVALUATED)]


def _try_all(search: _Search, config: Config, options: argparse.Namespace) -> None:
    """Try one or two options after the other, each with what was best before it."""
    n, t = config.network, config.training
    start = Candidate(n.model, t.lr, n.layers, n.dropout, t.weight_decay)

    def values(name: str) -> Sequence[Any]:
        return [getattr(start, name)] if getattr(options, name) is not None else _TRIED[name]

    both = itertools.product(values("model"), values("lr"))
    search.train("models and rates", [replace(start, model=model, lr=lr) for model, lr in both])
    for name, group in (("layers", "layers"), ("dropout", "dropout"), ("weight_decay", "weight decay")):
        best = search.best
        search.train(group, [replace(best, **{name: value}) for value in values(name)])
    best = search.best
    search.train("rates", [replace(best, lr=lr) for lr in values("lr")])


def _print(search: _Search, options: argparse.Namespace, ranks: int) -> None:
    rows = ranked(search.outcomes)
    print(f"{'validation':>10} {'loss':>7} {'to the best':>15}  model  {'lr':>6}  layers  dropout  decay")
    for c, accuracy, loss, behind, error in rows:
        spread = f" ± {100 * error:5.2f}" if options.seeds > 1 else " " * 8  # a single run has none
        print(
            f"{100 * accuracy:10.2f} {loss:7.3f} {100 * behind:+7.2f}{spread}  {c.model:5}  {c.lr:6g}  "
            f"{c.layers:6}  {c.dropout:7g}  {c.weight_decay:5g}"
        )
    fixed = [
        word
        for name, default in (("hidden", "256"), ("seed", "0"), ("messages", "lean"))
        if getattr(options, name) != default
        for word in (f"--{name}", getattr(options, name))
    ]
    runs = f"{options.seeds} run{'s' if options.seeds > 1 else ''}"
    print(
        f"means of {runs} of {options.epochs} epochs, each at its best on validation; differences from the "
        "best with their standard errors. The best, to be trained for longer:"
    )
    graph = [options.graph] if options.graph else []
    mpirun = f"mpirun -n {ranks} " if ranks > 1 else ""
    print(
        f"{mpirun}python -m pdadmm.gnn.run {shlex.join([*graph, *rows[0][0].arguments(), *fixed])}",
        flush=True,
    )
