"""Predictions for the class shares of the validation nodes: --class-prior of both systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import npz_arrays
from support import (
    Finished,
    python,
    records_of,
    run_each,
    succeed,
    summary_of,
    weights_of,
    weights_of_run,
    without_times,
    words,
)  # fmt: skip

from pdadmm import Model
from pdadmm.admm.options import parse
from pdadmm.admm.trial import Candidate, try_out
from pdadmm.datasets import load
from pdadmm.datasets.registry import REGISTRY
from pdadmm.errors import InputError
from pdadmm.inputs.class_prior import crossed, logit_shift
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.write import in_memory

MPIRun = Callable[..., Finished]

NODES, SHARES = 400, (0.62, 0.28, 0.10)
SHORT = words("--layers 4 --hidden 16 --iterations 15 --eval-every 3 --quiet")
VAL = ["--class-prior", "val"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """graph.npz, of three classes of unequal sizes that its features hardly tell apart."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), (NODES * np.array(SHARES)).round().astype(int))
    words_of = rng.random((NODES, 12)) < 0.25 + 0.2 * (np.arange(12) % 3 == labels[:, None])
    arrays = npz_arrays(NODES, 12, 3)
    for name in ("attr_data", "attr_indices", "attr_indptr", "attr_shape"):
        del arrays[name]
    path = tmp_path_factory.mktemp("shares") / "graph.npz"
    np.savez(path, **{**arrays, "labels": labels, "attr_matrix": words_of.astype(np.float32)})
    return path


@pytest.fixture(scope="module")
def features(graph: Path) -> Path:
    path = graph.with_name("features.h5")
    succeed(python("-m", "pdadmm.prepare", graph, *words("--operators x,power:1"), "--out", path))
    return path


@pytest.fixture(scope="module")
def other(graph: Path) -> Path:
    """The graph again, with other training and validation nodes, of other shares."""
    with np.load(graph) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    order = np.random.default_rng(5).permutation(NODES)
    of_class = [order[content["labels"][order] == c] for c in range(3)]
    train = np.concatenate([nodes[:count] for nodes, count in zip(of_class, (5, 20, 10), strict=True)])
    val = np.concatenate([nodes[20 : 20 + count] for nodes, count in zip(of_class, (8, 2, 9), strict=True)])
    path = graph.with_name("other.npz")
    test = np.setdiff1d(order, [*train, *val])
    np.savez(path, **content, train_idx=train, val_idx=val, test_idx=test)
    return path


