"""pdadmm.profile and bench links: reports, plots, predictions, and what they refuse."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Finished, on_standin, python, start, succeed, summary_of

from pdadmm.codec import DeltaCodec
from pdadmm.errors import InputError
from pdadmm.profile.__main__ import main
from pdadmm.profile.figures import figures
from pdadmm.profile.load import load
from pdadmm.profile.predict import Scenario, parse_network, predict
from pdadmm.profile.simulate import Network, Op, simulate
from pdadmm.profile.svg import ticks
from pdadmm.profile.units import rate, seconds, size
from pdadmm.runtime.links import SIZES, NCCLWay

OPTIONS = "--layers 4 --stages 4 --hidden 30 --iterations 15 --eval-every 100 --quiet"


@pytest.fixture(scope="module")
def runs(
    mpirun: Callable[..., Finished], small: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run of 3 ranks with measured links, and one of a single rank."""
    folder = tmp_path_factory.mktemp("profiled")
    several, single = folder / "several", folder / "single"
    options = ["-m", "pdadmm.run", small, *OPTIONS.split()]
    succeed(mpirun(3, *options, "--bits", "2", "--measure-links", "--out", several))
    succeed(python(*options, "--codec", "float32", "--out", single))
    return several, single


def report(*arguments: Any) -> Finished:
    return python("-m", "pdadmm.profile", *arguments)


# ---- reports ----------------------------------------------------------------------------------------


def test_efficiencies_are_those_of_pop(runs: tuple[Path, Path]) -> None:
    found = figures(load(runs[0]), "several")
    useful = [rank.useful for rank in found.ranks]
    assert found.load_balance == pytest.approx(sum(useful) / 3 / max(useful))
    assert found.communication_efficiency == pytest.approx(max(useful) / found.iteration)
    assert found.parallel_efficiency == pytest.approx(found.load_balance * found.communication_efficiency)
    for rank in found.ranks:
        spent = rank.useful + rank.phases["send"] + rank.phases["wait"]
        assert spent == pytest.approx(rank.iteration)
    assert found.iterations == 12  # 15 less the warm-up


def test_bytes_agree_with_the_summary(runs: tuple[Path, Path]) -> None:
    for folder in runs:
        found, summary = figures(load(folder), ""), summary_of(folder)
        assert round(found.bytes_per_iteration) == summary["bytes_per_iteration"]
        assert round(found.float32_bytes_per_iteration) == summary["float32_bytes_per_iteration"]
    assert figures(load(runs[1]), "").reduction == 0


