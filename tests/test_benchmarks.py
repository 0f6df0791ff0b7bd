"""The programs behind the tables of docs/results.md, in small: one seed, a small data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import Finished, find_mpirun, python, succeed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str, *arguments: object, timeout: float = 120) -> Finished:
    return succeed(python(BENCHMARKS / f"{name}.py", *arguments, timeout=timeout))


@pytest.fixture(scope="module")
def folder(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared files under the name of a data set, with a drawn split and without."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("cora.h5", "amazon-photo-s0.h5"):
        shutil.copy(small, folder / name)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Path:
    """What benchmarks/accuracy.py leaves."""
    out = folder / "accuracy.jsonl"
    options = ["--data", folder, "--out", out, "--seeds", "0", "--hidden", "16"]
    benchmark("accuracy", *options, "--datasets", "cora,amazon-photo", "--methods", "float32,delta2")
    return out


def test_accuracy_table_has_a_cell_a_run_and_runs_are_not_repeated(results: Path) -> None:
    before = results.read_text()
    records = [json.loads(line) for line in before.splitlines()]
    assert sorted(tuple(r["key"]) for r in records) == sorted(
        (name, 16, method, 0, 0) for name in ("cora", "amazon-photo") for method in ("float32", "delta2")
    )
    for record in records:
        assert record["stages"][-1][0] == 10 and record["test_accuracy"] > 0.3  # seven classes
    options = ["--data", results.parent, "--out", results, "--seeds", "0", "--hidden", "16"]
    again = benchmark("accuracy", *options, "--datasets", "cora", "--methods", "float32")
    assert results.read_text() == before
    scores = {tuple(r["key"][:3]): 100 * r["test_accuracy"] for r in records}
    row = next(line for line in again.out.splitlines() if line.startswith("| delta2"))
    assert row.split(" | ")[1] == f"{scores['cora', 16, 'delta2']:.1f} ± 0.0 (1)"


def test_gradient_methods_are_tuned_on_validation(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "a.jsonl"
    options = ["--data", folder, "--out", out, "--seeds", "0-1", "--hidden", "16", "--methods", "adam+growth"]
    benchmark("accuracy", *options, "--datasets", "cora")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    first = {r["key"][3]: r["val_accuracy"] for r in records if r["key"][4] == 0}
    assert len(first) == 3
    assert [r["key"][3] for r in records if r["key"][4] == 1] == [max(first, key=lambda rate: first[rate])]


def test_speed_fits_the_growth_of_an_iteration(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    sizes = ["--nodes", "4000", "--hidden", "64", "--layers", "8", "--threads", "1"]
    benchmark("speed", "scaling", *sizes, "--out", out)
    found = json.loads(out.read_text())["scaling"]
    for name, whole in (("nodes", 4000), ("hidden", 64), ("layers", 8)):
        points = found[name]["points"]
        assert points[-1][name] == whole and all(p["seconds"] > 0 for p in points)
        x, y = (np.log([p[key] for p in points]) for key in (name, "seconds"))
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        assert found[name]["exponent"] == pytest.approx(slope)


def test_speed_of_two_ranks_and_their_pictures(tmp_path: Path) -> None:
    if find_mpirun() is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    out = tmp_path / "speed.json"
    benchmark("speed", "ranks", "--nodes", "200", "--hidden", "16", "--out", out)
    rows = json.loads(out.read_text())["ranks"]["rows"]
    assert [(r["layers"], r["hidden"]) for r in rows] == [(8, 16), (16, 16), (16, 8)]
    assert all(r["speedup"] == r["seconds_1"] / r["seconds_2"] > 0 for r in rows)
    finished = python(BENCHMARKS / "plots.py", "growth", out, "--out", tmp_path / "x.svg")
    assert finished.code == 2 and "speed.py scaling" in finished.err


def test_pictures_of_results(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    benchmark("plots", "pareto", results, "--out", tmp_path / "pareto.svg")
    text = (tmp_path / "pareto.svg").read_text()
    assert text.lstrip().startswith("<?xml") and "</svg>" in text and "delta" in text


def test_communication_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "communication.json"
    options = ["--seeds", "1", "--hidden", "16", "--layers", "4", "--stages", "2,4", "--iterations", "20"]
    codecs = ["--codecs", "float32,delta2", "--json", out, "--svg", tmp_path / "c.svg"]
    finished = benchmark("communication", folder / "cora.h5", *options, *codecs)
    assert "delta2" in finished.out and (tmp_path / "c.svg").exists()
    plain, coded = json.loads(out.read_text())["results"]
    assert plain["bytes_per_iteration"] == plain["float32_bytes_per_iteration"]
    assert coded["bytes_per_iteration"] < 0.2 * coded["float32_bytes_per_iteration"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph file under the name that benchmarks/gnn_accuracy.py looks for."""
    folder = tmp_path_factory.mktemp("graphs")
    options = ["--parts", "2", "--partitioner", "blocks", "--synthetic-nodes", "300"]
    out = folder / "cora-public-2-0.h5"
    succeed(python("-m", "pdadmm.gnn.prepare", "synthetic", *options, "--out", out))
    return folder


