"""Predicting with a network of layers: what models know of their inputs, and graphs that come later."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import dense_adjacency, dense_hops, random_graph, write_npz
from support import Finished, python, succeed, summary_of, words

from pdadmm import Model
from pdadmm.errors import InputError
from pdadmm.inputs.feature_file import FeatureFile

MPIRun = Callable[..., Finished]

NODES, CLASSES = 60, 3  # of data_files.npz_arrays
SHORT = words("--layers 3 --hidden 12 --iterations 5 --quiet --out")
DENSE = dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape"))


def measurements(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(NODES, 5)) * [1, 100, 1, 1e-3, 1] + [0, 0, 7, 0, -2]
    return values.astype(np.float32)


def prepare(source: Path, out: Path, *options: str | Path) -> Path:
    succeed(python("-m", "pdadmm.prepare", source, *options, "--out", out))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old.h5, prepared of standardised features; run, trained on it; new.npz, a graph without labels."""
    folder = tmp_path_factory.mktemp("predict")
    old = write_npz(folder / "old.npz", **DENSE, attr_matrix=measurements(0))
    prepare(old, folder / "old.h5", *words("--operators x,power:2 --feature-norm standard --nodes all"))
    succeed(python("-m", "pdadmm.run", folder / "old.h5", *SHORT, folder / "run"))
    write_npz(folder / "new.npz", **DENSE, attr_matrix=measurements(1), labels=None)
    return folder


