"""The clock's accounts and the timeline: what they promise of times, messages and clocks."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import (
    PROGRAMS,
    Finished,
    check_accounts,
    held_bytes,
    message_bytes,
    on_standin,
    records_of,
    succeed,
)

from pdadmm.profile.figures import figures
from pdadmm.trace.clock import PHASES, WARM_UP, Clock
from pdadmm.trace.messages import flights
from pdadmm.trace.offsets import Alignment, Reading
from pdadmm.trace.tally import SAMPLE, Tally
from pdadmm.trace.timeline import write_timeline

LAYERS, HIDDEN, ITERATIONS = 5, 20, 12

#: clocks and transports: the host's, and CUDA events over NCCL and over staged MPI
WAYS = {
    "host": "--backend numpy",
    "nccl": "--backend cupy --transport nccl --kernels reference",
    "staged": "--backend cupy --transport mpi --kernels reference",
}


@pytest.fixture(scope="module", params=WAYS)
def traced(
    request: pytest.FixtureRequest,
    mpirun: Callable[..., Finished],
    small: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of a run of 4 ranks with a timeline; two layers share a rank, and it grows once."""
    folder = tmp_path_factory.mktemp("traced")
    options = f"--layers {LAYERS} --stages 3,{LAYERS} --hidden {HIDDEN} --iterations {ITERATIONS} --trace"
    options += f" --eval-every {WARM_UP} --measure-links {WAYS[request.param]}"
    env = {} if request.param == "host" else on_standin()
    succeed(mpirun(4, "-m", "pdadmm.run", small, *options.split(), "--quiet", "--out", folder, env=env))
    return folder