def gnn_accuracy(graphs: Path, results: Path, *arguments: str) -> Finished:
    options = ["--data", graphs, "--json", results, "--graphs", "cora", "--splits", "public", "--parts", "2"]
    return benchmark("gnn_accuracy", *options, *arguments)


def test_graph_networks_in_another_order_are_a_table_of_their_own(graphs: Path, tmp_path: Path) -> None:
    results = tmp_path / "gnn_accuracy.json"
    for asked in (["--epochs", "2"], ["--epochs", "30"], ["--epochs", "30", "--order", "scheme"]):
        options = ["--models", "sage", "--schemes", "float32", "--seeds", "0", *asked]
        found = gnn_accuracy(graphs, results, *options)
    captions = [line for line in found.out.splitlines() if line.startswith("Order")]
    heads = ("norm, 2 epochs", "norm, 30 epochs", "scheme, 30 epochs")
    assert captions == [f"Order {of}, learning rate 0.01:" for of in heads]
    norm, own = json.loads(results.read_text())["runs"][1:]
    accuracies = ("test_accuracy", "best_val_accuracy", "test_accuracy_at_best_val")
    assert [norm[name] for name in accuracies] != [own[name] for name in accuracies]


@pytest.mark.parametrize("model", ["gcn", "sage"])
def test_pyg_learns_the_graph_as_well_as_the_program(graphs: Path, tmp_path: Path, model: str) -> None:
    pytest.importorskip("torch_geometric")
    results = tmp_path / "gnn_accuracy.json"
    asked = ["--models", model, "--schemes", "float32,pyg", "--seeds", "0", "--epochs", "30"]
    for order in ("norm", "scheme"):
        gnn_accuracy(graphs, results, *asked, "--order", order)
    runs = json.loads(results.read_text())["runs"]
    assert [(run["scheme"], run["order"]) for run in runs] == [
        (scheme, order) for order in ("norm", "scheme") for scheme in ("float32", "pyg")
    ]
    for ours, theirs in (runs[:2], runs[2:]):
        assert theirs["test_accuracy"] == pytest.approx(ours["test_accuracy"], abs=0.05)


def test_a_long_run_is_watched_on_every_rank(tmp_path: Path) -> None:
    if find_mpirun() is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    out = tmp_path / "long_run.json"
    benchmark("long_run", "--iterations", "1000", "--ranks", "1,2", "--layers", "2", "--out", out)
    one, two = json.loads(out.read_text())["results"]
    assert len(one["by_rank"]) == 1 and len(two["by_rank"]) == 2
    for rank in (*one["by_rank"], *two["by_rank"]):
        parts, begun = rank["parts"], rank["resident_bytes_begun"]
        assert [part["iterations"] for part in parts] == list(range(100, 1001, 100))
        assert all(part["seconds"] > 0 and part["processor_seconds"] > 0 for part in parts)
        assert rank["growth_of_seconds"] == parts[-1]["seconds"] / parts[0]["seconds"] - 1
        assert rank["growth_of_memory"] == pytest.approx(parts[-1]["resident_bytes"] / begun - 1)


