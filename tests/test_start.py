"""Training that starts from a network: the command, the estimator, MLPs of PyTorch and scikit-learn."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import Finished, python, records_of, succeed, summary_of, weights_of, without_times, words

from pdadmm import Model
from pdadmm.admm.fitting import Data
from pdadmm.admm.options import Config, fill
from pdadmm.admm.options import parse as of_layers
from pdadmm.admm.start import Start
from pdadmm.admm.trainer import Trainer
from pdadmm.errors import InputError
from pdadmm.gnn.options import parse as of_graphs
from pdadmm.inputs.feature_file import FeatureFile

MPIRun = Callable[..., Finished]
SHORT = "--iterations 8 --eval-every 1 --quiet"


@pytest.fixture(scope="module")
def grown(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.h5 of a run that grew from 2 layers to 3."""
    folder = tmp_path_factory.mktemp("grown") / "run"
    options = words("--layers 3 --stages 2,3 --hidden 20 --iterations 30 --activation tanh --quiet")
    succeed(python("-m", "pdadmm.run", small, *options, "--input-norm", "hellinger", "--out", folder))
    return folder / "model.h5"


def run(small: Path, folder: Path, options: str, *more: str | Path) -> Path:
    succeed(python("-m", "pdadmm.run", small, *words(options), *more, "--out", folder))
    return folder


