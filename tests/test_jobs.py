"""The job scripts on a real SLURM of one node: results, requeue and resume, arrays, exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm import Cluster, missing
from support import find_mpirun, start, summary_of

import pdadmm
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.runtime.control import STOPPED_EARLY

JOBS = Path(__file__).parents[1] / "jobs"
SCRIPTS = sorted(JOBS.glob("*.sh"))

OPTIONS = ["--layers", "4", "--iterations", "30", "--eval-every", "10", "--quiet"]
#: seconds that a run goes on which is to be interrupted
LONG = 8.0


@dataclass
class Bench:
    """A cluster and where jobs run on it."""

    cluster: Cluster
    folder: Path
    features: Path

    def submit(self, script: str, *arguments: str, ranks: int = 2, options: str = "", **env: str) -> str:
        # one job at a time: MPI spins while it starts, and the machine may have fewer cores than ranks
        given = [f"--ntasks={ranks}", "--exclusive", *options.split()]
        return self.cluster.sbatch(*given, JOBS / script, *arguments, env=env, cwd=self.folder)

    def out(self, job: str) -> Path:
        text = self.cluster.run("scontrol", "show", "job", job).stdout
        return Path(re.findall(r"^ +StdOut=(.*)$", text, re.MULTILINE)[-1])

    def succeed(self, job: str, seconds: float = 250) -> str:
        """Wait for the job and return what it printed."""
        states = self.cluster.wait(job, seconds)
        text = self.out(job).read_text()
        assert set(states) == {"COMPLETED"}, f"{states}\n{text[-5000:]}"
        return text

    def hurry(self, job: str) -> None:
        """Start a requeued job in seconds: SLURM lets two minutes pass, so that the old one is gone."""
        limit = time.monotonic() + 100
        while (found := self.cluster.job(job)).get("JobState") != "PENDING" or found["Restarts"] == "0":
            assert time.monotonic() < limit, f"{found}\n{self.out(job).read_text()[-5000:]}"
            time.sleep(0.2)
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+3", check=True)

    def until(self, job: str, pattern: str, seconds: float = 150) -> None:
        """Wait until files of that pattern are there."""
        limit = time.monotonic() + seconds
        while not list(self.folder.glob(pattern)):
            assert time.monotonic() < limit, f"no {pattern}\n{self.out(job).read_text()[-5000:]}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def bench(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if reason := missing():
        pytest.skip(reason)
    if find_mpirun() is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    folder = tmp_path_factory.mktemp("slurm")
    # sockets have short paths, and munged wants no folder that others could write to
    cluster = Cluster(folder)
    source = str(Path(pdadmm.__file__).resolve().parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    cluster.env.update(PYTHONPATH=path, PYTHON=sys.executable)
    for name in ("OMP_NUM_THREADS", "LAUNCH", "OUT"):
        cluster.env.pop(name, None)
    work = folder / "some where"
    work.mkdir()
    try:
        cluster.__enter__()
    except RuntimeError as error:
        pytest.skip(f"SLURM does not start on this machine: {str(error).splitlines()[0]}")
    try:
        yield Bench(cluster, work, small)
    finally:
        cluster.__exit__(None, None, None)


@pytest.fixture(scope="module")
def jobs(bench: Bench) -> dict[str, str]:
    """Ids of jobs that run side by side, by name."""
    features = str(bench.features)
    return {
        "prepare": bench.submit("prepare.sh", "synthetic", "--synthetic-nodes", "200", "--out", "made.h5"),
        "srun": bench.submit("train_cpu.sh", features, *OPTIONS, OUT="srun", LAUNCH="srun-pmi2"),
        "mpirun": bench.submit("train_cpu.sh", features, *OPTIONS, OUT="mpirun", LAUNCH="mpirun"),
        "bad": bench.submit("train_cpu.sh", features, "--nu", "-1"),
        "sweep": bench.submit(
            "sweep.sh", features, *OPTIONS, options="--array=0-1%1", OUT="sweep",
            SETTINGS="--codec float32\n--codec grid --bits 8",
        ),
        "profile": bench.submit("profile.sh", features, "--layers", "4", OUT="profile"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def long(bench: Bench, jobs: dict[str, str]) -> list[str]:
    """Options of a run that goes on for `LONG` seconds, however fast this machine is."""
    bench.succeed(jobs["srun"])
    s = summary_of(bench.folder / "srun")
    iterations = str(round(LONG / (s["seconds_iterations"] / s["iterations"])))
    options = f"--layers 4 --stages 4 --iterations {iterations} --eval-every {iterations} --quiet"
    return options.split()


def test_job_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; Debian: apt install shellcheck")
    ci = JOBS.parent / ".ci" / "run"
    others = [JOBS.parent / "kernels" / "build_wheel.sh", *sorted(JOBS.glob("containers/*.sh"))]
    assert len(others) == 3
    found = subprocess.run(
        ["shellcheck", "-x", "-P", str(JOBS.parent), *SCRIPTS, *others, *([ci] if ci.exists() else [])],
        capture_output=True,
        text=True,
        cwd=JOBS.parent,
    )
    assert found.returncode == 0, found.stdout


def common(script: str, *arguments: str, **env: str) -> str:
    """What a script prints that has sourced common.sh."""
    code = f". {shlex.quote(str(JOBS / 'common.sh'))}\n{script}"
    env = {**os.environ, "LAUNCH": "mpirun", "PYTHON": sys.executable, **env}
    done = subprocess.run(
        ["bash", "-c", code, "test", *arguments], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("seconds", ["0", "0.6"])
def test_the_exit_code_is_that_of_the_ranks_however_long_telling_them_takes(seconds: str) -> None:
    script = """
        LAUNCHER=(); COMMAND=()
        stop_ranks() { kill -TERM "$CHILD"; sleep "$1"; }
        trap 'stop_ranks "$SECONDS_OF_SCANCEL"' USR1
        (sleep 0.5; kill -USR1 $$) &
        code=0
        launch bash -c 'trap "exit 75" TERM; while true; do sleep 0.05; done' || code=$?
        echo "$code"
    """
    assert common(script, SECONDS_OF_SCANCEL=seconds) == "75"


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"MODULES": "none/1"}, 3, "no module none/1"),
        ({"RANKS": "two"}, 2, "jobs: RANKS is 'two'; it must be a number from 1"),
        ({"RANKS": "0"}, 2, "jobs: RANKS is '0'"),
    ],
)
def test_what_a_site_sets_wrongly_ends_a_job(
    tmp_path: Path, variables: dict[str, str], code: int, said: str
) -> None:
    script = (
        f'module() {{ echo "no module $2" >&2; return 3; }}; . {JOBS / "common.sh"} || exit; echo goes on'
    )
    env = {"PYTHON": sys.executable, "RANKS": "1", **variables}
    found = start(["bash", "-c", script], 60, env=env, cwd=tmp_path)
    assert (found.code, found.out) == (code, "") and said in found.err, found


def test_a_chain_without_slurm_says_how_to_go_on(small: Path, tmp_path: Path) -> None:
    if find_mpirun() is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    options = [str(small), *OPTIONS, "--iterations", "100000", "--max-seconds", "0.01"]
    env = {"PYTHON": sys.executable, "RANKS": "2", "OUT": str(tmp_path / "o"), "LAUNCH": "mpirun"}
    found = start(["bash", str(JOBS / "chain.sh"), *options], 120, env=env, cwd=tmp_path)
    assert found.code == 75 and f"OUT={tmp_path / 'o'} sbatch" in found.err.splitlines()[-1], found


def test_a_script_that_slurm_has_copied_finds_the_others_in_a_path_with_spaces(tmp_path: Path) -> None:
    checkout = tmp_path / "my project"
    shutil.copytree(JOBS, checkout / "jobs")
    (tmp_path / "spool").mkdir()
    shutil.copy(JOBS / "train_cpu.sh", tmp_path / "spool" / "slurm_script")
    told = f"   Command={checkout}/jobs/train_cpu.sh data/cora.h5 --layers 4\n   WorkDir=/"
    tool = tmp_path / "tools" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho {shlex.quote(told)}\n")
    tool.chmod(0o755)
    path = f"{tool.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(tmp_path / "spool" / "slurm_script"), "--version"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={
            **os.environ, "PATH": path, "PYTHON": sys.executable, "LAUNCH": "mpirun", "RANKS": "1",
            "SLURM_JOB_ID": "7",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"pdadmm {pdadmm.__version__}" in done.stdout.splitlines()


@pytest.mark.parametrize("script", [s.name for s in SCRIPTS if s.name != "common.sh"])
def test_slurm_would_run_every_script_as_it_is(bench: Bench, script: str) -> None:
    partition = ["--partition=gpu"] if script == "train_gpu.sh" else []
    found = bench.cluster.run("sbatch", "--test-only", *partition, str(JOBS / script))
    assert found.returncode == 0, found.stderr
    assert "to start at" in found.stderr


def test_prepare_job_writes_features(bench: Bench, jobs: dict[str, str]) -> None:
    bench.succeed(jobs["prepare"])
    with FeatureFile(bench.folder / "made.h5") as features:
        assert features.dataset == "synthetic"


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_training_job_trains_on_all_ranks_and_says_where(
    bench: Bench, jobs: dict[str, str], launcher: str
) -> None:
    text = bench.succeed(jobs[launcher])
    s = summary_of(bench.folder / launcher)
    assert (s["ranks"], s["layers"], s["iterations"]) == (2, 4, 60)
    for word in ("pdadmm ", "numpy ", "MPI: ", "hosts: ", "rank 0 of 2 on ", "rank 1 of 2 on ", "GPUs "):
        assert word in text


def test_launchers_train_the_same_network(bench: Bench, jobs: dict[str, str]) -> None:
    for launcher in ("srun", "mpirun"):
        bench.succeed(jobs[launcher])
    a, b = (summary_of(bench.folder / launcher) for launcher in ("srun", "mpirun"))
    assert a["objective"] == b["objective"]


def test_job_ends_with_the_exit_code_of_the_run(bench: Bench, jobs: dict[str, str]) -> None:
    assert bench.cluster.wait(jobs["bad"], 250) == ["FAILED"]
    assert bench.cluster.job(jobs["bad"])["ExitCode"] == "2:0"
    assert "--nu is -1" in bench.out(jobs["bad"]).read_text()


def test_sweep_runs_a_setting_a_task_and_no_more_at_a_time_than_allowed(
    bench: Bench, jobs: dict[str, str]
) -> None:
    assert bench.cluster.wait(jobs["sweep"], 250) == ["COMPLETED"] * 2
    found = [summary_of(bench.folder / "sweep" / str(task)) for task in range(2)]
    assert [(s["codec"], s["bits"]) for s in found] == [("float32", 32), ("grid", 8)]
    text = bench.cluster.run("scontrol", "show", "job", "-o", jobs["sweep"]).stdout
    times = sorted(re.findall(r"StartTime=(\S+) EndTime=(\S+)", text))
    (_, first_end), (second_start, _) = times
    assert first_end <= second_start


def test_sweep_refuses_a_task_without_a_setting(bench: Bench) -> None:
    job = bench.submit("sweep.sh", options="--array=5", SETTINGS="--codec delta")
    assert bench.cluster.wait(job, 250) == ["FAILED"]
    assert "give --array=0-0" in bench.out(job).read_text()


def test_profile_job_prints_a_report(bench: Bench, jobs: dict[str, str]) -> None:
    text = bench.succeed(jobs["profile"])
    assert "wait" in text.partition("rank 1 of 2 on ")[2]
    trace = json.loads((bench.folder / "profile" / "trace.json").read_text())
    assert trace["traceEvents"]


@pytest.mark.slow
def test_chain_saves_before_the_limit_requeues_itself_and_finishes(bench: Bench, long: list[str]) -> None:
    features = str(bench.features)
    whole = bench.submit("train_cpu.sh", features, *long, OUT="whole")
    job = bench.submit("chain.sh", features, *long, OUT="chained", CHECKPOINT_SECONDS="0.5")
    bench.until(job, "chained/checkpoints/iteration-*/index.json")
    bench.cluster.run("scancel", "--batch", "--signal=USR1", job, check=True)
    bench.hurry(job)
    text = bench.succeed(job, 250)
    assert "the time limit is near" in text
    assert "stopped after iteration" in text
    assert f"job {job}, restart 1" in text
    assert bench.cluster.job(job)["Restarts"] == "1"
    bench.succeed(whole)
    a, b = (summary_of(bench.folder / name) for name in ("whole", "chained"))
    assert a["objective"] == b["objective"]


@pytest.mark.slow
def test_requeued_training_job_goes_on_from_its_checkpoint(bench: Bench, long: list[str]) -> None:
    job = bench.submit("train_cpu.sh", str(bench.features), *long, OUT="again", CHECKPOINT_SECONDS="0.5")
    bench.until(job, "again/checkpoints/iteration-*/index.json")
    bench.cluster.run("scontrol", "requeue", job, check=True)
    bench.hurry(job)
    text = bench.succeed(job, 250)
    assert f"job {job}, restart 1" in text
    s = summary_of(bench.folder / "again")
    assert str(s["iterations"]) == long[long.index("--iterations") + 1]
    assert s["seconds_checkpoints"] > 0


@pytest.mark.slow
def test_a_graph_is_cut_and_trained_and_a_requeued_job_goes_on(bench: Bench) -> None:
    cut = [
        "synthetic",
        "--synthetic-nodes",
        "400",
        "--parts",
        "2",
        "--partitioner",
        "blocks",
        "--out",
        "g.h5",
    ]
    bench.succeed(bench.submit("gnn_prepare.sh", *cut, ranks=1))
    options = ["g.h5", "--hidden", "16", "--quiet"]
    bench.succeed(bench.submit("gnn_train.sh", *options, "--epochs", "100", OUT="gnn"))
    s = summary_of(bench.folder / "gnn")
    assert (s["ranks"], s["parts"], s["epochs"]) == (2, 2, 100)
    options += ["--epochs", str(round(LONG / (s["seconds_epochs"] / s["epochs"])))]
    options += ["--eval-every", "1000000"]
    job = bench.submit("gnn_train.sh", *options, OUT="gnn-again", CHECKPOINT_SECONDS="0.5")
    bench.until(job, "gnn-again/checkpoints/iteration-*/index.json")
    bench.cluster.run("scontrol", "requeue", job, check=True)
    bench.hurry(job)
    assert f"job {job}, restart 1" in bench.succeed(job, 250)
    bench.succeed(bench.submit("gnn_train.sh", *options, OUT="gnn-whole"), 250)
    a, b = (summary_of(bench.folder / name) for name in ("gnn-again", "gnn-whole"))
    assert a["loss"] == b["loss"] and a["bytes_per_epoch"] == b["bytes_per_epoch"]


@pytest.mark.slow
def test_chain_gives_up_after_its_restarts(bench: Bench, long: list[str]) -> None:
    options = {"OUT": "short", "CHECKPOINT_SECONDS": "0.5", "MAX_RESTARTS": "0"}
    job = bench.submit("chain.sh", str(bench.features), *long, **options)
    bench.until(job, "short/checkpoints/iteration-*/index.json")
    bench.cluster.run("scancel", "--batch", "--signal=USR1", job, check=True)
    assert bench.cluster.wait(job, 250) == ["FAILED"]
    assert bench.cluster.job(job)["ExitCode"] == f"{STOPPED_EARLY}:0"
    assert "go on with OUT=short" in bench.out(job).read_text()
