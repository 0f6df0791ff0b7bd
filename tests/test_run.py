"""The run command as users start it: its files, its numbers, and the same iterates on any ranks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import (
    CODECS,
    PROGRAMS,
    Finished,
    message_bytes,
    python,
    records_of,
    run_each,
    run_many,
    succeed,
    summary_of,
    weights_of,
    weights_of_run,
    without_times,
    words,
)

import pdadmm
from pdadmm.datasets import load
from pdadmm.errors import InputError
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.write import in_memory

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MPIRun = Callable[..., Finished]

SUMMARY_FIELDS = words(
    "dataset nodes_train layers hidden ranks backend transport codec bits solver step stages seed "
    "iterations train_accuracy val_accuracy test_accuracy best_val_accuracy "
    "test_accuracy_at_best_val objective primal_residual bytes_per_iteration "
    "float32_bytes_per_iteration seconds_total seconds_iterations seconds_evaluation "
    "seconds_exposed_communication"
)


# ---- the files of a run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_run(mpirun: MPIRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """``mpirun -n 16 python -m pdadmm.run``, with nothing but a place for the results."""
    folder = tmp_path_factory.mktemp("default") / "out"
    return folder, succeed(mpirun(16, "-m", "pdadmm.run", "--out", folder, timeout=240))


def test_sixteen_ranks_train_the_embedded_data_set(default_run: tuple[Path, Finished]) -> None:
    folder, finished = default_run
    s = summary_of(folder)
    assert (s["dataset"], s["layers"], s["ranks"], s["hidden"], s["codec"]) == (
        "synthetic", 16, 16, 100, "delta",
    )  # fmt: skip
    assert s["stages"] == [2, 4, 8, 16]
    assert s["test_accuracy"] > 0.85  # four hops in a logistic regression reach about .87
    assert s["bytes_per_iteration"] <= 0.135 * s["float32_bytes_per_iteration"]
    assert f"{s['test_accuracy']:.3f}" in finished.out and "bytes saved" in finished.out
    assert "Traceback" not in finished.err


def test_summary_has_every_field_of_the_contract(default_run: tuple[Path, Finished]) -> None:
    s = summary_of(default_run[0])
    assert not set(SUMMARY_FIELDS) - set(s)
    assert s["iterations"] == len(s["stages"]) * 100
    assert 0 < s["seconds_exposed_communication"] < s["seconds_iterations"] < s["seconds_total"]
    assert 0 < s["seconds_evaluation"] < s["seconds_total"]


def test_the_documentation_has_every_key(default_run: tuple[Path, Finished]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    for key in {**summary_of(default_run[0]), **records_of(default_run[0])[-1]}:
        assert f"`{key}`" in text, key


def test_records_are_evaluated_iterations_and_the_summary_comes_from_them(
    default_run: tuple[Path, Finished],
) -> None:
    folder, finished = default_run
    s, records = summary_of(folder), records_of(folder)
    assert [r["iteration"] for r in records] == list(range(10, 401, 10))
    said = re.findall(r"^stage (\d): (\d+) layers .* val (\S+)  test (\S+)", finished.err, re.M)
    assert said == [
        (str(i), str(r["layers"]), f"{r['val_accuracy']:.3f}", f"{r['test_accuracy']:.3f}")
        for i, r in enumerate(records[9::10], 1)
    ]
    assert [r["layers"] for r in records[::10]] == s["stages"]
    for name in ("train_accuracy", "val_accuracy", "test_accuracy", "objective", "primal_residual"):
        assert s[name] == records[-1][name]
    best = max(r["val_accuracy"] for r in records)
    assert s["best_val_accuracy"] == best
    assert s["test_accuracy_at_best_val"] in [
        r["test_accuracy"] for r in records if r["val_accuracy"] == best
    ]


def test_the_written_configuration_is_complete_and_makes_the_same_run(
    default_run: tuple[Path, Finished], mpirun: MPIRun, small: Path, tmp_path: Path
) -> None:
    tree = tomllib.loads((default_run[0] / "config.toml").read_text())
    assert tree["network"]["layers"] == 16 and tree["training"]["stages"] == [2, 4, 8, 16]
    assert tree["messages"]["bits"] == 4 and tree["run"]["backend"] == "numpy"
    assert tree["run"]["kernels"] == summary_of(default_run[0])["kernels"] != "auto"
    firsts = {r["stage"]: r for r in reversed(records_of(default_run[0]))}
    assert len(firsts) == 4 and all(r["c_k"] == r["change"] for r in firsts.values())
    first, again = tmp_path / "first", tmp_path / "again"
    options = words("--hidden 24 --layers 4 --iterations 5 --nu 0.02 --codec affine --bits 8 --quiet")
    succeed(mpirun(2, "-m", "pdadmm.run", small, *options, "--out", first))
    succeed(python("-m", "pdadmm.run", "--config", first / "config.toml", "--out", again))
    one, other = (list(map(without_times, records_of(f))) for f in (first, again))
    assert one == other


def test_model_reproduces_the_test_accuracy(default_run: tuple[Path, Finished]) -> None:
    folder, _ = default_run
    model = pdadmm.Model.load(folder / "model.h5")
    features = in_memory(load("synthetic"), hops=4)
    found = model.predict(features.x("test"))
    assert found.dtype == np.int64 and found.shape == (features.n_test,)
    s = summary_of(folder)
    for split in ("train", "val", "test"):
        assert float((model.predict(features.x(split)) == features.y(split)).mean()) == s[f"{split}_accuracy"]
    p = model.predict_proba(features.x("test"))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(p.argmax(axis=1), found)
    # the same network in plain NumPy, float64, from the file alone
    x = features.x("test").astype(np.float64)
    layers = weights_of(folder / "model.h5")
    assert len(layers) == 16
    for i, (W, b) in enumerate(layers):
        x = x @ W.T.astype(np.float64) + b
        x = np.maximum(x, 0) if i < 15 else x
    assert (x.argmax(axis=1) == found).mean() > 0.998
    np.testing.assert_allclose(model.forward(features.x("test")), x, rtol=1e-3, atol=1e-3)


def test_rows_of_no_numbers_and_models_of_the_other_system_are_refused(
    default_run: tuple[Path, Finished], tmp_path: Path
) -> None:
    model = pdadmm.Model.load(default_run[0] / "model.h5")
    X = np.zeros((2, model.weights[0].shape[1]))
    for value in (np.nan, np.inf, 1e300):
        X[1, 3] = value
        with pytest.raises(ValueError, match="the features hold NaN or Inf, or more than float32 can"):
            model.predict(X)
    assert model.predict(X[:1].tolist()).shape == (1,)
    with pytest.raises(InputError, match=r"not the model of a graph network; pdadmm\.Model reads it"):
        pdadmm.GraphModel.load(default_run[0] / "model.h5")


def test_a_row_is_predicted_alike_wherever_it_stands(default_run: tuple[Path, Finished]) -> None:
    """To a rounding of float32; BLAS takes rows by other kernels at other places."""
    model = pdadmm.Model.load(default_run[0] / "model.h5")
    X = in_memory(load("synthetic"), hops=4).x("test")
    whole = model.forward(X)
    close = {"rtol": 2e-7, "atol": 1e-30}
    np.testing.assert_allclose(model.forward(X[::-1])[::-1], whole, **close)
    np.testing.assert_allclose(
        np.concatenate([model.forward(X[i : i + 7]) for i in range(0, 700, 7)]), whole[:700], **close
    )
    many = model.forward(np.tile(X, (5, 1)))  # more rows than are computed at once
    assert len(many) > 4096
    np.testing.assert_allclose(many, np.tile(whole, (5, 1)), **close)
    assert whole.dtype == np.float32 and model.forward(X[:0]).shape == (0, whole.shape[1])


def test_model_becomes_the_same_torch_network(default_run: tuple[Path, Finished]) -> None:
    torch = pytest.importorskip("torch")
    model = pdadmm.Model.load(default_run[0] / "model.h5")
    X = in_memory(load("synthetic"), hops=4).x("test")
    with torch.no_grad():
        found = model.to_torch()(torch.from_numpy(X.copy())).numpy()
    np.testing.assert_allclose(found, model.forward(X), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.argmax(axis=1), model.predict(X))


def test_a_rank_loads_neither_readers_of_graphs_nor_tables(small: Path, tmp_path: Path) -> None:
    """They would cost every rank 20 MB, and the start a third of a second."""
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'scipy.sparse', 'http.client', 'pdadmm.datasets.graph', 'rich'}\n"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys())))\n"
        "runpy.run_module('pdadmm.run', run_name='__main__', alter_sys=True)"
    )
    options = words("--layers 2 --iterations 2 --quiet --out")
    assert succeed(python("-c", code, small, *options, tmp_path / "run")).out.splitlines()[-1] == "[]"


# ---- the same iterates on any number of ranks -----------------------------------------------------

SHAPE = words("--layers 10 --hidden 32 --stages 2,5,10 --iterations 6 --eval-every 2 --refresh 4 --quiet")
#: grid messages would saturate at once with the default penalties of the synthetic data set
CASES = {
    **{
        f"{codec}-{bits}-{solver}": ["--codec", codec, "--bits", str(bits), "--solver", solver]
        for codec, bits in CODECS
        for solver in ("gradient", "exact")
    },
    "doubling": ["--step", "doubling", "--nu", "1", "--rho", "1"],
    "row": ["--step", "row"],
    "row-grid": ["--step", "row", "--codec", "grid", "--bits", "8"],
    "row-affine": ["--step", "row", "--codec", "affine", "--bits", "2"],
    "doubling-grid": ["--step", "doubling", "--codec", "grid", "--bits", "8"],
    "fixed-grid": words("--codec grid --bits 8 --grid-low -1 --grid-high 2"),
    "least_squares": ["--risk", "least_squares"],
    "leaky_relu": ["--activation", "leaky_relu"],
    "tanh": ["--activation", "tanh"],
    "sigmoid": ["--activation", "sigmoid"],
    "anchor-zero": ["--anchor", "zero"],
    "z-linear": ["--z-centre", "linear"],
    "accelerated": words("--solver exact --damping 1 --momentum 0.9 --z-centre linear"),
    "authors": words("--schedule authors --nu 1e-6 --rho 0.01 --eval-every 1"),
}


def run_cases(start: Callable[..., Finished], folder: Path, features: Path) -> dict[str, Path]:
    """All cases in one start of the program; the folders of their results."""
    cases = {name: [features, *SHAPE, *options] for name, options in CASES.items()}
    return run_each(start, "pdadmm.run", cases, folder)


@pytest.fixture(scope="module")
def on_one_rank(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_cases(python, tmp_path_factory.mktemp("one"), small)


@pytest.mark.parametrize("ranks", [3, 10])
def test_iterates_do_not_depend_on_the_number_of_ranks(
    ranks: int, on_one_rank: dict[str, Path], mpirun: MPIRun, small: Path, tmp_path: Path
) -> None:
    """Objective, residual, accuracies and weights, bit for bit, for every codec, solver and activation."""
    folders = run_cases(partial(mpirun, ranks), tmp_path, small)
    different = []
    for name, folder in folders.items():
        assert summary_of(folder)["ranks"] == ranks
        one, here = ([*map(without_times, records_of(f))] for f in (on_one_rank[name], folder))
        assert len(one) >= 9
        weights = [weights_of_run(f) for f in (on_one_rank[name], folder)]
        same = all(
            W.tobytes() == V.tobytes() and b.tobytes() == c.tobytes()
            for (W, b), (V, c) in zip(*weights, strict=True)
        )
        if one != here or not same:
            different.append(name)
    assert not different


@pytest.mark.parametrize("rule", ["earlier", "last"])
def test_the_weights_that_were_best_on_validation_are_kept(small: Path, tmp_path: Path, rule: str) -> None:
    """Of an earlier stage, with fewer layers, or of the last one: what metrics.jsonl says of it holds."""
    # a penalty that takes all weights to 0 in the deeper stages, or nothing like it
    options = "--nu 1e-3 --rho 1e-2" if rule == "last" else "--nu 1 --rho 1e-3 --mu 1 --anchor zero"
    given = [small, *words(f"--layers 5 --stages 2,3,5 --hidden 24 --iterations 20 --eval-every 2 {options}")]
    succeed(python("-m", "pdadmm.run", *given, "--quiet", "--out", tmp_path / "o"))
    summary = summary_of(tmp_path / "o")
    depth, iteration = summary["layers_at_best_val"], summary["iteration_at_best_val"]
    assert (depth < 5) == (rule == "earlier")
    best = pdadmm.Model.load(tmp_path / "o" / "model_best.h5")
    last = pdadmm.Model.load(tmp_path / "o" / "model.h5")
    assert (
        len(best.weights) == depth
        and best.attributes["test_accuracy"] == summary["test_accuracy_at_best_val"]
    )
    assert best.prepared is not None and best.prepared.operators == summary["operators"]
    (record,) = [record for record in records_of(tmp_path / "o") if record["iteration"] == iteration]
    with FeatureFile(small) as features:
        for split in ("train", "val", "test"):
            hits = (best.predict(features.x(split)) == features.y(split)).mean()
            assert hits == pytest.approx(record[f"{split}_accuracy"], abs=1e-9), split
    if iteration == summary["iterations"]:
        for one, other in zip(best.weights, last.weights, strict=True):
            np.testing.assert_array_equal(one, other)
    # a run can start from them
    more = ["--start", tmp_path / "o" / "model_best.h5", *words("--layers 5 --iterations 2 --quiet --out")]
    succeed(python("-m", "pdadmm.run", small, *more, tmp_path / "more"))


def test_the_exact_solver_on_the_embedded_data(mpirun: MPIRun, tmp_path: Path) -> None:
    """Where the rank that makes the inputs has loaded LAPACK before it is wanted, with threads of its own."""
    found = []
    for ranks in (1, 2):
        options = words("--layers 4 --hidden 150 --nu 1 --rho 0.0001 --mu 1e-8 --iterations 3 --quiet")
        out = tmp_path / str(ranks)
        # what such a BLAS would take by itself on two cores
        env = {"OPENBLAS_NUM_THREADS": "2"}
        succeed(mpirun(ranks, "-m", "pdadmm.run", *options, "--solver", "exact", "--out", out, env=env))
        found.append([without_times(record) for record in records_of(out)])
    assert found[0] == found[1]


def test_every_method_lowers_the_loss(on_one_rank: dict[str, Path]) -> None:
    """Least squares, the doubling step and the smooth activations train, if not all as fast."""
    for name, folder in on_one_rank.items():
        records = records_of(folder)
        assert all(np.isfinite(r["objective"]) for r in records), name
        in_first = [r["train_loss"] for r in records if r["stage"] == 1]
        assert in_first[-1] < in_first[0], name


def test_the_schedule_has_changed_the_penalties(on_one_rank: dict[str, Path]) -> None:
    assert len({record["rho"] for record in records_of(on_one_rank["authors"])}) > 2


def test_codecs_and_methods_differ(on_one_rank: dict[str, Path]) -> None:
    """The options do something: no two cases end at the same objective."""
    found = {name: summary_of(folder)["objective"] for name, folder in on_one_rank.items()}
    assert len(set(found.values())) == len(found)


def test_an_activation_is_used_in_the_written_model(on_one_rank: dict[str, Path], small: Path) -> None:
    with h5py.File(small) as file:
        first = int(file.attrs["n_train"] + file.attrs["n_val"])
        last = first + int(file.attrs["n_test"])
        X, y = file["x"][first:last], file["y"][first:last]
    for name in ("leaky_relu", "tanh", "sigmoid", "delta-2-gradient"):
        model = pdadmm.Model.load(on_one_rank[name] / "model.h5")
        assert float((model.predict(X) == y).mean()) == summary_of(on_one_rank[name])["test_accuracy"]


def scheduled(records: list[dict[str, Any]], nu: float, rho: float, afresh: bool = True) -> list[float]:
    """nu and rho of every iteration by the authors' rule, which looks at losses of one stage, or of all."""
    found, losses = [], list[float]()
    for record in records:
        if afresh and record["stage_iteration"] == 1:
            losses = []
        found += [nu, rho]
        losses.append(record["train_loss"])
        if len(losses) > 2 and losses[-1] > losses[-2] - 0.001 and losses[-2] > losses[-3] - 0.001:
            nu, rho = min(10 * nu, 1), min(10 * rho, 1)
    return found


