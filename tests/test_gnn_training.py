"""What options, labels, seeds and signals do to the training of a graph network, and what is said of it."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_files import write_npz
from mpi4py import MPI
from support import Finished, python, records_of, run_many, succeed, summary_of, words
from test_gnn_assignment import BITS, Case
from test_gnn_run import PREPARE, SMALL, records, weights

from pdadmm.comm.waiter import Waiter
from pdadmm.gnn import assignment, measure
from pdadmm.gnn.bits import assign
from pdadmm.gnn.command import open_graph
from pdadmm.gnn.halo import message_key
from pdadmm.gnn.options import parse
from pdadmm.gnn.trainer import Facts, Trainer
from pdadmm.runtime.devices import ON_CPUS

MPIRun = Callable[..., Finished]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "g.h5"
    options = f"synthetic --parts 4 --partitioner blocks {PREPARE}"
    succeed(python("-m", "pdadmm.gnn.prepare", *options.split(), "--out", path))
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    labels = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.uint8)
    source = write_npz(folder / "mine.npz", labels=labels)
    cut = words("--parts 3 --partitioner random")
    succeed(python("-m", "pdadmm.gnn.prepare", source, *cut, "--out", folder / "g.h5"))
    return folder / "g.h5"


@pytest.mark.parametrize("labels", ["graph", "several"])
def test_labels_of_other_nodes_have_no_say_in_training(
    labels: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The network is the same, bit for bit, whatever those of validation and test nodes are."""
    graph: Path = request.getfixturevalue(labels)
    other = tmp_path / "other.h5"
    shutil.copy(graph, other)
    with h5py.File(other, "r+") as file:
        y, rest = file["y"][...], file["split"][...] != 1
        y[rest] = 1 - y[rest] if y.ndim == 2 else (y[rest] + 1) % file.attrs["num_classes"]
        file["y"][...] = y
    found = []
    for path in (graph, other):
        out = tmp_path / path.stem
        succeed(python("-m", "pdadmm.gnn.run", path, *words(SMALL), "--out", out))
        losses = [record["loss"] for record in records_of(out)]
        assert losses[-1] < losses[0]
        found.append({name: x for name, x in weights(out).items() if name.startswith("model.h5")})
    assert records(tmp_path / graph.stem) != records(tmp_path / "other")
    assert found[0] == found[1]


OPTIONS = [
    "",
    "--seed 1",
    "--dropout 0.2",
    "--weight-decay 0.05",
    "--lambda 0.9",
    "--order adaqp",
    "--reassign 5",
    "--lr 0.02",
    "--bits 2",
    "--forward delta",
    "--backward float32",
]


def test_every_option_of_training_does_something(graph: Path, tmp_path: Path) -> None:
    runs = [
        [graph, *words(f"{SMALL} {options}"), "--out", tmp_path / str(i)] for i, options in enumerate(OPTIONS)
    ]
    run_many(python, "pdadmm.gnn.run", runs, tmp_path)
    losses = [records_of(tmp_path / str(i))[-1]["loss"] for i in range(len(OPTIONS))]
    assert len(set(losses)) == len(losses), dict(zip(OPTIONS, losses, strict=True))


def test_weight_decay_pulls(graph: Path, tmp_path: Path) -> None:
    """Of a large one little is left of the weights."""
    norms = []
    for decay in ("0", "1"):
        out = tmp_path / decay
        succeed(python("-m", "pdadmm.gnn.run", graph, *words(SMALL), "--weight-decay", decay, "--out", out))
        with h5py.File(out / "model.h5") as file:
            norms.append(np.linalg.norm(file["layer_0001/W"][...]))
    assert norms[1] < 0.8 * norms[0], norms


