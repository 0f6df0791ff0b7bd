"""GraphModel: a trained graph network on graphs in memory, against the predictions of the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import npz_arrays, write_npz
from support import python, succeed, summary_of, words

from pdadmm import GraphModel
from pdadmm.datasets import load
from pdadmm.errors import InputError
from pdadmm.gnn.layer import Shape

RUN = words("--hidden 16 --epochs 12 --eval-every 12 --quiet")


def trained(
    folder: Path, source: Path, prepare: str = "", run: str = ""
) -> tuple[GraphModel, np.ndarray, Path]:
    """A model of the graph cut into three parts, the scores of the command, and the folder of the run."""
    graph, out, found = folder / "g.h5", folder / "run", folder / "p.h5"
    cut = words(f"--parts 3 --partitioner random {prepare}")
    succeed(python("-m", "pdadmm.gnn.prepare", source, *cut, "--out", graph))
    succeed(python("-m", "pdadmm.gnn.run", graph, *RUN, *words(run), "--out", out))
    succeed(python("-m", "pdadmm.gnn.predict", out, graph, "--out", found))
    with h5py.File(found) as file:
        scores, classes = file["scores"][...], file["classes"][...]
    model = GraphModel.load(out / "model.h5")
    np.testing.assert_array_equal(model.predict(load(str(source))), classes)
    return model, scores, out


@pytest.mark.parametrize("run", ["--model gcn", "--model sage", "--model gcn --order adaqp --layers 4"])
def test_scores_are_those_of_the_command(tmp_path: Path, run: str) -> None:
    source = write_npz(tmp_path / "mine.npz")
    model, scores, out = trained(tmp_path, source, "--feature-norm row", run)
    graph = load(str(source))
    for features in (graph.features, graph.features.toarray()):
        found = model.forward(replace(graph, features=features))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, scores, rtol=0, atol=2e-5 * np.abs(scores).max())
    assert model.attributes["feature_norm"] == "row"
    assert repr(model).startswith(
        f"<GraphModel {model.shape.model}: {model.shape.layers} layers of widths [7, 16"
    )
    hits = (model.predict(graph) == graph.labels)[graph.test].mean()
    assert hits == pytest.approx(summary_of(out)["test_accuracy"])
    chances = model.predict_proba(graph)
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(chances.argmax(axis=1), scores.argmax(axis=1))


def test_several_labels_a_node(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.uint8)
    source = write_npz(tmp_path / "mine.npz", labels=labels)
    model, scores, _ = trained(tmp_path, source)
    graph = load(str(source))
    assert model.multilabel and model.predict(graph).shape == (60, 4)
    np.testing.assert_allclose(model.predict_proba(graph), 1 / (1 + np.exp(-scores)), atol=1e-5)


@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_graph_without_labels(tmp_path: Path, kind: str) -> None:
    arrays = npz_arrays()
    if kind == "several":
        arrays["labels"] = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.uint8)
    source = write_npz(tmp_path / "mine.npz", **arrays)
    model, scores, out = trained(tmp_path, source)
    classes = scores.shape[1]
    known = {"none": None, "unknown": np.full(60, -1)}
    if kind == "one":
        known["some"] = np.where((arrays["labels"] == 0) | (np.arange(60) % 2 == 0), -1, arrays["labels"])
        known["split"] = known["some"]
    for name, labels in known.items():
        bare = {key: x for key, x in arrays.items() if key != "labels" and not key.endswith("_idx")}
        if labels is not None:
            bare["labels"] = labels
        if name == "split":  # of nodes with labels and without
            bare |= {"train_idx": np.arange(30), "val_idx": np.arange(30, 40), "test_idx": np.arange(40, 60)}
        np.savez(tmp_path / f"{name}.npz", **bare)
        graph, found = tmp_path / f"{name}.h5", tmp_path / f"{name}-found.h5"
        prepare = ["-m", "pdadmm.gnn.prepare", tmp_path / f"{name}.npz", "--parts", "2", "--out", graph]
        refused = python(*prepare)
        if name not in ("some", "split"):
            assert refused.code == 2
        said = succeed(python(*prepare, "--classes", str(classes))).err
        assert "no training node" not in said
        said = succeed(python("-m", "pdadmm.gnn.predict", out, graph, "--out", found)).out
        with h5py.File(found) as file:
            np.testing.assert_allclose(file["scores"][...], scores, atol=2e-5 * np.abs(scores).max())
        if name == "some":
            hits = (scores.argmax(axis=1) == labels)[labels >= 0].mean()
            assert f"accuracy test {hits:.4f}" in said and "train" not in said
        elif name == "split":
            assert labels is not None
            right, inside = scores.argmax(axis=1) == labels, (labels >= 0) & (np.arange(60) >= 40)
            assert "accuracy train " in said and f"test {right[inside].mean():.4f}" in said
        else:
            assert "60 nodes; none has a label" in said
        if name != "split":
            untrained = python("-m", "pdadmm.gnn.run", graph, "--out", tmp_path / f"{name}-run")
            assert untrained.code == 2 and "without --classes" in untrained.err, untrained
        in_memory = load(str(tmp_path / f"{name}.npz"), classes=classes)
        np.testing.assert_allclose(model.forward(in_memory), scores, atol=2e-5 * np.abs(scores).max())


def test_graphs_that_do_not_fit(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "mine.npz")
    model, _, _ = trained(tmp_path, source)
    graph = load(str(source))
    with pytest.raises(InputError, match=r"9 features, the model takes 7; give a graph of the same kind"):
        model.forward(load(str(write_npz(tmp_path / "other.npz", **npz_arrays(features=9)))))
    with pytest.raises(InputError, match=r"int is no graph; give that of .*from_pyg\(data, classes=3\)"):
        model.forward(3)  # type: ignore[arg-type]
    huge = replace(graph, features=np.full((60, 7), np.finfo(np.float32).max))
    for predict in (model.predict, model.predict_proba):
        with pytest.raises(InputError, match=r"mine\.npz: scores are NaN or Inf"):
            predict(huge)
    with pytest.raises(InputError, match=r"samples without a graph; pdadmm\.Model is for these"):
        model.forward(replace(graph, adjacency=None))
    with pytest.raises(InputError, match=r"model\.h5: no such file; a run writes model\.h5 into its --out"):
        GraphModel.load(tmp_path / "model.h5")


def test_a_model_as_safetensors(tmp_path: Path) -> None:
    safe = pytest.importorskip("safetensors")
    W, b = np.ones((3, 7), np.float32), np.zeros(3, np.float32)
    GraphModel(Shape("gcn", (7, 3)), {1: {"W": W, "b": b}}).to_safetensors(tmp_path / "m.safetensors")
    with safe.safe_open(tmp_path / "m.safetensors", "numpy") as file:
        assert file.metadata()["model"].startswith("GCN(7, ")
        np.testing.assert_array_equal(file.get_tensor("convs.0.lin.weight"), W)


@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_a_node_without_neighbours(tmp_path: Path, kind: str) -> None:
    """GCN has its own row alone, and the mean over the neighbours is 0."""
    rng, graph = np.random.default_rng(0), load(str(write_npz(tmp_path / "mine.npz")))
    adjacency = graph.adjacency.tolil()
    adjacency[7, :] = 0
    adjacency[:, 7] = 0
    adjacency = adjacency.tocsr()
    adjacency.eliminate_zeros()
    shape = Shape(kind, (7, 5, 3))
    weights = {
        layer: {
            name: rng.normal(size=size).astype(np.float32) for name, size in shape.parameters(layer).items()
        }
        for layer in (1, 2)
    }
    found = GraphModel(shape, weights).forward(replace(graph, adjacency=adjacency))
    own = "W" if kind == "gcn" else "W_self"
    z = weights[1][own] @ graph.features.toarray()[7] + weights[1]["b"]
    centred = z - z.mean()
    scaled = weights[1]["gamma"] * centred / np.sqrt((centred**2).mean() + 1e-5) + weights[1]["beta"]
    expected = weights[2][own] @ np.maximum(scaled, 0) + weights[2]["b"]
    np.testing.assert_allclose(found[7], expected, atol=1e-5)
