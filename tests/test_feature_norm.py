"""Features standardised before anything else, and graphs prepared as another one was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_files import write_npz
from support import Finished, python, succeed, words

from pdadmm import GraphModel
from pdadmm.datasets import load
from pdadmm.errors import InputError
from pdadmm.gnn import prepare as prepare_graph
from pdadmm.gnn.partition import cut
from pdadmm.inputs import feature_norm
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.feature_norm import FeatureNorm
from pdadmm.inputs.graph_file import GraphFile
from pdadmm.inputs.write import in_memory
from pdadmm.prepare import main

MPIRun = Callable[..., Finished]

NODES = 60  # of data_files.npz_arrays
UNITS = [1, 1e-20, 1e20, 100, 0, 1]
OFFSETS = [1000, 0, 0, -5, 0.1, 0]


def measurements(seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Features in units of their own: far from 0, tiny, huge, and one that does not vary."""
    values = np.random.default_rng(seed).normal(size=(NODES, len(UNITS))) + shift
    return (values * UNITS + OFFSETS).astype(np.float32)


def own_graph(path: Path, features: np.ndarray) -> Path:
    others = dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape"))
    return write_npz(path, **others, attr_matrix=features)


def standardised(values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """By scikit-learn's formula, in float64."""
    reference = (values if of is None else of).astype(np.float64)
    scale = reference.std(axis=0)
    scale[4] = 1  # it does not vary
    return (values - reference.mean(axis=0)) / scale


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("block", [1 << 26, 100])
def test_every_column_has_mean_0_and_deviation_1(
    form: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_norm, "_BLOCK_BYTES", block)
    values = measurements()
    norm = FeatureNorm.of("standard", form(values), "mine")
    found = norm.applied(form(values))
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, standardised(values), rtol=1e-5, atol=1e-6)
    assert not found[:, 4].any()  # exactly, although .1 is no float32
    np.testing.assert_array_equal(norm.applied(values[:, 2:4], slice(2, 4)), found[:, 2:4])


def test_sparse_features_are_refused_and_so_are_other_numbers_of_them(tmp_path: Path) -> None:
    thin = sp.random(NODES, 6, 0.4, "csr", np.float32, np.random.default_rng(0))
    norm = FeatureNorm.of("standard", measurements(), "mine")
    with pytest.raises(InputError, match=r"mine: most features are zeros, .* give --feature-norm row"):
        FeatureNorm.of("standard", thin, "mine")
    fitted = FeatureNorm.of(norm, thin, "mine").applied(thin)  # the user has said so
    np.testing.assert_array_equal(fitted, norm.applied(thin.toarray()))
    far = np.full((3, 6), 3e38, np.float32)
    with pytest.raises(InputError, match="mine: features are too far from the means"):
        FeatureNorm.of(norm, far, "mine")
    FeatureNorm.of("standard", thin.toarray(), "mine")  # that is as large as it will be
    with pytest.raises(InputError, match="5 features, the means to standardise them by are of 6"):
        FeatureNorm.of(norm, measurements()[:, :5], "mine")
    with pytest.raises(InputError, match="feature norm 'l2' is unknown"):
        FeatureNorm.of("l2", thin, "mine")


def test_a_feature_file_is_that_of_standardised_features(tmp_path: Path, mpirun: MPIRun) -> None:
    source = own_graph(tmp_path / "mine.npz", measurements())
    own = ["--operators", "x,ppr:0.2", "--feature-norm", "standard", "--out"]
    assert main([str(source), *own, str(tmp_path / "a.h5")]) == 0
    succeed(mpirun(3, "-m", "pdadmm.prepare", source, *own, tmp_path / "b.h5"))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    graph = load(str(source))
    expected = in_memory(replace(graph, features=standardised(measurements())), operators="x,ppr:0.2")
    held = in_memory(graph, operators="x,ppr:0.2", feature_norm="standard")
    with FeatureFile(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file.x("all"), held.x("all"))
        np.testing.assert_allclose(file.x("all"), expected.x("all"), atol=2e-6)
        assert file.attrs["feature_norm"] == "standard"


def test_a_graph_file_is_that_of_standardised_features(tmp_path: Path) -> None:
    values = measurements()
    values[:, 0] = 0
    values[::7, 0] = 1  # mostly zeros, which are none afterwards
    graph = load(str(own_graph(tmp_path / "mine.npz", values)))
    arrays = cut(graph, 3, "random", feature_norm="standard")
    assert arrays.attrs["features"] == "dense"
    prepare = [str(tmp_path / "mine.npz"), *words("--parts 3 --partitioner random --feature-norm standard")]
    assert prepare_graph.main([*prepare, "--out", str(tmp_path / "g.h5")]) == 0
    with GraphFile(tmp_path / "g.h5") as file:
        found = file.features(0, NODES)
        np.testing.assert_array_equal(found, arrays.features(0, NODES))
        expected = standardised(values)[file.node_id(slice(0, NODES))]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert file.norm.same(arrays.norm) and file.attrs["content"] == arrays.attrs["content"]