def predictions(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        assert file.attrs["schema"] == "pdadmm-predictions"
        return {name: file[name][...] for name in file}


def test_features_beyond_a_network_make_no_classes(tmp_path: Path) -> None:
    """A placeholder of a missing value, the largest float32."""
    features = np.random.default_rng(0).random((NODES, 5)).astype(np.float32)
    prepared = []
    for name, first in (("fine", 1.0), ("huge", np.finfo(np.float32).max)):
        features[7, 0] = first
        source = write_npz(tmp_path / f"{name}.npz", **DENSE, attr_matrix=features)
        prepared.append(prepare(source, tmp_path / f"{name}.h5", *words("--operators x --nodes all")))
    succeed(python("-m", "pdadmm.run", prepared[0], *SHORT, tmp_path / "run"))
    out = tmp_path / "p.h5"
    with h5py.File(tmp_path / "run" / "model.h5", "r+") as file:
        file["layer_0001/W"][...] = 2
    found = python("-m", "pdadmm.predict", tmp_path / "run", prepared[1], "--out", out)
    assert found.code == 2 and found.err.count("\n") == 1 and not out.exists()
    assert "huge.h5: scores are NaN or Inf" in found.err
    model = Model.load(tmp_path / "run" / "model.h5")
    with FeatureFile(prepared[1]) as file:
        for predict in (model.predict, model.predict_proba):
            with pytest.raises(InputError, match="the features: scores are NaN or Inf"):
                predict(file.x("all"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_run_says_whose_features_are_beyond_it(tmp_path: Path, split: str, mpirun: MPIRun) -> None:
    """A placeholder in a node that does not train: its class would be that of NaN, 0."""
    features = np.random.default_rng(0).random((NODES, 5)).astype(np.float32)
    ids = {name: np.arange(first, first + 20) for name, first in (("train", 0), ("val", 20), ("test", 40))}
    features[ids[split][3]] = np.finfo(np.float32).max
    given = {f"{name}_idx": nodes for name, nodes in ids.items()}
    source = write_npz(tmp_path / "huge.npz", **DENSE, **given, attr_matrix=features)
    path = prepare(source, tmp_path / "huge.h5", *words("--operators x"))
    found = mpirun(
        2, "-m", "pdadmm.run", path, *words("--layers 3 --hidden 100 --mu 0 --quiet --out"), tmp_path / "o"
    )
    assert (
        found.code == 1 and f"the loss of {split} nodes is nan; features of theirs are too large" in found.err
    )
    assert not (tmp_path / "o/model.h5").exists()


def test_predictions_are_those_of_the_run(folder: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    said = succeed(
        python("-m", "pdadmm.predict", folder / "run", folder / "old.h5", "--out", tmp_path / "p.h5")
    )
    accuracies = {name: float(value) for name, value in re.findall(r"(\w+) (0\.\d{4}|1\.0000)", said.out)}
    summary = summary_of(folder / "run")
    assert accuracies == pytest.approx(
        {split: summary[f"{split}_accuracy"] for split in ("train", "val", "test")}, abs=6e-5
    )
    found = predictions(tmp_path / "p.h5")
    np.testing.assert_array_equal(found["node_id"], np.arange(NODES))  # all of them, in their order
    np.testing.assert_array_equal(found["classes"], found["scores"].argmax(axis=1))
    with FeatureFile(folder / "old.h5") as features:
        np.testing.assert_array_equal(
            found["scores"][features.node_id], Model.load(folder / "run/model.h5").forward(features.x("all"))
        )
    # from the file of the model, and under mpirun, the same bytes
    for ranks, model in ((1, "run/model.h5"), (3, "run")):
        given = [folder / model, folder / "old.h5", "--out", tmp_path / "again.h5"]
        assert succeed(mpirun(ranks, "-m", "pdadmm.predict", *given)).out.count("\n") == 1
        assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "p.h5").read_bytes()


def test_rows_of_a_file_without_all_nodes_are_named(folder: Path, tmp_path: Path) -> None:
    part = prepare(folder / "old.npz", tmp_path / "part.h5", "--like", folder / "run", *words("--seed 3"))
    with h5py.File(part, "r+") as file:  # as of a graph with nodes in no split
        kept = file["y"].shape[0] - 7
        for name in ("x", "y", "node_id"):
            values = file[name][:kept]
            del file[name]
            file[name] = values
        file.attrs["n_test"] -= 7
    whole, some = tmp_path / "whole.h5", tmp_path / "some.h5"
    succeed(python("-m", "pdadmm.predict", folder / "run", folder / "old.h5", "--out", whole))
    succeed(python("-m", "pdadmm.predict", folder / "run", part, "--out", some))
    found = predictions(some)
    assert found["node_id"].size == NODES - 7 and (np.diff(found["node_id"]) > 0).all()
    np.testing.assert_array_equal(found["scores"], predictions(whole)["scores"][found["node_id"]])


def test_a_graph_without_labels_is_prepared_as_the_model_wants_it(folder: Path, tmp_path: Path) -> None:
    like = ["--classes", str(CLASSES), "--like"]
    made = [
        prepare(folder / "new.npz", tmp_path / f"{i}.h5", *like, folder / of)
        for i, of in enumerate(("run", "run/model.h5", "old.h5"))
    ]
    assert len({path.read_bytes() for path in made}) == 1
    done = python("-m", "pdadmm.predict", folder / "run", made[0], "--out", tmp_path / "p.h5")
    assert succeed(done).out == f"{tmp_path}/p.h5: {NODES} nodes; none has a label\n"
    found = predictions(tmp_path / "p.h5")
    # dense formulae in float64, from the features of both graphs and the weights
    before = measurements(0).astype(np.float64)
    features = (measurements(1) - before.mean(axis=0)) / before.std(axis=0)
    blocks = dense_hops(dense_adjacency(random_graph(NODES, 7, 3)["edges"], NODES), features, 2)
    z = np.hstack([blocks[:, :5], blocks[:, 10:]])
    model = Model.load(folder / "run/model.h5")
    for i, (W, b) in enumerate(zip(model.weights, model.biases, strict=True)):
        z = z @ W.T.astype(np.float64) + b
        if i < len(model.weights) - 1:
            z = np.maximum(z, 0)
    np.testing.assert_allclose(found["scores"], z, atol=1e-5 * abs(z).max())
    np.testing.assert_array_equal(found["node_id"], np.arange(NODES))


def test_a_file_for_predictions_is_not_trained_on(folder: Path, tmp_path: Path, mpirun: MPIRun) -> None:
    given = ["--classes", str(CLASSES), "--like", folder / "run"]
    found = mpirun(
        2, "-m", "pdadmm.run", prepare(folder / "new.npz", tmp_path / "n.h5", *given), *SHORT, tmp_path / "r"
    )
    assert found.code == 2 and found.err.count("\n") == 1
    assert "the train split is empty" in found.err and "without --classes" in found.err
    assert not (tmp_path / "r").exists()
    # nodes with a label are test nodes, where there is no split
    labels = np.full(NODES, -1)
    labels[:9] = 2
    few = write_npz(tmp_path / "few.npz", **DENSE, attr_matrix=measurements(1), labels=labels)
    said = succeed(python("-m", "pdadmm.predict", folder / "run", prepare(few, tmp_path / "few.h5", *given)))
    assert re.fullmatch(r"predictions\.h5: 60 nodes; accuracy test \d\.\d{4}\n", said.out)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where predictions.h5 is by default


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--operators x,power:2 --feature-norm standard", "standardised by means and scales of its own"),
        ("--operators x,power:2", "features of the norm none, {model} was trained on standard"),
        (
            "--operators x,power:3 --feature-norm standard",
            "has the operators x,power:3, {model} was trained on x,",
        ),
    ],
)
def test_features_prepared_in_another_way_are_refused(
    folder: Path, tmp_path: Path, options: str, said: str
) -> None:
    other = write_npz(tmp_path / "other.npz", **DENSE, attr_matrix=measurements(2))
    features = prepare(other, tmp_path / "other.h5", *words(options))
    model = folder / "run/model.h5"
    found = python("-m", "pdadmm.predict", folder / "run", features)
    assert found.code == 2 and found.err.count("\n") == 1
    assert said.format(model=model) in found.err and f"prepare it with --like {model}" in found.err
    assert not (tmp_path / "predictions.h5").exists()
    found = python("-m", "pdadmm.run", features, "--start", model, *SHORT, tmp_path / "r")
    assert found.code == 2 and said.format(model=model) in found.err and not (tmp_path / "r").exists()


def test_what_is_no_model_and_what_is_not_replaced(folder: Path, small: Path, tmp_path: Path) -> None:
    old = folder / "old.h5"
    (tmp_path / "notes.txt").write_text("mine")
    before = old.read_bytes()
    scores = tmp_path / "scores.h5"
    succeed(python("-m", "pdadmm.predict", folder / "run", old, "--out", scores))
    for given, said in (
        ([tmp_path, old], "model.h5: no such file"),
        ([old, old], "a feature file"),
        ([folder / "run", folder / "run/model.h5"], "a model, not a feature file"),
        ([folder / "run", scores], "a file of predictions, not a feature file"),
        ([folder / "run", small], "--like"),
        ([folder / "run", old, "--out", tmp_path / "notes.txt"], "is no file of predictions"),
        ([folder / "run", old, "--out", old], "is the file to read"),
        ([folder / "run", old, "--out", folder / "run/model.h5"], "is no file of predictions"),
    ):
        found = python("-m", "pdadmm.predict", *given)
        assert found.code == 2 and found.err.count("\n") == 1 and said in found.err, (given, found)
    assert (tmp_path / "notes.txt").read_text() == "mine" and old.read_bytes() == before


@pytest.mark.parametrize("command", ["pdadmm.prepare", "pdadmm.gnn.prepare"])
def test_what_is_prepared_like_a_file_does_not_replace_it(folder: Path, tmp_path: Path, command: str) -> None:
    """Another graph of the same name leads to the same place, where there is no --out."""
    (tmp_path / "new").mkdir()
    for place, graph in ((tmp_path, "old.npz"), (tmp_path / "new", "new.npz")):
        (place / "mine.npz").write_bytes((folder / graph).read_bytes())
    parts = ["--parts", "2"] if "gnn" in command else []
    succeed(python("-m", command, "mine.npz", *parts, cwd=tmp_path))
    (made,) = (tmp_path / "data").iterdir()
    before = made.read_bytes()
    like = [*parts, "--classes", str(CLASSES), "--like", made]
    found = python("-m", command, "new/mine.npz", *like, cwd=tmp_path)
    assert found.code == 2 and found.err.count("\n") == 1
    assert "is the file to read; name another one with --out" in found.err and made.read_bytes() == before
    succeed(python("-m", command, "new/mine.npz", *like, "--out", "new.h5", cwd=tmp_path))


def test_a_model_of_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    four = prepare(folder / "new.npz", tmp_path / "4.h5", "--classes", "4", "--like", folder / "run")
    found = python("-m", "pdadmm.predict", folder / "run", four)
    assert found.code == 2 and "10 inputs and 4 classes" in found.err and "10 and 3" in found.err


def test_models_keep_what_they_know_of_their_inputs(folder: Path, tmp_path: Path) -> None:
    path = folder / "run/model.h5"
    model = Model.load(path)
    assert model.prepared is not None and model.prepared.operators == "x,power:2"
    with FeatureFile(folder / "old.h5") as features:
        assert model.prepared.norm.same(features.norm)
    model.save(tmp_path / "copy.h5")
    assert (tmp_path / "copy.h5").read_bytes() == path.read_bytes()
    link = tmp_path / "link.h5"
    link.symlink_to("copy.h5")
    model.save(link)
    assert link.is_symlink() and (tmp_path / "copy.h5").read_bytes() == path.read_bytes()
    # one of before knew nothing: it takes what has as many inputs
    with h5py.File(tmp_path / "copy.h5", "r+") as file:
        del file.attrs["operators"], file.attrs["feature_norm"]
    assert Model.load(tmp_path / "copy.h5").prepared is None
    succeed(
        python("-m", "pdadmm.predict", tmp_path / "copy.h5", folder / "old.h5", "--out", tmp_path / "a.h5")
    )
    found = python(
        "-m", "pdadmm.prepare", folder / "new.npz", "--like", tmp_path / "copy.h5", "--out", "b.h5"
    )
    assert found.code == 2 and "does not say how its features were prepared" in found.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.attrs.__delitem__("feature_norm"), "lacks the attribute feature_norm"),
        (lambda f: f.attrs.__setitem__("feature_norm", "l2"), "feature_norm"),
        (lambda f: f.attrs.__setitem__("operators", 3), "operators"),
        (lambda f: f.__delitem__("feature_scale"), "lacks /feature_scale"),
        (lambda f: f["feature_mean"].__setitem__(0, np.nan), "/feature_mean holds what no features have"),
    ],
)
def test_damaged_notes_of_a_model_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[h5py.File], None], said: str
) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes((folder / "run/model.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=re.escape(said)):
        Model.load(path)


def test_operators_of_a_model_are_looked_at(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes((folder / "run/model.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["operators"] = "x,rm -rf"
    found = python(
        "-m", "pdadmm.prepare", folder / "new.npz", "--classes", "3", "--like", path, "--out", "n.h5"
    )
    assert found.code == 2 and found.err.count("\n") == 1 and "--like" in found.err


def test_a_disk_without_room_for_predictions(folder: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pdadmm import predict; write = predict.write_predictions\n"
        "def limited(*given, **more):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    write(*given, **more)\n"
        "predict.write_predictions = limited\n"
        "sys.exit(predict.main(sys.argv[1:]))"
    )
    found = python("-c", code, folder / "run", folder / "old.h5", "--out", tmp_path / "p.h5")
    assert (found.code, found.err.count("\n")) == (2, 1) and "File too large" in found.err
    assert not list(tmp_path.iterdir())
