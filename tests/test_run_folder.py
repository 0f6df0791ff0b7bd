"""The folder of a run: what it may touch, that nothing is lost, what is written in which order."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from support import PROGRAMS, Finished, python, records_of, succeed, summary_of, weights_of, weights_of_run

import pdadmm
from pdadmm.admm.command import open_again, open_features, require_same
from pdadmm.admm.model_file import read_model, reserved
from pdadmm.admm.trainer import Sizes
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.files import append, free_name, write_json
from pdadmm.files.given import sha256_of
from pdadmm.gnn.model_file import read_model as read_graph_model
from pdadmm.inputs.augment import Augmentation
from pdadmm.inputs.feature_file import X_SHA256, FeatureFile
from pdadmm.inputs.write import in_memory, write_features
from pdadmm.runtime import checkpoint
from pdadmm.runtime.folder import LOCK, run_folder
from pdadmm.runtime.metrics import Metrics
from pdadmm.runtime.sections import Output

MPIRun = Callable[..., Finished]

WAITER = Waiter(MPI.COMM_SELF)
SHAPE = ["--layers", "3", "--stages", "3", "--hidden", "16", "--quiet"]


def train(*arguments: str | Path, **keywords: Any) -> Finished:
    return python("-m", "pdadmm.run", *arguments, **keywords)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Everything in a folder: the bytes of files, where links lead to, None for the rest."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def refused(finished: Finished, *words: str) -> None:
    """Fail unless a run was refused with one line that has those words."""
    assert finished.code == 2, finished.err
    assert finished.err.startswith("pdadmm: ") and finished.err.count("\n") == 1, finished.err
    for word in words:
        assert word in finished.err


def no_warning(line: str) -> None:
    raise AssertionError(line)


def claim(out: Path | str, **options: bool) -> Path:
    """Begin and end a run in a folder, in this process."""
    with run_folder(WAITER, Output(out=str(out), **options), "data", no_warning) as folder:
        folder.move_aside()
        folder.begin()
    return folder.path


@pytest.fixture(scope="module")
def saved(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 10 iterations with checkpoints after 4 and 8."""
    folder = tmp_path_factory.mktemp("saved") / "o"
    given = [*SHAPE, "--iterations", "10", "--eval-every", "2", "--checkpoint-every", "4"]
    succeed(train(small, *given, "--out", folder))
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(saved, tmp_path / "o")
    return tmp_path / "o"


# ---- whose a folder is ------------------------------------------------------------------------------


def _users_files(folder: Path) -> None:
    (folder / "checkpoints" / "epoch-3").mkdir(parents=True)
    (folder / "checkpoints" / "epoch-3" / "weights.bin").write_bytes(b"weeks of work")
    for name in (".writable", "model.h5", "config.toml", "metrics.jsonl", "summary.json"):
        (folder / name).write_text(f"my own {name}")


def _users_checkpoint(folder: Path) -> None:
    path = folder / "checkpoints" / "iteration-00000007"
    path.mkdir(parents=True)
    (path / "index.json").write_text("{}")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "files with the names of a run's": _users_files,
    "checkpoints of another program": _users_checkpoint,
    "a lock of another program": lambda folder: (folder / LOCK).write_text("12345\n"),
    "a run's lock that is a pipe": lambda folder: os.mkfifo(folder / LOCK),
    "a link to nowhere": lambda folder: (folder / "checkpoints").symlink_to("nowhere"),
    "an empty folder": lambda folder: (folder / "checkpoints").mkdir(),
    "a hidden file": lambda folder: (folder / ".git").touch(),
}


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_with_other_files_is_refused_and_not_touched(
    tmp_path: Path, kind: str, options: dict[str, bool]
) -> None:
    FOREIGN[kind](tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="not a run's; choose another folder"):
        claim(tmp_path, **options)
    assert contents(tmp_path) == before


