"""``python -m pdadmm.profile DIR [DIR ...]``: where the time and the bytes of runs went."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pdadmm.errors import InputError, one_line
from pdadmm.files import Record
from pdadmm.files.target import report_target
from pdadmm.process import begin
from pdadmm.profile.figures import Figures, figures
from pdadmm.profile.load import is_graph, load
from pdadmm.profile.page import write_page
from pdadmm.profile.predict import Scenario, parse_network, passes_named, predict, resolve_codec
from pdadmm.profile.predict_graph import predict_graph
from pdadmm.profile.report import CSV_COLUMNS, print_report, write_csv, write_report_json
from pdadmm.profile.simulate import Outcome
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import answer

__all__ = ["main"]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pdadmm.profile",
        description="Report of a run, or of several runs side by side with ratios against the first.",
    )
    parser.add_argument("runs", nargs="+", metavar="DIR", help="the --out of a run")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots that needs no network")
    parser.add_argument("--csv", metavar="FILE", help="write every number as a line")
    parser.add_argument("--json", metavar="FILE", help="write every number as JSON")
    group = parser.add_argument_group("prediction, from the first run")
    group.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="LATENCY,BANDWIDTH",
        help="seconds and bytes/s of every link, or with units, 50us,1Gbit; may be given again",
    )
    group.add_argument("--ranks", type=int, action="append", default=[], metavar="N")
    group.add_argument("--codec", action="append", default=[])
    group.add_argument("--bits", type=int, action="append", default=[])
    group.add_argument("--no-overlap", action="store_true", help="predict sends that wait")
    return parser


#: what the reports begin with, which may take the place of another
_BEGINNINGS = {
    "html": "<!doctype html>",
    "csv": ",".join(CSV_COLUMNS),
    "json": '{"runs": [',
}


def _write(path: str | None, write: Callable[[Path], None]) -> None:
    if path is None:
        return
    try:
        write(Path(path))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file") from None


def _names(folders: list[str]) -> list[str]:
    """The last parts of the paths where they differ, else the paths."""
    short = [Path(folder).resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else folders


def _predictions(profile: Record, options: argparse.Namespace) -> list[tuple[str, Outcome]]:
    """An outcome for every combination of the options given."""
    if not (options.network or options.ranks or options.codec or options.bits or options.no_overlap):
        return []
    if not options.network:
        raise InputError("a prediction needs a network: --network LATENCY,BANDWIDTH, as in 50us,1Gbit")
    if is_graph(profile):
        return _graph_predictions(profile, options)
    passes = passes_named(profile["run"]["kernels"])
    found = []
    for text, ranks, codec, bits in itertools.product(
        options.network, options.ranks or [None], options.codec or [None], options.bits or [None]
    ):
        scenario = Scenario(parse_network(text, not options.no_overlap), ranks, codec, bits)
        name, width = resolve_codec(profile["run"], scenario)
        label = f"{text}, {ranks or profile['run']['ranks']} ranks, {name} {width} bit"
        found.append((label, predict(profile, scenario, passes)))
    return found


def _graph_predictions(profile: Record, options: argparse.Namespace) -> list[tuple[str, Outcome]]:
    """An outcome for every network."""
    if options.ranks or options.codec or options.bits:
        raise InputError(
            "a graph network is predicted for other networks only: leave out --ranks, --codec, --bits"
        )
    networks = {text: parse_network(text, not options.no_overlap) for text in options.network}
    return [(text, predict_graph(profile, network)) for text, network in networks.items()]


def _report(arguments: list[str] | None) -> None:
    options = _parser().parse_args(arguments)
    for name, beginning in _BEGINNINGS.items():
        if path := getattr(options, name):
            report_target(path, f"--{name}", beginning)
    _require_apart(options)
    if any(ranks < 1 for ranks in options.ranks):
        raise InputError(f"--ranks {min(options.ranks)} is too few; give 1 or more")
    profiles = [load(folder) for folder in options.runs]
    runs: list[Figures] = []
    for profile, name in zip(profiles, _names(options.runs), strict=True):
        runs.append(figures(profile, one_line(name)))
    predictions = _predictions(profiles[0], options)
    print_report(runs, predictions)
    _write(options.html, lambda path: write_page(path, runs, predictions))
    _write(options.csv, lambda path: write_csv(path, runs))
    _write(options.json, lambda path: write_report_json(path, runs, predictions))


def _require_apart(options: argparse.Namespace) -> None:
    """Refuse one file for two reports."""
    taken: dict[str, str] = {}
    for name in _BEGINNINGS:
        path = getattr(options, name)
        if not path or (os.path.exists(path) and not os.path.isfile(path)):
            continue  # a terminal or a pipe takes both
        target = os.path.realpath(path)
        if taken.setdefault(target, name) != name:
            raise InputError(f"--{taken[target]} and --{name} are both {path}; give two files")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        return answer("pdadmm", lambda report: _report(arguments))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    begin()
    sys.exit(main())
