"""What training of layers and its choices promise, told from the files, or written out in float64."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import npz_arrays, write_npz
from support import Finished, python, records_of, succeed, summary_of, words
from test_iteration import MU, NU, RHO, residual, stage_of

import pdadmm
from pdadmm.admm.activations import ReLU
from pdadmm.admm.coupling import CouplingEnd
from pdadmm.admm.growth import identity_layer, random_layer
from pdadmm.admm.layer import risk_sum
from pdadmm.admm.monitor import Monitor
from pdadmm.admm.trainer import with_margin
from pdadmm.arrays.backend import NUMPY
from pdadmm.codec import AffineCodec, Float32Codec
from pdadmm.comm.channel import Channel
from pdadmm.comm.local import local_ends
from pdadmm.inputs.feature_file import FeatureFile
from pdadmm.profile.figures import figures
from pdadmm.profile.load import load
from pdadmm.profile.predict import Scenario, predict
from pdadmm.profile.simulate import Network
from pdadmm.trace.clock import Clock


@pytest.mark.parametrize("nodes", [60, 300])
def test_what_the_table_says_is_what_the_commands_give(tmp_path: Path, nodes: int) -> None:
    """By the commands that are printed: validation accuracies of the final iterates, seed by seed."""
    write_npz(tmp_path / "mine.npz", **npz_arrays(nodes))
    small = words("--layers 3 --hidden 8 --iterations 60 --seeds 3")
    done = succeed(
        python("-m", "pdadmm.tune", "mine.npz", *small, "--try", "x", "--try", "powers:1", cwd=tmp_path)
    )
    lines = done.out.splitlines()
    prepare, run = (shlex.split(line)[1:] for line in lines[-2:])
    accuracies, losses, tests = [], [], []
    for seed in ("0", "1", "2"):
        succeed(python(*prepare, "--seed", seed, cwd=tmp_path))
        succeed(python(*run, "--seed", seed, *words("--iterations 60 --quiet --out"), seed, cwd=tmp_path))
        last = records_of(tmp_path / seed)[-1]
        accuracies.append(last["val_accuracy"])
        losses.append(last["val_loss"])
        tests.append(last["test_accuracy"])
    accuracy, loss = map(float, lines[1].split()[:2])
    if nodes == 300:  # so that the others would be seen
        assert abs(np.mean(accuracies) - np.mean(tests)) > 1e-3
    assert 100 * np.mean(accuracies) == pytest.approx(accuracy, abs=0.006)
    assert np.mean(losses) == pytest.approx(loss, abs=6e-4)


def test_the_best_iteration_is_the_last_of_equal_ones_with_its_layers_and_kept_by_a_resume(
    small: Path, tmp_path: Path
) -> None:
    """Weights are pulled to zero, so that the shallow network is the best."""
    options = words(
        "--layers 6 --stages 2,6 --hidden 16 --iterations 80 --eval-every 4 --anchor zero --mu 0.1"
    )
    succeed(
        python(
            "-m",
            "pdadmm.run",
            small,
            *options,
            *words("--checkpoint-every 120 --quiet --out"),
            tmp_path / "o",
        )
    )
    records = records_of(tmp_path / "o")
    best = max(records, key=lambda record: (record["val_accuracy"], record["iteration"]))
    assert (
        sum(record["val_accuracy"] == best["val_accuracy"] for record in records) > 1 and best["layers"] == 2
    )
    for _ in range(2):
        s = summary_of(tmp_path / "o")
        assert (s["iteration_at_best_val"], s["layers_at_best_val"]) == (best["iteration"], best["layers"])
        assert s["best_val_accuracy"] == best["val_accuracy"]
        assert s["test_accuracy_at_best_val"] == best["test_accuracy"]
        succeed(python("-m", "pdadmm.run", "--resume", "--quiet", "--out", tmp_path / "o"))


def test_layers_start_as_he_and_growth_has_it() -> None:
    layer = random_layer(2, 400, 300, ReLU(), 0)
    assert layer.W.std() == pytest.approx(np.sqrt(2 / 400), rel=0.01) and abs(layer.W.mean()) < 1e-3
    X = np.abs(np.random.default_rng(0).standard_normal((9, 20))).astype(np.float32)
    inserted = identity_layer(3, 20, ReLU(), True).to(NUMPY)
    np.testing.assert_array_equal(np.maximum(inserted.linear(X), 0), X)


def test_no_two_messages_are_rounded_by_the_same_draws() -> None:
    keys = []
    for seed in (0, 1, 1 << 33):
        for index in (1, 2):
            for above in (False, True):
                channels = [Channel("p", 0, 0, 40, above), Channel("q", 0, 1, 40, not above)]
                ends = local_ends(channels, NUMPY)
                sent, taken = ("p", "q") if above else ("q", "p")
                end = CouplingEnd(
                    index,
                    AffineCodec(8),
                    ends.outgoing[sent],
                    ends.incoming[taken],
                    np.zeros((4, 6), np.float32),
                    above,
                    seed,
                    Clock(),
                )
                for _ in range(3):
                    keys.append(end.outgoing()[1])
                    end.outgoing_end.messages += 1
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_what_is_monitored_is_the_papers(kernels: str) -> None:
    """Objective and Lagrangian, written out in float64 from the variables."""
    stage, layers = stage_of(kernels, "float32", "exact length")
    for i in range(3):
        stage.iterate(i, False)
    terms = stage.iterate(3, True)
    monitor = Monitor(4, {})
    found = monitor.unpack(monitor.pack(terms, {}), layers[0].hyper, 4)
    risk = float(risk_sum(layers[-1].z, layers[-1].y, "cross_entropy"))
    objective, lagrangian, primal = risk, 0.0, 0.0
    for layer in layers:
        objective += 0.5 * NU * (residual(layer) ** 2).sum() + 0.5 * MU * (layer.W.astype(float) ** 2).sum()
    for layer, above in itertools.pairwise(layers):
        q, z, p, u = (x.astype(float) for x in (layer.above.own, layer.z, above.p, layer.above.u))
        objective += 0.5 * NU * ((q - np.maximum(z, 0)) ** 2).sum()
        primal += ((p - q) ** 2).sum()
        lagrangian += (u * (p - q)).sum()
    assert found["objective"] == pytest.approx(objective, rel=1e-4)
    assert found["primal_residual"] == pytest.approx(primal, rel=1e-4)
    assert found["lagrangian"] == pytest.approx(objective + lagrangian + 0.5 * RHO * primal, rel=1e-4)
    assert found["c_k"] == found["change"] and found["k_c_k"] == 4 * found["change"]


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_the_change_of_an_iteration_is_weighted_as_in_the_descent_lemma(kernels: str) -> None:
    """Of the exact solver, in float64: what each block's minimisation lowers the Lagrangian by."""
    stage, layers = stage_of(kernels, "float32", "exact solver")
    for i in range(3):
        stage.iterate(i, False)

    def variables() -> dict[str, list[np.ndarray]]:
        below, above = layers[1:], layers[:-1]
        return {
            "p": [x.p.astype(float) for x in below],
            "q": [x.above.own.astype(float) for x in above if x.above is not None],
            **{name: [getattr(x, name).astype(float) for x in layers] for name in ("W", "b", "z")},
        }

    before = variables()
    terms = stage.iterate(3, True)
    moved = {
        name: sum(((a - b) ** 2).sum() for a, b in zip(now, before[name], strict=True))
        for name, now in variables().items()
    }
    weights = {"p": RHO / 2, "q": RHO / 2 - 2 * NU**2 / RHO - NU / 2, "W": MU / 2, "b": NU / 2, "z": NU / 2}
    shares = {name: weights[name] * moved[name] for name in weights}
    change = sum(found.change for found in terms.values())
    assert change == pytest.approx(sum(shares.values()), rel=1e-4)
    assert min(shares.values()) > 1e-3 * change  # so that a missing one, or a wrong weight, would be seen


