"""Training graph networks as users start it: the same bits anywhere, resuming, predicting, bad input."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_files import npz_with_feature
from support import (
    Finished,
    age,
    find_mpirun,
    python,
    records_of,
    run_each,
    succeed,
    summary_of,
    without_times,
    words,
)

from pdadmm import Model
from pdadmm.errors import InputError

MPIRun = Callable[..., Finished]
SMALL = "--hidden 16 --epochs 24 --eval-every 8 --reassign 9 --quiet"
PREPARE = "--synthetic-nodes 400 --synthetic-features 40 --synthetic-train-per-class 8"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph in four parts."""
    path = tmp_path_factory.mktemp("graph") / "g.h5"
    options = f"synthetic --parts 4 --partitioner blocks {PREPARE}"
    succeed(python("-m", "pdadmm.gnn.prepare", *options.split(), "--out", path))
    return path


def weights(folder: Path) -> dict[str, bytes]:
    """The parameters of a run's models, of the last epoch and of the best, read without the package."""
    found: dict[str, bytes] = {}

    def add(model: str, name: str, x: object) -> None:
        if isinstance(x, h5py.Dataset):
            found[f"{model}/{name}"] = x[...].tobytes()

    for model in ("model.h5", "model_best.h5"):
        with h5py.File(folder / model) as file:
            file.visititems(partial(add, model))
    return found


def records(folder: Path) -> list[dict[str, object]]:
    return [without_times(record) for record in records_of(folder)]


SCHEMES = [
    "--messages lean",
    "--messages lean --model sage --bits 1",
    "--messages adaqp --bits 4",
    "--messages float32 --model sage",
    "--messages lean --forward float32 --bits 2 --order adaqp",
    "--messages lean --forward delta",
    "--messages adaqp --forward delta --bits 1 --model sage",
]


@pytest.fixture(scope="module")
def by_ranks(
    mpirun: MPIRun, graph: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Path]]:
    """The folders of the runs of SCHEMES, by ranks, with threads and without overlap."""
    found = {}
    for ranks, more in ((1, "--threads 3"), (2, "--no-overlap"), (3, ""), (4, "--threads 2")):
        runs = {options: [graph, *words(f"{SMALL} {options} {more}")] for options in SCHEMES}
        folder = tmp_path_factory.mktemp("schemes")
        found[ranks] = run_each(partial(mpirun, ranks), "pdadmm.gnn.run", runs, folder)
    return found


@pytest.mark.parametrize("options", SCHEMES)
def test_the_same_bits_on_any_ranks_and_threads(options: str, by_ranks: dict[int, dict[str, Path]]) -> None:
    found = []
    for ranks, folders in by_ranks.items():
        run = folders[options]
        summary = summary_of(run)
        assert summary["ranks"] == ranks
        found.append((weights(run), records(run), summary["bytes_per_epoch"]))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0][1]) == 3


