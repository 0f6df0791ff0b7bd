"""The sections of options that every system has: where a run computes, and what it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pdadmm.arrays.backend import PRECISIONS
from pdadmm.errors import InputError
from pdadmm.runtime.options import COUNT, SECONDS, Range, option

__all__ = ["MOST_THREADS", "Output", "Run", "check"]

#: of a rank
MOST_THREADS = 1024


@dataclass
class Run:
    """Where and how it runs."""

    #: a run may go on elsewhere, but with the same arithmetic
    resumed: ClassVar[tuple[str, ...]] = ("kernels", "precision", "timeout")

    backend: str = option("auto", "array library", ("auto", "numpy", "cupy"))
    transport: str = option("auto", "how messages travel", ("auto", "mpi", "nccl"))
    kernels: str = option(
        "auto",
        "the passes between products: compiled (auto: where they are installed) or plain array operations",
        ("auto", "fused", "reference"),
    )
    precision: str = option("float32", "products on a GPU: float32, tf32, or three of bfloat16", PRECISIONS)
    cuda_aware_mpi: bool = option(False, "give GPU buffers to MPI itself; it must have been built for that")
    overlap: bool = option(True, "send while computing; --no-overlap waits for every message to leave")
    threads: int = option(
        0,
        "threads of a rank; default: OMP_NUM_THREADS, or else OPENBLAS_NUM_THREADS, or the node's cores over "
        "its ranks "
        "(pdadmm.run: fewer for small products)",
        within=Range(0, MOST_THREADS),
    )
    timeout: float = option(
        0.0, "seconds without a sign of a neighbour after which the run ends; 0: never", within=SECONDS
    )


@dataclass
class Output:
    """What is measured and written."""

    resumed: ClassVar[tuple[str, ...]] = ("eval_every", "checkpoint_every", "checkpoint_seconds")

    out: str = option("", "folder of the results; default: runs/DATASET-DATE-TIME", metavar="DIR", kept=False)
    eval_every: int = option(10, "iterations, or epochs, between evaluations", within=COUNT)
    checkpoint_every: int = option(
        0, "iterations, or epochs, between checkpoints; 0: none", metavar="N", within=Range(0, COUNT.most)
    )
    checkpoint_seconds: float = option(0.0, "seconds between checkpoints; 0: none", within=SECONDS)
    max_seconds: float = option(
        0.0, "seconds after which the run saves a checkpoint and stops; 0: never", within=SECONDS
    )
    resume: bool = option(False, "go on from the newest intact checkpoint in --out", kept=False)
    overwrite: bool = option(False, "move the run that is in --out aside and start afresh", kept=False)
    trace: bool = option(False, "write a timeline for Perfetto or Chrome, trace.json in --out")
    measure_links: bool = option(
        False, "measure latency and bandwidth between neighbours first; the profile compares with them"
    )
    quiet: bool = option(False, "no progress bar and no table")


def check(output: Output, reads: Iterable[str]) -> None:
    """Refuse what cannot be meant of a folder.

    Parameters
    ----------
    reads
        Paths that the run reads; empty ones are none.

    Raises
    ------
    InputError
    """
    if output.resume and not output.out:
        raise InputError("--resume needs --out DIR, the folder of the run to go on with")
    if output.overwrite and not output.out:
        raise InputError("--overwrite needs --out DIR, the folder of the run to move aside")
    if output.overwrite and output.resume:
        raise InputError(
            "--resume goes on with the run in --out, --overwrite moves it aside; give one of them"
        )
    for path in filter(None, reads if output.overwrite else ()):
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output.out)):
            raise InputError(
                f"{path} is in --out {output.out}, which --overwrite moves aside; choose another --out"
            )
