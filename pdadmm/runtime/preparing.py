"""What the commands that make files for training share: the options of data, progress, and how they end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pdadmm.errors import InputError, denied, one_line
from pdadmm.files.target import target_of
from pdadmm.inputs import FEATURE_NORMS
from pdadmm.process import heed

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pdadmm.datasets import Dataset, Graph
    from pdadmm.inputs.parallel import Share

__all__ = [
    "Reporter",
    "add_classes",
    "add_data_options",
    "answer",
    "check_classes",
    "choose_target",
    "data_arguments",
    "listen",
    "load_graph",
    "on_first_rank",
    "refuse_beside_like",
    "warn",
]

_LAUNCHED = ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
_SYNTHETIC = {
    "nodes": (int, "number of nodes (2700)"),
    "classes": (int, "number of classes (7)"),
    "features": (int, "number of features (500)"),
    "degree": (float, "mean degree (4)"),
    "homophily": (float, "share of edges inside a class (0.75)"),
    "communities": (int, "number of communities that most edges stay in (none)"),
    "train_per_class": (int, "training nodes a class (20)"),
}

#: exit code of a signal that came; compiled code may swallow what the handler raises, or make another
#: error of it
_told_to_end: list[int] = []


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    _told_to_end.append(128 + number)
    raise SystemExit(128 + number)


def listen() -> None:
    """From here on SIGINT, SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed.

    For the start of the work: what takes long to import has been, since an exception that comes up in there
    may be swallowed.
    """
    unraisable = sys.unraisablehook

    def report(error: sys.UnraisableHookArgs) -> None:
        """Say nothing of an exit that a destructor swallows; the next report of progress raises it again."""
        if not (_told_to_end and error.exc_type is SystemExit):
            unraisable(error)

    sys.unraisablehook = report
    for number in (signal.SIGINT, signal.SIGTERM):
        heed(number, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _terminated)


class Reporter:
    """Progress bars on a terminal's stderr; silent elsewhere.

    Called with what is done, how much of it and of how much, it raises SystemExit when a signal has come that
    compiled code swallowed.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.start()

    def __call__(self, what: str, done: int, total: int) -> None:
        if _told_to_end:
            raise SystemExit(_told_to_end[0])
        if self._progress is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total or None)
        self._progress.update(self._tasks[what], completed=done, total=total or None)

    def close(self) -> None:
        """Take the bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def add_data_options(
    parser: argparse.ArgumentParser,
    out: str | None,
    seed: str,
    norm_text: str,
    like: str = "",
) -> None:
    """Add the options that say what to read and where to write.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    out : str or None
        The default of --out, as its help says it; None: there is no such option.
    seed : str
        What the seed draws.
    norm_text : str
        What the help of --feature-norm says of its default.
    like : str, optional
        What --like takes over, and from which files; by default there is no such option.
    """
    parser.add_argument(
        "name", metavar="NAME|FILE.npz", help="data set, or a graph in the gnn-benchmark keys"
    )
    parser.add_argument("--raw", metavar="DIR", help="folder of the raw files (data/raw/NAME, downloaded)")
    if out is not None:
        parser.add_argument("--out", metavar="FILE.h5", help=f"what to write ({out})")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=seed)
    parser.add_argument(
        "--feature-norm",
        choices=FEATURE_NORMS,
        help="of the features first: row divides each node's by their L1 norm, standard takes from each "
        f"feature its mean and divides by its deviation ({norm_text})",
    )
    if like:
        parser.add_argument("--like", metavar="FILE.h5", help=f"prepare as it was: {like}")
    parser.add_argument("--no-verify", action="store_true", help="do not compare checksums")
    group = parser.add_argument_group("synthetic graph")
    for name, (kind, text) in _SYNTHETIC.items():
        group.add_argument(f"--synthetic-{name.replace('_', '-')}", type=kind, metavar="N", help=text)


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add --classes, which makes a file to predict on."""
    parser.add_argument(
        "--classes",
        type=int,
        metavar="C",
        help="of the model that is to predict on FILE.npz, which then needs no labels and no splits",
    )


