"""Shards: the same bits in any blocks; of many nodes, or --as-sharded, in 1, 2, 4, 8; else to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import (
    Finished,
    check_accounts,
    on_standin,
    python,
    records_of,
    run_many,
    succeed,
    summary_of,
    weights_of_run,
    without_times,
    words,
)

from pdadmm.codec import DeltaCodec
from pdadmm.errors import InputError
from pdadmm.profile.figures import figures
from pdadmm.profile.load import load
from pdadmm.profile.predict import Scenario, predict
from pdadmm.profile.simulate import Network

SHAPE = "--layers 4 --hidden 24 --stages 2,4 --iterations 9 --eval-every 3 --refresh 4 --quiet"
WAYS = {
    "delta": "--codec delta --bits 4 --mu 0",
    "affine": "--codec affine --bits 8 --mu 0",
    "grid": "--codec grid --bits 8 --mu 0 --step doubling --kernels reference",
    "exact": "--codec float32 --solver exact --damping 0.1 --momentum 0.5",
    "row": "--codec delta --bits 4 --mu 0.01 --step row",
    "linear": "--codec delta --bits 8 --mu 0 --z-centre linear --activation tanh --risk least_squares",
}
Run = Callable[..., Path]
#: numbers of ranks and shards
Grids = list[tuple[int, int]]


@pytest.fixture
def run(small: Path, tmp_path: Path, mpirun: Callable[..., Finished]) -> Run:
    """``run(ranks, shards, options, name)``: the folder of a run that ended well."""

    def start(ranks: int, shards: int, options: str, name: str = "") -> Path:
        out = tmp_path / (name or f"{ranks}-{shards}")
        arguments = [*words(f"{SHAPE} --shards {shards} {options}"), "--out", out]
        succeed(mpirun(ranks, "-m", "pdadmm.run", small, *arguments, timeout=120))
        return out

    return start


def same(a: Path, b: Path) -> bool:
    records = [[without_times(record) for record in records_of(folder)] for folder in (a, b)]
    pairs = zip(*(weights_of_run(folder) for folder in (a, b)), strict=True)
    return records[0] == records[1] and all(
        np.array_equal(x[0], y[0]) and np.array_equal(x[1], y[1]) for x, y in pairs
    )


def alike(a: Path, b: Path, rel: float) -> None:
    """Whether two runs are the same up to rounding."""
    for one, other in zip(records_of(a), records_of(b), strict=True):
        for name in ("objective", "lagrangian", "train_loss", "val_loss"):
            assert other[name] == pytest.approx(one[name], rel=rel), (one["iteration"], name)
        for name in ("train_accuracy", "val_accuracy", "test_accuracy"):
            assert other[name] == pytest.approx(one[name], abs=0.05), (one["iteration"], name)


def run_grids(
    mpirun: Callable[..., Finished],
    folder: Path,
    cases: dict[str, tuple[list[Any], Grids]],
    env: dict[str, str] | None = None,
) -> None:
    """Arguments and grids by name: each in FOLDER/NAME/RANKS-SHARDS, all on as many ranks in one start."""
    runs: dict[int, list[list[Any]]] = {}
    for name, (arguments, grids) in cases.items():
        for ranks, shards in grids:
            out = folder / name / f"{ranks}-{shards}"
            out.parent.mkdir(exist_ok=True)
            runs.setdefault(ranks, []).append([*arguments, "--shards", str(shards), "--out", out])
    for ranks, lists in runs.items():
        run_many(partial(mpirun, ranks), "pdadmm.run", lists, folder, env=env)


@pytest.fixture(scope="module")
def of_few_nodes(
    small: Path, mpirun: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the runs of WAYS on their grids."""
    folder = tmp_path_factory.mktemp("few")
    cases = {}
    for name, options in WAYS.items():
        three = [(3, 3)] if name == "delta" else []
        cases[name] = ([small, *words(f"{SHAPE} {options}")], [(1, 1), (2, 2), (4, 2), *three])
    run_grids(mpirun, folder, cases)
    return folder