def test_a_run_goes_on_where_the_network_is(small: Path, grown: Path, tmp_path: Path) -> None:
    found = run(small, tmp_path / "run", SHORT, "--start", grown)
    summary = summary_of(found)
    assert (summary["layers"], summary["hidden"], summary["stages"]) == (3, 20, [3])
    assert summary["start"] == str(grown)
    model, before = Model.load(found / "model.h5"), Model.load(grown)
    assert model.activation == "tanh" and model.attributes["input_norm"] == "hellinger"
    with FeatureFile(small) as features:
        X, y = features.x("train"), features.y("train")
    # one iteration from random weights is far from it, one from the network's hardly
    first = records_of(found)[0]
    assert first["iteration"] == 1
    assert first["train_accuracy"] >= np.mean(before.predict(X) == y) - 0.05
    fresh = run(small, tmp_path / "fresh", SHORT, *words("--layers 3 --stages 3 --hidden 20"))
    assert first["train_loss"] < records_of(fresh)[0]["train_loss"] / 2
    for W, theirs in zip(model.weights, before.weights, strict=True):
        assert 0 < np.linalg.norm(W - theirs) < 0.5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_make_no_difference(
    ranks: int, small: Path, grown: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    options = [*words(SHORT), "--layers", "6", "--start", str(grown)]
    one = run(small, tmp_path / "one", "", *options)
    succeed(mpirun(ranks, "-m", "pdadmm.run", small, *options, "--out", tmp_path / "many"))
    assert summary_of(one)["stages"] == [3, 6]
    assert [without_times(r) for r in records_of(one)] == [
        without_times(r) for r in records_of(tmp_path / "many")
    ]
    for ours, theirs in zip(
        weights_of(one / "model.h5"), weights_of(tmp_path / "many" / "model.h5"), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert Model.load(one / "model.h5").attributes["first_depth"] == 2


@pytest.mark.parametrize("parse", [of_layers, of_graphs])
def test_what_a_run_reads_is_not_moved_aside(parse: Callable[[list[str]], Any], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder, given in (("run", ["--start", "{}/link/model.h5"]), ("link", ["{}/run/x.h5"])):
        arguments = [word.format(tmp_path) for word in given]
        out = ["--out", str(tmp_path / folder)]
        with pytest.raises(InputError, match="which --overwrite moves aside; choose another --out"):
            parse([*arguments, *out, "--overwrite"])
        assert parse([*arguments, *out]).output.out == out[1]
        parse([*arguments, "--out", str(tmp_path / "other"), "--overwrite"])


def test_a_run_goes_on_from_a_checkpoint_without_the_file_of_its_start(
    small: Path, grown: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.h5"
    shutil.copy(grown, start)
    options = words("--layers 4 --iterations 10 --checkpoint-every 6 --mu 0.1 --quiet")
    succeed(python("-m", "pdadmm.run", small, *options, "--start", "start.h5", "--out", "run", cwd=tmp_path))
    whole = weights_of(tmp_path / "run" / "model.h5")
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed after the last checkpoint
    (tmp_path / "run" / "model.h5").unlink()
    start.unlink()
    succeed(python("-m", "pdadmm.run", "--resume", "--quiet", "--out", tmp_path / "run"))
    for ours, theirs in zip(whole, weights_of(tmp_path / "run" / "model.h5"), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert Model.load(tmp_path / "run" / "model.h5").attributes["first_depth"] == 2
    with h5py.File(grown) as file:
        assert file.attrs["first_depth"] == 2


def anchors(start: Start, layers: int, anchor: str) -> list[str]:
    """What the layers of a run from the second on are pulled to."""
    from pdadmm.admm.command import resolve
    from pdadmm.comm.start import start_mpi
    from pdadmm.comm.waiter import Waiter
    from pdadmm.comm.where import Where

    config = Config()
    fill(config.network, {**start.options, "layers": layers})
    fill(config.training, {"anchor": anchor, "iterations": 1, "nu": 1e-6})
    config.run.backend, config.messages.bits = "numpy", 4
    resolve(config, 1, start)
    rng = np.random.default_rng(0)
    data = Data(rng.random((40, start.widths[0]), np.float32), rng.integers(0, 3, 40), 40, 3)
    comm = start_mpi(Where(), 0.0).COMM_SELF
    trainer = Trainer(config, data.sizes, data.features, Waiter(comm), start=start)
    trainer.run()
    pulled = [trainer.layers[position].weights.W_bar for position in range(2, layers + 1)]
    trainer.close()
    for W_bar in pulled:
        if not np.isscalar(W_bar):
            np.testing.assert_array_equal(W_bar, np.eye(8))
    return ["zero" if np.isscalar(W_bar) else "identity" for W_bar in pulled]


def test_layers_that_began_as_identities_are_still_pulled_towards_them() -> None:
    rng = np.random.default_rng(1)
    widths = [50, 8, 8, 8, 3]
    weights = [rng.standard_normal(shape, np.float32) / 8 for shape in zip(widths[1:], widths, strict=False)]
    biases = [np.zeros(len(W), np.float32) for W in weights]
    trained = Start.of_arrays(weights, biases, {"activation": "relu"})
    assert anchors(trained, 4, "identity") == ["zero"] * 3
    assert anchors(trained, 5, "identity") == ["zero", "zero", "identity", "zero"]
    grown = Start.of_arrays(weights, biases, {"activation": "relu", "first_depth": 3})
    assert anchors(grown, 4, "identity") == ["zero", "identity", "zero"]
    assert anchors(grown, 5, "identity") == ["zero", "identity", "identity", "zero"]
    assert anchors(grown, 5, "zero") == ["zero"] * 4


WRONG = {
    "no file": ("none.h5", "", ["none.h5", "no such file"]),
    "no model": ("features.h5", "", ["features.h5", "not a model"]),
    "another width": ("grown.h5", "--hidden 30", ["--hidden is 30", "grown.h5", "20"]),
    "another activation": ("grown.h5", "--activation relu", ["--activation is relu", "tanh"]),
    "another scaling": ("grown.h5", "--input-norm none", ["--input-norm is none", "hellinger"]),
    "fewer layers": ("grown.h5", "--layers 2", ["--layers is 2", "3"]),
    "other stages": ("grown.h5", "--stages 2,4", ["--stages 2,4", "begin with 3"]),
    "other inputs": ("inputs.h5", "", ["inputs.h5 takes 7 inputs", "180"]),
    "other classes": ("classes.h5", "", ["classes.h5 tells 9 classes apart"]),
    "uneven": ("uneven.h5", "", ["uneven.h5", "20, 21 neurons"]),
    "damaged": ("nan.h5", "", ["nan.h5", "layer_0001/W", "NaN"]),
}


@pytest.fixture(scope="module")
def starts(small: Path, grown: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    shutil.copy(small, folder / "features.h5")
    shutil.copy(grown, folder / "grown.h5")
    with FeatureFile(small) as features:
        inputs, classes = features.num_features, features.num_classes
    for name, widths in {
        "inputs": [7, 20, classes], "classes": [inputs, 20, 9], "uneven": [inputs, 20, 21, classes],
    }.items():  # fmt: skip
        weights = [np.ones(shape, np.float32) for shape in zip(widths[1:], widths, strict=False)]
        Model(weights, [W[:, 0] for W in weights]).save(folder / f"{name}.h5")
    shutil.copy(grown, folder / "nan.h5")
    with h5py.File(folder / "nan.h5", "r+") as file:
        file["layer_0001/W"][0, 0] = np.nan
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_started_from_is_refused(
    case: str, small: Path, starts: Path, tmp_path: Path, mpirun: MPIRun
) -> None:
    path, options, expected = WRONG[case]
    before = sorted(starts.iterdir())
    arguments = ["--start", path, *words(options), "--out", tmp_path / "run", "--quiet"]
    found = mpirun(2, "-m", "pdadmm.run", small, *arguments, cwd=starts)
    assert found.code == 2
    (line,) = found.err.strip().splitlines()
    assert all(text in line for text in expected), line
    assert sorted(starts.iterdir()) == before and not (tmp_path / "run" / "model.h5").exists()


def test_a_file_of_options_may_name_a_start_beside_it(small: Path, starts: Path, tmp_path: Path) -> None:
    (starts / "options.toml").write_text('[training]\nstart = "grown.h5"\niterations = 3\n')
    options = ["--config", starts / "options.toml", "--out", "run", "--quiet"]
    succeed(python("-m", "pdadmm.run", small, *options, cwd=tmp_path))
    assert f'start = "{starts / "grown.h5"}"' in (tmp_path / "run" / "config.toml").read_text()


# ---- MLPs of other libraries ------------------------------------------------------------------------


def state_of(widths: list[int], dtype: str = "f4") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    state = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        state[f"lins.{i}.weight"] = rng.standard_normal((n_out, n_in)).astype(dtype)
        state[f"lins.{i}.bias"] = rng.standard_normal(n_out).astype(dtype)
    return state


def test_a_state_dict_of_arrays_is_a_model(tmp_path: Path) -> None:
    state = state_of([5, 4, 4, 3], "f8")
    del state["lins.1.bias"]
    model = Model.from_torch(state, "tanh", input_norm="hellinger", features_per_hop=5)
    model.save(tmp_path / "m.h5")
    back = Model.load(tmp_path / "m.h5")
    X = np.random.default_rng(0).random((6, 5))
    expected = np.sqrt(X / X.sum(axis=1, keepdims=True))
    for i in range(3):
        expected = expected @ state[f"lins.{i}.weight"].T + state.get(f"lins.{i}.bias", 0)
        expected = np.tanh(expected) if i < 2 else expected
    for found in (model, back):
        np.testing.assert_allclose(found.forward(X), expected, rtol=2e-5, atol=2e-6)
    assert back.attributes["layers"] == 3 and np.isnan(back.attributes["test_accuracy"])


@pytest.mark.parametrize("scaling", [{"input_norm": "hellinger"}, {"hop_decay": 0.5}])
def test_operators_that_would_be_scaled_otherwise_are_refused(
    scaling: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "m.h5"
    Model.from_torch(state_of([6, 4, 3], "f4"), features_per_hop=2, **scaling).save(path)
    start = Start.of_file(str(path))
    start.check_data(6, 2, 3, "mine.h5")
    with pytest.raises(InputError, match="scales operators of 2 features each, but those of"):
        start.check_data(6, 6, 3, "mine.h5")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.clear(), "no Linear module"),
        (lambda s: s.update({"norm.running_mean": np.ones(4)}), "norm.running_mean is no weight"),
        (lambda s: s.update({"norm.weight": np.ones(4)}), r"norm has weights \(4,\)"),
        (lambda s: s.update({"other.bias": np.ones(4)}), "other.bias is no weight"),
        (lambda s: s.update({"lins.1.bias": np.ones(2)}), r"lins.1 has weights \(4, 4\) and biases \(2,\)"),
        (lambda s: s.update({"x.weight": np.ones((2, 9))}), "x takes 9 inputs, .* gives 3"),
        (lambda s: s["lins.0.weight"].fill(np.inf), "lins.0 holds NaN or Inf"),
    ],
)
def test_a_state_dict_of_anything_else_is_refused(
    change: Callable[[dict[str, np.ndarray]], None], complaint: str
) -> None:
    state = state_of([5, 4, 4, 3])
    change(state)
    with pytest.raises(InputError, match=complaint):
        Model.from_torch(state)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"input_norm": "rows"}, "input_norm is 'rows'"),
        ({"hop_decay": 0.0}, "hop_decay is 0.0"),
        ({"input_norm": "hellinger", "features_per_hop": 3}, "5 inputs are no operators of 3"),
    ],
)
def test_a_network_of_what_no_model_has_is_refused(wrong: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Model.from_torch(state_of([5, 4, 3]), **wrong)  # type: ignore[arg-type]


def test_modules_of_torch_are_a_model_and_back() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Dropout(0.5), nn.Sigmoid())
    network = nn.Sequential(nn.Identity(), nn.Linear(5, 6), nn.Sigmoid(), inner, nn.Linear(4, 3)).double()
    network.eval()
    model = Model.from_torch(network)
    assert model.activation == "sigmoid"
    x = torch.rand(7, 5)
    np.testing.assert_allclose(model.forward(x.numpy()), network(x.double()).detach().numpy(), atol=1e-6)
    again = Model.from_torch(model.to_torch())
    for a, b in zip(again.weights + again.biases, model.weights + model.biases, strict=True):
        np.testing.assert_array_equal(a, b)
    state = Model.from_torch(model.state_dict(), "sigmoid")
    np.testing.assert_array_equal(state.forward(x.numpy()), model.forward(x.numpy()))
    assert Model.from_torch(nn.Linear(5, 2)).activation == "relu"
    for wrong, complaint in [
        (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), "0 activations"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 3)), "2 activations"),
        (nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)), "module 1, GELU"),
        (nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(0.2), nn.Linear(4, 3)), "module 1, LeakyReLU"),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), "module 1, Batch"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU()), "followed by relu"),
        (nn.Sequential(nn.ReLU(), nn.Linear(5, 4)), "module 0, ReLU"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "relu and"),
        (nn.GRU(4, 3), "module network, GRU"),
    ]:
        with pytest.raises(InputError, match=complaint):
            Model.from_torch(wrong)
    with pytest.raises(InputError, match="activation is sigmoid, not relu"):
        Model.from_torch(network, "relu")


