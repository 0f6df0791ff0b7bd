"""A rank that fails ends the job soon, with one line that says where and why; signals save and stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mpi4py import MPI
from support import PROGRAMS, Finished, find_mpirun, python, records_of, succeed, summary_of, without_times

import pdadmm
from pdadmm.comm.waiter import Waiter
from pdadmm.runtime.checkpoint import Checkpoint, newest
from pdadmm.runtime.control import STOPPED_EARLY

MPIRun = Callable[..., Finished]

OPTIONS = ["--layers", "4", "--stages", "4", "--hidden", "16", "--eval-every", "5", "--quiet"]
FAULTY = PROGRAMS / "faulty_rank.py"


def intact(folder: Path) -> Checkpoint:
    """The newest checkpoint; fails when any is damaged."""

    def warn(line: str) -> None:
        raise AssertionError(line)

    return newest(folder, Waiter(MPI.COMM_SELF), warn)


@pytest.mark.parametrize(
    ("kind", "code", "options", "reason"),
    [
        ("kill", 9, "", r"rank 1, layers 3-4, iteration \d+ \(stage 1\): the process died without a word"),
        ("crash", 11, "", r"rank 1, layers 3-4, iteration 12 \(stage 1\): the process died without a word"),
        ("raise", 1, "", r"rank 1, layers 3-4, iteration 12 \(stage 1\): ZeroDivisionError: injected"),
        ("memory", 1, "", r"rank 1, layers 3-4, iteration 12 \(stage 1\): out of memory \(Unable to"),
        ("nan", 1, "", r"rank 1, layers 3-4, iteration 1[23] \(stage 1\): layer 4, .*NaN or Inf; .*--rho"),
        ("diverge", 1, "", r"rank 0, .*iteration 15 \(stage 1\): the objective is .* diverges; scale"),
        (
            "stop", 1, "--timeout 3",
            r"rank 0, layers 1-2, iteration 1[123] \(stage 1\): no answer within 3 s while waiting for a "
            r"message from layer 3 on rank 1; rank 1 \(process \d+\) is stopped",
        ),
        (
            "disk", 1, "",
            r"rank 0, .*iteration 15 \(stage 1\): rank 1: the checkpoint .* could not be written "
            r"\(File too large\); the ones before are intact: go on with --resume",
        ),
    ],
)  # fmt: skip
def test_fault_of_a_rank_ends_the_job_and_leaves_the_checkpoints(
    mpirun: MPIRun, small: Path, tmp_path: Path, kind: str, code: int, options: str, reason: str
) -> None:
    victim = "0" if kind == "diverge" else "1"
    env = {"FAULT_TIME": str(tmp_path / "fault")}
    given = [*OPTIONS, *options.split(), "--iterations", "200", "--checkpoint-every", "5"]
    found = mpirun(2, FAULTY, kind, victim, "12", small, *given, "--out", tmp_path / "o", env=env)
    assert time.time() - float((tmp_path / "fault").read_text()) < 15
    assert found.code == code
    # a crash shows where Python was, in pieces, and mpirun may put what the witness says after the first
    lines = re.findall("pdadmm: .*" if kind == "crash" else "^pdadmm: .*", found.err, re.MULTILINE)
    assert len(lines) == 1, found.err
    assert re.fullmatch(rf"pdadmm: {reason}.*", lines[0]), lines[0]
    assert intact(tmp_path / "o").iteration >= 10
    assert not list((tmp_path / "o" / "checkpoints").glob("*.tmp")) or kind in ("kill", "crash")


@pytest.fixture(scope="module")
def whole(mpirun: MPIRun, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 iterations that no signal reaches."""
    folder = tmp_path_factory.mktemp("whole") / "o"
    succeed(mpirun(3, "-m", "pdadmm.run", small, *OPTIONS, "--iterations", "20", "--out", folder))
    return folder


