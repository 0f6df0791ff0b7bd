"""The estimator: scikit-learn's own checks, the command's network, grid searches, ranks."""

from __future__ import annotations

import re
import signal
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Finished, python, succeed

pytest.importorskip("sklearn", minversion="1.6")

from scipy.sparse import csc_array, csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits, make_moons
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pdadmm import ADMMClassifier, Model, estimator
from pdadmm.errors import RunError
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.runtime.threads import BLAS_ON_ONE_THREAD

ROOT = Path(__file__).resolve().parents[1]
MPIRun = Callable[..., Finished]


@parametrize_with_checks([ADMMClassifier(layers=3, hidden=16, iterations=40, mu=1e-4)])
def test_checks_of_scikit_learn(estimator: ADMMClassifier, check: Callable[[Any], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of what is optional warn that they are skipped
        check(estimator)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X / 16, np.array([f"digit {label}" for label in y])


def test_a_sparse_matrix_is_taken_as_what_it_holds(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of documents come as one: the same network and the same answers, by blocks of rows."""
    X, y = digits
    network = ADMMClassifier(layers=2, hidden=16, iterations=10)
    dense = clone(network).fit(X[:500], y[:500], validation=(X[500:600], y[500:600]))
    thin = csr_matrix(X)
    sparse = clone(network).fit(thin[:500], y[:500], validation=(csc_array(X[500:600]), y[500:600]))
    assert [r["val_loss"] for r in sparse.history_] == [r["val_loss"] for r in dense.history_]
    for W, theirs in zip(sparse.model_.weights, dense.model_.weights, strict=True):
        np.testing.assert_array_equal(W, theirs)
    monkeypatch.setattr(estimator, "_ROWS", 100)
    np.testing.assert_array_equal(sparse.predict(thin), dense.predict(X))
    np.testing.assert_allclose(sparse.predict_proba(thin), dense.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_network_that_was_best_on_validation(
    digits: tuple[np.ndarray, np.ndarray], ranks: int, mpirun: MPIRun, tmp_path: Path
) -> None:
    """Of an earlier stage: that whose accuracy history_ says is the best."""
    program = tmp_path / "best.py"
    program.write_text(
        "import sys; from sklearn.datasets import load_digits; from pdadmm import ADMMClassifier\n"
        "X, y = load_digits(return_X_y=True); X = X / 16\n"
        "network = ADMMClassifier(layers=5, hidden=20, stages=[2, 3, 5], iterations=20, eval_every=2,\n"
        "    mu=1.0, anchor='zero', keep_best=True)  # deeper stages forget\n"
        "network.fit(X[:900], y[:900], validation=(X[900:], y[900:]))\n"
        "best = max(network.history_, key=lambda r: (r['val_accuracy'], r['iteration']))\n"
        "assert len(network.model_.weights) == best['layers'] < 5, best\n"
        "assert abs(network.score(X[900:], y[900:]) - best['val_accuracy']) < 1e-9\n"
        "if len(sys.argv) > 1: network.model_.save(sys.argv[1])\n"
    )
    succeed(mpirun(ranks, program) if ranks > 1 else python(program, tmp_path / "m.h5"))


def test_keeping_the_best_wants_validation_data(digits: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="keep_best needs validation data"):
        ADMMClassifier(layers=2, hidden=8, iterations=2, keep_best=True).fit(*digits)


def test_digits_are_learnt_and_followed(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    network = ADMMClassifier(layers=4, hidden=64, bits=2, iterations=60)
    assert network.fit(X[:1200], y[:1200], validation=(X[1200:], y[1200:])) is network
    assert network.score(X[1200:], y[1200:]) > 0.88
    assert network.history_[-1]["val_accuracy"] == pytest.approx(network.score(X[1200:], y[1200:]), abs=1e-12)
    assert network.history_[-1]["train_accuracy"] == pytest.approx(
        network.score(X[:1200], y[:1200]), abs=1e-12
    )
    assert [record["layers"] for record in network.history_][::6] == [2, 4]
    assert network.predict_proba(X[:9]).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert isinstance(network.model_, Model)


def test_the_network_is_the_command_s(tmp_path: Path) -> None:
    features = tmp_path / "small.h5"
    succeed(python("-m", "pdadmm.prepare", "synthetic", "--synthetic-nodes", "300", "--out", features))
    options = ["--layers", "3", "--hidden", "8", "--iterations", "20", "--seed", "3", "--bits", "8"]
    succeed(python("-m", "pdadmm.run", features, *options, "--out", tmp_path / "run", "--quiet"))
    theirs = Model.load(tmp_path / "run" / "model.h5")
    with FeatureFile(features) as file:
        X, y = file.x("train"), file.y("train")
    ours = ADMMClassifier(layers=3, hidden=8, iterations=20, seed=3, bits=8).fit(X, y).model_
    for name in ("weights", "biases"):
        for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_model_as_safetensors(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    safe = pytest.importorskip("safetensors")
    X, y = digits
    network = ADMMClassifier(layers=3, hidden=8, iterations=5, input_norm="hellinger").fit(X, y)
    network.model_.to_safetensors(tmp_path / "model.safetensors")
    with safe.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert sorted(file.keys()) == [f"{i}.{name}" for i in (0, 2, 4) for name in ("bias", "weight")]
        np.testing.assert_array_equal(file.get_tensor("2.weight"), network.model_.weights[1])
        assert (file.metadata()["input_norm"], file.metadata()["activation"]) == ("hellinger", "relu")


def test_a_grid_search_over_a_pipeline(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:300], digits[1][:300]
    network = ADMMClassifier(layers=3, iterations=30)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), network),
        {"admmclassifier__hidden": [1, 32], "admmclassifier__codec": ["delta", "float32"]},
        cv=3,
    )
    search.fit(X, y)
    assert search.best_params_["admmclassifier__hidden"] == 32
    assert search.best_score_ > 0.8
    assert clone(search.best_estimator_[-1]).get_params() == search.best_estimator_[-1].get_params()


def test_parameters_may_be_numbers_and_arrays_of_numpy() -> None:
    X, y = make_moons(60, random_state=0)
    plain = ADMMClassifier(layers=3, hidden=4, iterations=3, nu=1.0, stages=(2, 3)).fit(X, y)
    theirs = {"layers": np.int64(3), "hidden": np.int32(4), "iterations": 3, "nu": np.float64(1)}
    found = ADMMClassifier(**theirs, stages=np.array([2, 3])).fit(X, y)
    np.testing.assert_array_equal(found.predict_proba(X), plain.predict_proba(X))


def test_the_package_needs_neither_mpi_nor_scikit_learn() -> None:
    script = "import sys, pdadmm; print([n for n in ('mpi4py', 'sklearn', 'numpy') if n in sys.modules])"
    assert succeed(python("-c", script)).out == "[]\n"


def test_nothing_is_printed_or_written_and_signals_are_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caught = [signal.getsignal(number) for number in signal.valid_signals()]
    X, y = make_moons(50, random_state=0)
    ADMMClassifier(layers=2, hidden=4, iterations=2).fit(X, y)
    assert [signal.getsignal(number) for number in signal.valid_signals()] == caught
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_threads_of_blas_are_given_back() -> None:
    from threadpoolctl import threadpool_info

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    X, y = make_moons(50, random_state=0)
    before = threads()
    ADMMClassifier(layers=2, hidden=4, iterations=2).fit(X, y)
    assert threads() == before
    with BLAS_ON_ONE_THREAD:  # one after another, as fits in threads may begin and end
        first = ExitStack()
        first.enter_context(BLAS_ON_ONE_THREAD)
        assert set(threads()) == {1}
    assert set(threads()) == {1}
    first.close()
    assert threads() == before


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"hidden": 0}, "hidden"),
        ({"codec": "morse"}, "codec"),
        ({"layers": 4, "stages": [2, 3]}, "stages"),
        ({"shards": 2}, "shards"),
        ({"bits": 3}, "3"),
        ({"momentum": 0.5}, "solver exact"),
        ({"layers": 0}, "layers is 0"),
        ({"hidden": "many"}, "hidden must be an integer, not 'many'"),
        ({"activation": "step"}, "activation must be one of relu"),
        ({"grid_low": 1.0}, "grid_low and grid_high go together"),
        ({"nu": float("nan")}, "nu is nan"),
        ({"stages": "2,3"}, "stages must be a list of integers"),
    ],
)
def test_parameters_that_are_wrong_are_value_errors(parameters: dict[str, Any], said: str) -> None:
    X, y = make_moons(20, random_state=0)
    with pytest.raises(ValueError, match=said) as found:
        ADMMClassifier(**parameters).fit(X, y)
    assert "--" not in str(found.value) and "\n" not in str(found.value)


def test_data_that_are_wrong_are_value_errors() -> None:
    X, y = make_moons(20, random_state=0)
    network = ADMMClassifier(layers=2, hidden=4, iterations=2)
    with pytest.raises(ValueError, match="2 classes"):
        network.fit(X, np.zeros(20))
    with pytest.raises(ValueError, match="validation has the label 7"):
        network.fit(X, y, validation=(X, np.full(20, 7)))
    with pytest.raises(ValueError, match="must be a pair"):
        network.fit(X, y, validation=X)
    with pytest.raises(ValueError, match="3 features"):
        network.fit(X, y, validation=(np.ones((20, 3)), y))


def test_prediction_refuses_as_scikit_learn_does() -> None:
    X, y = make_moons(50, random_state=0)
    network = ADMMClassifier(layers=2, hidden=4, iterations=2, input_norm="hellinger").fit(abs(X), y)
    for predict in (network.predict, network.predict_proba):
        with pytest.raises(ValueError, match="negative"):
            predict(-abs(X))
    assert hash(network.model_)
    assert all(np.isnan(record["val_loss"]) for record in network.history_)


def test_a_run_that_diverges_says_so() -> None:
    X, y = make_moons(100, random_state=0)
    with pytest.raises(RunError, match=r"diverges|finite"):
        ADMMClassifier(layers=3, hidden=8, nu=1e8, rho=1e-8, iterations=300, eval_every=1).fit(X * 1e15, y)


def test_fits_that_diverge_leave_room_for_others() -> None:
    """An MPI library has some two thousand communicators."""
    script = """
from mpi4py import MPI
from sklearn.datasets import make_moons
from pdadmm import ADMMClassifier
from pdadmm.errors import RunError
X, y = make_moons(30, random_state=0)

def left():
    made = []
    try:
        while True:
            made.append(MPI.COMM_SELF.Dup())
    except MPI.Exception:
        pass
    for comm in made:
        comm.Free()
    return len(made)

MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
before = left()
for _ in range(5):
    try:
        ADMMClassifier(layers=2, hidden=4, iterations=3).fit(X * 1e30, y)
    except RunError:
        continue
    raise SystemExit("it did not diverge")
print(before, left())
"""
    before, after = succeed(python("-c", script)).out.split()
    assert before == after


SCRIPT = """
import hashlib
from unittest import mock
import numpy as np
from mpi4py import MPI
from sklearn.datasets import make_blobs
from pdadmm import ADMMClassifier
from pdadmm.admm.layer import Layer
from pdadmm.errors import RunError

X, y = make_blobs(2200, 20, centers=3, random_state=0)

def say(line):
    print(f"{line}\\n", end="")  # in one piece

def show(network):
    found = hashlib.sha256(b"".join(W.tobytes() for W in network.model_.weights))
    say(f"{found.hexdigest()} {network.history_[-1]['objective']}")

real = Layer._require_finite

def broken(self, norm, what, iteration):
    if self.position == 2 and iteration == 3:
        raise self.diverged(what, iteration)
    real(self, norm, what, iteration)

def networks():
    yield ADMMClassifier(layers=4, hidden=16, iterations=10, codec="affine", bits=4)
    yield ADMMClassifier(layers=2, hidden=16, iterations=10)  # of three ranks one does nothing
    shards = min(2, MPI.COMM_WORLD.size)
    yield ADMMClassifier(layers=3, hidden=16, iterations=10, shards=shards)

for network in networks():
    show(network.fit(X, y))
for shards in (1, min(2, MPI.COMM_WORLD.size)):
    network = ADMMClassifier(layers=3, stages=[3], hidden=200, iterations=6, codec="float32", shards=shards)
    with mock.patch.object(Layer, "_require_finite", broken):
        try:
            network.fit(X, y)
        except RunError as error:
            say(error)
show(network.set_params(hidden=16, shards=1).fit(X, y))
"""


def test_every_rank_has_the_network_of_one_process_and_its_errors(
    mpirun: MPIRun, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(SCRIPT, {})
    alone = capsys.readouterr().out.splitlines()
    assert len(alone) == 6 and all("layer 2, iteration 4" in line for line in alone[3:5])
    together = succeed(mpirun(3, "-c", SCRIPT, timeout=60)).out.splitlines()
    assert sorted(together) == sorted(alone * 3)


def test_ranks_with_different_data_are_told(mpirun: MPIRun) -> None:
    script = """
from mpi4py import MPI
from sklearn.datasets import make_moons
from pdadmm import ADMMClassifier
X, y = make_moons(30, random_state=MPI.COMM_WORLD.rank, noise=0.1)
try:
    ADMMClassifier(layers=3).fit(X, y)
except ValueError as error:
    print(error)
"""
    out = succeed(mpirun(2, "-c", script, timeout=60)).out
    assert out.count("different data or options") == 2


def test_a_rank_whose_data_are_refused_ends_fit_on_all(mpirun: MPIRun) -> None:
    script = """
import sys
from mpi4py import MPI
from sklearn.datasets import make_moons
from pdadmm import ADMMClassifier
X, y = make_moons(30, random_state=0)
if MPI.COMM_WORLD.rank == 1:
    X[3, 0] = float("nan")
try:
    ADMMClassifier(layers=3).fit(X, y)
except ValueError as error:
    # in one piece: Python may be told not to buffer
    sys.stdout.write(f"{MPI.COMM_WORLD.rank} {str(error).splitlines()[0]}\\n")
"""
    lines = sorted(succeed(mpirun(3, "-c", script, timeout=60)).out.splitlines())
    assert [line[0] for line in lines] == ["0", "1", "2"]
    assert "rank 1 cannot train" in lines[0] and "NaN" in lines[0] and "rank 1" not in lines[1]


@pytest.mark.parametrize("step", ["exact", "row", "doubling"])
@pytest.mark.parametrize("kernels", ["fused", "reference"])
def test_tiny_features_without_a_penalty_are_trained_on(step: str, kernels: str) -> None:
    """The image of a gradient vanishes in single precision, and nothing else bounds a step."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 20)) * 1e-7, np.arange(200) % 2
    found = ADMMClassifier(layers=3, mu=0.0, iterations=5, step=step, kernels=kernels).fit(X, y)
    assert all(np.isfinite(W).all() for W in found.model_.weights)


def test_what_cannot_be_started_from_is_told() -> None:
    X, y = np.eye(4), np.arange(4) % 2
    with pytest.raises(ValueError, match=r"start is a ADMMClassifier; give a pdadmm.Model, as a fitted"):
        ADMMClassifier(layers=2, start=ADMMClassifier()).fit(X, y)


def test_the_name_of_a_file_is_no_parameter() -> None:
    X, y = np.eye(4), np.arange(4) % 2
    with pytest.raises(ValueError, match=r"/no--where/m--start\.h5: no such file"):
        ADMMClassifier(layers=2, start="/no--where/m--start.h5").fit(X, y)


def test_a_run_that_diverges_says_what_to_do_in_the_names_of_parameters() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 8)) * 1e5, np.arange(60) % 3
    with pytest.raises(RunError, match="scale the features to about 1, or try a larger rho, a smaller nu or"):
        ADMMClassifier(layers=4, hidden=16, iterations=50).fit(X, y)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_example_of_the_readme(ranks: int, mpirun: MPIRun, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "digits.py").write_text(next(block for block in blocks if "ADMMClassifier" in block))
    done = succeed(mpirun(ranks, tmp_path / "digits.py", timeout=120))
    accuracies = [float(score) for score in re.findall(r"0\.\d{3}", done.out)]
    assert len(accuracies) == ranks and len(set(accuracies)) == 1 and accuracies[0] > 0.93
    assert [path.name for path in tmp_path.iterdir()] == ["digits.py"]