def test_a_step_is_of_the_mean_over_the_training_nodes_and_the_penalty(graph: Path) -> None:
    """Adam's first one, in float64; the size of the gradient beside the penalty decides where it goes."""
    rate, decay = 0.01, 0.02
    trainer = trainer_of(
        graph, f"--hidden 8 --epochs 1 --messages float32 --lr {rate} --weight-decay {decay}"
    )
    weights, gradients = trainer.parameters.weights, trainer.parameters.gradients
    before = {layer: {name: w.astype(float) for name, w in named.items()} for layer, named in weights.items()}
    trainer.run()
    with h5py.File(graph) as file:
        training = (file["split"][...] == 1).sum()
    turned = 0
    for layer, named in before.items():
        for name, w in named.items():
            mean = sum(of_part[layer][name].astype(float) for of_part in gradients.values()) / training
            g = mean + decay * w
            np.testing.assert_allclose(weights[layer][name], w - rate * g / (np.abs(g) + 1e-8), atol=2e-5)
            turned += int((np.sign(g) != np.sign(mean)).sum())
    assert turned > 20


def test_the_integer_program_is_asked_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("gcn")
    asked: list[int] = []
    traces = case.traces()

    def counted(*given: Any) -> Any:
        asked.append(1)
        return assign(*given)

    monkeypatch.setattr(assignment, "exact", counted)
    for method, slots in (("greedy", 0), ("exact", len(case.slots))):
        traces.assign(case.waiter, BITS, 0.5, method)
        assert len(asked) == slots


def trainer_of(graph: Path, options: str) -> Trainer:
    config = parse([str(graph), *words(options)])
    waiter = Waiter(MPI.COMM_SELF)
    with open_graph(config.graph, 1) as source:
        return Trainer(config, Facts.of(source), source, waiter, 1, ON_CPUS)


def test_masks_differ_from_layer_to_layer_from_epoch_to_epoch_and_by_the_seed(graph: Path) -> None:
    keys = []
    for seed in (0, 1):
        trainer = trainer_of(graph, f"--hidden 8 --layers 3 --seed {seed}")
        for trainer.epoch in (1, 2, 3):
            keys += [drop.key for drop in trainer._drops(0.5).values()]
    assert len(set(keys)) == len(keys) == 2 * 3 * 2


def test_weights_begin_by_the_seed(graph: Path) -> None:
    first, other, again = (
        trainer_of(graph, f"--hidden 8 --seed {seed}").parameters.vectors[1] for seed in (0, 1, 0)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).all()