def test_authors_schedule_raises_nu_and_rho_when_the_loss_stalls(small: Path, tmp_path: Path) -> None:
    common = [small, *words("--layers 4 --hidden 16 --eval-every 1 --schedule authors --quiet")]
    given = {
        "to 1": [*common, *words("--iterations 40 --nu 1e-4 --rho 0.5")],
        "in stages": [*common, *words("--iterations 4 --nu 1e-6 --rho 1e-5")],
    }
    runs = run_each(python, "pdadmm.run", given, tmp_path)
    for name, start in (("to 1", (1e-4, 0.5)), ("in stages", (1e-6, 1e-5))):
        records = records_of(runs[name])
        taken = [value for record in records for value in (record["nu"], record["rho"])]
        assert taken == pytest.approx(scheduled(records, *start))
    assert records_of(runs["to 1"])[-1]["nu"] > 1e-4 and records_of(runs["to 1"])[-1]["rho"] == 1
    # a stage does not go on from the losses of the one before
    assert taken != pytest.approx(scheduled(records, 1e-6, 1e-5, afresh=False))


# ---- bytes ----------------------------------------------------------------------------------------


def test_bytes_per_iteration_is_what_the_shapes_say(on_one_rank: dict[str, Path]) -> None:
    for name, folder in on_one_rank.items():
        s = summary_of(folder)
        rows, links = s["nodes_train"], s["layers"] - 1
        assert s["bytes_per_iteration"] == 2 * links * message_bytes(s["codec"], s["bits"], rows, 32), name
        assert s["float32_bytes_per_iteration"] == 2 * links * 4 * rows * 32


