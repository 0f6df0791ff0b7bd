"""Operators against dense float64, what a list of them says, files, ranks, the registry's defaults."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_files import ROOT, mpirun, npz_arrays, prepare, random_graph, write_npz, write_planetoid
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.chebyshev import chebval

from pdadmm.admm.command import preset
from pdadmm.arrays import sources
from pdadmm.datasets import Graph, load, synthetic_graph
from pdadmm.datasets.graph import clean_adjacency
from pdadmm.datasets.registry import REGISTRY
from pdadmm.errors import InputError
from pdadmm.gnn.prepare import main as prepare_graph
from pdadmm.inputs import augment
from pdadmm.inputs.augment import near_order
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.graph_file import GraphFile
from pdadmm.inputs.operators import TOLERANCE, parse_operators
from pdadmm.inputs.write import in_memory
from pdadmm.kernels import sparse
from pdadmm.prepare import main

EVERYTHING = "ppr:0.15:rw,x,powers:2,heat:3,power:5:rw,ppr:0.4,heat:0.5:rw,ppr:1"


def graph_with_isolated_nodes(nodes: int, columns: int, edges: int, seed: int) -> tuple[Graph, Any, Any]:
    """A graph of which the last three nodes have no edge; its dense float64 adjacency and features."""
    raw = random_graph(nodes - 3, columns, 3, seed, edges)
    i, j = raw["edges"].T
    features = np.random.default_rng(seed).gamma(0.5, size=(nodes, columns)).astype(np.float32)
    labels = np.arange(nodes) % 3
    a = clean_adjacency(sp.coo_matrix((np.ones(len(i)), (i, j)), shape=(nodes, nodes)), "test")
    ids = np.random.default_rng(seed).permutation(nodes).astype(np.int64)
    train, val, test = (np.sort(part) for part in np.array_split(ids, 3))
    return Graph("test", a, features, labels, train, val, test, 3), a.toarray().astype(float), features


def dense(text: str, adjacency: Any, features: Any) -> Any:
    """[ψ_1 H, ψ_2 H, …] in closed form, of the whole series, by the eigenvectors of the adjacency."""
    looped = adjacency + np.eye(len(adjacency))
    root = np.sqrt(looped.sum(axis=1))
    values, vectors = np.linalg.eigh(looped / np.outer(root, root))
    blocks = []

    def add(function: Any, walk: bool) -> None:
        operator = (vectors * function(values)) @ vectors.T
        if walk:  # D^(-1) (A + I) = D^(-1/2) Ã D^(1/2)
            operator = operator * root / root[:, None]
        blocks.append(operator @ features.astype(np.float64))

    for item in text.split(","):
        kind, *rest = item.split(":")
        walk = rest[-1:] == ["rw"]
        if kind == "x":
            add(np.ones_like, False)
        elif kind == "powers":
            for k in range(int(rest[0]) + 1):
                add(lambda v, k=k: v**k, walk)
        elif kind == "power":
            add(lambda v, k=int(rest[0]): v**k, walk)
        elif kind == "ppr":
            alpha = float(rest[0])
            add(lambda v, alpha=alpha: alpha / (1 - (1 - alpha) * v), walk)
        else:
            time = float(rest[0])
            add(lambda v, time=time: np.exp(time * (v - 1)), walk)
    return np.hstack(blocks)


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(12, 40),
    columns=st.integers(1, 20),
    edges=st.integers(0, 80),
    seed=st.integers(0, 99),
    text=st.sampled_from(["x", "ppr:0.2", "heat:2:rw", "power:3", "powers:2:rw", "ppr:0.05", EVERYTHING]),
)
def test_operators_agree_with_the_closed_forms(
    nodes: int, columns: int, edges: int, seed: int, text: str
) -> None:
    graph, a, x = graph_with_isolated_nodes(nodes, columns, edges, seed)
    made = in_memory(graph, operators=text, nodes="all")
    np.testing.assert_allclose(made.x("all"), dense(text, a, x)[made.node_id], rtol=1e-5, atol=1e-5)
    split = in_memory(graph, operators=text)
    np.testing.assert_array_equal(split.x("all"), made.x("all")[: split.rows])


def test_a_list_gives_the_bits_that_its_operators_give_alone() -> None:
    graph, _, _ = graph_with_isolated_nodes(40, 9, 80, 1)
    alone = [in_memory(graph, operators=item).x("all") for item in EVERYTHING.split(",")]
    together = in_memory(graph, operators=EVERYTHING).x("all")
    # the highest power of a list is formed at the wanted rows only, in the same order of additions
    np.testing.assert_array_equal(together, np.hstack(alone))


@pytest.mark.parametrize(("sparse", "most"), [(False, 1000), (True, 1000), (False, 5), (False, 0)])
def test_the_order_of_the_nodes_in_between_does_not_change_the_bits(
    sparse: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nodes of more than `most` neighbours put aside, too."""
    monkeypatch.setattr(augment, "_HUB", most)
    graph, _, _ = graph_with_isolated_nodes(40, 9, 80, 3)
    if sparse:
        graph.features = sp.csr_matrix(np.where(graph.features > 0.3, graph.features, 0))
    orders = []

    def noted(looped: Any) -> Any:
        orders.append(near_order(looped))
        return orders[-1]

    monkeypatch.setattr(augment, "near_order", noted)
    found = in_memory(graph, operators=EVERYTHING).x("all")
    assert sorted(orders[0]) == list(range(40)) and (list(orders[0]) == list(range(40))) == (most == 0)
    monkeypatch.setattr(augment, "_FEW_TERMS", 10**9)
    np.testing.assert_array_equal(in_memory(graph, operators=EVERYTHING).x("all"), found)
    assert len(orders) == 1