@pytest.fixture(scope="module")
def runs(features: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a run for the shares of the training nodes, and of one for those of validation."""
    given = {"train": [features, *SHORT], "val": [features, *SHORT, *VAL]}
    return run_each(python, "pdadmm.run", given, tmp_path_factory.mktemp("runs"))


def expected_shift(train: np.ndarray, val: np.ndarray) -> np.ndarray:
    """Class by class, from the labels themselves."""
    found = []
    for c in range(3):
        among = [(sum(labels == c) + 1) / (len(labels) + 3) for labels in (train, val)]
        found.append(np.log(among[1]) - np.log(among[0]))
    return np.array(found)


def shift_of(features: Path) -> np.ndarray:
    with FeatureFile(features) as file:
        return expected_shift(file.y("train"), file.y("val"))


def test_posteriors_become_those_under_the_other_shares() -> None:
    """Of two classes of normal values, whose posteriors are known."""
    x = np.linspace(-4, 4, 50)
    densities = np.stack([np.exp(-((x - m) ** 2) / 2) for m in (-1, 1)], axis=1)
    few, many = np.array([499_999, 499_999]), np.array([899_999, 99_999])
    logits = np.log(densities * [0.5, 0.5]) + 3.7  # as a network has them that was trained on equal shares
    shifted = logits + logit_shift(few, many)
    posterior = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    wanted = densities * [0.9, 0.1]
    np.testing.assert_allclose(posterior, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-5)
    assert np.isfinite(logit_shift(np.array([5, 0]), np.array([0, 9]))).all()
    assert not logit_shift(few, few).any()


def test_only_the_output_s_biases_and_what_is_predicted_differ(runs: dict[str, Path], features: Path) -> None:
    shift = shift_of(features)
    assert abs(shift).max() > 0.8
    for name in ("model.h5", "model_best.h5"):
        assert (runs["val"] / name).exists()
    plain, shifted = (weights_of(runs[name] / "model.h5") for name in ("train", "val"))
    for (W, b), (W_val, b_val) in zip(plain[:-1], shifted[:-1], strict=True):
        np.testing.assert_array_equal(W, W_val)
        np.testing.assert_array_equal(b, b_val)
    np.testing.assert_array_equal(plain[-1][0], shifted[-1][0])
    np.testing.assert_allclose(shifted[-1][1] - plain[-1][1], shift, atol=1e-6)
    # training is the same, and what is said of it; what is measured of other nodes is that of the model
    of_training = ("objective", "primal_residual", "train_loss", "train_accuracy")
    for a, b in zip(records_of(runs["train"]), records_of(runs["val"]), strict=True):
        assert [a[name] for name in of_training] == [b[name] for name in of_training]
    summary, model = summary_of(runs["val"]), Model.load(runs["val"] / "model.h5")
    best = Model.load(runs["val"] / "model_best.h5")
    with FeatureFile(features) as file:
        for split in ("val", "test"):
            right = np.mean(model.predict(file.x(split)) == file.y(split))
            assert summary[f"{split}_accuracy"] == pytest.approx(right, abs=1e-9)
        right = np.mean(best.predict(file.x("test")) == file.y("test"))
        assert summary["test_accuracy_at_best_val"] == pytest.approx(right, abs=1e-9)
        logits = model.forward(file.x("val")).astype(np.float64)
        y = file.y("val")
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    last = records_of(runs["val"])[-1]
    assert last["val_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert last["val_loss"] < records_of(runs["train"])[-1]["val_loss"] - 0.02  # which the shares are for
    assert summary["class_prior"] == "val" and summary_of(runs["train"])["class_prior"] == "train"


@pytest.mark.parametrize(("ranks", "more"), [(2, []), (3, []), (2, ["--shards", "2", "--as-sharded"])])
def test_ranks_and_shards_make_no_difference(
    ranks: int, more: list[str], runs: dict[str, Path], features: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    one, given = runs["val"], [features, *SHORT, *VAL]
    if more:
        one = tmp_path / "one"
        succeed(python("-m", "pdadmm.run", *given, "--as-sharded", "--out", one))
    succeed(mpirun(ranks, "-m", "pdadmm.run", *given, *more, "--out", tmp_path / "many"))
    for ours, theirs in zip(weights_of_run(one), weights_of_run(tmp_path / "many"), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert list(map(without_times, records_of(one))) == list(
        map(without_times, records_of(tmp_path / "many"))
    )


def test_a_run_goes_on_from_its_checkpoint_and_with_no_other_shares(
    runs: dict[str, Path], features: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    folder = tmp_path / "run"
    given = [features, *SHORT, *VAL, "--checkpoint-every", "20", "--out", folder]
    succeed(python("-m", "pdadmm.run", *given))
    for name in ("summary.json", "model.h5", "model_best.h5"):
        (folder / name).unlink()  # as if it had been killed after the last checkpoint
    found = python("-m", "pdadmm.run", "--resume", "--out", folder, "--class-prior", "train")
    assert found.code == 2 and found.err.count("\n") == 1
    assert "was made with class_prior = val, not train; give the options" in found.err
    succeed(mpirun(2, "-m", "pdadmm.run", "--resume", "--quiet", "--out", folder))
    for ours, theirs in zip(weights_of_run(runs["val"]), weights_of_run(folder), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_schedule_is_that_of_training(features: Path, tmp_path: Path) -> None:
    schedule = words("--layers 4 --hidden 16 --iterations 30 --eval-every 1 --quiet --schedule authors")
    given = [features, *schedule, *words("--nu 1e-4 --rho 1e-3")]
    found = run_each(python, "pdadmm.run", {"train": given, "val": [*given, *VAL]}, tmp_path)
    a, b = ([(r["nu"], r["objective"]) for r in records_of(folder)] for folder in found.values())
    assert a == b and len({nu for nu, _ in a}) > 1


@pytest.mark.parametrize("of", ["train", "val"])
@pytest.mark.parametrize("prior", ["train", "val"])
def test_a_run_starts_from_what_its_start_was_trained_to(
    of: str, prior: str, runs: dict[str, Path], features: Path, tmp_path: Path
) -> None:
    """A shift is neither added twice nor trained on."""
    more = [
        *words("--iterations 1 --eval-every 1 --quiet --rho 1e-6 --nu 1e-6 --mu 0"),
        "--class-prior",
        prior,
    ]
    start = ["--start", runs[of] / "model.h5"]
    succeed(python("-m", "pdadmm.run", features, *more, *start, "--out", tmp_path / "run"))
    trained = weights_of(runs["train"] / "model.h5")[-1][1]
    after = weights_of(tmp_path / "run" / "model.h5")[-1][1]
    wanted = trained + shift_of(features) if prior == "val" else trained
    # one step from there; the shift is .9 and more
    assert abs(after - wanted).max() < 0.2
    assert Model.load(tmp_path / "run" / "model.h5").attributes["class_prior"] == prior


def test_a_start_on_other_data_loses_the_shift_that_it_has(
    runs: dict[str, Path], other: Path, tmp_path: Path
) -> None:
    """Not the one that the new data would give it: the network goes on as the one without a shift does."""
    succeed(python("-m", "pdadmm.prepare", other, *words("--operators x,power:1 --out"), tmp_path / "f.h5"))
    options = [tmp_path / "f.h5", *words("--iterations 1 --eval-every 1 --quiet"), *VAL]
    given = {of: [*options, "--start", folder / "model.h5"] for of, folder in runs.items()}
    found = run_each(python, "pdadmm.run", given, tmp_path)
    for ours, theirs in zip(*(weights_of_run(found[of]) for of in ("val", "train")), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_has_no_shares_is_refused(features: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    given = [features, *SHORT, *VAL, "--risk", "least_squares", "--out", tmp_path / "run"]
    found = mpirun(2, "-m", "pdadmm.run", *given)
    assert found.code == 2 and not (tmp_path / "run").exists()
    said = [line for line in found.err.splitlines() if line.startswith("pdadmm")]
    assert len(said) == 1 and "give --class-prior train" in said[0]
    with pytest.raises(InputError, match=r"--class-prior.*train.*val"):
        parse(["--class-prior", "test"])


def test_a_data_set_s_shares_give_way_to_least_squares() -> None:
    preset = {"class_prior": "val"}
    assert parse([], lambda path: preset).training.class_prior == "val"
    assert parse(["--risk", "least_squares"], lambda path: preset).training.class_prior == "train"
    assert parse(["--class-prior", "train"], lambda path: preset).training.class_prior == "train"


def test_crossed_shares_are_of_the_other_half() -> None:
    """Of logits that say nothing every node is of the class that is most frequent in the other half."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, 201, p=SHARES)
    nothing = np.zeros((201, 3), np.float32)
    accuracy, loss = crossed(nothing, y, np.array([7, 7, 7]))
    assert accuracy == pytest.approx(np.mean(y == 0), abs=0.02)
    shares = np.bincount(y) / 201
    assert -(shares * np.log(shares)).sum() < loss < -(shares * np.log(shares)).sum() + 0.05
    # a node of a class that the others lack gains nothing from its own label
    y = np.array([0] * 10 + [1])
    logits = np.zeros((11, 2), np.float32)
    logits[10] = [0, 2.0]  # above ln 7, where the other half has none of class 1 and counts as 7 to 1
    alone, _ = crossed(logits, y, np.array([5, 5]))
    every = (logits + logit_shift(np.array([5, 5]), np.bincount(y))).argmax(axis=1) == y
    assert alone == pytest.approx(1.0) == every.mean()
    logits[10] = [0, 1.75]  # above ln 5.5, all nodes being 11 to 2, and below ln 6
    alone, _ = crossed(logits, y, np.array([5, 5]))
    every = (logits + logit_shift(np.array([5, 5]), np.bincount(y))).argmax(axis=1) == y
    assert alone < 1.0 == every.mean()


def test_a_trial_measures_the_logits_of_its_network(graph: Path, features: Path, tmp_path: Path) -> None:
    """Cross-fitted, of the network that is trained; the same logits by the written model."""
    candidate = Candidate("x,power:1", "none", "none", 0.01, 1.0)
    options = ["--layers", "3", "--hidden", "16", "--iterations", "15"]
    given = in_memory(load(str(graph)), operators="x,power:1")
    plain, crossed_fit = (
        try_out(given, replace(candidate, class_prior=prior), options, {}, 0) for prior in ("train", "val")
    )
    succeed(python("-m", "pdadmm.run", features, *options, *candidate.arguments(), "--out", tmp_path / "run"))
    with FeatureFile(features) as file:
        y, train = file.y("val"), np.bincount(file.y("train"))
        logits = Model.load(tmp_path / "run" / "model.h5").forward(file.x("val"))
    assert plain.accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == y))
    accuracy, loss = crossed(logits, y, train)
    assert (crossed_fit.accuracy, crossed_fit.loss) == pytest.approx((accuracy, loss), rel=1e-4)
    assert crossed_fit.accuracy > plain.accuracy