@pytest.mark.parametrize(("codec", "bits"), [("delta", 4), ("delta", 1), ("affine", 2), ("float32", 32)])
def test_bytes_per_iteration_is_what_travels(
    codec: str, bits: int, mpirun: MPIRun, small: Path, tmp_path: Path
) -> None:
    options = f"--layers 4 --stages 4 --hidden 130 --iterations 7 --codec {codec} --bits {bits} --quiet"
    found = succeed(
        mpirun(4, PROGRAMS / "count_bytes.py", small, *options.split(), "--out", tmp_path)
    ).out.splitlines()[-1]
    counted, s = json.loads(found), summary_of(tmp_path)
    assert sum(counted["bytes"]) == 7 * s["bytes_per_iteration"] > 0
    message = message_bytes(codec, bits, s["nodes_train"], 130)
    by_rank = {"bytes": [7 * message * k for k in (1, 2, 2, 1)], "messages": [7, 14, 14, 7]}
    assert counted == {**by_rank, "collective": [0] * 4}


def test_layers_of_one_rank_send_nothing(mpirun: MPIRun, small: Path, tmp_path: Path) -> None:
    options = words("--layers 6 --stages 6 --hidden 20 --iterations 3 --codec float32 --quiet")
    found = succeed(mpirun(2, PROGRAMS / "count_bytes.py", small, *options, "--out", tmp_path))
    rows = summary_of(tmp_path)["nodes_train"]
    assert json.loads(found.out.splitlines()[-1])["bytes"] == [3 * 4 * rows * 20] * 2


