"""What several test files share: starting programs, reading a run's folder, layouts of the networks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import pdadmm

PROGRAMS = Path(__file__).parent / "programs"
#: replaces CuPy and NCCL on a machine without a GPU
STANDIN = Path(__file__).parent / "standin"

#: (codec, bits) of every form of every codec
CODECS = [
    ("float32", 32),
    *[("grid", bits) for bits in (8, 4, 2)],
    *[("affine", bits) for bits in (8, 4, 2)],
    *[("delta", bits) for bits in (8, 4, 2, 1)],
]


def words(text: str) -> list[str]:
    """The words of a text: a command line without quotes."""
    return text.split()


def on_standin(devices: int = 4, **others: str) -> dict[str, str]:
    """Environment of a program that is to find the stand-in for CuPy, with so many devices."""
    path = os.pathsep.join([str(STANDIN), str(Path(__file__).parents[1])])
    return {"PYTHONPATH": path, "STANDIN_DEVICES": str(devices), **others}


@dataclass
class Finished:
    """How a program ended."""

    code: int
    out: str
    err: str


def find_mpirun() -> str | None:
    """The mpirun beside this Python, or of the PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def start(
    command: list[str], timeout: float, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Finished:
    """Run a command in its own process group; kill the whole group and fail when it takes too long."""
    # the package under test, wherever it lies, and one BLAS thread: sums must not depend on their number
    source = str(Path(pdadmm.__file__).resolve().parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **threads, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(
            f"{command} did not end within {timeout} s\n{out[-2000:]}\n{err[-4000:]}"
        ) from None
    return Finished(process.returncode, out, err)


def python(*arguments: str | Path, timeout: float = 60, **keywords: Any) -> Finished:
    """Run Python with `arguments`, without mpirun."""
    return start([sys.executable, *map(str, arguments)], timeout, **keywords)


def succeed(finished: Finished) -> Finished:
    """Fail with the program's words unless it ended with 0."""
    assert finished.code == 0, f"exit code {finished.code}\n{finished.out[-2000:]}\n{finished.err[-6000:]}"
    return finished


def summary_of(folder: Path) -> dict[str, Any]:
    """A run's summary.json."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what a clock said."""
    return {k: v for k, v in record.items() if not k.startswith("seconds")}


def weights_of(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """W and b of every layer of a model.h5, read without the package."""
    with h5py.File(path) as file:
        groups = sorted(name for name in file if name.startswith("layer_"))
        return [(file[name]["W"][...], file[name]["b"][...]) for name in groups]


def message_bytes(codec: str, bits: int, rows: int, cols: int) -> int:
    """Bytes of one message, counted from the description of the codecs alone."""
    packed = rows * -(-cols * bits // 8)
    headers = {"float32": 0, "grid": 0, "affine": 4 * rows, "delta": 2 * rows * -(-cols // 128)}
    return packed + headers[codec]