def test_the_command_leaves_a_users_folder_alone(mpirun: MPIRun, small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    _users_files(folder)
    before = contents(folder)
    refused(mpirun(2, "-m", "pdadmm.run", small, *SHAPE, "--out", folder), str(folder), "another folder")
    assert contents(folder) == before


def test_an_empty_or_absent_folder_is_fine_and_one_of_a_run_that_never_began(tmp_path: Path) -> None:
    for name in ("absent/below", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert claim(tmp_path / name) == tmp_path / name
        assert claim(tmp_path / name) == tmp_path / name  # holds run.lock alone


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_bad_input_after_the_folder_was_claimed_leaves_nothing(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    output = Output(out=str(tmp_path / "a" / "b"), **options)

    def fail() -> None:
        with run_folder(WAITER, output, "data", no_warning):
            assert (tmp_path / "a" / "b" / LOCK).exists()
            raise InputError("bad")

    with pytest.raises(InputError, match="bad"):
        fail()
    assert contents(tmp_path) == {}


def test_only_files_of_checkpoints_are_ever_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    mine = ["iteration-best/W.npy", "iteration-00000001.damaged/notes.txt", "notes.txt", "iteration-5/x"]
    mine += ["iteration-00000002/readme"]
    for name in mine:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    for iteration in (2, 3, 4, 5):
        (folder / f"iteration-{iteration:08d}.tmp").mkdir(exist_ok=True)
    (folder / "iteration-00000001.damaged" / "rank-0000.bin").touch()
    for iteration in (3, 4, 5, 6):
        checkpoint.write(tmp_path, iteration, {}, {1: {"W": np.ones(3, np.float32)}}, WAITER)
    assert [(folder / name).read_text() for name in mine] == ["mine"] * len(mine)
    assert not (folder / "iteration-00000001.damaged" / "rank-0000.bin").exists()
    names = {path.name for path in folder.iterdir()} - {name.split("/")[0] for name in mine}
    assert names == {"iteration-00000005", "iteration-00000006"}


# ---- runs before ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["finished", "interrupted"])
def test_a_run_is_refused_unless_told_what_to_do_with_it(run: Path, small: Path, kind: str) -> None:
    if kind == "interrupted":
        (run / "summary.json").unlink()
    before = contents(run)
    finished = train(small, *SHAPE, "--iterations", "2", "--out", run)
    refused(finished, f"{kind} run", "--resume", "--overwrite", str(run))
    assert contents(run) == before


def test_overwrite_moves_every_run_aside_and_deletes_none(run: Path, small: Path) -> None:
    first = contents(run)
    given = [small, *SHAPE, "--iterations", "2", "--out", run, "--overwrite"]
    for number in (1, 2):
        finished = succeed(train(*given, "--seed", str(number)))
        assert finished.err.count("\n") == 1 and "is now in" in finished.err
    assert contents(run.with_name("o.old")) == first
    seeds = [summary_of(run.with_name(name))["seed"] for name in ("o.old", "o.old-1", "o")]
    assert seeds == [0, 1, 2]
    assert not (run / "checkpoints").exists()


def test_overwrite_with_bad_input_moves_nothing(run: Path, small: Path, tmp_path: Path) -> None:
    bad = tmp_path / "nan.h5"
    shutil.copy(small, bad)
    with h5py.File(bad, "r+") as file:
        file["x"][3, 5] = np.nan
    before = contents(tmp_path)
    given = [*SHAPE, "--out", run, "--overwrite"]
    refused(train(bad, *given), "NaN")
    refused(train(small, *given, cwd=run), "--overwrite cannot move", "from inside")
    # no file may be longer than this: the model has no room
    refused(limited(5_000, BEFORE, small, *given), "model.h5 cannot be written (File too large)")
    assert contents(tmp_path) == before
    succeed(train(small, *SHAPE, "--iterations", "2", "--out", run, "--overwrite"))


def test_overwrite_follows_a_link_to_where_the_run_is(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run)
    claim(link, overwrite=True)
    assert link.is_symlink() and [path.name for path in run.iterdir()] == [LOCK]
    assert summary_of(tmp_path / "o.old")["seed"] == 0


def test_a_configuration_starts_a_run_in_a_folder_of_its_own(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    text = (run / "config.toml").read_text()
    assert not {"out", "resume", "overwrite"} & {line.partition(" =")[0] for line in text.splitlines()}
    work = tmp_path / "work"
    work.mkdir()
    succeed(train("--config", run / "config.toml", "--seed", "3", "--quiet", cwd=work))
    (made,) = (work / "runs").iterdir()
    assert summary_of(made)["seed"] == 3
    assert contents(run) == before


def test_where_and_how_to_start_is_not_taken_from_a_file(tmp_path: Path, run: Path, small: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text(f"[output]\nout = '{run}'\noverwrite = true\nresume = true\n[training]\niterations = 2\n")
    before = contents(run)
    finished = succeed(train(small, *SHAPE, "--config", file, cwd=tmp_path))
    lines = finished.err.splitlines()
    assert len(lines) == 3 and all("is ignored; it is an option of the command line" in x for x in lines)
    assert contents(run) == before and len(list((tmp_path / "runs").iterdir())) == 1


def test_after_a_resume_the_configuration_starts_a_new_run_from_any_folder(
    small: Path, tmp_path: Path
) -> None:
    shutil.copy(small, tmp_path / "data.h5")
    given = [*SHAPE, "--iterations", "6", "--checkpoint-every", "4", "--out", "o"]
    succeed(train("data.h5", *given, cwd=tmp_path))
    succeed(train("--resume", "--out", "o", "--quiet", cwd=tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    succeed(train("--config", tmp_path / "o" / "config.toml", "--quiet", cwd=elsewhere))
    (made,) = (elsewhere / "runs").iterdir()
    assert summary_of(made)["objective"] == summary_of(tmp_path / "o")["objective"]
    # and a resume from another folder finds the data
    succeed(train("--resume", "--out", tmp_path / "o", "--quiet", cwd=elsewhere))


def test_results_stay_until_a_resumed_run_has_the_same_ones(run: Path) -> None:
    """What has come to its end loses nothing when it is resumed, and that fails; what has not has none."""
    results = {"summary.json", "model.h5", "model_best.h5", "profile.json"}
    names = {"checkpoints", "config.toml", "metrics.jsonl", LOCK}
    before = {name: (run / name).read_bytes() for name in results}
    (run / ".summary.json.4711.tmp").write_text("killed while it was written")
    fails = PROGRAMS / "faulty_rank.py", "raise", "0", "1", "--out", run, "--resume", "--quiet"
    failed = python(*fails)
    assert failed.code == 1 and "injected" in failed.err
    assert {path.name for path in run.iterdir()} == names | results
    assert {name: (run / name).read_bytes() for name in results} == before
    (run / "summary.json").unlink()
    (run / "trace.json").write_text("[]")
    assert python(*fails).code == 1
    assert {path.name for path in run.iterdir()} == names
    succeed(train("--out", run, "--resume", "--quiet"))
    assert {path.name for path in run.iterdir()} == names | results
    for name in ("model.h5", "model_best.h5"):
        assert (run / name).read_bytes() == before[name]


# ---- the same data ----------------------------------------------------------------------------------


def test_resume_on_other_data_of_the_same_shape_is_refused(run: Path, small: Path, tmp_path: Path) -> None:
    before = contents(run)
    for change in ("x", "y"):
        other = tmp_path / f"{change}.h5"
        shutil.copy(small, other)
        with h5py.File(other, "r+") as file:
            del file.attrs[X_SHA256]  # as a file of before, or of another program
            file[change][:] = file[change][...][::-1]
        refused(train(other, "--out", run, "--resume", "--quiet"), f"--resume: {other} holds other data")
    assert contents(run) == before
    same = tmp_path / "same.h5"
    shutil.copy(small, same)
    with h5py.File(same, "r+") as file:
        file.attrs[X_SHA256] = np.bytes_(b"\xff" * 64)  # no sum: it is computed
    succeed(train(same, "--out", run, "--resume", "--quiet"))


def test_data_that_are_replaced_while_a_run_starts_are_refused(
    small: Path, run: Path, tmp_path: Path
) -> None:
    """Rank 0 says what the data are, and the ranks that read them do so later."""
    path, start = tmp_path / "f.h5", tmp_path / "m.h5"
    shutil.copy(small, path)
    with FeatureFile(path) as features:
        sizes = Sizes.of(features)
    open_again(str(path), sizes).close()
    with h5py.File(path, "r+") as file:
        file["y"][0] = (file["y"][0] + 1) % sizes.classes
    with pytest.raises(InputError, match=r"f\.h5 was replaced while the run started; start it again"):
        open_again(str(path), sizes)
    shutil.copy(run / "model.h5", start)
    require_same(start, sha256_of(start))
    start.write_bytes(start.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(InputError, match=r"m\.h5 was replaced while the run started; start it again"):
            require_same(start, sha256_of(run / "model.h5"))
        start.unlink(missing_ok=True)


def test_the_hash_is_of_the_content_wherever_it_is_stored(tmp_path: Path) -> None:
    from pdadmm.datasets.synthetic import synthetic_graph

    graph = synthetic_graph(nodes=120, features=20, train_per_class=4)
    write_features(tmp_path / "f.h5", Augmentation(graph, 2, "none", "split"))
    shutil.copy(tmp_path / "f.h5", tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5", "r+") as file:
        del file.attrs[X_SHA256]
        values = file["x"][...]
        del file["x"]
        file.create_dataset("x", data=values)  # elsewhere in the file
    found = {in_memory(graph, 2).content_hash()}
    for name in ("f.h5", "g.h5"):
        with FeatureFile(tmp_path / name) as features:
            found.add(features.content_hash())
    assert len(found) == 1
    with open_features("") as features:
        assert {features.content_hash()} != found
    assert in_memory(graph, 1).content_hash() not in found


# ---- one run at a time ------------------------------------------------------------------------------


def begin(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a run that goes on by itself."""
    source = str(Path(pdadmm.__file__).resolve().parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pdadmm.run", *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)


def test_a_second_run_is_refused_and_a_dead_one_leaves_no_lock(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    first = begin(small, *SHAPE, "--iterations", "100000000", "--checkpoint-every", "20", "--out", folder)
    try:
        limit = time.monotonic() + 60
        while not list(folder.glob("checkpoints/iteration-*/index.json")):
            assert time.monotonic() < limit
            time.sleep(0.05)
        for option in ([], ["--resume"], ["--overwrite"]):
            finished = train(small, *SHAPE, "--iterations", "100000000", "--out", folder, *option)
            refused(finished, f"in use by another run, process {first.pid} on ")
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    assert not (tmp_path / "o.old").exists()
    lines = records_of(folder)
    assert [line["iteration"] for line in lines] == [10 * (i + 1) for i in range(len(lines))]
    claim(folder, overwrite=True)


@pytest.mark.parametrize("gone", ["moved", "deleted"])
def test_a_run_whose_folder_is_gone_ends_and_leaves_the_next_one_alone(
    small: Path, tmp_path: Path, gone: str
) -> None:
    folder, moved = tmp_path / "o", tmp_path / "moved"
    first = begin(small, *SHAPE, "--iterations", "100000000", "--out", folder)
    try:
        limit = time.monotonic() + 60
        while not (folder / "metrics.jsonl").is_file() or not (folder / "metrics.jsonl").stat().st_size:
            assert time.monotonic() < limit
            time.sleep(0.05)
        folder.rename(moved)
        if gone == "deleted":
            shutil.rmtree(moved)
        succeed(train(small, *SHAPE, "--iterations", "20", "--out", folder, "--seed", "7"))
        assert first.wait(60) == 1
    finally:
        first.kill()
        first.wait()
    assert [line["iteration"] for line in records_of(folder)] == [10, 20]
    assert not list(folder.glob(".*.tmp")) and summary_of(folder)["seed"] == 7
    with run_folder(WAITER, Output(out=str(tmp_path / "p")), "data", no_warning) as claimed:
        claimed.require()
        claimed.path.rename(tmp_path / "q")
        with pytest.raises(RunError, match="/p was moved or deleted while the run went on; nothing more"):
            claimed.require()


def test_a_lock_of_this_process_ends_with_the_run(tmp_path: Path) -> None:
    with run_folder(WAITER, Output(out=str(tmp_path)), "data", no_warning):
        for options in ({}, {"overwrite": True}):
            with pytest.raises(InputError, match=f"in use by another run, process {os.getpid()}"):
                claim(tmp_path, **options)
    claim(tmp_path)


def test_a_lock_that_was_deleted_or_moved_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of the file and the lock on it the run before gave way, or moved it aside."""
    original = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        (tmp_path / LOCK).unlink()
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="in use"):
        claim(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_run_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    lines: list[str] = []
    with run_folder(WAITER, Output(out=str(tmp_path)), "data", lines.append):
        pass
    assert len(lines) == 1 and "without locks" in lines[0]


def test_default_names_of_the_same_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20300101-000000")
    names = {claim("").name for _ in range(4)}
    first = "data-20300101-000000"
    assert names == {first, f"{first}-1", f"{first}-2", f"{first}-3"}


# ---- a full disk ------------------------------------------------------------------------------------


def limited(size: int, where: str, *arguments: str | Path) -> Finished:
    """Run with files that may grow to `size` bytes, as on a full disk, from the call of a function on.

    Not from the start: MPI has files of its own.
    """
    module, _, name = where.rpartition(".")
    owner, _, function = name.rpartition(":")
    code = f"""import resource, sys
import {module} as module
owner = module{"." + owner if owner else ""}
original = owner.{function}
def full(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
    return original(*arguments)
owner.{function} = full
from pdadmm.run import main
sys.exit(main(sys.argv[1:]))
"""
    return python("-c", code, *arguments)


BEFORE, AFTER = "pdadmm.admm.command.reserved", "pdadmm.admm.trainer.Trainer:close"


def test_no_room_for_the_model_is_said_before_training(small: Path, tmp_path: Path) -> None:
    finished = limited(5_000, BEFORE, small, *SHAPE, "--iterations", "100000000", "--out", tmp_path / "o")
    refused(finished, f"{tmp_path / 'o' / 'model.h5'} cannot be written (File too large)", "--out")
    assert contents(tmp_path) == {}


def test_features_whose_path_no_configuration_can_hold_are_refused(small: Path, tmp_path: Path) -> None:
    features = tmp_path / os.fsdecode(b"\xff.h5")
    shutil.copy(small, features)
    before = contents(tmp_path)
    refused(train(features, *SHAPE, "--out", tmp_path / "o"), "not UTF-8")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("size", "missing", "there"),
    [(3000, "model.h5", []), (70_000, "profile.json", ["model.h5", "model_best.h5", "summary.json"])],
)
def test_a_disk_that_fills_up_at_the_end(
    small: Path, tmp_path: Path, size: int, missing: str, there: list[str]
) -> None:
    """Whatever does not fit is named in one line; what is written first is whole."""
    folder = tmp_path / "o"
    shape = [*SHAPE, "--hidden", "8", "--layers", "20", "--stages", "20", "--iterations", "5"]
    finished = limited(size, AFTER, small, *shape, "--out", folder)
    assert finished.code == 1
    (line,) = [line for line in finished.err.splitlines() if line.startswith("pdadmm: ")]
    assert line.endswith(f"File too large: {folder / missing}")
    assert "Traceback" not in finished.err
    left = {path.name for path in folder.iterdir()}
    assert left == {LOCK, "config.toml", "metrics.jsonl", *there}
    if there:
        weights, _, attributes, _ = read_model(folder / "model.h5")
        assert attributes["test_accuracy"] == summary_of(folder)["test_accuracy"]
        assert len(weights) == 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def then_full(trainer: str, program: str, disk: Path) -> str:
    """A program whose disk others fill up when it has trained."""
    return f"""import sys
from pdadmm.{trainer} import Trainer
close = Trainer.close
def full(self):
    close(self)
    if self.waiter.comm.rank:
        return
    try:
        with open({str(disk / "others")!r}, "wb") as file:
            while True:
                file.write(bytes(4096)); file.flush()
    except OSError:
        pass
Trainer.close = full
from pdadmm.{program} import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("best", ["last", "earlier"])
def test_a_disk_filled_up_by_others_does_not_cost_the_models(
    mpirun: MPIRun, small: Path, small_disk: Path, ranks: int, best: str
) -> None:
    code = then_full("admm.trainer", "run", small_disk)
    folder = small_disk / "o"
    shape = [*SHAPE, "--hidden", "100", "--iterations", "5"]
    if best == "earlier":  # deeper stages lose what the first has learnt
        options = "--layers 5 --stages 2,3,5 --iterations 20 --eval-every 2 --nu 1 --rho 1e-3 --mu 1"
        shape += [*options.split(), "--anchor", "zero"]
    finished = mpirun(ranks, "-c", code, small, *shape, "--out", folder)
    assert finished.code == 0, finished.err  # the room that the model leaves is enough for the rest
    free = small_disk.parent / "free"
    succeed(mpirun(ranks, "-m", "pdadmm.run", small, *shape, "--out", free))
    for (W, b), (V, c) in zip(weights_of_run(folder), weights_of_run(free), strict=True):
        np.testing.assert_array_equal(W, V)
        np.testing.assert_array_equal(b, c)
    assert summary_of(folder)["objective"] == summary_of(free)["objective"]
    if best == "earlier":
        assert summary_of(folder)["layers_at_best_val"] == len(weights_of(folder / "model_best.h5")) < 5


def test_a_disk_filled_up_by_others_does_not_cost_a_graph_network(
    mpirun: MPIRun, small_disk: Path, tmp_path: Path
) -> None:
    code = then_full("gnn.trainer", "gnn.run", small_disk)
    options = ["--hidden", "16", "--epochs", "4", "--eval-every", "4", "--quiet"]
    finished = mpirun(2, "-c", code, *options, "--out", small_disk / "o")
    assert finished.code == 0, finished.err
    assert {"model.h5", "summary.json", "profile.json"} <= {p.name for p in (small_disk / "o").iterdir()}
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", *options, "--out", tmp_path / "free"))
    models = [read_graph_model(folder / "model.h5") for folder in (small_disk / "o", tmp_path / "free")]
    assert models[0][2] == models[1][2]
    for layer, named in models[0][1].items():
        for name, array in named.items():
            np.testing.assert_array_equal(array, models[1][1][layer][name])
    assert not list((small_disk / "o").glob(".model*"))


def test_room_for_a_model_is_taken_once_and_given_back(tmp_path: Path) -> None:
    attributes = {"activation": "relu"}
    (tmp_path / ".model.h5.tmp").write_text("of a run that was killed")
    with (
        pytest.raises(OSError, match=r"model\.h5'"),
        reserved(tmp_path / "model.h5", [1 << 70, 4], attributes),
    ):
        pass
    with reserved(tmp_path / "model.h5", [30, 20, 4], attributes) as space:
        taken = space.temporary.stat()
        assert 512 * taken.st_blocks >= space.size + 1_000_000
        assert space.size > 4 * (31 * 20 + 21 * 4)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_for_the_metrics_names_the_file_and_cuts_no_line(
    mpirun: MPIRun, small: Path, tmp_path: Path
) -> None:
    given = [small, *SHAPE, "--eval-every", "1", "--iterations", "200", "--out", tmp_path / "o"]
    finished = mpirun(2, PROGRAMS / "faulty_rank.py", "disk", "0", "12", *given)
    (line,) = [line for line in finished.err.splitlines() if line.startswith("pdadmm: ")]
    assert finished.code == 1 and line.endswith(f"File too large: {tmp_path / 'o' / 'metrics.jsonl'}")
    assert len(records_of(tmp_path / "o")) == 11


def test_a_failed_write_names_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b").write_bytes(b"0123456789")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"a\.json") as caught:
            write_json(tmp_path / "a.json", ["x" * 2000])
        assert caught.value.filename == str(tmp_path / "a.json")
        with pytest.raises(OSError, match="b'"):
            append(tmp_path / "b", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == {"a.json": b"{}", "b": b"0123456789"}


def test_a_resume_that_is_refused_late_keeps_the_results(small: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    shutil.copy(small, tmp_path / "a" / "f.h5")
    given = ["f.h5", *SHAPE, "--iterations", "6", "--checkpoint-every", "2", "--out", "o"]
    succeed(train(*given, cwd=tmp_path / "a"))
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))
    (tmp_path / "a").rename(strange)
    before = {path.name: path.read_bytes() for path in (strange / "o").iterdir() if path.is_file()}
    found = train("f.h5", "--out", "o", "--resume", cwd=strange)
    assert found.code == 2 and "is not UTF-8" in found.err
    after = {path.name: path.read_bytes() for path in (strange / "o").iterdir() if path.is_file()}
    assert after.keys() == before.keys() and "model.h5" in after
    assert [name for name in before if before[name] != after[name]] in ([], ["run.lock"])


@pytest.mark.parametrize("name", ["summary.json", "config.toml"])
def test_a_resume_waits_for_no_pipe(run: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(run / "config.toml", tmp_path / "c.toml")
    (run / name).unlink()
    os.mkfifo(run / name)
    found = train("--config", tmp_path / "c.toml", "--resume", "--out", run, "--quiet")
    if name == "config.toml":
        refused(found, "config.toml cannot be written (a pipe, socket or device, not a file)")
    else:
        succeed(found)
        assert summary_of(run)


def test_a_summary_that_is_none_is_not_followed(run: Path) -> None:
    (run / "summary.json").write_text("[" * 200_000)
    succeed(train("--resume", "--out", run, "--quiet"))
    (run / "summary.json").write_text('{"epochs": true}')
    succeed(train("--resume", "--out", run, "--quiet"))
    assert not list(run.glob("*True*")) and summary_of(run)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTTY, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_no_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    if number == errno.EIO:
        with pytest.raises(OSError, match=r"a\.json"):
            write_json(tmp_path / "a.json", 1)
    else:
        write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").read_text() == "1\n"


# ---- checkpoints elsewhere --------------------------------------------------------------------------


def test_checkpoints_may_be_a_link_to_another_disk(small: Path, tmp_path: Path) -> None:
    folder, scratch = tmp_path / "o", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    (folder / "checkpoints").symlink_to(scratch)
    given = [small, *SHAPE, "--iterations", "6", "--checkpoint-every", "2", "--out", folder]
    succeed(train(*given))
    assert sorted(path.name for path in scratch.iterdir()) == ["iteration-00000002", "iteration-00000004"]
    succeed(train("--out", folder, "--resume", "--quiet"))
    succeed(train(*given, "--overwrite"))
    assert (tmp_path / "o.old" / "checkpoints").is_symlink() and len(list(scratch.iterdir())) == 2
    assert not (folder / "checkpoints").is_symlink()


@pytest.mark.parametrize("kind", ["file", "link to a file", "link to nowhere", "pipe"])
def test_checkpoints_that_are_no_folder_are_named_before_training(run: Path, kind: str) -> None:
    shutil.rmtree(run / "checkpoints")
    path = run / "checkpoints"
    if kind == "file":
        path.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("config.toml" if kind == "link to a file" else "nowhere")
    before = contents(run)
    with pytest.raises(InputError, match="checkpoints is no folder; move it away"):
        claim(run, resume=True)
    assert contents(run) == before


def test_files_and_folders_called_old_are_left_alone(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints.old").write_text("mine")
    (tmp_path / "o.old").write_text("mine")
    succeed(train("--out", run, "--resume", "--quiet"))
    claim(run, overwrite=True)
    assert (tmp_path / "o.old").read_text() == "mine"
    assert (tmp_path / "o.old-1" / "checkpoints.old").read_text() == "mine"
    assert free_name(run).name == "o.old-2"


# ---- job scripts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "restarts", "options"),
    [
        ([], 0, ""),
        ([], 1, "--overwrite"),
        (["config.toml"], 0, ""),  # refused by the run
        (["config.toml"], 1, "--overwrite"),
        (["checkpoints/iteration-00000004.tmp/rank-0000.bin"], 1, "--overwrite"),
        (["checkpoints/iteration-00000004/index.json"], 0, "--resume"),
        (["checkpoints/iteration-00000004/index.json", "summary.json"], 1, "--resume"),
        (["summary.json"], 1, ""),
        # the rename of the first checkpoint never came
        (["checkpoints/iteration-00000004.tmp/index.json"], 1, "--overwrite"),
        (["checkpoints/iteration-00000004.damaged/index.json"], 1, "--overwrite"),
        # a finished run is not taken up unasked
        (["checkpoints/iteration-00000004/index.json", "summary.json"], 0, ""),
    ],
)
def test_how_a_job_starts(tmp_path: Path, files: list[str], restarts: int, options: str) -> None:
    folder = tmp_path / "lr [0.1]*"  # a name, not a pattern
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    script = '. "$1"; SLURM_RESTART_COUNT=$3; choose_start "$2"; echo "${START[@]}"'
    common = Path(__file__).parents[1] / "jobs" / "common.sh"
    command = ["bash", "-c", script, "bash", str(common), str(folder), str(restarts)]
    env = {**os.environ, "LAUNCH": "mpirun", "SLURM_RESTART_COUNT": "0"}
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert found.stdout == f"{options}\n"


# ---- metrics ----------------------------------------------------------------------------------------


def test_metrics_go_back_to_where_they_were_marked(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.begin()
    marks, texts = [metrics.mark()], [b""]
    for i in range(5):
        metrics.add({"iteration": i})
        marks.append(metrics.mark())
        texts.append(path.read_bytes())
    for mark, text in list(zip(marks, texts, strict=True))[::-1]:
        again = Metrics(path)
        assert again.go_back(mark) is None
        assert path.read_bytes() == text and again.mark() == mark


@pytest.mark.parametrize("change", ["gone", "shorter", "edited", "pipe", "folder"])
def test_metrics_that_are_not_what_was_marked_are_kept_apart(tmp_path: Path, change: str) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.begin()
    metrics.add({"iteration": 1})
    metrics.add({"iteration": 2})
    mark = metrics.mark()
    text = {"shorter": '{"iteration": 1}\n', "edited": '{"iteration": 1}\n{"iteration": 3}\n'}.get(change)
    path.unlink()
    if text is not None:
        path.write_text(text)
    elif change == "pipe":
        os.mkfifo(path)
    elif change == "folder":
        path.mkdir()
    moved = Metrics(path).go_back(mark)
    assert path.read_bytes() == b""
    assert moved == (None if change == "gone" else tmp_path / "metrics.jsonl.old")
    if moved is not None and text is not None:
        assert moved.read_text() == text


def test_a_resumed_run_says_that_its_metrics_were_edited_and_finishes(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("# my notes\n" + text)
    before = summary_of(run)
    finished = succeed(train("--out", run, "--resume", "--quiet"))
    assert finished.err.count("\n") == 1 and "metrics.jsonl is not what the run had written" in finished.err
    assert (run / "metrics.jsonl.old").read_text().startswith("# my notes\n")
    assert [record["iteration"] for record in records_of(run)] == [10]
    for name in ("objective", "best_val_accuracy", "test_accuracy_at_best_val"):
        assert summary_of(run)[name] == before[name]


def test_a_checkpoint_does_not_grow_with_the_iterations(small: Path, tmp_path: Path) -> None:
    sizes = []
    for iterations in (20, 400):
        folder = tmp_path / str(iterations)
        given = [*SHAPE, "--eval-every", "1", "--iterations", str(iterations)]
        succeed(train(small, *given, "--checkpoint-every", str(iterations - 10), "--out", folder))
        (index,) = folder.glob("checkpoints/*/index.json")
        sizes.append(index.stat().st_size)
        state = json.loads(index.read_bytes().partition(b"\n")[2])["state"]
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        assert state["metrics"]["bytes"] == sum(map(len, lines[: iterations - 10]))
    assert abs(sizes[1] - sizes[0]) < 100  # digits