# ---- options --------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(
    small: Path, tmp_path: Path
) -> None:
    text = f'features = "{small}"\n[network]\nlayers = 3\nhidden = 20\n[training]\niterations = 4\nnu = 1\n'
    (tmp_path / "options.toml").write_text(text)
    out = tmp_path / "out"
    succeed(python("-m", "pdadmm.run", "--config", tmp_path / "options.toml", "--hidden", "12", "--out", out))
    s = summary_of(out)
    assert (s["layers"], s["hidden"], s["nu"], s["seed"], s["bits"]) == (3, 12, 1.0, 0, 4)
    assert s["stages"] == [2, 3] and s["iterations"] == 8
    assert weights_of(out / "model.h5")[0][0].shape[0] == 12


@pytest.mark.parametrize("ranks", [1, 3])
def test_help_ends_with_0_and_lists_every_option_once(ranks: int, mpirun: MPIRun) -> None:
    finished = succeed(mpirun(ranks, "-m", "pdadmm.run", "--help", timeout=30))
    assert finished.out.count("usage:") == 1
    for option in words(
        "--layers --hidden --stages --iterations --nu --rho --mu --solver --step --codec --bits --backend "
        "--transport --seed --eval-every --out --checkpoint-every --resume --config"
    ):
        assert option in finished.out
    assert finished.err == ""


def test_seeds_differ_and_repeat(small: Path, tmp_path: Path) -> None:
    seeds = {"first": "1", "again": "1", "other": "2"}
    shape = words("--layers 3 --hidden 16 --iterations 4 --codec affine --quiet")
    lists = [[small, *shape, "--seed", seed, "--out", tmp_path / name] for name, seed in seeds.items()]
    run_many(python, "pdadmm.run", lists, tmp_path)
    found: dict[str, Any] = {n: [*map(without_times, records_of(tmp_path / n))] for n in seeds}
    assert found["first"] == found["again"] != found["other"]


def test_a_single_layer_trains_without_messages(small: Path, tmp_path: Path) -> None:
    succeed(python("-m", "pdadmm.run", small, "--layers", "1", "--iterations", "20", "--out", tmp_path))
    s = summary_of(tmp_path)
    assert s["bytes_per_iteration"] == 0 and s["test_accuracy"] > 0.3