@pytest.mark.parametrize("links", ["uniform", "measured"])
def test_times_are_measured_where_links_are_to_be(
    graph: Path, links: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(graph, f"--hidden 8 --epochs 7 --reassign 3 --links {links}")
    assert trainer.traces is not None
    assign_widths, given = trainer.traces.assign, []

    def seen(*arguments: Any) -> Any:
        given.append(arguments[-1])
        return assign_widths(*arguments)

    monkeypatch.setattr(trainer.traces, "assign", seen)
    trainer.run()
    trainer.close()
    assert given and all((times is not None) == (links == "measured") for times in given)


def test_an_assignment_forgets_what_was_before_it(graph: Path) -> None:
    trainer = trainer_of(graph, "--hidden 8 --epochs 7 --reassign 5")
    trainer.run()
    assert trainer.traces is not None
    assert all((sums > 0).any() for sums in trainer.traces.sums.values())
    trainer._assign()
    assert not any(sums.any() for sums in trainer.traces.sums.values())
    trainer.close()


def test_of_equal_evaluations_the_last_is_the_best(graph: Path) -> None:
    trainer = trainer_of(graph, "--hidden 8 --epochs 6 --eval-every 2 --lr 1e-37")
    trainer.run()
    assert trainer.best == trainer.last
    trainer.close()


def test_areas_under_the_curve_are_those_of_their_definition() -> None:
    """Of all pairs of a node of class 1 and one of class 0, ties half."""
    random = np.random.default_rng(0)
    Z = random.integers(0, 4, (90, 2)).astype(np.float32)
    labels, split = random.integers(0, 2, 90), np.arange(90) % 4
    parts = {i: slice(30 * i, 30 * i + 30) for i in range(3)}
    targets = {i: measure.Targets(labels[rows], split[rows]) for i, rows in parts.items()}
    outputs = {i: Z[rows] for i, rows in parts.items()}
    found = measure.measure(outputs, targets, 3, 2, Waiter(MPI.COMM_SELF))
    for number, name in enumerate(("train", "val", "test"), 1):
        scores, of = (Z[:, 1] - Z[:, 0])[split == number], labels[split == number]
        ahead = scores[of == 1][:, None] - scores[of == 0][None, :]
        assert found[f"{name}_auc"] == pytest.approx((ahead > 0).mean() + 0.5 * (ahead == 0).mean())
        assert found[f"{name}_accuracy"] == (Z.argmax(axis=1) == labels)[split == number].mean()
    assert measure.area_under_curve(np.arange(3.0), np.ones(3)) == 0.5


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_one_rank_saves_all_and_sigterm_ends_them(
    number: str, mpirun: MPIRun, graph: Path, tmp_path: Path
) -> None:
    code = (
        "import os, signal, sys; from pdadmm.gnn import run, trainer\n"
        "train = trainer.Trainer._train\n"
        "def told(self):\n"
        f"    if (self.epoch, self.waiter.comm.rank) == (7, 1): os.kill(os.getpid(), signal.{number})\n"
        "    train(self)\n"
        "trainer.Trainer._train = told\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    whole, folder = tmp_path / "whole", tmp_path / "told"
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", graph, *words(SMALL), "--out", whole))
    found = mpirun(2, "-c", code, graph, *words(SMALL), "--out", folder)
    (saved,) = (folder / "checkpoints").iterdir()
    assert saved.name in ("iteration-00000007", "iteration-00000008")
    if number == "SIGTERM":
        assert found.code == 75 and not (folder / "model.h5").exists()
        assert found.err.count("\n") == 1 and "stopped after epoch" in found.err and "--resume" in found.err
        succeed(mpirun(3, "-m", "pdadmm.gnn.run", "--resume", "--quiet", "--out", folder))
    else:
        succeed(found)
    assert weights(folder) == weights(whole) and records(folder) == records(whole)


def test_max_seconds_stop_a_graph_network(graph: Path, tmp_path: Path) -> None:
    options = words("--hidden 16 --epochs 1000000 --max-seconds 4 --quiet")
    found = python("-m", "pdadmm.gnn.run", graph, *options, "--out", tmp_path / "run")
    assert found.code == 75 and "stopped after epoch" in found.err
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_other_options_and_other_graphs_are_not_gone_on_with(graph: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    cut = f"synthetic --seed 1 --parts 4 --partitioner blocks {PREPARE}"
    succeed(python("-m", "pdadmm.gnn.prepare", *words(cut), "--out", other))
    folder = tmp_path / "run"
    training = words(f"{SMALL} --messages float32 --checkpoint-every 10")
    succeed(python("-m", "pdadmm.gnn.run", graph, *training, "--out", folder))
    (folder / "summary.json").unlink()
    for arguments, said in (
        (["--lr", "0.02"], "made with lr = 0.01, not 0.02"),
        (["--epochs", "20"], "the checkpoint is of epoch 20, --epochs is 20; give more than 20"),
        (["--dropout", "0.1"], "made with dropout = 0.5, not 0.1"),
        (["--seed", "3"], "made with seed = 0, not 3"),
        (["--reassign", "3"], "made with reassign = 9, not 3"),
        ([other], "the graph is another one than the checkpoint was made with"),
    ):
        found = python("-m", "pdadmm.gnn.run", *arguments, "--resume", "--quiet", "--out", folder)
        assert found.code == 2 and found.err.count("\n") == 1 and said in found.err, (arguments, found.err)
    succeed(python("-m", "pdadmm.gnn.run", "--resume", "--quiet", "--out", folder))


def test_a_run_that_is_made_longer_is_the_longer_run(graph: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    long, short = tmp_path / "long", tmp_path / "short"
    more = words("--messages lean --forward delta --eval-every 5 --checkpoint-every 7")
    options = [graph, *words(SMALL), *more]
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", *options, "--epochs", "33", "--out", long))
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", *options, "--epochs", "24", "--out", short))
    shutil.copytree(short / "checkpoints", tmp_path / "kept")
    assert summary_of(short)["epochs"] == 24
    left = {name: (short / name).read_bytes() for name in ("model.h5", "model_best.h5", "summary.json")}
    longer = ["--resume", "--quiet", "--out", short, "--epochs"]
    stopped = mpirun(1, "-m", "pdadmm.gnn.run", *longer, "100000", "--max-seconds", "1")
    assert stopped.code == 75 and "is now model-24-epochs.h5" in stopped.err
    for name, content in left.items():  # also where the longer run never comes to its end
        path = short / name
        assert path.with_stem(f"{path.stem}-24-epochs").read_bytes() == content and not path.exists()
    shutil.rmtree(short / "checkpoints")
    shutil.copytree(tmp_path / "kept", short / "checkpoints")
    succeed(mpirun(3, "-m", "pdadmm.gnn.run", "--resume", "--epochs", "33", "--quiet", "--out", short))
    assert summary_of(short)["epochs"] == 33
    assert weights(short) == weights(long) and records(short) == records(long)


def test_no_two_messages_are_rounded_by_the_same_draws() -> None:
    parts = list(itertools.product((0, 1), (1, 2), (0, 1), (0, 1), (2, 3), (1, 2, 4)))
    assert len({message_key(*part) for part in parts}) == len(parts)


def test_numbers_of_the_summary(graph: Path, tmp_path: Path) -> None:
    """From the files alone."""
    run, out = tmp_path / "run", tmp_path / "p.h5"
    succeed(
        python(
            "-m", "pdadmm.gnn.run", graph, *words(SMALL), *words("--forward float32 --bits 2"), "--out", run
        )
    )
    succeed(python("-m", "pdadmm.gnn.predict", run, graph, "--out", out))
    s = summary_of(run)
    assert (s["mean_bits_forward"], s["mean_bits_backward"]) == (32, 2)
    with h5py.File(graph) as file, h5py.File(out) as predicted:
        y, train, Z = file["y"][...], file["split"][...] == 1, predicted["scores"][...][file["node_id"][...]]
        classes, halo = int(file.attrs["num_classes"]), int(file.attrs["halo_rows"])
    chances = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
    assert s["loss"] == pytest.approx(-np.log(chances[np.arange(len(y)), y][train]).mean(), rel=1e-3)
    assert s["evaluation_bytes_per_evaluation"] == 4 * halo * (16 + classes)  # float32, of layers 2 and 3


@pytest.mark.parametrize(("labels", "word"), [("graph", "accuracy"), ("several", "micro-F1")])
def test_what_the_score_is_called(
    labels: str, word: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In the final table and by predictions: with labels a class of their own, what is printed is F1."""
    source, run, out = request.getfixturevalue(labels), tmp_path / "run", tmp_path / "p.h5"
    table = succeed(python("-m", "pdadmm.gnn.run", source, *words("--hidden 8 --epochs 3"), "--out", run)).out
    said = succeed(python("-m", "pdadmm.gnn.predict", run, source, "--out", out)).out
    s = summary_of(run)
    for name, key in ((f"{word}: train", "train"), ("validation", "val"), ("test", "test")):
        assert re.search(rf"{name} +\S +{s[f'{key}_accuracy']:.3f}\b", table), table
        assert f"{key} {s[f'{key}_accuracy']:.4f}" in said
    assert f"; {word} train " in said
    if labels == "several":
        with h5py.File(source) as file, h5py.File(out) as predicted:
            y, test = file["y"][...] > 0, file["split"][...] == 3
            found = predicted["scores"][...][file["node_id"][...]] > 0
        hits = (y & found)[test].sum()
        assert s["test_accuracy"] == pytest.approx(2 * hits / (y[test].sum() + found[test].sum()))


@pytest.mark.parametrize(("messages", "bits"), [("lean", 4), ("adaqp", 8)])
def test_widths_before_the_first_assignment(messages: str, bits: int, graph: Path) -> None:
    widths = trainer_of(graph, f"--hidden 8 --messages {messages}").widths
    assert widths and {int(bit) for of_message in widths.values() for bit in of_message} == {bits}