def test_accuracy_of_graph_networks_by_scheme(tmp_path: Path) -> None:
    out = tmp_path / "gnn_accuracy.json"
    options = [
        "--graphs",
        "synthetic",
        "--models",
        "gcn",
        "--parts",
        "2",
        "--splits",
        "public",
        "--seeds",
        "0-1",
    ]
    options += ["--schemes", "float32,lean,uniform2", "--epochs", "20", "--data", tmp_path, "--json", out]
    finished = benchmark("gnn_accuracy", *options)
    runs = json.loads(out.read_text())["runs"]
    assert [(r["scheme"], r["seed"]) for r in runs] == [
        (scheme, seed) for seed in (0, 1) for scheme in ("float32", "lean", "uniform2")
    ]
    by_key = {(r["scheme"], r["seed"]): r for r in runs}
    assert by_key["uniform2", 0]["mean_bits_forward"] == 2
    assert all(r["bytes_per_epoch"] < r["float32_bytes_per_epoch"] for r in runs if r["scheme"] != "float32")
    row = next(line for line in finished.out.splitlines() if "| lean |" in line).split(" | ")
    scores = {key: 100 * run["test_accuracy_at_best_val"] for key, run in by_key.items()}
    less = np.mean([scores["lean", seed] - scores["float32", seed] for seed in (0, 1)])
    assert row[6].startswith(f"{less:+.2f}")
    before = out.read_text()
    benchmark("gnn_accuracy", *options)
    assert out.read_text() == before
    pytest.importorskip("matplotlib")
    benchmark("gnn_accuracy", "--json", out, "--pareto", tmp_path / "p.svg")
    assert "uniform2" in (tmp_path / "p.svg").read_text()


def test_graph_networks_on_slow_links(tmp_path: Path) -> None:
    if find_mpirun() is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    out = tmp_path / "networks.json"
    sizes = [
        "--nodes",
        "1500",
        "--degree",
        "8",
        "--features",
        "30",
        "--communities",
        "4",
        "--train-per-class",
        "20",
        "--hidden",
        "16",
    ]
    options = ["--mbit", "1000", "--parts", "2", "--windows", "1", "--accuracy-epochs", "10", "--json", out]
    finished = benchmark("gnn_networks", *sizes, *options)
    if finished.out.startswith("skipped: "):
        pytest.skip(finished.out)
    results = json.loads(out.read_text())["results"]
    assert [(r["messages"], r["mbit"], r["parts"]) for r in results] == [
        (scheme, 1000, 2) for scheme in ("float32", "adaqp", "lean")
    ]
    plain, published, lean = (r["bytes_per_epoch"] for r in results)
    assert plain == results[0]["float32_bytes_per_epoch"] and lean < published < plain
    for r in results:
        assert 0 <= r["seconds_exposed"] <= r["seconds_per_epoch"]
        assert r["predicted_seconds_per_epoch"] > 0 and 0 < r["test_accuracy"] <= 1


def test_shards_and_blocks_are_measured_in_turn(tmp_path: Path) -> None:
    if find_mpirun() is None:
        pytest.skip("there is no mpirun: pip install 'pdadmm[mpich]' or load an MPI library")
    out = tmp_path / "shards.json"
    sizes = ["--nodes", "300", "--hidden", "16", "--inputs", "10", "--iterations", "6", "--rounds", "1"]
    done = benchmark("shards", *sizes, "--json", out)
    results = json.loads(out.read_text())["results"]
    assert [r["grid"] for r in results] == ["1x1", "2x1", "1x2"]
    assert [r["reduction_bytes_per_iteration"] > 0 for r in results] == [False, False, True]
    assert all(r["peak_bytes"] > 10**7 and r["seconds_per_iteration"] > 0 for r in results)
    assert done.out.count("| 300 x 16 x 4, 10 inputs | exact | - |") == 3