@pytest.mark.parametrize("kind", ["term", "usr1"])
def test_signal_to_one_rank_saves_all_after_the_same_iteration(
    mpirun: MPIRun, small: Path, tmp_path: Path, whole: Path, kind: str
) -> None:
    given = [small, *OPTIONS, "--iterations", "20"]
    found = mpirun(3, FAULTY, kind, "2", "12", *given, "--out", tmp_path / "o")
    assert found.code == (STOPPED_EARLY if kind == "term" else 0), found.err
    assert intact(tmp_path / "o").iteration in (12, 13)  # the vote of iteration 12 is cast before it begins
    if kind == "term":
        assert "go on with --resume" in found.err
        succeed(mpirun(3, "-m", "pdadmm.run", "--out", tmp_path / "o", "--resume", "--quiet"))
    for one, two in zip(records_of(tmp_path / "o"), records_of(whole), strict=True):
        assert without_times(one) == without_times(two)


def test_second_sigterm_ends_at_once(mpirun: MPIRun, small: Path, tmp_path: Path) -> None:
    given = [small, *OPTIONS, "--iterations", "200", "--out", tmp_path / "o"]
    env = {"FAULT_TIME": str(tmp_path / "fault")}
    found = mpirun(2, FAULTY, "term-twice", "1", "12", *given, env=env)
    assert time.time() - float((tmp_path / "fault").read_text()) < 15
    assert found.code == 128 + signal.SIGTERM


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, STOPPED_EARLY), (signal.SIGUSR1, 0)])
def test_mpirun_hands_signals_to_the_ranks(small: Path, tmp_path: Path, number: int, code: int) -> None:
    program = find_mpirun()
    if program is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    folder = tmp_path / "o"
    command = [program, "-n", "2", sys.executable, "-m", "pdadmm.run", small, *OPTIONS, "--out", folder]
    source = str(Path(pdadmm.__file__).resolve().parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen([*map(str, command), "--iterations", "1500"], env=env, stderr=subprocess.PIPE)
    try:
        limit = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == code
    assert intact(folder).iteration < 1500


def test_a_checkpoint_that_is_asked_for_too_early_does_not_end_the_run(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdadmm.run", small, "--layers", "2", "--iterations", "3", "--quiet"]
    with subprocess.Popen([*map(str, command), "--out", str(tmp_path / "o")]) as run:
        ignored, limit = 1 << (signal.SIGUSR1 - 1), time.monotonic() + 60
        while not ignored & int(
            re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{run.pid}/status").read_text())[0], 16
        ):
            assert time.monotonic() < limit and run.poll() is None
        run.send_signal(signal.SIGUSR1)
        assert run.wait(60) == 0
    assert (tmp_path / "o" / "summary.json").exists()


def test_max_seconds_stops_in_time_with_a_checkpoint(mpirun: MPIRun, small: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    found = mpirun(
        2, "-m", "pdadmm.run", small, *OPTIONS, "--iterations", "1000000", "--max-seconds", "6", "--out",
        tmp_path / "o",
    )  # fmt: skip
    assert found.code == STOPPED_EARLY
    assert time.monotonic() - begin < 25  # with the start and the end of the processes
    assert intact(tmp_path / "o").state["seconds_iterations"] < 6


def test_checkpoints_by_the_clock(tmp_path: Path, small: Path) -> None:
    given = [*OPTIONS, "--iterations", "1000000", "--checkpoint-seconds", "0.2", "--max-seconds", "6"]
    found = python("-m", "pdadmm.run", small, *given, "--out", tmp_path / "o")
    assert found.code == STOPPED_EARLY
    first, last = sorted((tmp_path / "o" / "checkpoints").iterdir())
    assert Checkpoint(first).iteration < Checkpoint(last).iteration


def test_out_of_disk_for_the_metrics_says_so(mpirun: MPIRun, small: Path, tmp_path: Path) -> None:
    given = [small, *OPTIONS, "--eval-every", "1", "--iterations", "200", "--out", tmp_path / "o"]
    found = mpirun(2, FAULTY, "disk", "0", "12", *given)
    assert found.code == 1
    assert re.search(r"pdadmm: rank 0, layers 1-2, iteration 1\d \(stage 1\): File too large", found.err)
    assert not (tmp_path / "o" / "summary.json").exists()


def test_summary_of_a_run_without_faults_has_no_checkpoint_time(small: Path, tmp_path: Path) -> None:
    succeed(python("-m", "pdadmm.run", small, *OPTIONS, "--iterations", "5", "--out", tmp_path / "o"))
    assert summary_of(tmp_path / "o")["seconds_checkpoints"] == 0
