"""Scaling of the features: against float64, through a run, and back through the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import python, records_of, succeed, without_times, words

import pdadmm
from pdadmm.errors import InputError
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.inputs.scaling import normalise_inputs


def hellinger(X: np.ndarray, per_hop: int) -> np.ndarray:
    """Square root of every hop's shares, in float64."""
    hops = X.astype(np.float64).reshape(len(X), -1, per_hop)
    sums = hops.sum(axis=2, keepdims=True)
    shares = np.where(sums > 0, hops / np.where(sums > 0, sums, 1), 0)
    return np.asarray(np.sqrt(shares).reshape(X.shape))


def test_hellinger_is_the_root_of_every_hops_shares() -> None:
    X = np.random.default_rng(0).gamma(0.3, size=(40, 3 * 17)).astype(np.float32)
    X[3, 17:34] = 0  # a node without words in its neighbourhood
    found = normalise_inputs(X, 17, "hellinger")
    np.testing.assert_allclose(found, hellinger(X, 17), rtol=1e-6, atol=0)
    lengths = np.linalg.norm(found.reshape(40, 3, 17), axis=2)
    np.testing.assert_allclose(np.delete(lengths.ravel(), 3 * 3 + 1), 1, rtol=1e-5)
    assert lengths[3, 1] == 0


def test_what_others_hold_is_not_overwritten() -> None:
    whole = np.ones((10, 6), np.float32)
    normalise_inputs(whole[2:5], 3, "hellinger")
    np.testing.assert_array_equal(whole, 1)


def test_none_leaves_the_features_alone() -> None:
    X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(normalise_inputs(X, 3, "none"), X)


@pytest.mark.parametrize("norm", ["none", "hellinger"])
def test_hops_decay(norm: str) -> None:
    X = np.random.default_rng(0).gamma(0.3, size=(9, 3 * 17)).astype(np.float32)
    plain, found = normalise_inputs(X, 17, norm), normalise_inputs(X, 17, norm, 0.7)
    factors = np.repeat([1, 0.7, 0.49], 17)
    np.testing.assert_allclose(found, plain * factors, rtol=1e-6)


@pytest.mark.parametrize("decay", [1e30, 1e38, 1e300])
def test_a_hop_that_no_float32_can_scale_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="--hop-decay"):
        normalise_inputs(np.ones((4, 20), np.float32), 2, "none", decay)


def test_negative_features_are_refused() -> None:
    X = np.ones((4, 6), np.float32)
    X[3, 5] = -1e-3
    with pytest.raises(InputError, match="--input-norm none"):
        normalise_inputs(X, 3, "hellinger")


@pytest.fixture(scope="module")
def counts(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature file without negative features."""
    path = tmp_path_factory.mktemp("counts") / "counts.h5"
    shutil.copy(small, path)
    with h5py.File(path, "r+") as file:
        file["x"][...] = np.abs(file["x"][...])
    return path


OPTIONS = words("--layers 3 --hidden 16 --iterations 10 --quiet")


def test_a_run_trains_on_scaled_features_and_its_model_scales_what_it_is_given(
    counts: Path, tmp_path: Path
) -> None:
    scaled = tmp_path / "scaled.h5"
    shutil.copy(counts, scaled)
    with FeatureFile(counts) as features:
        per_hop, X = int(features.attrs["features_per_hop"]), features.x("test")
    with h5py.File(scaled, "r+") as file:
        file["x"][...] = normalise_inputs(file["x"][...], per_hop, "hellinger", 0.5)
    norm = words("--input-norm hellinger --hop-decay 0.5")
    succeed(python("-m", "pdadmm.run", counts, *OPTIONS, *norm, "--out", tmp_path / "a"))
    succeed(python("-m", "pdadmm.run", scaled, *OPTIONS, "--out", tmp_path / "b"))
    a, b = ([*map(without_times, records_of(tmp_path / name))] for name in "ab")
    assert a == b
    model, other = (pdadmm.Model.load(tmp_path / name / "model.h5") for name in "ab")
    before = X.copy()
    np.testing.assert_array_equal(
        model.forward(X), other.forward(normalise_inputs(X, per_hop, "hellinger", 0.5))
    )
    np.testing.assert_array_equal(X, before)
    with FeatureFile(counts) as features:
        accuracy = float((model.predict(X) == features.y("test")).mean())
    assert accuracy == pytest.approx(a[-1]["test_accuracy"])


def test_the_torch_network_scales_too(counts: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    succeed(
        python("-m", "pdadmm.run", counts, *OPTIONS, "--input-norm", "hellinger", "--out", tmp_path / "out")
    )
    model = pdadmm.Model.load(tmp_path / "out" / "model.h5")
    with FeatureFile(counts) as features:
        X = features.x("test")
    network, inputs = model.to_torch(), torch.from_numpy(X.copy())
    torch.save(network, tmp_path / "network.pt")
    inputs[:1] = 0  # words of nobody
    X[:1] = 0
    for form in (
        network,
        torch.load(tmp_path / "network.pt", weights_only=False),
        torch.jit.trace(network, inputs[:3]),
        pdadmm.Model.from_torch(network).to_torch(),
    ):
        with torch.no_grad():
            found = form(inputs).numpy()
        np.testing.assert_allclose(found, model.forward(X), rtol=1e-4, atol=1e-4)
    assert "input_norm='hellinger'" in repr(network)
    assert set(network.state_dict()) == set(model.state_dict())
    network.register_forward_pre_hook(lambda module, inputs: inputs)
    with pytest.raises(InputError, match="forward hooks"):
        pdadmm.Model.from_torch(network)
