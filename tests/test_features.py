"""Hops against dense float64, the file format, and the reading interface."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_files import ROOT, dense_adjacency, dense_hops, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.datasets import Graph, synthetic_graph
from pdadmm.datasets.graph import clean_adjacency
from pdadmm.errors import InputError
from pdadmm.inputs import augment, write
from pdadmm.inputs.augment import Augmentation, Plan
from pdadmm.inputs.feature_file import _ATTRIBUTES, X_SHA256, FeatureFile
from pdadmm.inputs.write import in_memory, write_features


def make_graph(
    nodes: int = 40, columns: int = 9, seed: int = 0, edges: int | None = None, sparse: bool = True
) -> Any:
    """A graph, and its dense float64 adjacency and features."""
    raw = random_graph(nodes, columns, 3, seed, edges)
    i, j = raw["edges"].T
    a = clean_adjacency(sp.coo_matrix((np.ones(len(i)), (i, j)), shape=(nodes, nodes)), "test")
    x = raw["features"].astype(np.float32)
    ids = np.random.default_rng(seed).permutation(nodes).astype(np.int64)
    cut = nodes // 4
    graph = Graph(
        "test",
        a,
        sp.csr_matrix(x) if sparse else x,
        raw["labels"].astype(np.int64),
        np.sort(ids[:cut]),
        np.sort(ids[cut : 2 * cut]),
        np.sort(ids[2 * cut : 3 * cut]),
        3,
    )
    return graph, dense_adjacency(raw["edges"], nodes), x


@pytest.fixture
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks and panels, as only a large graph has."""
    monkeypatch.setattr(augment, "_BLOCK_BYTES", 40 * 4 * 3)
    monkeypatch.setattr(augment, "_PANEL_BYTES", 1)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("hops", [0, 1, 4])