def check_classes(options: argparse.Namespace) -> None:
    """Refuse too few.

    Raises
    ------
    InputError
    """
    if options.classes is not None and options.classes < 2:
        raise InputError(f"--classes {options.classes} is too few; give 2 or more")


def refuse_beside_like(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that say what --like says.

    Raises
    ------
    InputError
    """
    for name in names:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} and --like both say how to prepare; give one of them")


def data_arguments(options: argparse.Namespace) -> list[str]:
    """What the options say of where the data are and of the synthetic graph, as it was given."""
    found = []
    for name in ("raw", "seed", *(f"synthetic_{name}" for name in _SYNTHETIC)):
        value = getattr(options, name)
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return [*found, "--no-verify"] if options.no_verify else found


def choose_target(options: argparse.Namespace, ending: str, schema: str, kind: str) -> Path:
    """The file to write, looked at before any work: --out, or the data set's name in the folder data.

    Parameters
    ----------
    options : argparse.Namespace
    ending : str
        Of the name where there is no --out.
    schema, kind : str
        What may be replaced, as in `target_of`.

    Raises
    ------
    InputError
        When there is no such data set, or something else is in the file's place.
    """
    from pdadmm.datasets import REGISTRY, called

    out = Path(options.out if options.out is not None else f"data/{called(options.name)}{ending}")
    named = options.name if options.name not in REGISTRY else None
    target_of(out, schema, kind, filter(None, (named, options.like)))
    return out


def load_graph(options: argparse.Namespace, report: Reporter) -> tuple[Graph, Dataset | None]:
    """The graph that the options name, and its entry in the registry."""
    from pdadmm.datasets import REGISTRY, load

    synthetic = {
        name: value for name in _SYNTHETIC if (value := getattr(options, f"synthetic_{name}")) is not None
    }
    graph = load(
        options.name,
        raw=options.raw,
        seed=options.seed,
        verify=not options.no_verify,
        progress=report,
        synthetic=synthetic,
        classes=getattr(options, "classes", None) or 0,
    )
    return graph, REGISTRY.get(options.name)


def warn(program: str, graph: Graph) -> None:
    """Say on stderr what may not be meant: classes without a training node, edges with directions or weights.

    Not of the edges of a data set of the registry: that is how everybody uses those.
    """
    from pdadmm.datasets import REGISTRY

    warnings = []
    if graph.directed and graph.name not in REGISTRY:
        warnings.append(f"{graph.origin}: edges have directions; each is taken both ways")
    if graph.weighted and graph.name not in REGISTRY:
        warnings.append(f"{graph.origin}: edges have weights; each counts as 1")
    if graph.complete and graph.untrained:
        some = ", ".join(str(c) for c in graph.untrained[:10])
        warnings.append(f"no training node of class {some}")
    for warning in warnings:
        print(f"{program}: warning: {one_line(warning)}", file=sys.stderr, flush=True)


def answer(program: str, work: Callable[[Reporter], None]) -> int:
    """Do the work in one process; print what is wrong; return the exit code."""
    report = Reporter()
    try:
        work(report)
    except SystemExit as exc:  # --help, or a signal
        return exc.code if isinstance(exc.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as exc:
        if _told_to_end:
            return _told_to_end[0]
        if isinstance(exc, MemoryError):
            exc = InputError("not enough memory for these data; take a machine with more, or fewer data")
        if isinstance(exc, OSError):
            exc = denied(exc) or exc
        if not isinstance(exc, InputError):
            raise
        report.close()
        print(f"{program}: {one_line(exc)}", file=sys.stderr, flush=True)
        return 2
    finally:
        report.close()
    return 0


def on_first_rank(program: str, run: Callable[[Share], int]) -> int:
    """Call `run`, under mpirun on rank 0 alone; return its exit code.

    What it is called with shares an augmentation among the ranks.
    """
    srun_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1") or "1")
    if not any(name in os.environ for name in _LAUNCHED) and srun_tasks <= 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return run(lambda work: work.pieces(cores))

    from pdadmm.inputs.parallel import run_shared

    return run_shared(program, run)
