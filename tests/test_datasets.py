"""Every reader against the arrays its files were written from; refusal of bad files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from data_files import (
    dense_adjacency,
    mnist_arrays,
    npz_arrays,
    write_graphsaint,
    write_idx,
    write_npz,
    write_ogb,
    write_planetoid,
)

from pdadmm.datasets import REGISTRY, Graph, load, synthetic_graph
from pdadmm.datasets.fetch import raw_files
from pdadmm.datasets.graph import clean_adjacency
from pdadmm.datasets.registry import Archive, Dataset, RawFile
from pdadmm.datasets.safe_pickle import load_pickle
from pdadmm.datasets.splits import draw_split
from pdadmm.errors import InputError

SHARED = os.environ.get("PDADMM_SHARED")
needs_shared = pytest.mark.skipif(not SHARED, reason="PDADMM_SHARED does not name the folder of real data")


def dense(matrix: Any) -> Any:
    return matrix.toarray() if sp.issparse(matrix) else matrix


def check_adjacency(graph: Graph, edges: Any) -> None:
    a = graph.adjacency
    assert a.dtype == np.float32
    assert a.has_sorted_indices
    np.testing.assert_array_equal(a.toarray(), dense_adjacency(edges, graph.num_nodes))


# ----------------------------------------------------------------------------- readers


def test_planetoid_gives_the_public_split_and_zero_rows_for_missing_test_nodes(tmp_path: Path) -> None:
    written = write_planetoid(tmp_path)
    graph = load("cora", raw=tmp_path, verify=False)
    check_adjacency(graph, written["edges"])
    np.testing.assert_array_equal(dense(graph.features), written["features"])
    np.testing.assert_array_equal(graph.labels, written["labels"])
    assert graph.labels.dtype == np.int64
    assert graph.train.tolist() == list(range(6))
    assert graph.val.tolist() == list(range(6, 20))
    assert graph.test.tolist() == written["test"]
    assert not {24, 27} & set(graph.test.tolist())
    assert not dense(graph.features)[[24, 27]].any()
    assert graph.num_classes == 3


def test_planetoid_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """A protocol-2 pickle as NumPy 1 under Python 2 wrote it: bytes in str, old module names."""
    old = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x07\xfftb."
    )
    path = tmp_path / "array"
    path.write_bytes(old)
    np.testing.assert_array_equal(load_pickle(path), np.array([7, 255], dtype=np.uint8))


def test_gnn_benchmark_npz_sparse_and_dense_features(tmp_path: Path) -> None:
    arrays = npz_arrays()
    x = sp.csr_matrix(
        (arrays["attr_data"], arrays["attr_indices"], arrays["attr_indptr"]), shape=(60, 7)
    ).toarray()
    a = sp.csr_matrix((arrays["adj_data"], arrays["adj_indices"], arrays["adj_indptr"]), shape=(60, 60))
    edges = np.transpose(a.nonzero())
    no_attr = dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape"))
    for path in (
        write_npz(tmp_path / "sparse.npz"),
        write_npz(tmp_path / "dense.npz", attr_matrix=x, **no_attr),
    ):
        graph = load(path, seed=3)
        check_adjacency(graph, edges)
        np.testing.assert_array_equal(dense(graph.features), x)
        np.testing.assert_array_equal(graph.labels, arrays["labels"])
        assert graph.name == path.stem


def test_gnn_benchmark_npz_with_its_own_split(tmp_path: Path) -> None:
    ids = {"train_idx": np.array([5, 1]), "val_idx": np.array([2]), "test_idx": np.array([9, 30])}
    graph = load(write_npz(tmp_path / "g.npz", **ids))
    assert (graph.train.tolist(), graph.val.tolist(), graph.test.tolist()) == ([1, 5], [2], [9, 30])


def test_npz_with_pickled_names_besides_is_read_without_unpickling(tmp_path: Path) -> None:
    graph = load(write_npz(tmp_path / "g.npz", node_names=np.array(["a", None], dtype=object)))
    assert graph.num_nodes == 60


def test_ogb_folder(tmp_path: Path) -> None:
    written = write_ogb(tmp_path / "arxiv")
    graph = load("ogbn-arxiv", raw=tmp_path)
    check_adjacency(graph, written["edges"])
    np.testing.assert_array_equal(graph.features, written["features"])
    np.testing.assert_array_equal(graph.labels, written["labels"])
    assert graph.train.tolist() == written["split"]["train"]
    assert graph.val.tolist() == written["split"]["valid"]
    assert graph.test.tolist() == written["split"]["test"]


def test_graphsaint_folder(tmp_path: Path) -> None:
    written = write_graphsaint(tmp_path)
    graph = load("flickr", raw=tmp_path)
    check_adjacency(graph, written["edges"])
    np.testing.assert_array_equal(graph.features, written["features"])
    np.testing.assert_array_equal(graph.labels, written["labels"])
    assert graph.train.tolist() == written["split"]["tr"]
    assert graph.val.tolist() == written["split"]["va"]
    assert graph.test.tolist() == written["split"]["te"]


@pytest.mark.parametrize("form", ["npz", "flat npz", "idx", "idx.gz"])
def test_mnist_in_every_form(tmp_path: Path, form: str) -> None:
    arrays = mnist_arrays()
    if form == "npz":
        np.savez(tmp_path / "mnist.npz", **arrays)
    elif form == "flat npz":
        flat = {k: v.reshape(len(v), -1) if k[0] == "x" else v for k, v in arrays.items()}
        np.savez(tmp_path / "mnist.npz", **flat)
    else:
        write_idx(tmp_path, compress=form == "idx.gz")
    graph = load("mnist", raw=tmp_path, verify=False, seed=1)
    assert graph.adjacency is None
    pixels = np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(70, 16)
    np.testing.assert_allclose(graph.features, pixels / 255.0, rtol=1e-6)
    assert graph.features.dtype == np.float32
    assert graph.test.tolist() == list(range(60, 70))
    assert (graph.train.size, graph.val.size) == (55, 5)
    assert sorted([*graph.train, *graph.val]) == list(range(60))
    assert graph.val.tolist() != load("mnist", raw=tmp_path, verify=False, seed=2).val.tolist()


def test_clean_adjacency_drops_explicit_zeros() -> None:
    a = sp.csr_matrix((np.array([0.0, 5.0, 2.0]), ([0, 1, 2], [1, 2, 2])), shape=(3, 3))
    np.testing.assert_array_equal(clean_adjacency(a, "a").toarray(), [[0, 0, 0], [0, 0, 1], [0, 1, 0]])


# ----------------------------------------------------------------------------- bad files


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {0: [p]}, lambda p: np.array([p], dtype=object)])
def test_evil_pickle_is_refused_and_its_payload_not_run(tmp_path: Path, wrap: Any) -> None:
    write_planetoid(tmp_path)
    marker = tmp_path / "marker"
    (tmp_path / "ind.cora.graph").write_bytes(pickle.dumps(wrap(Payload(marker)), protocol=2))
    with pytest.raises(InputError, match=r"ind\.cora\.graph: refused"):
        load("cora", raw=tmp_path, verify=False)
    assert not marker.exists()
    with (tmp_path / "ind.cora.graph").open("rb") as stream:
        pickle.load(stream)
    assert marker.exists(), "the pickle is not evil, so the test shows nothing"


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'false'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.lib.npyio\nload\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        b"cscipy.sparse\nload_npz\n.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    ],
)
def test_pickles_that_name_other_callables_are_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "evil"
    path.write_bytes(text)
    with pytest.raises(InputError):
        load_pickle(path)


@pytest.mark.parametrize("part", ["x", "y", "tx", "ty", "allx", "ally", "graph", "test.index"])
@pytest.mark.parametrize("damage", ["half", "empty", "garbage"])
def test_damaged_planetoid_files_are_named(tmp_path: Path, part: str, damage: str) -> None:
    write_planetoid(tmp_path)
    path = tmp_path / f"ind.cora.{part}"
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "garbage": b"\xffgarbage"}[damage])
    with pytest.raises(InputError, match=rf"ind\.cora\.{part}|ind\.cora: ") as caught:
        load("cora", raw=tmp_path, verify=False)
    assert "\n" not in str(caught.value)


def test_sparse_matrix_with_wild_indices_is_refused_before_scipy_uses_it(tmp_path: Path) -> None:
    write_planetoid(tmp_path)
    x = sp.csr_matrix(np.ones((6, 11)))
    x.indices[3] = 10_000_000
    (tmp_path / "ind.cora.x").write_bytes(pickle.dumps(x, protocol=2))
    with pytest.raises(InputError, match="column index is out of range"):
        load("cora", raw=tmp_path, verify=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.full(60, -1)}, r"\(labels\): no node has a label"),
        ({"labels": np.full(60, -2)}, "label -2 is out of range"),
        ({"train_ids": np.arange(9)}, "holds train_ids; give a split as train_idx, val_idx, test_idx, or as"),
        ({"valid_mask": np.ones(60)}, "holds valid_mask; give a split as"),
        ({"train_mask": np.ones(60), "test_idx": np.arange(3)}, "holds test_idx, train_mask; give"),
        ({"train_mask": np.ones(60), "val_mask": np.ones(60)}, "train_mask, val_mask only; give all"),
        (dict.fromkeys(("train_mask", "val_mask", "test_mask"), np.arange(20)), "a mask is true or false"),
        ({"labels": np.eye(3)[np.arange(60) % 3]}, r"rows of zeros and a one; .* labels\.argmax"),
        ({"labels": np.full(60, "a")}, r"numpy\.unique\(\.\.\., return_inverse=True\) numbers them"),
        ({"labels": np.full(60, None)}, "labels holds pickled objects"),
        ({"labels": np.where(np.arange(60) == 5, 9, np.arange(60) % 3)}, "class 3 has no node"),
        ({"labels": np.full(60, 10**9)}, "label 1000000000 is out of range"),
        ({"labels": np.zeros(60, dtype=int)}, "1 class"),
        ({"labels": np.arange(59) % 3}, "59 labels for 60 feature rows"),
        ({"labels": np.linspace(0, 2, 60)}, "not a whole number"),
        ({"labels": None}, "lacks labels"),
        ({"labels": np.array([{}] * 60, dtype=object)}, "pickled objects"),
        ({"attr_data": np.full(npz_arrays()["attr_data"].size, np.nan)}, "NaN or Inf"),
        ({"attr_data": np.full(npz_arrays()["attr_data"].size, 1e300)}, "NaN or Inf"),
        ({"attr_shape": np.array([60, 3])}, "column index is out of range"),
        ({"attr_indptr": np.zeros(61, dtype=int)}, "row pointers"),
        ({"adj_shape": np.array([50, 60])}, "not a valid sparse matrix"),
        ({"adj_indices": np.full(npz_arrays()["adj_indices"].size, 60)}, "column index is out of range"),
        ({"adj_data": None}, "lacks adj_data"),
        ({"train_idx": np.array([0])}, "give all of"),
        (
            {"train_idx": np.array([0]), "val_idx": np.array([], int), "test_idx": np.array([2])},
            "val split is empty",
        ),
        (
            {"train_idx": np.array([0]), "val_idx": np.array([1]), "test_idx": np.array([60])},
            "node 60 of the test",
        ),
        (
            {"train_idx": np.array([0]), "val_idx": np.array([-1]), "test_idx": np.array([2])},
            "node -1 of the val",
        ),
        ({"train_idx": np.array([0]), "val_idx": np.array([0]), "test_idx": np.array([2])}, "shares one"),
    ],
)
def test_bad_npz_is_refused_with_a_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "bad.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 garbage", b"\x93NUMPY"])
def test_npz_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.npz"):
        load(path)


def test_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "bad.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"bad\.npz.*damaged"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("raw/edge", b"0,1\n5,99\n"),
        ("raw/edge", b"0,x\n"),
        ("raw/node-feat", b"1,2,3\n1,2\n"),
        ("raw/node-label", b"0\n1\n"),
        ("raw/node-label", b"nan\n" * 12),
        ("split/time/valid", b""),
        ("split/time/test", b"77\n"),
    ],
)
def test_bad_ogb_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    write_ogb(tmp_path)
    (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError):
        load("ogbn-arxiv", raw=tmp_path)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    write_ogb(tmp_path)
    path = tmp_path / "raw" / "node-feat.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"node-feat\.csv\.gz: damaged"):
        load("ogbn-arxiv", raw=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("class_map.json", json.dumps({str(i): [0, 2] for i in range(12)}), "a matrix of 0 and 1"),
        ("class_map.json", json.dumps({str(i): 0 for i in range(11)}), "other nodes"),
        ("class_map.json", "{", "damaged JSON"),
        ("role.json", json.dumps({"tr": [0], "va": [1]}), "lacks one of the lists"),
        ("role.json", json.dumps({"tr": [0], "va": ["a"], "te": [2]}), "role.json"),
        ("feats.npy", "garbage", r"feats\.npy: damaged"),
        ("adj_full.npz", "garbage", r"adj_full\.npz"),
    ],
)
def test_bad_graphsaint_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    write_graphsaint(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load("flickr", raw=tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: c + b"0", lambda c: b"\x00\x00\x0d" + c[3:], lambda c: b""]
)
def test_bad_idx_files_are_refused(tmp_path: Path, damage: Any) -> None:
    write_idx(tmp_path, compress=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="t10k-images"):
        load("mnist", raw=tmp_path)


# ----------------------------------------------------------------------------- splits, synthetic


def test_drawn_split_has_its_sizes_is_disjoint_and_follows_the_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 5000)
    train, val, test = draw_split(labels, 7, "g")
    assert np.bincount(labels[train]).tolist() == [20] * 4
    assert (val.size, test.size) == (1000, 1000)
    assert np.unique(np.concatenate([train, val, test])).size == 2080
    for again, first in zip(draw_split(labels, 7, "g"), (train, val, test), strict=True):
        np.testing.assert_array_equal(again, first)
    assert not np.array_equal(draw_split(labels, 8, "g")[0], train)


def test_drawn_test_and_validation_nodes_are_of_all_classes_alike() -> None:
    """A class of which most nodes train is not rarer among the others that are drawn than among the rest."""
    labels = np.repeat(np.arange(4), [40, 60, 1000, 3000])
    left = np.array([20, 40, 980, 2980])
    found = np.zeros((2, 4))
    seeds = 300
    for seed in range(seeds):
        _, val, test = draw_split(labels, seed, "g", val=500, test=1000)
        found += [np.bincount(labels[ids], minlength=4) for ids in (val, test)]
    for counts, size in zip(found / seeds, (500, 1000), strict=True):
        share = left / left.sum()
        error = np.sqrt(size * share * (1 - share) / seeds)
        assert (np.abs(counts - size * share) < 5 * error).all(), (counts, size * share)


def test_drawn_split_scales_down_for_small_graphs() -> None:
    labels = np.array([0] * 10 + [1] * 30 + [2])
    train, val, test = draw_split(labels, 0, "g")
    assert np.bincount(labels[train]).tolist() == [5, 15, 1]
    assert val.size + test.size == 20
    assert abs(val.size - test.size) <= 1


def test_drawn_split_of_a_handful_of_nodes_is_refused() -> None:
    with pytest.raises(InputError, match="too few"):
        draw_split(np.array([0, 1]), 0, "g")


def test_synthetic_graph_is_deterministic_and_follows_its_parameters() -> None:
    a, b, c = (synthetic_graph(seed=s) for s in (0, 0, 1))
    for one, other in ((a.adjacency, b.adjacency), (a.features, b.features)):
        assert (one != other).nnz == 0
    np.testing.assert_array_equal(a.train, b.train)
    assert (a.features != c.features).nnz > 0
    assert (a.num_nodes, a.num_features, a.num_classes, a.train.size) == (2700, 500, 7, 140)
    big = synthetic_graph(nodes=20_000, classes=5, features=100, degree=10, homophily=0.6, train_per_class=50)
    i, j = big.adjacency.nonzero()
    assert big.adjacency.nnz / 20_000 == pytest.approx(10, rel=0.02)
    assert (big.labels[i] == big.labels[j]).mean() == pytest.approx(0.6, abs=0.01)
    assert np.bincount(big.labels[big.train]).tolist() == [50] * 5
    assert (big.adjacency != big.adjacency.T).nnz == 0
    assert big.adjacency.diagonal().sum() == 0


@pytest.mark.parametrize(
    "bad", [{"classes": 1}, {"nodes": 10}, {"features": 3}, {"homophily": 1.5}, {"degree": 0}]
)
def test_synthetic_graph_refuses_sizes_that_make_none(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="synthetic"):
        synthetic_graph(**bad)


# ----------------------------------------------------------------------------- where files come from


def entry_of(url: str, content: bytes, **changes: Any) -> Dataset:
    values = {"sha256": (hashlib.sha256(content).hexdigest(),), "url_known": True, **changes}
    files = ((RawFile("file.bin", url, **values),),)
    return Dataset("thing", "Thing", "mnist", files, 1, 1, 1, "", "", "")


def test_registry_has_every_data_set_with_licence_citation_and_checksums() -> None:
    names = (
        "synthetic cora citeseer pubmed amazon-computers amazon-photo coauthor-cs coauthor-physics flickr "
        "ogbn-arxiv mnist"
    )
    assert set(REGISTRY) == set(names.split())
    for entry in REGISTRY.values():
        assert entry.title
        assert entry.licence
        assert entry.citation
        assert entry.split
        for file in (f for files in entry.file_sets for f in files):
            assert all(len(s) == 64 and set(s) <= set("0123456789abcdef") for s in file.sha256)
    assert all(f.sha256 for n in ("cora", "citeseer", "pubmed") for f in REGISTRY[n].file_sets[0])


def test_wrong_checksum_names_file_expected_and_found(tmp_path: Path) -> None:
    write_planetoid(tmp_path)
    found = hashlib.sha256((tmp_path / "ind.cora.x").read_bytes()).hexdigest()
    expected = REGISTRY["cora"].file_sets[0][0].sha256[0]
    with pytest.raises(
        InputError, match=rf"ind\.cora\.x: checksum differs: expected sha256 {expected}, found {found}"
    ):
        load("cora", raw=tmp_path)
    load("cora", raw=tmp_path, verify=False)


def test_missing_raw_files_are_listed(tmp_path: Path) -> None:
    write_planetoid(tmp_path)
    (tmp_path / "ind.cora.ty").unlink()
    (tmp_path / "ind.cora.graph").unlink()
    with pytest.raises(InputError, match=r"lacks ind\.cora\.ty, ind\.cora\.graph; put"):
        load("cora", raw=tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load("cora", raw=tmp_path / "nowhere")


def test_download_is_verified_renamed_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"content")
    monkeypatch.chdir(tmp_path)
    entry = entry_of(source.as_uri(), b"content")
    seen: list[Any] = []
    files = raw_files(entry, None, progress=lambda *args: seen.append(args))
    assert files["file.bin"].read_bytes() == b"content"
    assert seen == [("download file.bin", 7, 7)]
    source.unlink()
    assert raw_files(entry, None) == files
    assert sorted(p.name for p in Path("data/raw/thing").iterdir()) == ["file.bin"]


def test_download_with_another_checksum_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"tampered")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"/source\.bin: checksum differs"):
        raw_files(entry_of(source.as_uri(), b"content"), None)
    assert list(Path("data/raw/thing").iterdir()) == []


def test_download_of_unknown_checksum_is_recorded_and_held_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"original")
    monkeypatch.chdir(tmp_path)
    entry = entry_of(source.as_uri(), b"re-saved", url_known=False)
    path = raw_files(entry, None)["file.bin"]
    raw_files(entry, None)
    path.write_bytes(b"changed")
    with pytest.raises(InputError, match="checksum differs"):
        raw_files(entry, None)


def test_offline_says_which_files_go_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = entry_of((tmp_path / "gone.bin").as_uri(), b"")
    with pytest.raises(InputError, match=r"cannot be downloaded .* put file\.bin in data/raw/thing"):
        raw_files(entry, None)


def test_archive_is_unpacked_to_the_named_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/file.bin", b"content")
        archive.writestr("../outside", b"no")
        archive.writestr("top/other", b"no")
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    archive_entry = Archive((tmp_path / "a.zip").as_uri(), (digest,), "top")
    entry = Dataset(
        "thing", "", "mnist", ((RawFile("file.bin"),),), 1, 1, 1, "", "", "", archive=archive_entry
    )  # fmt: skip
    assert raw_files(entry, None)["file.bin"].read_bytes() == b"content"
    assert [p.name for p in Path("data/raw/thing").iterdir()] == ["file.bin"]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown data set 'corra'; known are synthetic, cora"):
        load("corra")


# ----------------------------------------------------------------------------- real data


@needs_shared
@pytest.mark.parametrize(
    ("name", "nodes", "features", "classes", "edges", "sizes"),
    [
        ("cora", 2708, 1433, 7, 5278, (140, 500, 1000)),
        ("citeseer", 3327, 3703, 6, 4552, (120, 500, 1000)),
        ("amazon-computers", 13752, 767, 10, 245861, (200, 1000, 1000)),
        ("amazon-photo", 7650, 745, 8, 119081, (160, 1000, 1000)),
        ("coauthor-cs", 18333, 6805, 15, 81894, (300, 1000, 1000)),
        ("coauthor-physics", 34493, 8415, 5, 247962, (100, 1000, 1000)),
    ],
)
def test_real_graphs_have_their_published_sizes(
    name: str, nodes: int, features: int, classes: int, edges: int, sizes: tuple[int, int, int]
) -> None:
    graph = load(name, raw=Path(str(SHARED)) / "data")
    entry = REGISTRY[name]
    assert (graph.num_nodes, graph.num_features, graph.num_classes) == (nodes, features, classes)
    assert (entry.nodes, entry.features, entry.classes) == (nodes, features, classes)
    assert graph.adjacency.nnz == 2 * edges
    assert (graph.train.size, graph.val.size, graph.test.size) == sizes
    assert np.unique(np.bincount(graph.labels[graph.train])).tolist() == [20]


@needs_shared
def test_real_citeseer_has_15_test_nodes_without_features() -> None:
    graph = load("citeseer", raw=Path(str(SHARED)) / "data")
    span = np.arange(graph.test.min(), graph.test.max() + 1)
    missing = np.setdiff1d(span, graph.test)
    assert missing.size == 15
    assert graph.features[missing].nnz == 0
    assert not graph.labels[missing].any()


@needs_shared
def test_real_mnist_is_70000_images_in_0_to_1() -> None:
    graph = load("mnist", raw=Path(str(SHARED)) / "data")
    assert graph.features.shape == (70000, 784)
    assert (graph.train.size, graph.val.size, graph.test.size) == (55000, 5000, 10000)
    assert float(graph.features.max()) == 1.0
    assert np.bincount(graph.labels[graph.test]).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