def test_the_grid_reaches_a_tenth_beyond_what_was_seen() -> None:
    assert with_margin(-1, 4) == (-1.5, 4.5)
    assert with_margin(3, 3) == (2, 4)  # where nothing varies


def test_losses_are_means(small: Path, tmp_path: Path) -> None:
    options = words("--layers 3 --hidden 16 --iterations 10 --quiet --out")
    succeed(python("-m", "pdadmm.run", small, *options, tmp_path))
    model, last = pdadmm.Model.load(tmp_path / "model.h5"), records_of(tmp_path)[-1]
    with FeatureFile(small) as features:
        for split in ("train", "val", "test"):
            y = features.y(split)
            chances = model.predict_proba(features.x(split)).astype(float)
            assert last[f"{split}_loss"] == pytest.approx(
                -np.log(chances[np.arange(len(y)), y]).mean(), rel=1e-3
            )


def test_threads_are_those_of_the_environment(small: Path, tmp_path: Path) -> None:
    options = words("--layers 2 --hidden 8 --iterations 2 --quiet --out")
    succeed(python("-m", "pdadmm.run", small, *options, tmp_path / "a", env={"OMP_NUM_THREADS": "3"}))
    assert summary_of(tmp_path / "a")["threads"] == 3


OPTIONS = "--layers 4 --stages 4 --hidden 30 --iterations 15 --eval-every 100 --quiet"


@pytest.fixture(scope="module")
def several(mpirun: Callable[..., Finished], small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profiled") / "several"
    succeed(mpirun(3, "-m", "pdadmm.run", small, *words(OPTIONS), "--bits", "2", "--out", out))
    return out


def test_another_codec_is_predicted_by_its_bytes(several: Path) -> None:
    profile, size = load(several), Float32Codec().nbytes(63, 30)
    slow = predict(profile, Scenario(Network(0.0, size), codec="float32"))  # a message takes a second
    assert slow.iteration == pytest.approx(2.0, rel=0.3)
    for bits, share in ((8, 0.27), (2, 0.08)):
        found = predict(profile, Scenario(Network(0.0, size), codec="delta", bits=bits))
        assert found.iteration < 2 * share * 1.3, (bits, found.iteration)


def test_shares_of_communication_are_of_the_ranks_phases(several: Path) -> None:
    profile = load(several)
    for rank in profile["ranks"]:
        for link in rank["stages"][-1]["links"]:
            if link["kind"] == "received" and link["between_ranks"]:
                link["late_sender_seconds"] = 1e-6
    found = figures(profile, "")
    waits = []
    for rank in found.ranks:
        wait = rank.phases["wait"] + rank.phases["reduction"]
        assert rank.late_sender == pytest.approx(
            1e-6 * sum(link.receiver == rank.rank for link in found.links)
        )
        assert rank.exposed == pytest.approx(max(wait + rank.phases["send"] - rank.late_sender, 0))
        waits.append(wait)
    assert found.wait_share == pytest.approx(np.mean(waits) / found.iteration)
    assert found.exposed_share == pytest.approx(
        np.mean([rank.exposed for rank in found.ranks]) / found.iteration
    )