@pytest.mark.parametrize("name", WAYS)
def test_shards_and_blocks(name: str, of_few_nodes: Path) -> None:
    """Of few nodes, whose sums are formed at once."""
    whole, two, four = (of_few_nodes / name / grid for grid in ("1-1", "2-2", "4-2"))
    assert same(two, four), "blocks of layers change nothing"
    # grids round what is on the edge otherwise
    rel = 0.05 if name == "grid" else 5e-3
    alike(whole, two, rel)
    if name == "delta":
        alike(whole, of_few_nodes / name / "3-3", rel)
    summaries = [summary_of(folder) for folder in (whole, two, four)]
    assert [s["shards"] for s in summaries] == [1, 2, 2]
    assert summaries[0]["reduction_bytes_per_iteration"] == 0
    assert 0 < summaries[1]["reduction_bytes_per_iteration"] == summaries[2]["reduction_bytes_per_iteration"]
    # a message is cut into one a shard, whose heads may round up
    assert summaries[1]["float32_bytes_per_iteration"] == summaries[0]["float32_bytes_per_iteration"]
    assert summaries[1]["bytes_per_iteration"] == pytest.approx(summaries[0]["bytes_per_iteration"], rel=0.02)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More training nodes than inputs, and enough for eight groups and products in tiles."""
    path = tmp_path_factory.mktemp("features") / "many.h5"
    options = "--synthetic-nodes 4400 --synthetic-features 60 --synthetic-train-per-class 320 --hops 1"
    succeed(python("-m", "pdadmm.prepare", "synthetic", *words(options), "--out", path))
    return path


#: options, and grids of ranks and shards
MANY: dict[str, Grids] = {
    "--codec delta --bits 2 --mu 0.01 --threads 2": [(8, 8), (2, 2), (3, 1)],
    "--codec affine --bits 8 --refresh 2": [(4, 4)],
    "--codec delta --bits 4 --step row": [(2, 2), (4, 4)],
    "--codec float32 --step row --kernels reference": [(2, 2)],
    "--codec grid --bits 8 --step doubling --kernels reference": [(2, 2)],
    "--codec float32 --solver exact --damping 0.1 --momentum 0.5": [(4, 4), (4, 2)],
    "--codec float32 --solver exact --kernels reference --activation tanh": [(2, 2)],
    "--codec delta --bits 8 --z-centre linear --activation tanh --risk least_squares": [(2, 2)],
}
#: of more inputs than nodes, layer 1 is neither in the row space of its input nor a dual system
AS_SHARDED: dict[str, Grids] = {
    "--codec delta --bits 2 --mu 0.01": [(2, 1), (2, 2), (8, 8)],
    "--codec affine --bits 4 --step row --kernels reference": [(4, 4)],
    "--codec grid --bits 8 --solver exact --damping 0.1 --momentum 0.5": [(2, 2), (8, 4)],
    "--codec float32 --solver exact --kernels reference": [(8, 8)],
}


@pytest.fixture(scope="module")
def sharded(
    small: Path, many: Path, mpirun: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the runs of MANY and AS_SHARDED on their grids and on one rank."""
    folder = tmp_path_factory.mktemp("sharded")
    shape = "--layers 3 --stages 2,3 --hidden 100 --iterations 4 --eval-every 4 --quiet"
    cases = {}
    for options, grids in MANY.items():
        cases[f"many {options}"] = ([many, *words(f"{shape} {options}")], [(1, 1), *grids])
    for options, grids in AS_SHARDED.items():
        arguments = [small, *words(f"{SHAPE} --as-sharded {options}")]
        cases[f"as sharded {options}"] = (arguments, [(1, 1), *grids])
    run_grids(mpirun, folder, cases)
    return folder


@pytest.mark.parametrize(
    ("kind", "options", "grids"),
    [
        *[("many", options, grids) for options, grids in MANY.items()],
        *[("as sharded", options, grids) for options, grids in AS_SHARDED.items()],
    ],
)
def test_the_bits_are_the_same_in_any_shards(kind: str, options: str, grids: Grids, sharded: Path) -> None:
    for ranks, shards in grids:
        out = sharded / f"{kind} {options}" / f"{ranks}-{shards}"
        assert (summary_of(out)["ranks"], summary_of(out)["shards"]) == (ranks, shards)
        assert same(out.parent / "1-1", out)