@pytest.fixture(scope="module")
def events(traced: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((traced / "trace.json").read_text())["traceEvents"]
    return found


def profile_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    return found


def test_long_stages_are_sampled_alike_on_all_ranks(
    mpirun: Callable[..., Finished], small: Path, tmp_path: Path
) -> None:
    options = "--layers 3 --stages 3 --hidden 20 --iterations 50 --eval-every 50 --quiet"
    succeed(mpirun(3, "-m", "pdadmm.run", small, *options.split(), "--out", tmp_path))
    counted = [*range(WARM_UP, 20), 24, 32, 40, 48]
    for rank in profile_of(tmp_path)["ranks"]:
        stage = rank["stages"][-1]
        assert stage["iterations"] == len(counted)
        total = sum(sum(phases.values()) for phases in stage["phases"].values())
        assert total == pytest.approx(len(counted) * stage["iteration_seconds"]["mean"], rel=1e-9)
        assert total <= stage["wall_seconds"] * (1 + 1e-9)  # measured around these iterations
        assert stage["steps"], "every counted iteration has the same steps"
        for link in stage["links"]:
            assert link["messages"] == 50
            if link["kind"] == "received" and link["between_ranks"]:
                # one a counted iteration; the sender noted each of them, q an iteration before it is taken
                assert link["flights"] == len(counted)


def test_phases_add_up_to_the_wall_time_of_the_iterations_on_every_rank(traced: Path) -> None:
    check_accounts(profile_of(traced))
    for rank in profile_of(traced)["ranks"]:
        stage = rank["stages"][-1]
        phases = sum(sum(layer.values()) for layer in stage["phases"].values())
        # both from events, which another process does not come between
        if profile_of(traced)["run"]["backend"] == "cupy" and rank["stages"][-1]["layers"]:
            assert phases == pytest.approx(stage["wall_seconds"], rel=1e-4) and phases > 0
        steps = sum(step["compute"]["mean"] + step["seconds"]["mean"] for step in stage["steps"])
        assert steps * stage["iterations"] == pytest.approx(phases, rel=1e-6)


def test_phases_are_within_the_seconds_that_the_host_counts_from_evaluation_to_evaluation(
    traced: Path,
) -> None:
    seconds = {r["stage_iteration"]: r["seconds"] for r in records_of(traced) if r["stage"] == 2}
    stage = profile_of(traced)["ranks"][0]["stages"][-1]
    phases = sum(sum(layer.values()) for layer in stage["phases"].values())
    counted = seconds[ITERATIONS] - seconds[WARM_UP]
    # no more than that, besides the end of the last kernel; another process may make the host's longer
    assert 0 < phases <= 1.03 * counted + 0.02


def test_links_were_measured_the_way_the_messages_went(traced: Path) -> None:
    profile = profile_of(traced)
    run, measured = profile["run"], profile["links_baseline"]["transports"]
    way = {"nccl": "nccl", "mpi": "staged" if run["backend"] == "cupy" else "mpi"}[run["transport"]]
    assert list(measured) == [way]
    assert [(link["lower"], link["upper"]) for link in measured[way]] == [(0, 1), (1, 2), (2, 3)]
    assert all(link.baseline_bandwidth for link in figures(profile, "").links)


def test_timeline_has_a_process_a_rank_and_two_tracks(events: list[dict[str, Any]]) -> None:
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {rank: name.split(" on ")[0] for rank, name in names.items()} == {i: f"rank {i}" for i in range(4)}
    tracks = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"}
    assert tracks == {(rank, track) for rank in range(4) for track in ("compute", "communication")}


def test_timeline_says_how_much_of_every_stage_it_shows(traced: Path) -> None:
    found = json.loads((traced / "trace.json").read_text())
    assert found["otherData"] == {"stages": [{"shown": ITERATIONS, "iterations": ITERATIONS}] * 2}


def test_no_duration_is_negative_and_slices_of_a_track_do_not_overlap(events: list[dict[str, Any]]) -> None:
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["ts"] >= -1e-3
            tracks[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
    assert len(tracks) == 8
    for slices in tracks.values():
        slices.sort()
        for (start, duration), (following, _) in itertools.pairwise(slices):
            assert start + duration <= following + 0.01


def test_every_send_has_its_receive(events: list[dict[str, Any]]) -> None:
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    # two messages a coupling and iteration, in a stage of 3 layers and one of 5
    assert len(starts) == ITERATIONS * 2 * (2 + 4)
    kinds = Counter(event["name"].split()[0] for event in events if event["ph"] == "X" and event["tid"] == 1)
    assert kinds == {"send": len(starts), "receive": len(starts)}
    for identifier, start in starts.items():
        assert ends[identifier]["ts"] >= start["ts"]


def test_arrows_begin_and_end_inside_slices(events: list[dict[str, Any]]) -> None:
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["tid"] == 1:
            slices[event["pid"]].append((event["ts"], event["ts"] + event["dur"]))
    for event in events:
        if event["ph"] in "sf":
            assert any(a - 1000 <= event["ts"] <= b + 1000 for a, b in slices[event["pid"]])


def test_clocks_of_one_machine_are_aligned_within_a_millisecond(traced: Path) -> None:
    for rank in profile_of(traced)["ranks"]:
        for reading in rank["clock"].values():  # the ranks share a clock: the true offset is 0
            assert abs(reading["offset"]) < 1e6


def test_clocks_that_differ_and_drift_are_aligned_within_a_millisecond(
    mpirun: Callable[..., Finished],
) -> None:
    assert float(succeed(mpirun(3, PROGRAMS / "skewed_clocks.py")).out) < 1e-3


def test_steps_and_links_are_told_by_the_names_of_the_messages(traced: Path) -> None:
    """In the first stage there are layers 1, 2 and 5: p of layer 5 goes down to layer 2."""
    for rank in profile_of(traced)["ranks"]:
        for stage in rank["stages"]:
            facts = {link["name"]: (link["coupling"], link["upward"]) for link in stage["links"]}
            for step in stage["steps"]:
                expected = facts[step["channel"]] if step["channel"] else (-1, False)
                assert (step["coupling"], step["upward"]) == expected
                assert step["phase"] in ("wait", "send") if step["channel"] else step["phase"] != "send"
    stages = [rank["stages"][0] for rank in profile_of(traced)["ranks"] if rank["stages"][0]["layers"]]
    assert [position for stage in stages for position in stage["layers"]] == [1, 2, 5]
    lower, upper = ({link["name"]: link for link in stage["links"]} for stage in stages[-2:])
    assert "p 5" in lower and "q 2" in lower and upper.keys() == {"p 5", "q 2"}
    assert [end["p 5"]["kind"] for end in (lower, upper)] == ["received", "sent"]
    assert (lower["p 5"]["peer"], upper["p 5"]["upward"], upper["p 5"]["coupling"]) == (3, False, 2)


def test_alignment_is_linear_between_two_readings() -> None:
    align = Alignment(Reading(10**9, 500, 10), Reading(11 * 10**9, 1500, 10))
    assert align(10**9) == 10**9 + 500
    assert align(6 * 10**9) == 6 * 10**9 + 1000
    assert align(11 * 10**9) == 11 * 10**9 + 1500


def timeline(folder: Path, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    write_timeline(folder / "trace.json", ranks)
    found: dict[str, Any] = json.loads((folder / "trace.json").read_text())
    return found


def kept(rank: int, messages: list[list[Any]], offset: int = 0) -> dict[str, Any]:
    reading = {"at": 0, "offset": offset, "round_trip": 10}
    clock = {"start": reading, "end": reading}
    return {
        "rank": rank, "host": "h", "clock": clock, "events": [],
        "messages": messages, "traced_messages": messages, "shown": [[1, 1]] * len(messages),
    }  # fmt: skip


def test_a_wait_is_split_where_the_message_was_sent() -> None:
    second = 10**9
    sender = kept(0, [[("sent", "q 1", 1, 5 * second, 5 * second, True)]])
    # this rank's clock is 2 s behind; it waited from 1 to 8, by the sender's clock from 3 to 10
    receiver = kept(1, [[("received", "q 1", 1, 1 * second, 8 * second, True)]], offset=2 * second)
    found = flights([sender, receiver])[1][0]["q 1"]
    assert found["wait_seconds"] == pytest.approx(7)
    assert found["late_sender_seconds"] == pytest.approx(2)
    assert found["exposed_seconds"] == pytest.approx(5)
    assert found["flight_seconds"] == pytest.approx(5)


def test_a_message_without_receive_gets_no_arrow(tmp_path: Path) -> None:
    found = timeline(tmp_path, [kept(0, [[("sent", "q 1", 1, 5, 6, True)]])])["traceEvents"]
    assert [event["ph"] for event in found if event["ph"] in "sf"] == []


@pytest.mark.parametrize(("codec", "bits"), [("delta", 2), ("float32", 32)])
def test_bytes_of_every_link_equal_a_count_of_the_mpi_traffic(
    mpirun: Callable[..., Finished], small: Path, tmp_path: Path, codec: str, bits: int
) -> None:
    ranks, iterations, nodes = 16, 5, 63
    options = f"--layers {ranks} --stages {ranks} --hidden 19 --iterations {iterations} --quiet"
    options += f" --codec {codec} --bits {bits} --eval-every 100"
    arguments = [PROGRAMS / "count_links.py", small, *options.split(), "--out", tmp_path]
    counted = json.loads(succeed(mpirun(ranks, *arguments, timeout=120)).out.splitlines()[-1])
    profile = profile_of(tmp_path)
    assert profile["run"]["nodes_train"] == nodes
    size = message_bytes(codec, bits, nodes, 19)
    for rank, links in zip(profile["ranks"], counted, strict=True):
        told = {
            (link["peer"], 2 * link["coupling"] + link["upward"]): [link["messages"], link["bytes"]]
            for link in rank["stages"][-1]["links"]
            if link["kind"] == "sent" and link["between_ranks"]
        }
        assert told == {(peer, tag): [messages, size] for peer, tag, messages, size in links}
        assert all(counts == [iterations, iterations * size] for counts in told.values())
        for link in rank["stages"][-1]["links"]:
            lower, up = link["coupling"], link["upward"]
            assert link["name"] == (f"q {lower}" if up else f"p {lower + 1}")
            # what one end sent, the other received
            assert (link["messages"], link["bytes"]) == (iterations, iterations * size)
            assert link["float32_bytes"] == iterations * 4 * nodes * 19


# ---- long runs --------------------------------------------------------------------------------------


def iterate(clock: Clock, iteration: int, now: int) -> int:
    """An iteration of layer 1 whose laps take 1, 2, ... ns more than its number; returns when it ended."""
    clock.begin_iteration(iteration, now)
    for part, phases in (("p", ("products", "wait", "updates", "send")), ("z", ("wait", "updates", "send"))):
        clock.part(part, 1)
        for place, phase in enumerate(phases, 1):
            if phase in ("wait", "send"):
                clock.message("sent" if phase == "send" else "received", f"{part} 1", iteration + 1, now, now)
            now += iteration + place
            clock.lap(phase, 1, now)
    clock.end_iteration(1, now + 7)
    return now + 7


@pytest.mark.parametrize("traced", [False, True])
def test_a_clock_holds_no_more_after_many_iterations(traced: bool) -> None:
    clock, now = Clock(traced), 1
    clock.begin_stage(5000)  # so that a timeline ends soon
    sizes = []
    for iteration in range(6_000 if traced else 40_000):
        now = iterate(clock, iteration, now)
        if iteration % 100 == 99:
            sizes.append(held_bytes(clock))
    # a sample goes from half of its rows to all of them again and again
    early, late = max(sizes[: len(sizes) // 2]), max(sizes[len(sizes) // 2 :])
    assert clock.iterations > 8 * SAMPLE
    assert late <= 1.01 * early


def test_a_timeline_ends_at_the_same_iteration_on_all_ranks(tmp_path: Path) -> None:
    clock, now = Clock(traced=True), 1
    for depth, iterations, shown in ((1000, 100, 12), (2500, 100, 5), (1, 100, 100)):
        first = len(clock.events or [])
        clock.begin_stage(depth)
        for iteration in range(iterations):
            now = iterate(clock, iteration, now)
            with clock.span("evaluation"):
                pass
        clock.end_stage()
        assert clock.shown[-1] == (shown, iterations)
        names = Counter(name for name, *_ in (clock.events or [])[first:])
        assert names["evaluation"] == names["products"] == shown and names["send"] == 2 * shown
        assert clock.iterations == iterations - WARM_UP  # what is not shown is counted all the same
    # a rank without a layer in a stage has no iterations
    rank = {**kept(0, []), "shown": clock.shown}
    idle = {**kept(1, []), "shown": [(0, 0)] * 3}
    stages = timeline(tmp_path, [rank, idle])["otherData"]["stages"]
    assert stages[0] == {"shown": 12, "iterations": 100}


def test_a_timeline_has_no_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stage and of a run; an iteration is shown as a whole."""
    monkeypatch.setattr("pdadmm.trace.clock._SHOWN_OF_RANK", 100)
    monkeypatch.setattr("pdadmm.trace.clock._SHOWN_OF_RUN", 220)
    clock, now = Clock(traced=True), 1
    for stage in range(4):
        clock.begin_stage(1)
        for iteration in range(100):
            now = iterate(clock, iteration, now)
        if stage != 1:  # as where no iteration of a stage was counted
            clock.end_stage()
            continue
        lost = len(clock.events or [])
    (first, _), (third, _), (fourth, begun) = clock.shown
    laps = len(clock.events or [])
    assert 0 < third < first < 100 and (fourth, begun) == (0, 100)
    assert lost == 16 * first and laps == 8 * (2 * first + third)  # of 12 with their messages
    assert 220 <= laps + 4 * (first + third) < 220 + 12


def test_what_a_clock_tells_is_of_all_iterations_that_it_counted() -> None:
    clock, now = Clock(), 1
    clock.begin_stage()
    counted = [i for i in range(9_000) if clock.counts(i)]
    took, walls = [], 0
    for iteration in range(9_000):
        before, now = now, iterate(clock, iteration, now)
        if clock.counts(iteration):
            took.append(now - before)
            walls += now - before
    assert clock.iterations == len(counted) > 4 * SAMPLE
    # not a nanosecond is lost, nor one counted twice
    assert sum(sum(row.values()) for row in clock._rows.values()) == walls
    assert set(clock.seconds[1]) == set(PHASES)
    spread = clock.iteration_seconds
    assert spread.mean == pytest.approx(1e-9 * walls / len(counted), rel=1e-12)
    assert (spread.least, spread.most) == pytest.approx((1e-9 * min(took), 1e-9 * max(took)), rel=1e-12)
    # the times grow evenly, and so does an even sample
    assert spread.median == pytest.approx(1e-9 * statistics.median(took), rel=1 / (SAMPLE // 2))
    steps = {(step.part, step.phase): step for step in clock.steps}
    assert list(steps) == [("p", "wait"), ("p", "send"), ("p", "other"), ("z", "wait"), ("z", "send"),
                           ("z", "other")]  # fmt: skip
    step, mean = steps["p", "send"], statistics.fmean(counted)
    assert (step.channel, step.updates) == ("p 1", step.compute)
    assert step.compute.mean == pytest.approx(1e-9 * (mean + 3))
    assert step.seconds.mean == pytest.approx(1e-9 * (mean + 4))
    whole = sum(s.compute.mean + s.seconds.mean for s in clock.steps)
    assert whole == pytest.approx(spread.mean, rel=1e-12)


def test_a_sample_is_even_and_follows_from_the_number_of_rows_alone() -> None:
    draw = np.random.default_rng(0)
    for rows in (1, 5, SAMPLE, SAMPLE + 1, 1000, 4097, 20_000):
        plain, disturbed = Tally(2), Tally(2)
        for i in range(rows):
            plain.add([i, -i])
            disturbed.add([i, -i])
            if draw.random() < 0.01:
                assert disturbed.sums[0] == i * (i + 1) // 2  # to look does not change what is kept
        assert plain.sums == disturbed.sums == [rows * (rows - 1) // 2, -rows * (rows - 1) // 2]
        assert plain.spreads == disturbed.spreads and plain.rows == rows
        kept = plain._sample[:, 0].tolist()
        stride = kept[1] - kept[0] if len(kept) > 1 else 1
        assert kept == list(range(0, rows, stride)) == disturbed._sample[:, 0].tolist()
        assert len(kept) <= SAMPLE and (stride == 1 or len(kept) > SAMPLE // 2)
        assert plain.spreads[0].most == pytest.approx(1e-9 * (rows - 1))
    assert [spread.mean for spread in Tally(3).spreads] == [0.0] * 3


@pytest.mark.parametrize(
    ("ranks", "way", "until"), [(1, "host", 3200), (2, "host", 3200), (1, "staged", 800)]
)
def test_a_run_holds_no_more_after_many_iterations(
    ranks: int, way: str, until: int, mpirun: Callable[..., Finished], small: Path, tmp_path: Path
) -> None:
    """All that the trainer of a rank leads to, and the objects that Python's collector knows."""
    options = (
        f"--layers 4 --stages 4 --hidden 8 --iterations {until + 1} --eval-every {until // 4} {WAYS[way]}"
    )
    env = {} if way == "host" else on_standin()
    # after an evaluation, for which a device was waited
    at = f"{until // 4 + 1},{until + 1}"
    arguments = [PROGRAMS / "held.py", at, small, *options.split(), "--quiet", "--out", tmp_path]
    finished = succeed(mpirun(ranks, *arguments, env=env, timeout=120))
    lines = [json.loads(line) for line in finished.out.splitlines()]
    assert len(lines) == ranks
    for (held, objects), (held_later, objects_later) in lines:
        # all times of the steps of every eighth iteration would be half a megabyte, or twice as much
        assert held_later - held < 150_000
        assert objects_later - objects < 200