@pytest.mark.parametrize("nodes", ["split", "all"])
def test_hops_agree_with_dense_float64(hops: int, sparse: bool, nodes: str) -> None:
    graph, a, x = make_graph(sparse=sparse)
    made = in_memory(graph, hops, nodes=nodes)
    expected = dense_hops(a, x, hops)
    np.testing.assert_allclose(made.x("all"), expected[made.node_id], rtol=2e-6, atol=1e-6)
    for split in ("train", "val", "test"):
        ids = graph.split(split)
        np.testing.assert_allclose(made.x(split), expected[ids], rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(made.y(split), graph.labels[ids])
    assert sorted(made.node_id) == (
        list(range(40)) if nodes == "all" else sorted([*graph.train, *graph.val, *graph.test])
    )


@settings(max_examples=30, deadline=None)
@given(
    nodes=st.integers(8, 40),
    columns=st.integers(1, 20),
    hops=st.integers(0, 3),
    edges=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_hops_agree_with_dense_float64_for_any_graph(
    nodes: int, columns: int, hops: int, edges: int, seed: int
) -> None:
    graph, a, x = make_graph(nodes, columns, seed, edges)
    np.testing.assert_allclose(
        in_memory(graph, hops).x("test"), dense_hops(a, x, hops)[graph.test], rtol=2e-6, atol=1e-6
    )


@pytest.mark.parametrize("sparse", [True, False])
def test_row_norm_divides_by_the_l1_norm_and_leaves_zero_rows(sparse: bool) -> None:
    graph, a, x = make_graph(sparse=sparse)
    row = int(graph.train[0])
    dense = x.copy()
    dense[row] = 0
    graph.features = sp.csr_matrix(dense) if sparse else dense
    sums = np.abs(dense).sum(axis=1, keepdims=True)
    expected = dense_hops(a, np.divide(dense, sums, out=np.zeros(dense.shape), where=sums > 0), 2)
    made = in_memory(graph, 2, "row")
    np.testing.assert_allclose(made.x("all"), expected[made.node_id], rtol=2e-6, atol=1e-7)
    assert not made.x("train")[0, : dense.shape[1]].any()
    assert made.attrs["feature_norm"] == "row"


def test_samples_without_a_graph_get_no_hops() -> None:
    graph, _, x = make_graph(sparse=False)
    graph.adjacency = None
    made = in_memory(graph, 4)
    assert made.attrs["hops"] == 0
    np.testing.assert_array_equal(made.x("all"), x[made.node_id])


@pytest.mark.parametrize("nodes", ["split", "all"])
def test_file_holds_the_same_bits_as_memory(tmp_path: Path, nodes: str) -> None:
    graph, _, _ = make_graph()
    write_features(tmp_path / "f.h5", Augmentation(graph, 3, nodes=nodes), seed=5, title="T", licence="L")
    made = in_memory(graph, 3, nodes=nodes, seed=5, title="T", licence="L")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.attrs == made.attrs
        np.testing.assert_array_equal(file.x("all"), made.x("all"))
        np.testing.assert_array_equal(file.y("all"), made.y("all"))
        np.testing.assert_array_equal(file.node_id, made.node_id)
        for name in ("dataset", "num_classes", "num_features", "n_train", "n_val", "n_test", "rows"):
            assert getattr(file, name) == getattr(made, name)
        part = file.x("test", 2, 7)
        np.testing.assert_array_equal(part, made.x("test")[2:7])
        assert part.dtype == np.float32
        assert part.flags.c_contiguous


def test_schema_is_as_documented(tmp_path: Path) -> None:
    graph, _, _ = make_graph()
    write_features(tmp_path / "f.h5", Augmentation(graph, 2), seed=5, title="T", licence="L", citation="C")
    with h5py.File(tmp_path / "f.h5") as file:
        assert dict(file.attrs) == {
            "schema": "pdadmm-features",
            "schema_version": 1,
            "dataset": "test",
            "title": "T",
            "licence": "L",
            "citation": "C",
            "operators": "powers:2",
            "hops": 2,
            "features_per_hop": 9,
            "feature_norm": "none",
            "seed": 5,
            "num_nodes": 40,
            "num_classes": 3,
            "n_train": 10,
            "n_val": 10,
            "n_test": 10,
            "nodes": "split",
            X_SHA256: hashlib.sha256(file["x"][...].tobytes()).hexdigest().encode(),
        }
        assert {k: (v.shape, v.dtype.str, v.chunks) for k, v in file.items()} == {
            "x": ((30, 27), "<f4", None),
            "y": ((30,), "<i8", None),
            "node_id": ((30,), "<i8", None),
        }
    documentation = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name in (*_ATTRIBUTES, "operators", "hops", X_SHA256):
        assert f"`{name}`" in documentation


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize(("short", "rows"), [(0, 1), (1024, 1), (1024, 4 * 9 * 4 * 7), (1024, 1 << 25)])
def test_blocks_and_panels_do_not_change_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int, rows: int
) -> None:
    """However panels are written: every row's columns alone, or by whole rows, few or all of them at once."""
    monkeypatch.setattr(write, "_SHORT", short)
    monkeypatch.setattr(write, "_ROWS_BYTES", rows)
    graph, a, x = make_graph()
    plan = Plan(40, 9, 30, 3)
    assert len(plan.blocks()) == 3
    assert plan.panel < 9
    write_features(tmp_path / "f.h5", Augmentation(graph, 3))
    with FeatureFile(tmp_path / "f.h5") as file:
        np.testing.assert_allclose(file.x("all"), dense_hops(a, x, 3)[file.node_id], rtol=2e-6, atol=1e-6)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    graph, _, _ = make_graph()
    for name in ("a.h5", "b.h5"):
        write_features(tmp_path / name, Augmentation(graph, 3))
        time.sleep(1.1)  # HDF5 may record times, in whole seconds
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("sparse", [True, False])
def test_memory_does_not_grow_with_the_hops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: bool
) -> None:
    mib = 1 << 20
    for budget in ("_BLOCK_BYTES", "_HOPS_BYTES", "_PANEL_BYTES"):
        monkeypatch.setattr(augment, budget, mib)
    monkeypatch.setattr(write, "_ROWS_BYTES", mib)
    graph, _, _ = make_graph(300, 1000, sparse=sparse)
    one_hop = 300 * 1000 * 4
    for hops in (4, 16):
        tracemalloc.start()
        write_features(tmp_path / "f.h5", Augmentation(graph, hops, nodes="all"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = (tmp_path / "f.h5").stat().st_size
        assert peak < 2 * one_hop + 4 * mib, f"{hops} hops, {size} bytes written"
    assert size > 2 * peak


def test_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    graph, _, _ = make_graph()
    path = tmp_path / "f.h5"
    write_features(path, Augmentation(graph, 1))
    old = path.read_bytes()

    def fail() -> Any:
        yield 0, 0, in_memory(graph, 0).x("all")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_features(path, Augmentation(graph, 2), pieces=fail())
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]


def test_reading_outside_a_split_is_an_error() -> None:
    made = in_memory(make_graph()[0], 1)
    with pytest.raises(ValueError, match="not one of"):
        made.x("training")
    with pytest.raises(ValueError, match="outside the val split"):
        made.x("val", 0, 11)


# ----------------------------------------------------------------------------- bad files


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "f.h5"
    write_features(path, Augmentation(make_graph()[0], 2))
    return path


def replace_dataset(file: Any, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


def set_x(value: float) -> Any:
    def change(file: Any) -> None:
        file["x"][12, 3] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__setitem__("schema", "other"), "schema 'other'"),
        (lambda f: f.attrs.__delitem__("schema"), "no schema"),
        (lambda f: f.attrs.__setitem__("schema_version", 2), "schema version 2, this program reads 1"),
        (lambda f: f.attrs.__delitem__("hops"), "lacks the attribute hops"),
        (lambda f: f.attrs.__setitem__("hops", "two"), "attribute hops is 'two'"),
        (lambda f: f.attrs.__setitem__("hops", 3), "/x is float32"),
        (lambda f: f.attrs.__setitem__("n_val", -1), "attribute n_val is -1"),
        (lambda f: f.attrs.__setitem__("n_val", 11), "/x is float32"),
        (lambda f: f.attrs.__setitem__("num_nodes", 3), "more nodes than the graph"),
        (lambda f: f.attrs.__setitem__("num_classes", 2), "label 2 is out of range"),
        (lambda f: f.attrs.__setitem__("nodes", "some"), "not split or all"),
        (lambda f: f.__delitem__("y"), "lacks /y"),
        (lambda f: replace_dataset(f, "x", np.zeros((30, 27))), "/x is float64"),
        (lambda f: replace_dataset(f, "y", np.zeros(29, np.int64)), "/y is int64"),
        (lambda f: replace_dataset(f, "y", np.full(30, -1)), "label -1 is out of range"),
        (lambda f: replace_dataset(f, "node_id", np.full(30, 40)), "node 40 is out of range 0 to 39"),
    ],
)
def test_wrong_feature_file_is_refused(good: Path, change: Any, message: str) -> None:
    with h5py.File(good, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message) as caught:
        FeatureFile(good)
    assert str(good) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_when_read(good: Path, value: float) -> None:
    with h5py.File(good, "r+") as file:
        set_x(value)(file)
    with FeatureFile(good) as file:
        file.x("train")
        with pytest.raises(InputError, match="NaN or Inf in row 12"):
            file.x("val")