def test_modules_of_torch_that_are_there_more_than_once_count_each_time() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    act, block = nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    x = torch.rand(7, 5)
    for network, layers in [
        (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), block, block, nn.Linear(8, 3)), 4),
        (nn.Sequential(nn.Linear(5, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3)), 3),
    ]:
        model = Model.from_torch(network)
        assert len(model.weights) == layers
        np.testing.assert_allclose(model.forward(x.numpy()), network(x).detach().numpy(), atol=1e-6)


def test_networks_that_compute_more_than_their_modules_are_refused() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    scaled = Model.from_torch(
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), input_norm="hellinger", features_per_hop=3
    ).to_torch()
    assert Model.from_torch(scaled).attributes["input_norm"] == "hellinger"

    class Residual(nn.Sequential):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x + super().forward(x)

    class Halved(nn.Linear):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x) / 2

    hooked, before = nn.Linear(4, 4), nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, given, found: 2 * found)
    before.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    normed = torch.nn.utils.weight_norm(nn.Linear(4, 4))
    for inner, complaint in [
        (scaled, "module 0, a ScaledMLP, has a forward of its own"),
        (Residual(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), "module 0, a Residual, has a forward"),
        (Halved(4, 4), "module 0, a Halved, has a forward"),
        (hooked, "module 0 has forward hooks"),
        (before, "module 0 has forward hooks"),
        (nn.Sequential(normed), r"module 0\.0 has forward hooks"),
    ]:
        with pytest.raises(InputError, match=complaint):
            Model.from_torch(nn.Sequential(inner, nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(InputError, match="the network, a Residual, has a forward"):
        Model.from_torch(Residual(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    parametrized = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with torch.no_grad():
        parametrized.parametrizations.weight.original0 *= 3
    network = nn.Sequential(parametrized, nn.ReLU(), nn.Linear(4, 2))
    x = torch.rand(5, 4)
    found = Model.from_torch(network).forward(x.numpy())
    np.testing.assert_allclose(found, network(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("form", ["{}", "layers.{}.linear", "fc{}"])
def test_layers_that_a_file_has_sorted_by_name_are_in_their_order(form: str) -> None:
    """As safetensors does: 0, 10, 2; every order of square matrices would fit."""
    rng = np.random.default_rng(0)
    square = [rng.normal(size=(4, 4)) for _ in range(12)]
    state = {f"{form.format(2 * i)}.weight": W for i, W in enumerate(square)}
    model = Model.from_torch({key: state[key] for key in sorted(state)})
    for W, given in zip(model.weights, square, strict=True):
        np.testing.assert_array_equal(W, given.astype(np.float32))
    named = dict(zip(("inner.weight", "before.weight", "2.weight"), square, strict=False))
    for W, given in zip(Model.from_torch(named).weights, square, strict=False):  # theirs
        np.testing.assert_array_equal(W, given.astype(np.float32))


def test_a_safetensors_file_comes_back_as_the_network(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=(4, 4)).astype(np.float32) for _ in range(10)]
    model = Model(weights, [np.zeros(4, np.float32)] * 10, "tanh", {"activation": "tanh"})
    model.to_safetensors(tmp_path / "m.safetensors")
    again = Model.from_torch(numpy.load_file(tmp_path / "m.safetensors"), "tanh")
    for W, given in zip(again.weights, weights, strict=True):
        np.testing.assert_array_equal(W, given)


def test_the_estimator_says_what_it_cannot_go_on_from(small: Path) -> None:
    pytest.importorskip("sklearn", minversion="1.6")
    from pdadmm import ADMMClassifier

    with FeatureFile(small) as features:
        X, y = features.x("train"), features.y("train")
    W = np.zeros((int(y.max()) + 1, X.shape[1]), np.float32)
    start = Model.from_torch({"0.weight": W}, input_norm="none", hop_decay=0.5, features_per_hop=1)
    with pytest.raises(ValueError, match=r"hop_decay of 0\.5, .* python -m pdadmm\.run --start"):
        ADMMClassifier(layers=1, hidden=8, start=start).fit(X, y)


def test_an_mlp_trained_by_scikit_learn_goes_on() -> None:
    pytest.importorskip("sklearn", minversion="1.6")
    from sklearn.base import clone
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    from pdadmm import ADMMClassifier

    X, y = load_digits(return_X_y=True)
    X = X / 16
    mlp = MLPClassifier((32, 32), max_iter=40, random_state=0).fit(X[:1200], y[:1200])
    state = {}
    for i, (W, b) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        state[f"{i}.weight"], state[f"{i}.bias"] = W.T, b
    start = Model.from_torch(state)
    np.testing.assert_allclose(start.predict_proba(X), mlp.predict_proba(X), atol=1e-5)
    options = {"layers": 3, "hidden": 32, "iterations": 30, "eval_every": 1}
    network = clone(ADMMClassifier(**options, start=start)).fit(X[:1200], y[:1200])
    assert network.history_[0]["train_accuracy"] > mlp.score(X[:1200], y[:1200]) - 0.03
    assert network.score(X[1200:], y[1200:]) > mlp.score(X[1200:], y[1200:]) - 0.02
    assert network.model_.attributes["first_depth"] == 3
    deeper = ADMMClassifier(**{**options, "layers": 5}, start=network.model_).fit(X[:1200], y[:1200])
    assert deeper.model_.attributes["first_depth"] == 3
    assert [record["layers"] for record in deeper.history_][::30] == [3, 5]
    with pytest.raises(ValueError, match=r"hidden is 100, but the network of start was trained with 32"):
        ADMMClassifier(layers=3, start=start).fit(X, y)
    with pytest.raises(ValueError, match=r"takes 64 inputs, but X has 9"):
        ADMMClassifier(**options, start=start).fit(X[:, :9], y)
    with pytest.raises(ValueError, match=r"none.h5: no such file"):
        ADMMClassifier(**options, start="none.h5").fit(X, y)