def test_sums_over_the_shards_are_a_phase(run: Run) -> None:
    profile = load(run(4, 2, "--codec delta --bits 4 --iterations 16"))
    check_accounts(profile)
    for rank in profile["ranks"]:
        stage = rank["stages"][-1]
        assert all(row["reduction"] > 0 for row in stage["phases"].values())


@pytest.mark.parametrize("where", ["fused", "reference", "standin"])
def test_the_exact_solver_on_fewer_nodes_than_inputs(
    tmp_path: Path, mpirun: Callable[..., Finished], where: str
) -> None:
    """Shards solve n_in equations of a rank below: single precision left val losses of 27 to 132 for 1.5."""
    options = "--synthetic-nodes 150 --synthetic-features 40 --synthetic-train-per-class 5 --hops 1"
    succeed(python("-m", "pdadmm.prepare", "synthetic", *words(options), "--out", tmp_path / "f.h5"))
    kinds = "--backend cupy" if where == "standin" else f"--kernels {where}"
    common = (
        f"--layers 3 --stages 2,3 --iterations 8 --hidden 16 --solver exact --codec float32 {kinds} --quiet"
    )
    cases: dict[str, tuple[list[Any], Grids]] = {
        mu: ([tmp_path / "f.h5", *words(f"{common} --mu {mu}")], [(1, 1), (2, 2), (3, 3)])
        for mu in ("0", "1e-6")
    }
    run_grids(mpirun, tmp_path, cases, env=on_standin() if where == "standin" else {})
    for mu in cases:
        one, *sharded = (records_of(tmp_path / mu / grid)[-1]["val_loss"] for grid in ("1-1", "2-2", "3-3"))
        assert one < 2
        assert sharded == pytest.approx([one, one], rel=0.1 if mu == "0" else 0.01), mu