@pytest.mark.parametrize("keep", [0, 10, 700, 0.5, 0.99])
def test_truncated_feature_file_is_refused(good: Path, keep: float) -> None:
    content = good.read_bytes()
    good.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(InputError, match=r"f\.h5"):
        FeatureFile(good)


@pytest.mark.parametrize(("name", "reason"), [("nowhere.h5", "no such file"), (".", "Is a directory")])
def test_missing_feature_file_says_how_to_make_it(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"{reason}; make it with python -m pdadmm\.prepare"):
        FeatureFile(tmp_path / name)


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.h5").write_bytes(b"garbage" * 1000)
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        FeatureFile(tmp_path / "f.h5")


# ----------------------------------------------------------------------------- the embedded default


def test_embedded_default_needs_its_edges() -> None:
    """A linear classifier: about .55 on the features alone, about .87 with four hops."""
    scores = {}
    for hops in (0, 4):
        made = in_memory(synthetic_graph(seed=0), hops)
        x, y = made.x("train").astype(np.float64), np.eye(7)[made.y("train")]
        # Ridge regression on the class indicators, in its V x V form.
        mean = x.mean(axis=0)
        kernel = (x - mean) @ (x - mean).T
        w = (x - mean).T @ np.linalg.solve(kernel + np.eye(len(x)), y - y.mean(axis=0))
        predicted = ((made.x("test") - mean) @ w).argmax(axis=1)
        scores[hops] = float((predicted == made.y("test")).mean())
    assert 0.35 < scores[0] < 0.65
    assert 0.75 < scores[4] < 0.92


def test_importing_features_does_not_start_mpi() -> None:
    code = "import sys, pdadmm.inputs.write, pdadmm.datasets; sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
