"""Checkpoints: the same iterates after a resume, damage always noticed, the disk full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi4py import MPI
from support import (
    CODECS,
    PROGRAMS,
    Finished,
    age,
    python,
    records_of,
    run_many,
    succeed,
    summary_of,
    weights_of,
    weights_of_run,
    without_times,
    words,
)

from pdadmm.admm import command
from pdadmm.admm.options import parse
from pdadmm.admm.saved import state_of
from pdadmm.admm.trainer import Sizes, Trainer
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.runtime import checkpoint
from pdadmm.runtime.checkpoint import KEPT, newest, write
from pdadmm.runtime.metrics import Metrics

MPIRun = Callable[..., Finished]
Arrays = dict[int, dict[str, np.ndarray]]

WAITER = Waiter(MPI.COMM_SELF)


def arrays_of(seed: int, rows: int = 40) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        position: {
            "W": rng.standard_normal((5, 7)).astype(np.float32),
            "z": rng.standard_normal((rows, 5)).astype(np.float32),
            "above/counts": np.array([seed, 1 << 40]),
            "above/empty": np.zeros((0, 3), np.float32),
        }
        for position in (1, 2, 5)
    }


def assert_same(found: checkpoint.Checkpoint, arrays: Arrays) -> None:
    assert set(found.layers) == set(arrays)
    for position, named in arrays.items():
        assert set(found.layers[position]) == set(named)
        for name, array in named.items():
            read = found.layers[position][name]
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)


def no_warning(line: str) -> None:
    raise AssertionError(line)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- writing and reading ----------------------------------------------------------------------------


def test_reads_what_was_written(tmp_path: Path) -> None:
    state = {"losses": [0.1, 1 / 3], "smallest_change": float("inf"), "records": [{"a": 1e-300}]}
    write(tmp_path, 12, state, arrays_of(3), WAITER)
    found = newest(tmp_path, WAITER, no_warning)
    assert (found.iteration, found.state) == (12, state)
    assert_same(found, arrays_of(3))


def test_keeps_the_newest_and_removes_leftovers(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "iteration-00000099.tmp").mkdir(parents=True)
    for iteration in (8, 9, 10, 11):
        write(tmp_path, iteration, {}, arrays_of(iteration), WAITER)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["iteration-00000010", "iteration-00000011"]
    assert len(names) == KEPT


def test_is_little_more_than_the_state(tmp_path: Path) -> None:
    arrays = arrays_of(0, rows=20000)
    write(tmp_path, 1, {}, arrays, WAITER)
    state = sum(array.nbytes for named in arrays.values() for array in named.values())
    assert size_of(tmp_path) < 1.01 * state


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_never_saves_nan(tmp_path: Path, value: float) -> None:
    write(tmp_path, 1, {}, arrays_of(1), WAITER)
    poisoned = arrays_of(2)
    poisoned[2]["z"][3, 3] = value
    with pytest.raises(RunError, match="layer 2, z: NaN or Inf"):
        write(tmp_path, 2, {}, poisoned, WAITER)
    assert_same(newest(tmp_path, WAITER, no_warning), arrays_of(1))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


# ---- damage -----------------------------------------------------------------------------------------


def damage(folder: Path, rng: random.Random, kind: str) -> str:
    """Truncate a file of a checkpoint or flip a bit, anywhere in its bytes; says what it did."""
    files = sorted(p for p in folder.iterdir())
    # every other time the index, which is much smaller than the arrays
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    if kind == "truncate":
        del data[place:]
    else:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{kind} {path.name} at {place}"


def test_damage_at_a_hundred_places_is_noticed_and_recovered_from(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    write(template, 10, {"stage": 0}, arrays_of(10), WAITER)
    write(template, 20, {"stage": 1}, arrays_of(20), WAITER)
    rng = random.Random(0)
    for number in range(100):
        folder = tmp_path / str(number)
        shutil.copytree(template, folder)
        done = damage(folder / "checkpoints" / "iteration-00000020", rng, ("truncate", "flip")[number % 2])
        lines: list[str] = []
        found = newest(folder, WAITER, lines.append)
        assert (found.iteration, found.state) == (10, {"stage": 0}), done
        assert_same(found, arrays_of(10))
        assert len(lines) == 1, done
        assert "going back to the checkpoint before" in lines[0]
        shutil.rmtree(folder)


@pytest.mark.parametrize("gone", ["index.json", "rank-0000.bin"])
def test_missing_file_is_noticed(tmp_path: Path, gone: str) -> None:
    for iteration in (1, 2):
        write(tmp_path, iteration, {}, arrays_of(iteration), WAITER)
    (tmp_path / "checkpoints" / "iteration-00000002" / gone).unlink()
    lines: list[str] = []
    assert newest(tmp_path, WAITER, lines.append).iteration == 1
    assert gone in lines[0]


def test_damaged_checkpoint_does_not_crowd_out_good_ones(tmp_path: Path) -> None:
    for iteration in (10, 20):
        write(tmp_path, iteration, {}, arrays_of(iteration), WAITER)
    damage(tmp_path / "checkpoints" / "iteration-00000020", random.Random(1), "flip")
    lines: list[str] = []
    newest(tmp_path, WAITER, lines.append)
    write(tmp_path, 12, {}, arrays_of(12), WAITER)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["iteration-00000010", "iteration-00000012"]


def test_what_may_pass_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for iteration in (1, 2):
        write(tmp_path, iteration, {}, arrays_of(iteration), WAITER)

    def stale(path: Path) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sha256", stale)
        with pytest.raises(
            InputError, match=r"rank-0000\.bin: Stale file handle; resume when it can be read, or"
        ):
            newest(tmp_path, WAITER, no_warning)
    assert_same(newest(tmp_path, WAITER, no_warning), arrays_of(2))


def test_files_that_rank_0_does_not_see_are_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank may have written them into a folder of its own node."""
    write(tmp_path, 1, {}, arrays_of(1), WAITER)
    monkeypatch.setattr(checkpoint, "_CACHED", 0.1)
    ours = checkpoint._write_rank

    def elsewhere(path: Path, arrays: Arrays) -> Any:
        entry = ours(path, arrays)
        path.unlink()
        return entry

    monkeypatch.setattr(checkpoint, "_write_rank", elsewhere)
    with pytest.raises(RunError, match="rank 0 does not see it; give --out a folder that all nodes share"):
        write(tmp_path, 2, {}, arrays_of(2), WAITER)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration-00000001"]


