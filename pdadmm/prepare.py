"""Make a feature file: `python -m pdadmm.prepare NAME|FILE.npz`, alone or under mpirun.

    python -m pdadmm.prepare cora --hops 4 --out data/cora.h5
    mpirun -n 8 python -m pdadmm.prepare coauthor-physics --nodes all

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pdadmm.errors import InputError, one_line
from pdadmm.process import begin, heed
from pdadmm.runtime.parser import Parser

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pdadmm.inputs.parallel import Share

__all__ = ["main"]

_LAUNCHED = ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
_SYNTHETIC = {
    "nodes": (int, "number of nodes (2700)"),
    "classes": (int, "number of classes (7)"),
    "features": (int, "number of features (500)"),
    "degree": (float, "mean degree (4)"),
    "homophily": (float, "share of edges inside a class (0.75)"),
    "train_per_class": (int, "training nodes a class (20)"),
}


def _parser() -> Parser:
    parser = Parser(prog="python -m pdadmm.prepare", description="Make a feature file for training.")
    parser.add_argument(
        "name", metavar="NAME|FILE.npz", help="data set, or a graph in the gnn-benchmark keys"
    )
    parser.add_argument("--raw", metavar="DIR", help="folder of the raw files (data/raw/NAME, downloaded)")
    parser.add_argument("--out", metavar="FILE.h5", help="what to write (data/NAME.h5)")
    parser.add_argument("--hops", type=int, default=4, metavar="K", help="hops of augmentation (4)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="draws splits and the synthetic graph"
    )
    parser.add_argument("--nodes", choices=("split", "all"), default="split", help="rows to keep (split)")
    parser.add_argument("--feature-norm", choices=("none", "row"), help="row: divide by the L1 norm first")
    parser.add_argument("--no-verify", action="store_true", help="do not compare checksums")
    group = parser.add_argument_group("synthetic graph")
    for name, (kind, text) in _SYNTHETIC.items():
        group.add_argument(f"--synthetic-{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    return parser


class _Reporter:
    """Progress bars on a terminal's stderr; silent elsewhere."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.start()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total or None)
        self._progress.update(self._tasks[what], completed=done, total=total or None)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@contextmanager
def _within_memory() -> Iterator[None]:
    """Make bad input of data that do not fit into memory."""
    try:
        yield
    except MemoryError:
        raise InputError(
            "not enough memory for these data; take a machine with more, or fewer data"
        ) from None


@_within_memory()
def _prepare(options: argparse.Namespace, share: Share, report: _Reporter) -> None:
    from pdadmm.datasets import REGISTRY, called, load
    from pdadmm.inputs.augment import Augmentation, Piece
    from pdadmm.inputs.write import target_of, write_features

    for number in (signal.SIGINT, signal.SIGTERM):
        heed(number, _terminated)
    began = time.perf_counter()
    if options.hops < 0:
        raise InputError(f"--hops {options.hops} is negative; give 0 or more")
    out = Path(options.out if options.out is not None else f"data/{called(options.name)}.h5")
    target_of(out, options.name if options.name not in REGISTRY else None)
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
    )
    entry = REGISTRY.get(options.name)
    norm = options.feature_norm or (entry.feature_norm if entry else "none")
    work = Augmentation(graph, options.hops, norm, options.nodes)

    def watched(pieces: Iterator[Piece]) -> Iterator[Piece]:
        total = work.shape[1]
        done = 0
        for piece in pieces:
            if _told_to_end:
                raise SystemExit(_told_to_end[0])
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
    if graph.untrained:
        some = ", ".join(str(c) for c in graph.untrained[:10])
        print(f"pdadmm.prepare: warning: no training node of class {some}", file=sys.stderr, flush=True)
    rows, columns = work.shape
    sizes = work.sizes
    print(f"{out}: {rows} rows x {columns} columns ({work.hops + 1} x {graph.num_features} features)", end="")
    print(f", {graph.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB")
    print(
        f"train {sizes['train']}, val {sizes['val']}, test {sizes['test']} nodes; "
        f"{time.perf_counter() - began:.1f} s",
        flush=True,
    )


#: exit code of a signal that came; compiled code may swallow what the handler raises, or make another
#: error of it
_told_to_end: list[int] = []


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    _told_to_end.append(128 + number)
    raise SystemExit(128 + number)  # an exception, so that temporary files are removed


def _run(arguments: Sequence[str] | None, share: Share) -> int:
    """Do the work in one process; print what is wrong; return the exit code."""
    report = _Reporter()
    try:
        _prepare(_parser().parse_args(arguments), share, report)
    except SystemExit as exc:  # --help, or a signal
        return exc.code if isinstance(exc.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as exc:
        if _told_to_end:
            return _told_to_end[0]
        if not isinstance(exc, InputError):
            raise
        report.close()
        print(f"pdadmm.prepare: {one_line(exc)}", file=sys.stderr, flush=True)
        return 2
    finally:
        report.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Under mpirun rank 0 reads, reports and writes, and the other ranks compute column blocks for it.
    """
    srun_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1") or "1")
    if not any(name in os.environ for name in _LAUNCHED) and srun_tasks <= 1:
        return _run(arguments, lambda work: work.pieces())

    from pdadmm.inputs.parallel import run_shared

    return run_shared(lambda share: _run(arguments, share), srun_tasks)


if __name__ == "__main__":
    begin()
    sys.exit(main())