def test_prepared_as_another_graph_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = own_graph(tmp_path / "first.npz", measurements())
    other = own_graph(tmp_path / "other.npz", measurements(1, shift=2))
    old, new = str(tmp_path / "old.h5"), str(tmp_path / "new.h5")
    assert main([str(first), "--operators", "x,heat:1", "--feature-norm", "standard", "--out", old]) == 0
    assert main([str(other), "--like", old, "--out", new]) == 0
    expected = standardised(measurements(1, shift=2), of=measurements())
    with FeatureFile(new) as file, FeatureFile(old) as like:
        assert file.operators == "x,heat:1" and file.norm.same(like.norm)
        X = file.x("all")[:, : len(UNITS)]
        np.testing.assert_allclose(X, expected[file.node_id], rtol=1e-5, atol=1e-5)
    assert main([str(other), "--like", new, "--out", old]) == 0  # of the first graph still
    with FeatureFile(new) as file, FeatureFile(old) as like:
        assert file.norm.same(like.norm)
    capsys.readouterr()
    for option in (["--hops", "2"], ["--operators", "x"], ["--feature-norm", "row"]):
        assert main([str(other), "--like", old, *option, "--out", new]) == 2
        assert f"{option[0]} and --like both say" in capsys.readouterr().err
    assert main([str(first), "--like", str(first), "--out", new]) == 2
    assert "python -m pdadmm.prepare" in capsys.readouterr().err


def test_a_graph_network_predicts_with_the_means_it_was_trained_with(tmp_path: Path) -> None:
    first = own_graph(tmp_path / "first.npz", measurements())
    other = own_graph(tmp_path / "other.npz", measurements(1, shift=2))
    run = tmp_path / "run"

    def prepare(source: Path, name: str, *options: str | Path) -> Path:
        out = tmp_path / f"{name}.h5"
        succeed(python("-m", "pdadmm.gnn.prepare", source, "--parts", "2", *options, "--out", out))
        return out

    graph = prepare(first, "first", "--feature-norm", "standard")
    own = words("--hidden 16 --epochs 4 --model sage --quiet --out")
    succeed(python("-m", "pdadmm.gnn.run", graph, *own, run))
    likes = [prepare(other, f"like{i}", "--like", of) for i, of in enumerate((graph, run, run / "model.h5"))]
    assert len({path.read_bytes() for path in likes}) == 1
    for name, options, said in (
        ("own", ["--feature-norm", "standard"], "means and scales of its own"),
        ("plain", [], "the norm none, the model was trained on standard"),
    ):
        found = python("-m", "pdadmm.gnn.predict", run, prepare(other, name, *options))
        assert found.code == 2 and said in found.err and f"--like {run}/model.h5" in found.err
    succeed(python("-m", "pdadmm.gnn.predict", run, likes[0], "--out", tmp_path / "p.h5"))
    with h5py.File(tmp_path / "p.h5") as file:
        scores = file["scores"][...]
    loaded = GraphModel.load(run / "model.h5")
    np.testing.assert_allclose(loaded.forward(load(str(other))), scores, atol=2e-5 * np.abs(scores).max())
    both = python("-m", "pdadmm.gnn.prepare", other, "--parts", "2", "--like", graph, "--feature-norm", "row")
    assert both.code == 2 and "--feature-norm and --like both say" in both.err
    nowhere = python("-m", "pdadmm.gnn.prepare", other, "--parts", "2", "--like", tmp_path / "nowhere.h5")
    assert nowhere.code == 2 and "nowhere.h5: no such file" in nowhere.err


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("feature_mean", None, "lacks /feature_mean"),
        ("feature_mean", np.zeros(5), "/feature_mean is float64 (5,), not float64 (6,)"),
        ("feature_mean", np.zeros(6, "f4"), "/feature_mean is float32"),
        ("feature_mean", np.full(6, np.nan), "/feature_mean holds what no features have"),
        ("feature_scale", np.zeros(6), "/feature_scale holds what no features have"),
    ],
)
def test_damaged_means_are_refused(tmp_path: Path, name: str, values: np.ndarray | None, said: str) -> None:
    source = str(own_graph(tmp_path / "mine.npz", measurements()))
    norm = ["--feature-norm", "standard", "--out"]
    assert main([source, *norm, str(tmp_path / "x.h5")]) == 0
    assert prepare_graph.main([source, "--parts", "2", *norm, str(tmp_path / "g.h5")]) == 0
    for kind, path in ((FeatureFile, tmp_path / "x.h5"), (GraphFile, tmp_path / "g.h5")):
        with h5py.File(path, "r+") as file:
            del file[name]
            if values is not None:
                file[name] = values
        with pytest.raises(InputError) as error, kind(path) as opened:
            print(opened.norm)
        assert said in str(error.value)