def test_all_damaged_is_bad_input(tmp_path: Path) -> None:
    write(tmp_path, 1, {}, arrays_of(1), WAITER)
    damage(tmp_path / "checkpoints" / "iteration-00000001", random.Random(2), "truncate")
    lines: list[str] = []
    with pytest.raises(InputError, match="start afresh with --overwrite"):
        newest(tmp_path, WAITER, lines.append)


def test_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, {}, arrays_of(1), WAITER)
    path = tmp_path / "checkpoints" / "iteration-00000001" / "index.json"
    body = json.loads(path.read_bytes().partition(b"\n")[2])
    path.write_bytes(checkpoint._sealed({**body, "version": 999}))
    with pytest.raises(InputError, match="checkpoint version 999"):
        newest(tmp_path, WAITER, no_warning)


# ---- a full disk ------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_leaves_the_checkpoints_before(tiny_disk: Path) -> None:
    write(tiny_disk, 1, {}, arrays_of(1), WAITER)
    big = {1: {"z": np.ones((1 << 20,), np.float32)}}
    with pytest.raises(RunError, match=r"could not be written \(No space left on device\)") as caught:
        write(tiny_disk, 2, {}, big, WAITER)
    assert caught.value.everywhere
    assert [p.name for p in (tiny_disk / "checkpoints").iterdir()] == ["iteration-00000001"]
    assert str(caught.value).endswith("make room; the ones before are intact: go on with --resume")
    assert_same(newest(tiny_disk, WAITER, no_warning), arrays_of(1))
    write(tiny_disk, 3, {}, arrays_of(3), WAITER)