def test_shares_go_with_a_data_set_s_own_operators() -> None:
    for name in ("cora", "citeseer", "amazon-computers", "amazon-photo"):
        entry = REGISTRY[name]
        assert entry.preset_for(entry.operators)["class_prior"] == "val"
        assert "class_prior" not in entry.preset_for("powers:4")  # the paper's


def test_the_estimator_takes_the_shares_of_its_validation_data(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from pdadmm import ADMMClassifier

    rng = np.random.default_rng(3)
    y, y_val = np.arange(60) % 3, rng.choice(3, 90, p=SHARES)
    X, X_val = (rng.normal(size=(len(labels), 5)) + labels[:, None] for labels in (y, y_val))
    names = np.array(["a", "b", "c"])
    options = {"layers": 2, "hidden": 8, "iterations": 10}
    plain, shifted = (
        ADMMClassifier(**options, class_prior=prior).fit(X, names[y], validation=(X_val, names[y_val]))
        for prior in ("train", "val")
    )
    difference = shifted.model_.biases[-1] - plain.model_.biases[-1]
    np.testing.assert_allclose(difference, expected_shift(y, y_val), atol=1e-6)
    assert shifted.history_[-1]["val_accuracy"] == pytest.approx(shifted.score(X_val, names[y_val]))
    with pytest.raises(ValueError, match="class_prior='val' needs validation data"):
        ADMMClassifier(**options, class_prior="val").fit(X, names[y])
    # what goes on from it needs no validation data, and minds none
    shifted.model_.save(tmp_path / "model.h5")
    after = [
        ADMMClassifier(**options, start=start).fit(X, names[y], validation=validation).model_
        for start in (shifted.model_, tmp_path / "model.h5")
        for validation in (None, (X_val, names[y_val]), (X, names[y]))
    ]
    wanted = ADMMClassifier(**options, start=plain.model_).fit(X, names[y]).model_
    for model in after:
        np.testing.assert_array_equal(model.biases[-1], after[0].biases[-1])
        np.testing.assert_array_equal(model.weights[0], after[0].weights[0])
        np.testing.assert_allclose(model.biases[-1], wanted.biases[-1], atol=1e-4)
        assert "class_shift" not in model.attributes


# ---- graph networks -------------------------------------------------------------------------------

GRAPH_NETWORK = words("--layers 2 --hidden 16 --epochs 12 --eval-every 4 --quiet")


@pytest.fixture(scope="module")
def parts(graph: Path) -> Path:
    path = graph.with_name("parts.h5")
    succeed(python("-m", "pdadmm.gnn.prepare", graph, *words("--parts 3"), "--out", path))
    return path


@pytest.fixture(scope="module")
def networks(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    given = {"train": [parts, *GRAPH_NETWORK], "val": [parts, *GRAPH_NETWORK, *VAL]}
    return run_each(python, "pdadmm.gnn.run", given, tmp_path_factory.mktemp("networks"))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, thing: found.update({name: thing[...]}) if hasattr(thing, "shape") else None
        )
    return found


def labels_of(parts: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(parts) as file:
        split, y = file["split"][...], file["y"][...]
    return y[split == 1], y[split == 2]


def test_graph_networks_differ_in_the_output_s_bias_alone(networks: dict[str, Path], parts: Path) -> None:
    plain, shifted = (arrays_of(networks[name] / "model.h5") for name in ("train", "val"))
    np.testing.assert_allclose(shifted.pop("class_shift"), expected_shift(*labels_of(parts)), atol=1e-6)
    assert plain.keys() == shifted.keys()
    for name, array in plain.items():
        wanted = expected_shift(*labels_of(parts)) if name == "layer_0002/b" else np.zeros(array.shape)
        np.testing.assert_allclose(shifted[name] - array, wanted, atol=1e-6, err_msg=name)
    # what is measured is what the models predict
    for name in ("model", "model_best"):
        said = networks["val"] / f"{name}-predictions.h5"
        succeed(python("-m", "pdadmm.gnn.predict", networks["val"] / f"{name}.h5", parts, "--out", said))
        with h5py.File(said) as found, h5py.File(parts) as file:
            split, y = file["split"][...], file["y"][...]
            classes = found["classes"][...][file["node_id"][...]]
            right = np.mean(classes[split == 3] == y[split == 3])
        key = "test_accuracy" if name == "model" else "test_accuracy_at_best_val"
        assert summary_of(networks["val"])[key] == pytest.approx(right, abs=1e-9)


def test_ranks_of_graph_networks_make_no_difference(
    networks: dict[str, Path], parts: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    given = {
        "once": [parts, *GRAPH_NETWORK, *VAL],
        "again": [parts, *GRAPH_NETWORK, *VAL, "--epochs", "1", "--lr", "1e-6"],
    }
    given["again"] += ["--start", networks["val"] / "model.h5"]
    found = run_each(partial(mpirun, 3), "pdadmm.gnn.run", given, tmp_path)
    wanted = arrays_of(networks["val"] / "model.h5")
    for name, array in arrays_of(found["once"] / "model.h5").items():
        np.testing.assert_array_equal(array, wanted[name], name)
    ours, theirs = (list(map(without_times, records_of(f))) for f in (found["once"], networks["val"]))
    assert [r["val_accuracy"] for r in ours] == [r["val_accuracy"] for r in theirs]
    # a start with the same shares predicts what it did
    for name, array in arrays_of(found["again"] / "model.h5").items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-5, err_msg=name)


def test_a_graph_network_starts_on_other_data_without_the_shift_that_it_has(
    networks: dict[str, Path], other: Path, tmp_path: Path
) -> None:
    succeed(python("-m", "pdadmm.gnn.prepare", other, *words("--parts 3 --out"), tmp_path / "g.h5"))
    options = [tmp_path / "g.h5", *GRAPH_NETWORK, *VAL, "--epochs", "1", "--lr", "1e-6"]
    given = {of: [*options, "--start", folder / "model.h5"] for of, folder in networks.items()}
    ours, theirs = (
        arrays_of(folder / "model.h5")
        for folder in run_each(python, "pdadmm.gnn.run", given, tmp_path).values()
    )
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-5, err_msg=name)


def test_graph_networks_of_several_labels_are_refused(graph: Path, tmp_path: Path) -> None:
    with np.load(graph) as arrays:
        several = {**arrays, "labels": np.eye(3, dtype=np.int64)[arrays["labels"]] | (np.arange(3) == 0)}
    np.savez(tmp_path / "several.npz", **several)
    given = [tmp_path / "several.npz", "--parts", "2", "--out", tmp_path / "several.h5"]
    succeed(python("-m", "pdadmm.gnn.prepare", *given))
    found = python("-m", "pdadmm.gnn.run", tmp_path / "several.h5", *VAL, "--out", tmp_path / "run")
    assert found.code == 2 and "needs one class a node" in found.err and found.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