def test_a_profile_written_before_messages_had_names_gives_the_same_report(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    profile = json.loads((runs[0] / "profile.json").read_text())
    for stage in (stage for rank in profile["ranks"] for stage in rank["stages"]):
        for link in stage["links"]:
            del link["name"]
        for step in stage["steps"]:
            del step["channel"]
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    before, now = load(tmp_path), load(runs[0])
    assert figures(before, "").table() == figures(now, "").table()
    assert [link.channel for link in figures(now, "").links] == ["p 2", "q 1", "p 3", "q 2"]
    slow = Scenario(Network(1e-3, 1e6), ranks=4)
    assert predict(before, slow) == predict(now, slow)


def test_report_shows_runs_side_by_side(runs: tuple[Path, Path]) -> None:
    out = succeed(report(*runs)).out
    for word in ("several", "single", "parallel efficiency", "exposed communication", "slowest link", " x)"):
        assert word in out


def test_csv_and_json_hold_every_number(runs: tuple[Path, Path], tmp_path: Path) -> None:
    succeed(report(*runs, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json"))
    with (tmp_path / "a.csv").open() as file:
        lines = list(csv.DictReader(file))
    values = {(line["run"], line["item"], line["quantity"]): line["value"] for line in lines}
    first = json.loads((tmp_path / "a.json").read_text())["runs"][0]
    kept = {"name", "coupling", "upward", "sender", "receiver", "messages", "bytes", "float32_bytes"}
    assert kept <= set(first["links"][0]) and "facts" not in first["links"][0]
    assert float(values["several", "", "iteration"]) == first["iteration"]
    assert {line["scope"] for line in lines} == {"run", "rank", "link"}
    assert len(first["links"]) == 4 and len(first["ranks"]) == 3


class Elements(HTMLParser):
    """Counts elements and collects every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]


def test_page_holds_its_plots_and_loads_nothing(runs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    succeed(
        report(*runs, "--html", page, "--network", "50us,1Gbit", "--codec", "float32", "--codec", "delta")
    )
    found = Elements()
    found.feed(page.read_text())
    # two comparisons, three plots of the several ranks, one of the single rank, the predictions
    assert found.count["svg"] == 7
    assert found.count["rect"] > 40
    assert found.loads == []
    assert not re.search(r"https?:|@import|url\(", page.read_text())


def test_baseline_of_the_links_stands_beside_their_bandwidth(runs: tuple[Path, Path]) -> None:
    for link in figures(load(runs[0]), "").links:
        assert link.baseline_bandwidth is not None and link.baseline_bandwidth > 1e5
        assert link.bandwidth is not None and link.bandwidth > 0


# ---- predictions ------------------------------------------------------------------------------------


def pair(nbytes: int) -> list[list[Op]]:
    """Two ranks: 1 s of W over 0.5 s of z, and 0.5 s of p over 1 s of W."""
    p, q = "p 2", "q 1"
    lower = [
        Op("compute", 1.0), Op("wait", key=p, nbytes=nbytes, peer=1), Op("compute", 0.5),
        Op("send", key=q, nbytes=nbytes, peer=1),
    ]  # fmt: skip
    upper = [
        Op("compute", 0.3), Op("wait", key=q, nbytes=nbytes, peer=0, previous=True), Op("compute", 0.2),
        Op("send", key=p, nbytes=nbytes, peer=0), Op("compute", 1.0),
    ]  # fmt: skip
    return [lower, upper]


def test_simulation_hides_messages_that_fit_behind_the_work() -> None:
    found = simulate(pair(1000), Network(0.0, 1e4))
    assert found.iteration == pytest.approx(1.5)
    assert found.exposed_share == pytest.approx(0.0)


def test_simulation_of_a_slow_network_is_the_cycle_of_the_messages() -> None:
    # p 0.2, transfer 1, z 0.5, transfer 1
    found = simulate(pair(1000), Network(0.0, 1e3))
    assert found.iteration == pytest.approx(2.7)
    assert found.exposed == pytest.approx([1.0, 1.0])


def test_simulation_without_overlap_waits_for_every_message() -> None:
    slow = simulate(pair(100_000), Network(0.0, 1e5, overlap=False, eager=1000))
    assert slow.iteration > simulate(pair(100_000), Network(0.0, 1e5)).iteration + 0.9
    compute, late, exposed = (sum(x) for x in (slow.compute, slow.late_sender, slow.exposed))
    assert compute + late + exposed == pytest.approx(2 * slow.iteration)


def test_latency_adds_to_every_message_that_is_waited_for() -> None:
    base = simulate(pair(1000), Network(0.0, 1e3)).iteration
    assert simulate(pair(1000), Network(0.1, 1e3)).iteration == pytest.approx(base + 0.2)


def test_prediction_on_a_slow_network_is_bound_by_the_bytes(runs: tuple[Path, Path]) -> None:
    profile = load(runs[0])
    size = DeltaCodec(2).nbytes(63, 30)
    found = predict(profile, Scenario(Network(0.0, size)))  # a message takes a second
    assert found.iteration == pytest.approx(2.0, rel=0.5)
    ideal = predict(profile, Scenario(Network(0.0, 1e15)))
    assert ideal.iteration < 0.5 and ideal.exposed_share < 0.01


def test_one_rank_predicts_several(runs: tuple[Path, Path]) -> None:
    profile = load(runs[1])
    alone = predict(profile, Scenario(Network(0.0, 1e15)))
    spread = predict(profile, Scenario(Network(0.0, 1e15), ranks=4))
    assert len(spread.compute) == 4
    assert sum(spread.compute) == pytest.approx(alone.iteration, rel=1e-6)
    assert spread.iteration < alone.iteration
    slow = predict(profile, Scenario(Network(0.0, 4 * 63 * 30), ranks=2))
    assert slow.iteration == pytest.approx(2.0, rel=0.5)


@pytest.mark.parametrize(
    ("text", "latency", "bandwidth"),
    [("1e-5,1.25e8", 1e-5, 1.25e8), ("50us,1Gbit/s", 5e-5, 1.25e8), ("0.1ms, 100MB", 1e-4, 1e8)],
)
def test_networks_are_given_with_or_without_units(text: str, latency: float, bandwidth: float) -> None:
    network = parse_network(text)
    assert (network.latency, network.bandwidth) == pytest.approx((latency, bandwidth))


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "-1,5", "1,0", "nan,1", "1,inf"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="LATENCY,BANDWIDTH"):
        parse_network(text)


# ---- bad input --------------------------------------------------------------------------------------


def refused(finished: Finished, *words: str) -> None:
    assert finished.code == 2, finished.err
    assert len(finished.err.strip().splitlines()) == 1, finished.err
    for word in words:
        assert word in finished.err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "no profile.json"),
        ("{", "cannot read"),
        ('{"schema": "other"}', "not a profile"),
        ('{"schema": "pdadmm-profile", "schema_version": 99}', "version 99"),
        ('{"schema": "pdadmm-profile", "schema_version": 1}', "damaged"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str | None, word: str) -> None:
    if text is not None:
        (tmp_path / "profile.json").write_text(text)
    with pytest.raises(InputError, match=word):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--network fast", "--network fast"),
        ("--ranks 2", "--network"),
        ("--network 0,1e9 --ranks 9", "--ranks 9"),
        ("--network 0,1e9 --codec zip", "zip"),
        ("--network 0,1e9 --bits 3", "3-bit"),
        ("--html no/such/folder.html", "cannot write"),
        ("--network 1us,1Gbit --ranks 0", "--ranks 0"),
        ("--nonsense", "--help"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: str, word: str
) -> None:
    code = main([str(runs[0]), *options.split()])
    refused(Finished(code, "", capsys.readouterr().err), word)


def test_a_missing_folder_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    refused(report(tmp_path / "none"), "none")


def test_a_run_of_warm_up_alone_is_refused(small: Path, tmp_path: Path) -> None:
    options = "--layers 2 --hidden 5 --iterations 3 --quiet"
    succeed(python("-m", "pdadmm.run", small, *options.split(), "--out", tmp_path))
    with pytest.raises(InputError, match="--iterations"):
        load(tmp_path)


# ---- bench links ------------------------------------------------------------------------------------


def test_bench_links_measures_every_size(mpirun: Callable[..., Finished], tmp_path: Path) -> None:
    file = tmp_path / "links.json"
    succeed(mpirun(2, "-m", "pdadmm.bench", "links", "--seconds", "0.01", "--json", file))
    (link,) = json.loads(file.read_text())["transports"]["mpi"]
    assert (link["lower"], link["upper"]) == (0, 1)
    assert [row["bytes"] for row in link["results"]] == sorted(row["bytes"] for row in link["results"])
    for row in link["results"]:
        assert 0 < row["latency_seconds"] < 1
        assert row["bandwidth"] > 0


@pytest.mark.parametrize(
    ("devices", "options", "ways", "said"),
    [
        (2, "", ["mpi", "nccl", "staged"], ""),
        (1, "", ["mpi", "staged"], "share a GPU"),
        (2, "--backend numpy", ["mpi"], ""),
    ],
)
def test_bench_links_measures_every_way_there_is_between_gpus(
    devices: int,
    options: str,
    ways: list[str],
    said: str,
    mpirun: Callable[..., Finished],
    tmp_path: Path,
) -> None:
    file = tmp_path / "links.json"
    command = f"-m pdadmm.bench links --seconds 0.001 {options} --json".split()
    finished = succeed(mpirun(2, *command, file, env=on_standin(devices)))
    found = json.loads(file.read_text())["transports"]
    assert list(found) == ways
    assert said in finished.err and bool(said) == bool(finished.err)
    for links in found.values():
        (link,) = links
        assert [row["bytes"] for row in link["results"]] == list(SIZES)
        assert all(0 < row["latency_seconds"] < 1 and row["bandwidth"] > 0 for row in link["results"])


class Recorder:
    """Takes NCCL groups down as (sends, receives), each a list of (offset, bytes, peer)."""

    def __init__(self) -> None:
        self.groups: list[tuple[list[Any], list[Any]]] = []
        self.done = True

    def buffer(self, nbytes: int) -> Any:
        return np.zeros(nbytes, np.uint8)

    def mark_compute(self) -> Any:
        return self

    mark_transfers = mark_compute

    def transfers_after(self, event: Any) -> None: ...

    def group(self, sends: list[Any], receives: list[Any]) -> None:
        def shown(parts: list[Any]) -> list[Any]:
            return [(part.ctypes.data, part.nbytes, peer) for part, peer in parts]

        self.groups.append((shown(sends), shown(receives)))


@pytest.mark.parametrize("first", [True, False])
def test_a_window_is_a_group_of_messages_and_an_answer(first: bool) -> None:
    device = Recorder()
    with NCCLWay(device).windowed(first, 5, 300, 64) as once:
        once()
    window, answer = device.groups if first else [groups[::-1] for groups in device.groups]
    assert [(nbytes, peer) for _, nbytes, peer in window[0]] == [(300, 5)] * 64 and not window[1]
    assert [(nbytes, peer) for _, nbytes, peer in answer[1]] == [(1, 5)] and not answer[0]
    if not first:  # every message has its place
        places = [place for place, _, _ in window[0]]
        assert [b - a for a, b in itertools.pairwise(places)] == [300] * 63


@pytest.mark.parametrize("first", [True, False])
def test_a_ping_pong_is_a_message_each_way_one_after_the_other(first: bool) -> None:
    device = Recorder()
    with NCCLWay(device).ping_pong(first, 5, 300) as once:
        once()
    counts = [(len(sends), len(receives)) for sends, receives in device.groups]
    assert counts == ([(1, 0), (0, 1)] if first else [(0, 1), (1, 0)])


@pytest.mark.parametrize(
    ("options", "devices", "words"),
    [
        ("--backend cupy", 0, ["--backend cupy needs a GPU", "no CUDA-capable device"]),
        ("--backend gpu", 2, ["--backend", "numpy", "--help"]),
        ("--seconds soon", 2, ["--seconds", "soon"]),
    ],
)
def test_bench_links_refuses_in_one_line(
    options: str, devices: int, words: list[str], mpirun: Callable[..., Finished]
) -> None:
    refused(mpirun(2, "-m", "pdadmm.bench", "links", *options.split(), env=on_standin(devices)), *words)


def test_bench_links_needs_two_ranks() -> None:
    refused(python("-m", "pdadmm.bench", "links"), "two ranks")


# ---- numbers ----------------------------------------------------------------------------------------


def test_numbers_are_shown_with_units() -> None:
    assert (seconds(0.00123), seconds(2.0), size(12345), rate(5e6)) == ("1.23 ms", "2 s", "12.3 kB", "5 MB/s")


@pytest.mark.parametrize("top", [1e-9, 0.3, 1.0, 7.0, 99.0, 12345.0])
def test_ticks_are_round_and_cover_the_range(top: float) -> None:
    marks = ticks(top)
    assert marks[0] == 0 and marks[-1] >= top * (1 - 1e-9) and 3 <= len(marks) <= 8


@pytest.mark.parametrize("top", [0.0, 5e-324, math.nan])
def test_ticks_of_next_to_nothing(top: float) -> None:
    assert ticks(top) == [0, 1]


def test_reports_replace_nothing_but_their_own_kind(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for kind in ("html", "csv", "json"):
        report_file, foreign = tmp_path / f"a.{kind}", tmp_path / f"mine.{kind}"
        for _ in range(2):
            succeed(report(runs[0], f"--{kind}", report_file))
        foreign.write_bytes((runs[0] / "summary.json").read_bytes())
        found = report(runs[0], f"--{kind}", foreign)
        assert found.code == 2 and found.err.count("\n") == 1 and f"another file with --{kind}" in found.err
        assert foreign.read_bytes() == (runs[0] / "summary.json").read_bytes()
    assert json.loads(report(runs[0], "--json", "/dev/stderr").err)["runs"]
    page = tmp_path / "a.html"
    whole = page.read_bytes()
    limited = f"ulimit -f 8; exec {sys.executable} -m pdadmm.profile {runs[0]} {runs[1]} --html {page}"
    found = start(["bash", "-c", limited], 60)
    assert found.code == 2 and len(found.err.splitlines()) == 1 and page.read_bytes() == whole, found
    found = python(
        "-m", "pdadmm.profile", runs[0], "--html", page,
        env={"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    succeed(found)
    page.read_text(encoding="utf-8")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"runs": []}')
    succeed(report(runs[0], "--json", link))
    assert link.is_symlink() and json.loads((tmp_path / "a.json").read_text())["runs"]
    one = report(runs[0], "--html", tmp_path / "new", "--csv", tmp_path / "new")
    assert one.code == 2 and "--html and --csv are both" in one.err and not (tmp_path / "new").exists()
    before = os.stat(os.devnull)
    for kind in ("html", "csv", "json"):
        succeed(report(runs[0], f"--{kind}", os.devnull))
    assert os.stat(os.devnull).st_rdev == before.st_rdev