def test_the_first_checkpoint_says_what_to_do_without_room(tiny_disk: Path) -> None:
    with pytest.raises(RunError, match=r"make room; there is none before: start again with --overwrite"):
        write(tiny_disk, 2, {}, {1: {"z": np.ones((1 << 20,), np.float32)}}, WAITER)


def test_a_run_s_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"could not be written \(No such file or directory\)"):
        write(tmp_path / "gone", 2, {}, arrays_of(2), WAITER)
    with pytest.raises(OSError, match=r"gone/metrics\.jsonl"):
        Metrics(tmp_path / "gone" / "metrics.jsonl").add({"iteration": 1})
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_the_index_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, {}, arrays_of(1), WAITER)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(RunError, match="could not be written"):
            write(tmp_path, 2, {"records": ["x" * 30000]}, arrays_of(2), WAITER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["iteration-00000001"]


def test_full_disk_ends_a_run_with_one_line(mpirun: MPIRun, small: Path, tiny_disk: Path) -> None:
    given = ["--layers", "4", "--hidden", "100", "--stages", "2,4", "--quiet", "--checkpoint-every", "50"]
    # with room for a model and for a checkpoint of two layers, and not for two of four
    subprocess.run(["mount", "-o", "remount,size=3500k", str(tiny_disk)], check=True)
    found = mpirun(2, "-m", "pdadmm.run", small, *given, "--out", tiny_disk / "o")
    assert found.code == 1, found.err
    lines = [line for line in found.err.splitlines() if line.startswith("pdadmm: ")]
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert not list((tiny_disk / "o" / "checkpoints").glob("*.tmp"))
    newest(tiny_disk / "o", WAITER, no_warning)


# ---- runs -------------------------------------------------------------------------------------------

FORMS = [
    "--codec delta --bits 4",
    "--codec grid --bits 8 --step doubling",
    "--codec affine --bits 2 --solver exact",
    "--codec delta --bits 2 --step row",
    "--solver exact --damping 1 --momentum 0.9 --z-centre linear",
    "--codec float32 --schedule authors --refresh 4",
]


def assert_same_run(one: Path, other: Path) -> None:
    for a, b in zip(records_of(one), records_of(other), strict=True):
        assert without_times(a) == without_times(b)
    for (W, b), (V, c) in zip(weights_of_run(one), weights_of_run(other), strict=True):
        np.testing.assert_array_equal(W, V)
        np.testing.assert_array_equal(b, c)
    a, b = summary_of(one), summary_of(other)
    for name in ("objective", "test_accuracy", "bytes_per_iteration", "iterations"):
        assert a[name] == b[name]


@pytest.mark.parametrize("form", FORMS)
def test_resumed_run_has_the_same_iterates_on_any_number_of_ranks(
    mpirun: MPIRun, small: Path, tmp_path: Path, form: str
) -> None:
    common = [small, "--layers", "5", "--stages", "2,5", "--hidden", "20", "--iterations", "11"]
    common += ["--eval-every", "3", "--quiet", *form.split()]
    whole, part = tmp_path / "whole", tmp_path / "part"
    runs = [[*common, "--out", whole], [*common, "--out", part, "--checkpoint-every", "8"]]
    run_many(partial(mpirun, 3), "pdadmm.run", runs, tmp_path)
    assert_same_run(whole, part)
    # from iteration 16, in the second stage; then from 8, in the first, on one rank
    assert succeed(mpirun(2, "-m", "pdadmm.run", "--out", part, "--resume", "--quiet")).err == ""
    assert_same_run(whole, part)
    shutil.rmtree(part / "checkpoints" / "iteration-00000016")
    assert succeed(python("-m", "pdadmm.run", "--out", part, "--resume", "--quiet")).err == ""
    assert_same_run(whole, part)


@pytest.fixture(scope="module")
def saved(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 10 iterations with checkpoints after 4 and 8."""
    folder = tmp_path_factory.mktemp("saved") / "o"
    given = words("--layers 3 --stages 3 --iterations 10 --eval-every 2 --checkpoint-every 4 --quiet")
    succeed(python("-m", "pdadmm.run", small, *given, "--out", folder))
    return folder


@pytest.mark.parametrize("kind", ["truncate", "flip"])
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(saved: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "o"
    shutil.copytree(saved, folder)
    damage(folder / "checkpoints" / "iteration-00000008", random.Random(5), kind)
    found = succeed(python("-m", "pdadmm.run", "--out", folder, "--resume", "--quiet"))
    assert found.err.startswith("pdadmm: warning: ")
    assert re.search(r"iteration-00000008/(rank-0000\.bin fails its checksum|index\.json is)", found.err)
    assert "going back to the checkpoint before" in found.err
    assert_same_run(saved, folder)


def test_a_checkpoint_of_before_knows_no_best_weights(saved: Path, tmp_path: Path) -> None:
    """It is gone on from; the file is missing where no later iteration is as good, and else complete."""
    folder = tmp_path / "o"
    for best, there in ((1.0, False), (0.0, True)):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        body, path = body_of(folder), folder / "checkpoints" / "iteration-00000008" / "rank-0000.bin"
        (file,), data, kept, offset = body["files"], path.read_bytes(), b"", 0
        for place in list(file["arrays"]):
            size = np.dtype(place[2]).itemsize * int(np.prod(place[3]))
            if place[1].startswith("best/"):
                file["arrays"].remove(place)
            else:
                kept += data[place[4] : place[4] + size]
                place[4] = offset
                offset += size
        path.write_bytes(kept)
        file.update(bytes=len(kept), sha256=hashlib.sha256(kept).hexdigest())
        body["state"]["best"]["val_accuracy"] = best
        (folder / "checkpoints" / "iteration-00000008" / "index.json").write_bytes(checkpoint._sealed(body))
        found = succeed(python("-m", "pdadmm.run", "--out", folder, "--resume", "--quiet"))
        assert found.err == ""
        assert (folder / "model_best.h5").exists() is there
        assert summary_of(folder)["iteration_at_best_val"] == (
            10 if there else body["state"]["best"]["iteration"]
        )
        for (W, _), (V, _) in zip(
            weights_of(saved / "model.h5"), weights_of(folder / "model.h5"), strict=True
        ):
            np.testing.assert_array_equal(W, V)


def test_a_file_that_lacks_bytes_is_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    shutil.copytree(saved, folder)
    file = folder / "checkpoints" / "iteration-00000008" / "rank-0000.bin"
    file.write_bytes(b"")
    found = succeed(python("-m", "pdadmm.run", "--out", folder, "--resume", "--quiet"))
    assert found.err.startswith(f"pdadmm: warning: {file} fails its checksum; going back")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--nu 3", "--resume: the checkpoint was made with nu = "),
        ("--layers 4 --stages 4", "made with widths = "),
        ("--codec float32 --bits 32", "made with codec = delta, not float32"),
    ],
)
def test_resume_with_other_options_is_refused(
    saved: Path, tmp_path: Path, options: str, message: str
) -> None:
    folder = tmp_path / "o"
    shutil.copytree(saved, folder)
    found = python("-m", "pdadmm.run", "--out", folder, "--resume", *options.split())
    assert found.code == 2
    assert message in found.err
    assert len(found.err.splitlines()) == 1
    succeed(python("-m", "pdadmm.run", "--out", folder, "--resume", "--quiet"))  # nothing was touched
    assert_same_run(saved, folder)


def test_a_schedule_that_looks_at_evaluations_keeps_them(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    given = words("--layers 2 --iterations 8 --schedule authors --eval-every 2 --checkpoint-every 3 --quiet")
    succeed(python("-m", "pdadmm.run", small, *given, "--out", folder))
    found = python("-m", "pdadmm.run", "--out", folder, "--resume", "--eval-every", "1")
    assert found.code == 2 and "the checkpoint was made with eval_every = 2, not 1" in found.err
    succeed(python("-m", "pdadmm.run", "--out", folder, "--resume", "--quiet"))


@pytest.mark.parametrize(
    ("options", "ranks"), [("--as-sharded", 1), ("--kernels reference", 1), ("--shards 2", 2)]
)
def test_a_resumed_run_computes_as_it_did(
    options: str, ranks: int, small: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    """Without the options once more; they change roundings."""
    run = [small, *words("--layers 4 --stages 2,4 --iterations 20 --hidden 24 --quiet"), *words(options)]
    whole, part = tmp_path / "whole", tmp_path / "part"
    succeed(mpirun(ranks, "-m", "pdadmm.run", *run, "--out", whole))
    succeed(mpirun(ranks, "-m", "pdadmm.run", *run, "--checkpoint-every", "25", "--out", part))
    age(part)
    succeed(mpirun(ranks, "-m", "pdadmm.run", "--resume", "--quiet", "--out", part))
    assert [*map(without_times, records_of(part))] == [*map(without_times, records_of(whole))]
    assert 1000 < summary_of(part)["seconds_total"] < 1200
    if "--shards" in options:  # where they do not divide the ranks, without
        succeed(mpirun(3, "-m", "pdadmm.run", "--resume", "--quiet", "--out", part))
        assert summary_of(part)["shards"] == 1


def test_a_stranger_s_file_in_what_a_killed_run_left_stays(small: Path, tmp_path: Path) -> None:
    run = ["-m", "pdadmm.run", small, *words("--layers 2 --iterations 9 --quiet --checkpoint-every 4")]
    succeed(python(*run, "--out", tmp_path / "o"))
    left = tmp_path / "o" / "checkpoints" / "iteration-00000008.tmp"
    left.mkdir()
    (left / ".nfs0001").write_text("of another")
    shutil.rmtree(left.with_suffix(""))
    succeed(python("-m", "pdadmm.run", "--resume", "--quiet", "--out", tmp_path / "o"))
    assert (tmp_path / "o" / "summary.json").exists()
    assert (left.with_suffix("") / ".nfs0001").read_text() == "of another"


def test_resume_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    found = python("-m", "pdadmm.run", "--out", tmp_path / "o", "--resume")
    assert (found.code, len(found.err.splitlines())) == (2, 1)
    assert "there is no intact checkpoint" in found.err
    assert not (tmp_path / "o").exists()


# ---- sealed, and nonsense ---------------------------------------------------------------------------


def trainer_of(folder: Path) -> Trainer:
    """The run in a folder as --resume would go on with it, on one rank in this process."""
    config = parse(["--resume", "--out", str(folder)], command.preset)
    command.resolve(config, 1)
    with command.open_features(config.features) as features:
        sizes = Sizes.of(features)
    return Trainer(config, sizes, lambda: command.open_features(config.features), WAITER)


@pytest.fixture(scope="module")
def going(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A copy of that run, whose newest checkpoint a test may replace, and what goes on with it."""
    folder = tmp_path_factory.mktemp("going") / "o"
    shutil.copytree(saved, folder)
    return folder, trainer_of(folder)


def body_of(folder: Path, iteration: int = 8) -> Any:
    path = folder / "checkpoints" / f"iteration-{iteration:08d}" / "index.json"
    return json.loads(path.read_bytes().partition(b"\n")[2])


def read_sealed(going: tuple[Path, Trainer], text: bytes) -> tuple[checkpoint.Checkpoint, list[str]]:
    """What is read where the newest index holds `text` under a valid checksum, and the warnings."""
    folder, trainer = going
    newest_one = folder / "checkpoints" / "iteration-00000008"
    index = newest_one / "index.json"
    before = index.read_bytes()
    index.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text + b"\n")
    lines: list[str] = []
    try:
        return newest(folder, WAITER, lines.append, trainer.fits), lines
    finally:
        aside = newest_one.with_name(newest_one.name + ".damaged")
        if aside.exists():
            aside.rename(newest_one)
        index.write_bytes(before)


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def put(*place: Any, value: Any) -> Callable[[Any], None]:
    """Change one value of an index."""

    def change(body: Any) -> None:
        for key in place[:-1]:
            body = body[key]
        body[place[-1]] = value

    return change


def drop(*place: Any) -> Callable[[Any], None]:
    """Take one value out of an index."""

    def change(body: Any) -> None:
        for key in place[:-1]:
            body = body[key]
        del body[place[-1]]

    return change


FILE, ARRAY = ("files", 0), ("files", 0, "arrays", 0)


def change_best(change: Callable[[list[Any], Any], None]) -> Callable[[Any], None]:
    """Calls `change` with the list of arrays and the place of best/W of layer 1."""

    def made(body: Any) -> None:
        arrays = body["files"][0]["arrays"]
        (place,) = [place for place in arrays if place[:2] == [1, "best/W"]]
        change(arrays, place)

    return made


NONSENSE: dict[str, Callable[[Any], None]] = {
    "best weights of a layer left out": change_best(lambda arrays, place: arrays.remove(place)),
    "best weights of another shape": change_best(lambda arrays, place: place[3].reverse()),
    "best weights of another type": change_best(lambda arrays, place: place.__setitem__(2, "<i4")),
    "best weights of no evaluation": put("state", "best", value=None),
    "no version": drop("version"),
    "version of a type": put("version", value="4"),
    "version that is true": put("version", value=True),
    "no iteration": drop("iteration"),
    "another iteration": put("iteration", value=7),
    "iteration below zero": put("iteration", value=-8),
    "iteration beyond 64 bits": put("iteration", value=10**40),
    "more than is known": put("extra", value=1),
    "no files": put("files", value=[]),
    "files of a type": put("files", value={"rank-0000.bin": 1}),
    "file above the folder": put(*FILE, "name", value="../rank-0000.bin"),
    "absolute file": put(*FILE, "name", value="/dev/zero"),
    "device": put(*FILE, "name", value="/dev/stdin"),
    "file with a line break": put(*FILE, "name", value="rank-0000.bin\n"),
    "file twice": lambda body: body["files"].append(body["files"][0]),
    "empty file twice": lambda body: body["files"].extend(
        [{"name": "rank-0001.bin", "bytes": 0, "sha256": "0" * 64, "arrays": []}] * 2
    ),
    "bytes below zero": put(*FILE, "bytes", value=-1),
    "bytes as text": put(*FILE, "bytes", value="100"),
    "no sum": put(*FILE, "sha256", value=None),
    "arrays left out": drop(*FILE, "arrays"),
    "array left out": drop(*ARRAY),
    "array twice": lambda body: body["files"][0]["arrays"].append(body["files"][0]["arrays"][0]),
    "layer 0": put(*ARRAY, 0, value=0),
    "layer as text": put(*ARRAY, 0, value="1"),
    "layer beyond the network": put(*ARRAY, 0, value=99),
    "array of another name": put(*ARRAY, 1, value="V"),
    "array named like a path": put(*ARRAY, 1, value="../W"),
    "objects": put(*ARRAY, 2, value="|O"),
    "a type with fields": put(*ARRAY, 2, value="<f4,<i4"),
    "doubles": put(*ARRAY, 2, value="<f8"),
    "no type": put(*ARRAY, 2, value="W"),
    "shape below zero": put(*ARRAY, 3, value=[-1, -1]),
    "huge shape": put(*ARRAY, 3, value=[1 << 40, 1 << 40]),
    "shape whose product overflows to what it was": put(*ARRAY, 3, value=[1 << 33, 1 << 31]),
    "other shape of the same size": lambda body: body["files"][0]["arrays"][0][3].reverse(),
    "shape of many axes": put(*ARRAY, 3, value=[1] * 100),
    "offset below zero": put(*ARRAY, 4, value=-4),
    "offset into another array": put(*ARRAY, 4, value=4),
    "fraction of an offset": put(*ARRAY, 4, value=0.0),
    "place of four": drop(*ARRAY, 4),
    "state of a type": put("state", value=[]),
    "empty state": put("state", value={}),
    "stage beyond the last": put("state", "stage", value=1),
    "stage below zero": put("state", "stage", value=-1),
    "iteration of the stage beyond its end": put("state", "stage_iteration", value=11),
    "iteration of the stage that is not this one": put("state", "stage_iteration", value=7),
    "state of another iteration": put("state", "iteration", value=9),
    "nu of zero": put("state", "nu", value=0),
    "nu that is no number": put("state", "nu", value=float("nan")),
    "infinite rho": put("state", "rho", value=float("inf")),
    "rho as text": put("state", "rho", value="0.1"),
    "losses of a type": put("state", "losses", value={"a": 1}),
    "infinite losses": put("state", "losses", value=[float("inf")]),
    "many losses": put("state", "losses", value=[0.1] * 9),
    "change below zero": put("state", "smallest_change", value=-1.0),
    "seconds below zero": put("state", "seconds_iterations", value=-1.0),
    "infinite seconds": put("state", "seconds_exposed", value=float("inf")),
    "records in place of a mark": put("state", "metrics", value=[]),
    "mark below zero": put("state", "metrics", "bytes", value=-1),
    "last as text": put("state", "last", value="best"),
    "accuracy above one": put("state", "best", "val_accuracy", value=1.5),
    "infinite objective": put("state", "last", "objective", value=float("inf")),
    "data of a type": put("state", "data", value=5),
    "options of a type": put("state", "fingerprint", value=[]),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_under_a_valid_checksum_is_damage(going: tuple[Path, Trainer], kind: str) -> None:
    body = body_of(going[0])
    NONSENSE[kind](body)
    found, lines = read_sealed(going, json.dumps(body).encode())
    assert found.iteration == 4
    assert len(lines) == 1 and "iteration-00000008" in lines[0] and lines[0].isprintable()


@pytest.mark.parametrize(
    "text",
    ["", "null", "3", "[]", "{}", '"x"', "{", deep(100_000), f'{{"state": {deep(100_000)}}}', "9" * 100_000,
     '{"version": 4, "a\\nb\\u001b[31m": 1}', '{"version": 4, "\\ud800": "\\udfff"}', "\ud800"],
)  # fmt: skip
def test_what_is_no_index_is_damage(going: tuple[Path, Trainer], text: str) -> None:
    found, lines = read_sealed(going, text.encode("utf-8", "surrogatepass"))
    assert found.iteration == 4
    assert len(lines) == 1 and lines[0].isprintable()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to nowhere", "link to itself"])
@pytest.mark.parametrize("name", ["index.json", "rank-0000.bin"])
def test_files_that_are_none_are_damage_and_nobody_waits_for_them(
    going: tuple[Path, Trainer], name: str, kind: str, tmp_path: Path
) -> None:
    folder, trainer = tmp_path / "o", going[1]
    shutil.copytree(going[0], folder)
    path = folder / "checkpoints" / "iteration-00000008" / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "link to nowhere": "nowhere", "link to itself": name}[kind])
    lines: list[str] = []
    assert newest(folder, WAITER, lines.append, trainer.fits).iteration == 4
    assert len(lines) == 1 and name in lines[0]