@pytest.mark.parametrize("step", ["exact", "row"])
def test_a_profile_of_shards_predicts_their_sums(step: str, run: Run) -> None:
    """On a network so slow that the bytes of layer 1's block are all that an iteration waits for."""
    out = run(
        4, 2, f"--layers 2 --stages 2 --codec delta --bits 8 --iterations 16 --step {step} --measure-links"
    )
    profile = load(out)
    (baseline,) = profile["links_baseline"]["transports"].values()
    assert [(link["lower"], link["upper"]) for link in baseline] == [(0, 1), (0, 2), (1, 3), (2, 3)]
    sums = [
        [step for step in rank["stages"][-1]["steps"] if step["phase"] == "reduction"]
        for rank in profile["ranks"]
    ]
    sent = [sum(step["bytes"] + step["sum_bytes"] for step in of_rank) for of_rank in sums]
    assert sent[0] == sent[1] > sent[2] == sent[3] > 0
    # the gradient of W, 24 x inputs, is halved between two shards, and its halves are exchanged
    largest = max(step["bytes"] for step in sums[0])
    assert largest == pytest.approx(4 * 24 * profile["run"]["widths"][0] / 2, rel=0.01)
    # where a block's sums are being sent nothing hides but the messages of the coupling, which share its port
    found = predict(profile, Scenario(Network(0.0, 1e4)))
    message = DeltaCodec(8).nbytes(profile["run"]["nodes_train"] // 2 + 1, 24)
    assert len(found.compute) == 4
    most = sent[0] + sent[2] + 2 * message + 1e4 * sum(found.compute)
    assert sent[0] <= 1e4 * found.iteration <= most
    free = predict(profile, Scenario(Network(0.0, 1e15)))
    assert free.iteration < 0.1 and free.exposed_share < 0.01
    one_block = predict(profile, Scenario(Network(0.0, 1e15), ranks=2))
    assert one_block.iteration > 1.2 * free.iteration
    with pytest.raises(InputError, match="--ranks 3 is no multiple of the run's 2 shards"):
        predict(profile, Scenario(Network(0.0, 1e9), ranks=3))
    with pytest.raises(InputError, match="--ranks 6: the run has 2 layers in 2 shards; give 2 to 4"):
        predict(profile, Scenario(Network(0.0, 1e9), ranks=6))
    assert figures(profile, "shards").transfer_efficiency is not None


@pytest.mark.parametrize("options", ["--codec delta --bits 4 --mu 0", "--codec float32 --solver exact"])
def test_checkpoints_go_on_with_other_shards(
    options: str, run: Run, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    saving = f"{options} --checkpoint-every 11"
    straight = run(4, 2, options, "straight")
    others = ((3, 1), (3, 3)) if "delta" in options else ((4, 4),)
    for ranks, shards in ((2, 2), *others):
        name = f"from-{ranks}-{shards}"
        out = run(4, 2, saving, name)
        again = [small, *words(f"{SHAPE} {saving} --shards {shards} --resume"), "--out", out]
        succeed(mpirun(ranks, "-m", "pdadmm.run", *again, timeout=120))
        if shards == 2:
            assert same(straight, out)
        else:
            alike(straight, out, 5e-3)
            assert summary_of(out)["bytes_per_iteration"] == pytest.approx(
                summary_of(straight)["bytes_per_iteration"], rel=0.05
            )
    one = run(1, 1, saving, "from-one")
    again = [small, *words(f"{SHAPE} {saving} --shards 2 --resume"), "--out", one]
    succeed(mpirun(2, "-m", "pdadmm.run", *again, timeout=120))
    alike(straight, one, 5e-3)


@pytest.mark.parametrize("options", ["--codec delta --bits 2 --step row", "--codec affine --bits 8"])
def test_as_sharded_checkpoints_go_on_bit_for_bit_with_other_shards(
    options: str, run: Run, small: Path, mpirun: Callable[..., Finished]
) -> None:
    saving = f"--as-sharded {options} --checkpoint-every 11"
    straight = run(1, 1, f"--as-sharded {options}", "straight")
    for before, after in (((1, 1), (4, 4)), ((4, 2), (1, 1)), ((8, 8), (2, 2))):
        out = run(*before, saving, "-".join(map(str, before)))
        assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["iteration-00000011"]
        (out / "model.h5").unlink()
        again = [small, *words(f"{SHAPE} {saving} --shards {after[1]} --resume"), "--out", out]
        succeed(mpirun(after[0], "-m", "pdadmm.run", *again, timeout=120))
        assert same(straight, out)


def test_a_checkpoint_in_the_row_space_is_not_for_shards(
    run: Run, small: Path, mpirun: Callable[..., Finished]
) -> None:
    saving = "--codec delta --bits 4 --mu 0.01 --checkpoint-every 11"
    out = run(1, 1, saving)
    again = [small, *words(f"{SHAPE} {saving} --shards 2 --resume"), "--out", out]
    finished = mpirun(2, "-m", "pdadmm.run", *again)
    assert finished.code == 2 and finished.err.count("\n") == 1 and "--shards 1" in finished.err
    again = [small, *words(f"{SHAPE} {saving} --as-sharded --resume"), "--out", out]
    finished = mpirun(1, "-m", "pdadmm.run", *again)
    assert finished.code == 2 and finished.err.count("\n") == 1 and "without --as-sharded" in finished.err
    back = run(2, 2, saving, "shards")  # weights as they are can be gone on with anywhere
    again = [small, *words(f"{SHAPE} {saving} --shards 1 --resume"), "--out", back]
    succeed(mpirun(1, "-m", "pdadmm.run", *again, timeout=120))


@pytest.mark.parametrize(
    ("ranks", "options", "said"),
    [
        (3, "--shards 2", "--shards 2 does not divide the 3 ranks"),
        (4, "--shards 2 --layers 1", "1 layers cannot occupy 2 blocks of ranks; start at most 2 ranks"),
        (2, "--shards 2 --backend numpy --transport nccl", "--backend cupy"),
        (1, "--shards 0", "--shards"),
    ],
)
def test_what_shards_cannot_do_is_refused_in_one_line(
    ranks: int, options: str, said: str, small: Path, tmp_path: Path, mpirun: Callable[..., Finished]
) -> None:
    finished = mpirun(ranks, "-m", "pdadmm.run", small, *words(options), "--out", tmp_path / "run")
    assert finished.code == 2 and finished.err.count("\n") == 1 and said in finished.err
    assert not (tmp_path / "run").exists()
