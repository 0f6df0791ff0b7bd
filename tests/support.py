"""What several test files share: starting programs, reading a run's folder, layouts of the networks."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

import pdadmm
from pdadmm.comm.channel import Channel, Ends
from pdadmm.comm.rounds import Round, Rounds
from pdadmm.runtime import checkpoint

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
    cache = {"CUPY_CACHE_DIR": _cache().name}
    return {"PYTHONPATH": path, "STANDIN_DEVICES": str(devices), **cache, **others}


@functools.cache
def _cache() -> tempfile.TemporaryDirectory[str]:
    """Where compiled CUDA sources are kept, until this process ends."""
    return tempfile.TemporaryDirectory(prefix="pdadmm-cuda-")


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


def run_many(
    start: Callable[..., Finished],
    module: str,
    runs: Iterable[Sequence[str | Path]],
    folder: Path,
    timeout: float = 280,
    **keywords: Any,
) -> None:
    """Run a command once for each list of arguments, all in one start of Python.

    `start` starts it: `python`, or ``partial(mpirun, ranks)``. The lists lie in `folder` meanwhile.
    """
    lists = folder / "runs.json"
    lists.write_text(json.dumps([[str(argument) for argument in run] for run in runs]))
    succeed(start(PROGRAMS / "run_many.py", module, lists, timeout=timeout, **keywords))


def run_each(
    start: Callable[..., Finished],
    module: str,
    runs: Mapping[str, Sequence[str | Path]],
    folder: Path,
    **keywords: Any,
) -> dict[str, Path]:
    """As `run_many`, of arguments by name; returns the folders of the results, which are in `folder`."""
    folders = {name: folder / name for name in runs}
    lists = [[*arguments, "--out", folders[name]] for name, arguments in runs.items()]
    run_many(start, module, lists, folder, **keywords)
    return folders


def age(folder: Path) -> None:
    """Let the newest checkpoint of a run say that it took 1,000 seconds."""
    path = max((folder / "checkpoints").glob("iteration-*")) / "index.json"
    body = checkpoint._unsealed(path)
    body["state"]["seconds_total"] = 1000.0
    path.write_bytes(checkpoint._sealed(body))


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


def check_accounts(profile: Any) -> None:
    """Phases add up to the iterations by the rank's own clock, and to their wall time measured around them.

    Another process may come between two clocks' readings at any moment, on a busy machine nearly anywhere:
    that the phases fill the wall time is asked of the best stage only. What is missing by a mistake is
    missing in all of them.
    """
    filled = []
    for rank in profile["ranks"]:
        for stage in rank["stages"]:
            if not stage["iterations"]:
                continue
            phases = sum(sum(row.values()) for row in stage["phases"].values())
            own = stage["iterations"] * stage["iteration_seconds"]["mean"]
            assert phases == pytest.approx(own, rel=1e-6)
            assert phases <= stage["wall_seconds"] * (1 + 1e-6)
            filled.append(phases / stage["wall_seconds"])
    assert max(filled) > 0.97


def weights_of(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """W and b of every layer of a model.h5, read without the package."""
    with h5py.File(path) as file:
        groups = sorted(name for name in file if name.startswith("layer_"))
        return [(file[name]["W"][...], file[name]["b"][...]) for name in groups]


def weights_of_run(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Those of the last iterate and of the one that was best on validation."""
    return weights_of(folder / "model.h5") + weights_of(folder / "model_best.h5")


def held_bytes(root: object) -> int:
    """Bytes of all that an object leads to, but for classes, modules and functions."""
    found: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or isinstance(thing, type | ModuleType | FunctionType):
            continue
        found.add(id(thing))
        total += sys.getsizeof(thing)
        waiting += gc.get_referents(thing)
    return total


def message_bytes(codec: str, bits: int, rows: int, cols: int) -> int:
    """Bytes of one message, counted from the description of the codecs alone."""
    packed = rows * -(-cols * bits // 8)
    headers = {"float32": 0, "grid": 0, "affine": 4 * rows, "delta": 2 * rows * -(-cols // 128)}
    return packed + headers[codec]


# ---- messages between ranks -----------------------------------------------------------------------


def content(name: str, message: int, size: int) -> np.ndarray:
    """Bytes of a message, different for every one."""
    return np.random.default_rng([*name.encode(), message]).integers(0, 256, size).astype(np.uint8)


def between(kind: str, sender: int, receiver: int, tag: int, nbytes: int, rank: int) -> Channel:
    """A message as one of its two ranks sees it."""
    sends = rank == sender
    return Channel(f"{kind} {sender}-{receiver}", receiver if sends else sender, tag, nbytes, sends)


def graph_rounds(ranks: int, rank: int, layers: int = 3) -> Rounds:
    """Rounds F1 ... FL, BL ... B2 of a graph network cut into parts, as a rank sees them.

    Rank 0 exchanges with all others, and those with the next one after the next: some pairs exchange
    nothing. Every message has a size of its own; some are empty; the last rank has no part in B2.
    """
    names = [*(f"F{i}" for i in range(1, layers + 1)), *(f"B{i}" for i in range(layers, 1, -1))]
    rounds = []
    for turn, name in enumerate(names):
        channels = []
        for i, j in itertools.permutations(range(ranks), 2):
            if rank not in (i, j) or (i and j and abs(i - j) != 2) or (name == "B2" and ranks - 1 in (i, j)):
                continue
            nbytes = (0, 1, 977, 40_001, 6)[(turn + 2 * i + 3 * j) % 5]
            channels.append(between(name, i, j, 1000 * turn + 30 * i + j, nbytes, rank))
        rounds.append(Round(name, tuple(channels)))
    return Rounds(tuple(rounds))


def exchange(
    rounds: Rounds,
    ends: Ends,
    epochs: int,
    read: Callable[[Any], np.ndarray],
    write: Callable[[Any, np.ndarray], None],
) -> None:
    """Send every message of the rounds in every epoch and compare what comes with what was sent.

    `read` gives a buffer on the host, `write` fills one from there.
    """
    for receiver in ends.incoming.values():
        receiver.post()
    for epoch in range(epochs):
        for part in rounds:
            for channel in (c for c in part.channels if c.sends):
                sender = ends.outgoing[channel.name]
                sender.wait_free()
                write(sender.buffer, content(channel.name, epoch, channel.nbytes))
                sender.start()
            for channel in (c for c in part.channels if not c.sends):
                receiver = ends.incoming[channel.name]
                receiver.wait()
                expected = content(channel.name, epoch, channel.nbytes)
                np.testing.assert_array_equal(read(receiver.buffer), expected, channel.name)
                if epoch + 1 < epochs:
                    receiver.post()
    for end in (*ends.outgoing.values(), *ends.incoming.values()):
        assert (end.messages, end.bytes) == (epochs, epochs * end.channel.nbytes)