def mutations(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all values in a JSON value."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in pairs:
        yield (*place, key)
        if isinstance(below, dict | list):
            yield from mutations(below, (*place, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    | st.sampled_from([-1, 0, 1, 8, 1 << 31, 1 << 62, 1 << 63, 10**300, "/dev/stdin", "..", "<f4", "|O"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_index_under_a_valid_checksum_is_read_or_refused(
    going: tuple[Path, Trainer], data: st.DataObject
) -> None:
    """Up to three changes anywhere: gone on from, passed over, or refused as another run's; never more."""
    body = body_of(going[0])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(mutations(body))))
        (drop(*place) if data.draw(st.booleans()) else put(*place, value=data.draw(JSON)))(body)
    found: checkpoint.Checkpoint | None
    try:
        found, lines = read_sealed(going, json.dumps(body).encode())
    except InputError as error:
        found, lines = None, [str(error)]
    assert all(line.isprintable() for line in lines)
    if found is None:
        return
    assert (found.iteration, len(lines)) in ((4, 1), (8, 0))
    # what is gone on from has what the run would have saved
    state = state_of(found)
    assert (state.stage, state.stage_iteration, state.iteration) == (0, found.iteration, found.iteration)
    assert {p: set(layer) for p, layer in found.layers.items()} == {
        p: {name for q, name, *_ in body_of(going[0], 4)["files"][0]["arrays"] if q == p} for p in (1, 2, 3)
    }


@pytest.mark.parametrize("name", ["above/counts", "above/grid", "W"])
def test_values_that_no_run_saves_are_refused(small: Path, saved: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "o"
    if name == "above/grid":
        options = words("--layers 3 --stages 3 --iterations 10 --checkpoint-every 4 --quiet --codec grid")
        succeed(python("-m", "pdadmm.run", small, *options, "--out", folder))
    else:
        shutil.copytree(saved, folder)
    path = folder / "checkpoints" / "iteration-00000008"
    body = body_of(folder)
    (place,) = [place for place in body["files"][0]["arrays"] if place[:2] == [1, name]]
    value = {"W": np.float32("nan"), "above/counts": np.array([-1, -1]), "above/grid": np.array([2.0, 1.0])}
    data = bytearray((path / "rank-0000.bin").read_bytes())
    new = value[name].tobytes()
    data[place[4] : place[4] + len(new)] = new
    (path / "rank-0000.bin").write_bytes(data)
    body["files"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (path / "index.json").write_bytes(checkpoint._sealed(body))
    if name == "W":  # read when it is needed
        with pytest.raises(RunError, match="NaN or Inf in W of layer 1"):
            newest(folder, WAITER, no_warning, trainer_of(folder).fits).layers[1]["W"]
        return
    lines: list[str] = []
    assert newest(folder, WAITER, lines.append, trainer_of(folder).fits).iteration == 4
    assert "layer 1" in lines[0]


def test_a_run_goes_on_from_the_checkpoint_before_nonsense(
    mpirun: MPIRun, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "o"
    shutil.copytree(saved, folder)
    body = body_of(folder)
    body["state"]["nu"] = "much"
    path = folder / "checkpoints" / "iteration-00000008" / "index.json"
    path.write_bytes(checkpoint._sealed(body))
    found = succeed(mpirun(2, "-m", "pdadmm.run", "--out", folder, "--resume", "--quiet"))
    assert found.err.count("\n") == 1 and "index.json is damaged" in found.err
    assert_same_run(saved, folder)


@pytest.mark.slow
def test_killed_runs_resume_bit_for_bit(small: Path) -> None:
    assert len(CODECS) == 11
    given = ["--rounds", "2", "--seed", str(random.SystemRandom().randrange(1 << 20))]
    found = succeed(python(PROGRAMS / "kill_resume.py", small, *given, timeout=250))
    assert "2 of 2 rounds equal the uninterrupted run" in found.out