def test_reference_passes_train_to_the_same_accuracy(mpirun: MPIRun, graph: Path, tmp_path: Path) -> None:
    losses = []
    for kernels in ("fused", "reference"):
        options = words(f"{SMALL} --messages float32 --kernels {kernels}")
        succeed(mpirun(1, "-m", "pdadmm.gnn.run", graph, *options, "--out", tmp_path / kernels))
        losses.append(records_of(tmp_path / kernels)[0]["loss"])
        assert summary_of(tmp_path / kernels)["kernels"] == kernels
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_parts_change_rounding_only_in_float32(tmp_path: Path) -> None:
    losses = []
    for parts in (1, 2, 4, 8):
        path = tmp_path / f"{parts}.h5"
        succeed(python("-m", "pdadmm.gnn.prepare", "synthetic", "--parts", str(parts), "--out", path))
        folder = tmp_path / str(parts)
        # with the usual --lr the loss is some 10⁻⁵ by then, and a hundredth of that is rounding
        training = words("--hidden 64 --epochs 100 --lr 0.003 --eval-every 100 --messages float32")
        succeed(python("-m", "pdadmm.gnn.run", path, *training, *words("--threads 1 --quiet --out"), folder))
        losses.append(records_of(folder)[-1]["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 3, rel=1e-3)


def start_and_kill(ranks: int, arguments: list[object], folder: Path, epoch: int) -> None:
    """Start a run, and kill all of it when a checkpoint of that epoch or a later one is there."""
    program = find_mpirun()
    assert program is not None
    command = [program, "-n", ranks, sys.executable, "-m", "pdadmm.gnn.run", *arguments]
    run = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while newest_checkpoint(folder) < epoch:
        assert time.monotonic() < end and run.poll() is None, "the run ended before it was killed"
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def newest_checkpoint(folder: Path) -> int:
    """Epoch of the newest whole checkpoint; 0 without one."""
    found = (folder / "checkpoints").glob("iteration-????????/index.json")
    return max((int(path.parent.name[-8:]) for path in found), default=0)


def wait_for_lock(folder: Path) -> None:
    """Ranks that lost their launcher may hold the folder for a moment."""
    end = time.monotonic() + 60
    with (folder / "run.lock").open("rb+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                assert time.monotonic() < end, "the folder stays locked"
                time.sleep(0.05)


def test_a_run_killed_ten_times_ends_as_if_it_had_not_been(
    mpirun: MPIRun, graph: Path, tmp_path: Path
) -> None:
    arguments = words("--hidden 64 --epochs 100 --eval-every 25 --reassign 20 --quiet --checkpoint-every 1")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", graph, *arguments, "--out", whole))
    started: list[object] = [graph, *arguments, "--out", folder]
    for ranks in (2, 4, 1, 3, 2, 1, 4, 3, 1, 2):
        start_and_kill(ranks, started, folder, newest_checkpoint(folder) + 3)
        wait_for_lock(folder)
        started = ["--resume", "--quiet", "--out", folder]
    assert 30 <= newest_checkpoint(folder) < 100
    succeed(mpirun(4, "-m", "pdadmm.gnn.run", *started))
    assert weights(folder) == weights(whole) and records(folder) == records(whole)


@pytest.mark.parametrize("options", ["--messages float32 --model sage", "--messages lean --forward delta"])
def test_a_killed_run_goes_on_bit_for_bit_on_other_ranks(
    mpirun: MPIRun, graph: Path, tmp_path: Path, options: str
) -> None:
    arguments = words(f"{SMALL} {options} --checkpoint-every 1")
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", graph, *arguments, "--out", tmp_path / "whole"))
    for number, ranks in enumerate((4, 1, 3)):
        folder = tmp_path / f"killed{number}"
        start_and_kill(2, [graph, *arguments, "--out", folder], folder, 3 * number + 1)
        wait_for_lock(folder)
        succeed(mpirun(ranks, "-m", "pdadmm.gnn.run", "--resume", "--quiet", "--out", folder))
        assert weights(folder) == weights(tmp_path / "whole")
        assert records(folder) == records(tmp_path / "whole")
        before, after = summary_of(tmp_path / "whole"), summary_of(folder)
        for name in ("bytes_per_epoch", "mean_bits_forward", "mean_bits_backward", "best_val_accuracy"):
            assert after[name] == pytest.approx(before[name]), name


def test_float32_goes_on_with_other_parts(mpirun: MPIRun, tmp_path: Path) -> None:
    paths = []
    for parts in (2, 3):
        paths.append(tmp_path / f"{parts}.h5")
        options = f"synthetic --parts {parts} {PREPARE}"
        succeed(python("-m", "pdadmm.gnn.prepare", *options.split(), "--out", paths[-1]))
    folder = tmp_path / "run"
    short = words("--hidden 16 --messages float32 --epochs 20 --quiet")
    stopped = mpirun(2, "-m", "pdadmm.gnn.run", paths[0], *short, "--checkpoint-every", "5", "--out", folder)
    succeed(stopped)
    (folder / "summary.json").unlink()
    before = records_of(folder)
    assert [record["epoch"] for record in before] == [10, 20]
    again = mpirun(3, "-m", "pdadmm.gnn.run", paths[1], "--resume", "--quiet", "--out", folder)
    succeed(again)
    found = summary_of(folder)
    assert found["parts"] == 3
    assert found["bytes_per_epoch"] == found["float32_bytes_per_epoch"] > 0, "of these parts alone"
    a_sent, again_sent = before[0]["bytes"] // 10, found["bytes_per_epoch"]
    assert records_of(folder)[-1]["bytes"] == 15 * a_sent + 5 * again_sent, "of all epochs"
    lean = words("--hidden 16 --epochs 20 --quiet --checkpoint-every 5")
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", paths[0], *lean, "--out", tmp_path / "lean"))
    refused = mpirun(3, "-m", "pdadmm.gnn.run", paths[1], "--resume", "--out", tmp_path / "lean")
    assert refused.code == 2 and "parts = 2, not 3" in refused.err


def test_other_parts_are_refused_where_messages_are_coded(
    mpirun: MPIRun, graph: Path, tmp_path: Path
) -> None:
    other, folder = tmp_path / "other.h5", tmp_path / "run"
    with h5py.File(graph) as file:
        part = np.empty(file.attrs["num_nodes"], np.int32)
        part[file["node_id"][...]] = np.repeat(np.arange(4), np.diff(file["part_ptr"][...]))
    np.save(tmp_path / "part.npy", (part + 1) % 4)  # as many edges between them, other numbers
    options = f"synthetic {PREPARE} --parts 4 --partitioner {tmp_path / 'part.npy'}"
    succeed(python("-m", "pdadmm.gnn.prepare", *options.split(), "--out", other))
    for messages, code in (("--bits 4", 2), ("--messages float32", 0)):
        training = words(f"{SMALL} --checkpoint-every 6 --overwrite {messages}")
        succeed(mpirun(2, "-m", "pdadmm.gnn.run", graph, *training, "--out", folder))
        (folder / "summary.json").unlink()
        found = mpirun(2, "-m", "pdadmm.gnn.run", other, "--resume", "--quiet", "--out", folder)
        assert found.code == code, found.err
        assert ("cut into other parts" in found.err) == bool(code)


def test_predictions_are_those_of_the_run_on_any_ranks(mpirun: MPIRun, graph: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", graph, *words(f"{SMALL} --model sage"), "--out", run))
    found = []
    for ranks in (1, 3):
        out = tmp_path / f"p{ranks}.h5"
        said = succeed(mpirun(ranks, "-m", "pdadmm.gnn.predict", run, graph, "--out", out)).out
        accuracy = float(re.findall(r"test (\d\.\d+)", said)[0])
        assert accuracy == pytest.approx(summary_of(run)["test_accuracy"], abs=6e-5)
        with h5py.File(out) as file:
            found.append((file["classes"][...], file["scores"][...]))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    succeed(python("-m", "pdadmm.gnn.predict", run / "model.h5", graph, "--out", tmp_path / "file.h5"))
    assert (tmp_path / "file.h5").read_bytes() == (tmp_path / "p1.h5").read_bytes()
    with pytest.raises(
        InputError, match=r"the model of a graph network; pdadmm\.GraphModel and pdadmm\.gnn\."
    ):
        Model.load(run / "model.h5")
    with h5py.File(graph) as file:
        y, split, ids = file["y"][...], file["split"][...], file["node_id"][...]
    test = split == 3
    hits = (found[0][0][ids][test] == y[test]).mean()
    assert hits == pytest.approx(summary_of(run)["test_accuracy"])


def test_the_best_model_is_that_of_the_best_epoch(graph: Path, tmp_path: Path) -> None:
    """Also where the run goes on from a later checkpoint."""
    options = words(
        "--hidden 16 --epochs 40 --eval-every 4 --lr 0.05 --dropout 0 --quiet --checkpoint-every 28"
    )
    succeed(python("-m", "pdadmm.gnn.run", graph, *options, "--out", tmp_path / "a"))
    found = records_of(tmp_path / "a")
    best = max(found, key=lambda record: (record["val_accuracy"], record["epoch"]))
    assert best["epoch"] < 28 and best["test_accuracy"] != found[-1]["test_accuracy"]
    for _ in range(2):
        best_file = tmp_path / "a" / "model_best.h5"
        said = succeed(python("-m", "pdadmm.gnn.predict", best_file, graph, "--out", tmp_path / "p.h5")).out
        accuracies = [float(re.findall(rf"{name} (\d\.\d+)", said)[0]) for name in ("val", "test")]
        assert accuracies == pytest.approx([best["val_accuracy"], best["test_accuracy"]], abs=6e-5)
        summary = summary_of(tmp_path / "a")
        assert summary["test_accuracy_at_best_val"] == best["test_accuracy"]
        with h5py.File(best_file) as file:
            assert file.attrs["test_accuracy"] == best["test_accuracy"]
        once = weights(tmp_path / "a")
        (tmp_path / "a" / "summary.json").unlink()
        succeed(python("-m", "pdadmm.gnn.run", graph, "--resume", "--quiet", "--out", tmp_path / "a"))
        assert weights(tmp_path / "a") == once


def test_training_starts_from_a_model(graph: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    """With its weights, on any ranks, and no more after a checkpoint; on a graph of its kind only."""
    own = words("--hidden 12 --layers 2 --model sage --epochs 10 --eval-every 10 --quiet --out")
    succeed(python("-m", "pdadmm.gnn.run", graph, *own, tmp_path / "a"))
    model = tmp_path / "a" / "model.h5"
    # a step of nothing leaves the weights as they were
    still = ["--start", model, *words("--lr 1e-37 --epochs 1 --quiet --out")]
    succeed(python("-m", "pdadmm.gnn.run", graph, *still, tmp_path / "still"))
    before, after = (
        {name: x for name, x in weights(folder).items() if name.startswith("model.h5")}
        for folder in (tmp_path / "a", tmp_path / "still")
    )
    assert before == after
    summaries = [summary_of(tmp_path / name) for name in ("a", "still")]
    assert summaries[0]["test_accuracy"] == summaries[1]["test_accuracy"]
    assert {name: summaries[1][name] for name in ("model", "layers", "hidden")} == {
        "model": "sage", "layers": 2, "hidden": 12
    }  # fmt: skip
    on = ["--start", model, *words("--epochs 12 --eval-every 6 --checkpoint-every 5 --quiet --out")]
    for ranks, name in ((1, "b"), (3, "c")):
        succeed(mpirun(ranks, "-m", "pdadmm.gnn.run", graph, *on, tmp_path / name))
    assert weights(tmp_path / "b") == weights(tmp_path / "c")
    whole = weights(tmp_path / "b")
    (tmp_path / "b" / "summary.json").unlink()
    model.rename(tmp_path / "elsewhere.h5")
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", graph, "--resume", "--quiet", "--out", tmp_path / "b"))
    assert weights(tmp_path / "b") == whole
    other = tmp_path / "other.h5"
    prepare = words(f"synthetic --parts 2 {PREPARE} --synthetic-features 30 --out")
    succeed(python("-m", "pdadmm.gnn.prepare", *prepare, other))
    model = tmp_path / "elsewhere.h5"
    for arguments, said in (
        ([graph, "--start", model, "--hidden", "16"], "--hidden is 16, but"),
        ([graph, "--start", model, "--model", "gcn"], "give --model sage"),
        ([other, "--start", model], "has 30 features and 7 classes, the model 40 and 7"),
        ([graph, "--start", graph], "not the model of a graph network"),
        ([graph, "--start", tmp_path / "nowhere.h5"], "no such file"),
    ):
        found = mpirun(2, "-m", "pdadmm.gnn.run", *arguments, "--quiet", "--out", tmp_path / "no")
        assert found.code == 2 and found.err.count("\n") == 1 and said in found.err, found.err
        assert not (tmp_path / "no").exists()


def test_graphs_that_cannot_be_predicted_on_are_refused_on_all_ranks(
    mpirun: MPIRun, graph: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    succeed(mpirun(3, "-m", "pdadmm.gnn.run", graph, *words(SMALL), "--out", run))
    broken = {name: tmp_path / f"{name}.h5" for name in ("label", "edge", "norm", "node")}
    for path in broken.values():
        path.write_bytes(graph.read_bytes())
    with h5py.File(broken["label"], "r+") as file:  # which rank 2 reads alone
        file["y"][file["part_ptr"][3]] = 99
    with h5py.File(broken["edge"], "r+") as file:  # another neighbour in one direction
        indptr, nodes = file["indptr"][...], file["y"].shape[0]
        last = indptr[1:][(np.diff(indptr) > 0) & (np.arange(nodes) < nodes - 1)]
        place = next(end - 1 for end in last if file["indices"][end - 1] < nodes - 1)
        file["indices"][place] = nodes - 1
    with h5py.File(broken["norm"], "r+") as file:
        file.attrs["feature_norm"] = "row"
    with h5py.File(broken["node"], "r+") as file:
        file["node_id"][0] = file["node_id"][1]
    for name, said in (
        ("label", "a label is out of range"),
        ("edge", "not symmetric"),
        ("norm", "--feature-norm none"),
        ("node", "does not have every node once"),
    ):
        found = mpirun(3, "-m", "pdadmm.gnn.predict", run, broken[name], "--out", tmp_path / "p.h5")
        assert found.code == 2 and said in found.err and found.err.count("\n") == 1, (name, found)
    found = mpirun(2, "-m", "pdadmm.gnn.predict", run, graph, "--threads", "-1", "--out", tmp_path / "p.h5")
    assert found.code == 2 and "--threads is -1" in found.err
    no_room = (
        "import resource, sys; from pdadmm.gnn import predict, prediction\n"
        "write = prediction.write_predictions\n"
        "def limited(*given, **more):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    write(*given, **more)\n"
        "prediction.write_predictions = limited\n"
        "sys.exit(predict.main(sys.argv[1:]))"
    )
    found = python("-c", no_room, run, graph, "--out", tmp_path / "p.h5")
    assert found.code == 2
    assert found.err == f"pdadmm: {tmp_path}/p.h5 cannot be written (File too large); choose another --out\n"
    assert not list(tmp_path.glob("*p.h5*"))


def test_a_resumed_run_adds_up_its_seconds(graph: Path, tmp_path: Path) -> None:
    command = [
        "-m",
        "pdadmm.gnn.run",
        graph,
        *words(SMALL),
        "--checkpoint-every",
        "20",
        "--out",
        tmp_path / "run",
    ]
    succeed(python(*command))
    assert summary_of(tmp_path / "run")["seconds_total"] < 200
    age(tmp_path / "run")
    succeed(python("-m", "pdadmm.gnn.run", "--resume", "--quiet", "--out", tmp_path / "run"))
    assert 1000 < summary_of(tmp_path / "run")["seconds_total"] < 1200


def test_bytes_are_those_of_the_message_format(graph: Path, tmp_path: Path) -> None:
    """Counted from the graph's file and the description of the messages alone."""
    with h5py.File(graph) as file:
        ptr, indptr, indices = (file[name][...] for name in ("part_ptr", "indptr", "indices"))
        classes = int(file.attrs["num_classes"])
    owner = np.searchsorted(ptr, np.arange(len(indptr) - 1), side="right") - 1
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    pairs = {
        (u, owner[v]) for u, v in zip(row.tolist(), indices.tolist(), strict=True) if owner[u] != owner[v]
    }
    counts: dict[tuple[int, int], int] = {}
    for u, part in pairs:
        counts[owner[u], part] = counts.get((owner[u], part), 0) + 1
    lean, plain = 0, 0
    for rows in counts.values():
        for cols in (16, classes, classes, 16):  # F2, F3, B3, B2
            size = 4 + 4 * rows + rows * -(-cols * 2 // 8)
            lean += -(-size // 4) * 4
        plain += 4 * rows * (40 + 16 + 16 + 16 + 16)  # F1, F2, F3, B3, B2
    succeed(python("-m", "pdadmm.gnn.run", graph, *words(f"{SMALL} --bits 2"), "--out", tmp_path / "lean"))
    summary = summary_of(tmp_path / "lean")
    assert (summary["bytes_per_epoch"], summary["float32_bytes_per_epoch"]) == (lean, plain)
    assert summary["halo_rows"] == len(pairs)
    succeed(
        python("-m", "pdadmm.gnn.run", graph, *words(f"{SMALL} --messages float32"), "--out", tmp_path / "f")
    )
    assert summary_of(tmp_path / "f")["bytes_per_epoch"] == plain


def test_parts_without_links_and_without_training_nodes_are_trained(mpirun: MPIRun, tmp_path: Path) -> None:
    """Three communities, edges in one direction, two isolated nodes; all training nodes in the first part."""
    rng, nodes = np.random.default_rng(0), 120
    low = rng.integers(0, 3, 400) * 40
    edges = low + rng.integers(0, 38, (2, 400))
    adjacency = sp.csr_matrix((np.ones(400), edges), shape=(nodes, nodes))
    labels = np.arange(nodes) % 3
    np.savez(
        tmp_path / "g.npz",
        **{f"adj_{name}": getattr(adjacency, name) for name in ("data", "indices", "indptr", "shape")},
        attr_matrix=rng.normal(size=(nodes, 5)) + labels[:, None],
        labels=labels,
        train_idx=np.arange(40),
        val_idx=np.arange(40, 80),
        test_idx=np.arange(80, 120),
    )
    np.save(tmp_path / "parts.npy", np.repeat([0, 1, 2], 40))
    made = python(
        "-m",
        "pdadmm.gnn.prepare",
        "g.npz",
        *words("--parts 3 --partitioner parts.npy --out g.h5"),
        cwd=tmp_path,
    )
    assert succeed(made).err.count("\n") == 1 and "directions" in made.err
    options = words("--epochs 20 --hidden 16 --model sage --quiet --out run")
    succeed(mpirun(3, "-m", "pdadmm.gnn.run", "g.h5", *options, cwd=tmp_path))
    summary = summary_of(tmp_path / "run")
    assert (summary["bytes_per_epoch"], summary["halo_rows"]) == (0, 0)
    assert summary["train_accuracy"] > 0.6


BAD = {
    "no-such.h5": "no such file",
    "{graph} --dropout 1": "--dropout is 1",
    "{graph} --lambda 1.5": "--lambda is 1.5",
    "{graph} --bits 3": "--bits",
    "{graph} --forward zip": "--forward",
    "{graph} --messages more": "--messages",
    "{graph} --layers 0": "--layers is 0",
    "{graph} --backend cupy": "--backend numpy",
    "{graph} --transport nccl --kernels reference": "no --kernels reference; leave one out",
    "{graph} --transport nccl --links measured": "no --links measured; leave one out",
    "{graph} --resume": "--resume needs --out",
    "{features}": "feature file",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, graph: Path, small: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    arguments = words(case.format(graph=graph, features=small))
    found = mpirun(2, "-m", "pdadmm.gnn.run", *arguments, cwd=tmp_path)
    assert found.code == 2, found.err
    assert len(found.err.strip().splitlines()) == 1 and BAD[case] in found.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_widths_follow_links_that_were_measured(
    ranks: int, graph: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    options = [*words(SMALL), "--links", "measured", "--out", tmp_path / "run"]
    succeed(mpirun(ranks, "-m", "pdadmm.gnn.run", graph, *options))
    assigned = json.loads((tmp_path / "run" / "profile.json").read_text())["run"]["assignments"]
    assert [a["epoch"] for a in assigned] == [10, 19]
    if ranks == 1:  # nothing has to travel
        assert all(set(rows) == {"8"} for a in assigned for rows in a["widths"].values())


def test_the_links_of_the_messages_are_measured(graph: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    options = [*words(SMALL), "--measure-links", "--out", tmp_path / "run"]
    succeed(mpirun(4, "-m", "pdadmm.gnn.run", graph, *options))
    profile = json.loads((tmp_path / "run" / "profile.json").read_text())
    (links,) = profile["links_baseline"]["transports"].values()
    measured = {(link["lower"], link["upper"]) for link in links}
    with h5py.File(graph) as file:
        indptr, indices, ends = file["indptr"][...], file["indices"][...], file["part_ptr"][...]
    part = np.repeat(np.arange(4), np.diff(ends))
    rows = np.repeat(part, np.diff(indptr))
    assert measured == {(int(a), int(b)) for a, b in zip(rows, part[indices], strict=True) if a < b}


def test_a_graph_that_is_another_one_on_another_host_is_refused(
    graph: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    other = tmp_path / "other.h5"
    options = f"synthetic --parts 4 --partitioner random {PREPARE}"
    succeed(python("-m", "pdadmm.gnn.prepare", *options.split(), "--out", other))
    code = (
        "import sys; from mpi4py import MPI; from pdadmm.gnn import command, run\n"
        "opened = command.open_graph\n"
        f"own = lambda path, *rest: opened({str(other)!r} if MPI.COMM_WORLD.rank else path, *rest)\n"
        "command.open_graph = own\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    found = mpirun(2, "-c", code, graph, *words(SMALL), "--out", tmp_path / "run")
    assert found.code == 2 and found.err.count("\n") == 1, found
    assert "is another graph, or cut otherwise, on" in found.err
    assert not (tmp_path / "run" / "model.h5").exists()


def test_more_ranks_than_parts_are_refused(graph: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    found = mpirun(5, "-m", "pdadmm.gnn.run", graph, cwd=tmp_path)
    assert found.code == 2 and "4 parts cannot occupy 5 ranks" in found.err


def test_features_beyond_a_network_are_told(tmp_path: Path, mpirun: MPIRun) -> None:
    """A placeholder of a missing value, the largest float32: no classes of NaN, and advice that helps."""
    prepared = []
    for name, value in (("fine", 1.0), ("huge", float(np.finfo(np.float32).max))):
        npz_with_feature(tmp_path / f"{name}.npz", value)
        prepared.append(tmp_path / f"{name}.h5")
        given = [tmp_path / f"{name}.npz", "--parts", "2", "--partitioner", "random", "--out", prepared[-1]]
        succeed(python("-m", "pdadmm.gnn.prepare", *map(str, given)))
    shape = words("--hidden 8 --epochs 2 --quiet --messages float32 --out")
    succeed(python("-m", "pdadmm.gnn.run", prepared[0], *shape, tmp_path / "run"))
    out = tmp_path / "p.h5"
    found = mpirun(2, "-m", "pdadmm.gnn.predict", tmp_path / "run", prepared[1], "--out", out)
    assert found.code == 2 and not out.exists() and found.out == ""
    said = [line for line in found.err.splitlines() if line.startswith("pdadmm")]
    assert len(said) == 1 and "huge.h5: scores are NaN or Inf" in said[0]
    found = mpirun(2, "-m", "pdadmm.gnn.run", prepared[1], *shape, tmp_path / "fails")
    (said,) = [line for line in found.err.splitlines() if line.startswith("pdadmm")]
    assert found.code == 1 and "too large: look for placeholders" in said and "more bits" not in said


def test_a_diverging_run_says_what_to_do(graph: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    for every, scheme in (("5", "lean"), ("1", "float32")):  # the first evaluation is after the first step
        given = [graph, *words(SMALL), "--lr", "1e30", "--eval-every", every, "--messages", scheme]
        found = mpirun(2, "-m", "pdadmm.gnn.run", *given, "--out", tmp_path / scheme)
        assert found.code == 1 and "smaller --lr" in found.err
        assert ("more --bits" in found.err) == (scheme == "lean")
        assert "Traceback" not in found.err


def test_without_a_file_the_embedded_graph_is_trained_in_as_many_parts_as_ranks(
    mpirun: MPIRun, tmp_path: Path
) -> None:
    options = words("--epochs 30 --hidden 32 --quiet")
    succeed(mpirun(4, "-m", "pdadmm.gnn.run", *options, "--out", tmp_path / "e"))
    summary = summary_of(tmp_path / "e")
    assert (summary["parts"], summary["ranks"], summary["dataset"]) == (4, 4, "synthetic")
    assert summary["test_accuracy"] > 0.85
    folder = tmp_path / "g"
    succeed(mpirun(4, "-m", "pdadmm.gnn.run", *options, *words("--checkpoint-every 9"), "--out", folder))
    (folder / "summary.json").unlink()
    succeed(mpirun(3, "-m", "pdadmm.gnn.run", "--resume", "--quiet", "--out", folder))
    assert summary_of(folder)["parts"] == 4 and weights(folder) == weights(tmp_path / "e")
    assert 0 < summary["bytes_per_epoch"] < 0.06 * summary["float32_bytes_per_epoch"]
    config = (tmp_path / "e" / "config.toml").read_text()
    assert "lambda = 0.5" in config
    again = [*words("--quiet --epochs 3"), "--config", tmp_path / "e" / "config.toml"]
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", *again, "--out", tmp_path / "f"))
    assert json.loads((tmp_path / "f" / "summary.json").read_text())["hidden"] == 32


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        (
            "--bits 8",
            "--reassign 10 --lambda 0.3",
            "--lambda, --reassign: without effect, since all affine rows",
        ),
        (
            "--messages float32",
            "--links measured",
            "--links: without effect, since no message is of affine rows",
        ),
        ("--messages float32 --backward affine", "--links measured", ""),
    ],
)
def test_options_of_no_assignment_are_told_on_one_rank(
    messages: str, options: str, said: str, graph: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    short = words(f"--hidden 4 --epochs 1 --quiet {messages} {options}")
    found = succeed(mpirun(2, "-m", "pdadmm.gnn.run", graph, *short, "--out", tmp_path / "run"))
    assert found.err.count("\n") == bool(said) and said in found.err
    again = succeed(
        python(
            "-m",
            "pdadmm.gnn.run",
            "--config",
            tmp_path / "run/config.toml",
            "--quiet",
            "--out",
            tmp_path / "again",
        )
    )
    assert not again.err, "a file has every option"


def test_bits_of_messages_that_are_not_coded_are_refused(graph: Path, tmp_path: Path) -> None:
    found = python(
        "-m", "pdadmm.gnn.run", graph, *words("--messages float32 --bits 2"), "--out", tmp_path / "run"
    )
    assert found.code == 2 and found.err.count("\n") == 1 and "--bits 2" in found.err
    assert not (tmp_path / "run").exists()