def test_blocks_and_the_lack_of_the_library_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _, _ = graph_with_isolated_nodes(40, 9, 80, 2)
    expected = in_memory(graph, operators=EVERYTHING).x("all")
    monkeypatch.setattr(augment, "_BLOCK_BYTES", 40 * 4 * 3)
    np.testing.assert_array_equal(in_memory(graph, operators=EVERYTHING).x("all"), expected)

    def missing() -> None:
        raise sources.LibraryError("not installed")

    monkeypatch.setattr(sources, "load", missing)
    np.testing.assert_array_equal(in_memory(graph, operators=EVERYTHING).x("all"), expected)


@pytest.mark.parametrize("cols", [1, 7, 40])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_product_adds_or_takes_off_what_was_there(
    compiled: bool, cols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:

        def missing() -> None:
            raise sources.LibraryError("not installed")

        monkeypatch.setattr(sources, "load", missing)
    rng = np.random.default_rng(0)
    matrix = sp.random(30, 20, 0.2, "csr", np.float32, rng)
    product = sparse.SparseProduct(matrix.indptr, matrix.indices, matrix.data, 20)
    block, there = (rng.normal(size=(n, cols)).astype(np.float32) for n in (20, 30))
    for add in (0, 1, -1):
        out = there.copy()
        product(block, out, add)
        np.testing.assert_array_equal(out, matrix @ block + np.float32(add) * there)


def test_a_product_with_no_columns_writes_nothing() -> None:
    matrix = sp.identity(5, np.float32, "csr")
    room = np.full(9, 7.0, np.float32)
    product = sparse.SparseProduct(matrix.indptr, matrix.indices, matrix.data, 5)
    product(np.zeros((5, 0), np.float32), room[4:4].reshape(5, 0))
    assert (room == 7).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_bits(threads: int) -> None:
    graph = synthetic_graph(nodes=3000, features=70)
    expected = in_memory(graph, operators="ppr:0.3,heat:1:rw").x("all")
    try:
        work = augment.Augmentation(graph, operators="ppr:0.3,heat:1:rw")
        for number, start, values in work.pieces(threads):
            first = number * 70 + start
            np.testing.assert_array_equal(values, expected[:, first : first + values.shape[1]])
    finally:
        sparse.set_threads(1)


@pytest.mark.parametrize(
    "text",
    [
        *("ppr:0.000001", "ppr:0.01", "ppr:0.2", "ppr:0.999", "ppr:0.9999999999999999", "ppr:1"),
        *("heat:0.00001", "heat:0.1", "heat:2", "heat:20", "heat:500", "heat:100000"),
    ],
)
def test_an_expansion_is_cut_where_the_rest_is_below_the_tolerance(text: str) -> None:
    operator = parse_operators(text)[1][0]
    coefficients = operator.coefficients()
    x = np.cos(np.linspace(0, np.pi, 1001))  # eigenvalues, from 1 to -1
    alpha, t = operator.value, operator.value
    exact = np.exp(t * (x - 1)) if operator.kind == "heat" else alpha / (1 - (1 - alpha) * x)

    def error(count: int) -> float:
        return float(abs(chebval(x, coefficients[:count]) - exact).max())

    last = len(coefficients) - 1
    assert error(last + 1) < TOLERANCE * (1 + 1e-6)
    # all coefficients are positive, so that the error is largest at 1
    assert not last or error(last) >= TOLERANCE * (1 - 1e-6), "a term that was not needed"
    assert last <= (10 / math.sqrt(alpha) if operator.kind == "ppr" else 5 * math.sqrt(t) + 5)


def test_what_is_not_negative_stays_so_column_by_column() -> None:
    graph, a, x = graph_with_isolated_nodes(40, 12, 45, 5)
    x[x < 1] = 0  # little is left, so that most values of a far node are next to nothing
    x[:, 7] *= -1
    found = in_memory(graph, operators="ppr:0.9,heat:0.2", nodes="all").x("all").reshape(40, 2, 12)
    negative = found < 0
    assert not negative[:, :, np.arange(12) != 7].any()
    assert negative[:, :, 7].any()
    unreached = dense("ppr:0.9", a, x)[in_memory(graph, nodes="all", operators="x").node_id] == 0
    assert unreached.any() and not found[:, 0][unreached].any()


@pytest.mark.parametrize(
    ("text", "products"),
    [
        *(("powers:4", 4), ("x,ppr:1", 0), ("x,ppr:0.2", 20), ("ppr:0.4,ppr:0.1", 30), ("heat:2", 8)),
        *(("powers:4,ppr:0.2", 24), ("ppr:0.2,ppr:0.2:rw,power:3:rw", 43)),
    ],
)
def test_operators_share_the_products_of_the_longest(text: str, products: int) -> None:
    graph, _, _ = graph_with_isolated_nodes(20, 3, 30, 0)
    assert augment.Augmentation(graph, operators=text).kernel.products == products


@pytest.mark.parametrize(
    ("text", "kept", "count"),
    [
        ("x", "x", 1),
        (" ppr:.20 , x:rw", "ppr:0.2,x", 2),
        ("heat:2.0:rw,powers:03", "heat:2:rw,powers:3", 5),
        ("power:0", "power:0", 1),
    ],
)
def test_a_list_is_kept_in_one_form(text: str, kept: str, count: int) -> None:
    found, operators = parse_operators(text)
    assert (found, len(operators)) == (kept, count)
    assert parse_operators(found) == (found, operators)


BAD = {
    "": "empty list",
    ",": "'' is no operator",
    "ppr": "'ppr' is no operator",
    "ppr:0": "outside (0, 1]",
    "ppr:1.1": "outside (0, 1]",
    "ppr:nan": "outside (0, 1]",
    "ppr:half": "outside (0, 1]",
    "ppr:1e-9": "more than 10000 products",
    "heat:0": "t is not more than 0",
    "heat:-1": "t is not more than 0",
    "heat:inf": "t is not more than 0",
    "heat:1e9": "more than 10000 products",
    "power:-1": "is negative",
    "powers:-2": "is negative",
    "powers:1.5": "no whole number",
    "power:1" + "0" * 30: "more than 10000",
    "powers:9000,powers:9000": "more than 998",
    "ppr:0.2:sym": "is no operator",
    "chebyshev:3": "is no operator",
    ",".join(["power:10000"] * 6000): "71999 characters, of which files keep 60000",
    "x,y": "'y' is no operator",
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_bad_lists_are_one_line_exit_2_and_nothing_left(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(elsewhere / "g.npz")
    for text, message in BAD.items():
        assert main(["g.npz", "--operators", text]) == 2, text
        out = capsys.readouterr()
        assert (out.out, out.err.count("\n")) == ("", 1)
        assert "--operators" in out.err, text
        assert message in out.err, text
    assert main(["g.npz", "--operators", "x", "--hops", "2"]) == 2
    assert "--hops and --operators" in capsys.readouterr().err
    assert [p.name for p in elsewhere.iterdir()] == ["g.npz"]


@pytest.mark.skipif(mpirun() is None, reason="there is no mpirun")
def test_any_number_of_ranks_writes_the_same_bytes(elsewhere: Path) -> None:
    graph = {**npz_arrays(80, 150), **dict.fromkeys(("adj_data", "adj_indices", "adj_indptr", "adj_shape"))}
    arrays = npz_arrays(80, 150, seed=4)
    np.savez(elsewhere / "g.npz", **{**graph, **arrays})
    assert main(["g.npz", "--operators", EVERYTHING, "--out", "one.h5"]) == 0
    for ranks in (1, 2, 3):
        done = prepare(
            "g.npz", "--operators", EVERYTHING, "--out", "many.h5", cwd=elsewhere, ranks=ranks, timeout=60
        )
        assert done.returncode == 0 and done.stderr.count("\n") == 1, done.stderr
        assert (elsewhere / "one.h5").read_bytes() == (elsewhere / "many.h5").read_bytes()


def test_the_file_says_of_which_operators_it_is_and_powers_keep_their_hops(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(elsewhere / "g.npz")
    assert main(["g.npz", "--operators", "x,ppr:.2", "--out", "a.h5"]) == 0
    assert "(2 x 7 features: x,ppr:0.2)" in capsys.readouterr().out
    assert main(["g.npz", "--hops", "2", "--out", "b.h5"]) == 0
    assert main(["g.npz", "--operators", "powers:2", "--out", "c.h5"]) == 0
    assert Path("b.h5").read_bytes() == Path("c.h5").read_bytes()
    with FeatureFile("a.h5") as a, FeatureFile("b.h5") as b:
        assert (a.operators, a.attrs.get("hops"), a.num_features) == ("x,ppr:0.2", None, 14)
        assert (b.operators, b.attrs["hops"], b.num_features) == ("powers:2", 2, 21)
        hashes = [b.content_hash(), a.content_hash()]
    # a file of before there were operators
    with h5py.File("b.h5", "r+") as file:
        del file.attrs["operators"]
    with FeatureFile("b.h5") as old:
        assert (old.operators, old.content_hash()) == ("powers:2", hashes[0])
    # the list takes part in what a run is resumed with
    with h5py.File("a.h5", "r+") as file:
        file.attrs["operators"] = "x,ppr:0.3"
    with FeatureFile("a.h5") as other:
        assert other.content_hash() != hashes[1]


@pytest.mark.parametrize("value", ["", "x", "x,what", "ppr:.2,x", "x,ppr:0.2,heat:1", 3, "powers:1"])
def test_a_file_whose_list_does_not_fit_is_refused(elsewhere: Path, value: object) -> None:
    write_npz(elsewhere / "g.npz")
    assert main(["g.npz", "--operators", "x,ppr:.2", "--out", "a.h5"]) == 0
    with h5py.File("a.h5", "r+") as file:
        file.attrs["operators"] = value
    with pytest.raises(InputError, match=r"a\.h5"):
        FeatureFile("a.h5")


def test_a_data_set_has_operators_of_its_own(elsewhere: Path) -> None:
    write_planetoid(elsewhere / "raw")
    command = ["cora", "--raw", "raw", "--no-verify", "--out"]
    assert main([*command, "own.h5"]) == 0
    assert main([*command, "paper.h5", "--operators", "powers:4"]) == 0
    with FeatureFile("own.h5") as own, FeatureFile("paper.h5") as paper:
        assert own.operators == REGISTRY["cora"].operators != "powers:4"
        assert paper.operators == "powers:4"
        graph = load("cora", raw="raw", verify=False)
        expected = in_memory(graph, operators=REGISTRY["cora"].operators)
        np.testing.assert_array_equal(own.x("all"), expected.x("all"))


def test_a_feature_norm_goes_with_the_data_sets_own_operators(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, "cora", replace(REGISTRY["cora"], operator_norm="row"))
    write_planetoid(elsewhere / "raw")
    graph = load("cora", raw="raw", verify=False)
    for arguments, norm in (
        ([], "row"),
        (["--operators", REGISTRY["cora"].operators], "row"),
        (["--operators", "powers:4"], "none"),
        (["--feature-norm", "none"], "none"),
        (["--operators", "x", "--feature-norm", "row"], "row"),
    ):
        assert main(["cora", "--raw", "raw", "--no-verify", "--out", "x.h5", *arguments]) == 0
        with FeatureFile("x.h5") as made:
            assert made.attrs["feature_norm"] == norm
            expected = in_memory(graph, operators=made.operators, feature_norm=norm)
            np.testing.assert_array_equal(made.x("all"), expected.x("all"))
    assert prepare_graph(["cora", "--raw", "raw", "--no-verify", "--parts", "2", "--out", "g.h5"]) == 0
    with GraphFile("g.h5") as cut:
        assert cut.attrs["feature_norm"] == "none"


def test_every_list_in_the_registry_is_one_in_its_kept_form() -> None:
    documentation = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for entry in REGISTRY.values():
        assert parse_operators(entry.operators)[0] == entry.operators
        if entry.operators != "powers:4":
            assert f"| `{entry.name}` | `{entry.operators}` | {entry.operator_norm} |" in documentation


def test_the_page_has_every_preset() -> None:
    documentation = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = documentation.split("\n### Presets\n")[1].split("\n### ")[0]
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", section, re.M))
    assert set(listed) == set(REGISTRY)
    for name, options in listed.items():
        wanted = REGISTRY[name].preset_for(REGISTRY[name].operators)
        given = dict(re.findall(r"`--([a-z-]+) ([^`]+)`", options))
        assert set(given) == {option.replace("_", "-") for option in wanted}
        for option, value in wanted.items():
            assert type(value)(given[option.replace("_", "-")]) == value


def test_the_preset_is_that_of_the_operators_of_the_file(elsewhere: Path) -> None:
    entry = REGISTRY["coauthor-cs"]
    assert entry.preset_for("powers:4")["hop_decay"] == 0.65
    assert entry.preset_for(entry.operators) == {**entry.preset, **entry.operator_preset}
    write_npz(elsewhere / "g.npz")
    assert main(["g.npz", "--operators", "x", "--out", "a.h5"]) == 0
    shutil.copy("a.h5", "b.h5")
    with h5py.File("b.h5", "r+") as file:
        file.attrs["dataset"] = "coauthor-cs"
    assert preset("b.h5") == {}  # by its sizes another graph
