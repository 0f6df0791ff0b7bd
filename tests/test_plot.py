"""Pictures of runs: what is drawn, against what the runs left; the same file again; bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support import python, records_of, succeed, words

from pdadmm.plot import main

pytest.importorskip("matplotlib")


def plot(*arguments: object) -> None:
    """In this process: Matplotlib takes long to load."""
    assert main(list(map(str, arguments))) == 0


@pytest.fixture(scope="module")
def runs(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: one of ADMM, and one of a graph network with assigned widths."""
    folder = tmp_path_factory.mktemp("runs")
    options = words("--layers 3 --hidden 8 --iterations 12 --eval-every 3 --quiet")
    succeed(python("-m", "pdadmm.run", small, *options, "--out", folder / "admm"))
    cut = words("--synthetic-nodes 400 --synthetic-features 40 --parts 2 --partitioner blocks")
    succeed(python("-m", "pdadmm.gnn.prepare", "synthetic", *cut, "--out", folder / "g.h5"))
    options = words("--messages adaqp --hidden 16 --epochs 24 --eval-every 8 --reassign 9 --quiet")
    succeed(python("-m", "pdadmm.gnn.run", folder / "g.h5", *options, "--out", folder / "graph"))
    return folder


def changed(folder: Path, name: str, **values: object) -> Path:
    """A folder whose summary.json is that of another one, changed."""
    copy = folder.with_name(name)
    copy.mkdir(exist_ok=True)
    summary = json.loads((folder / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, **values}))
    return copy


def paths(svg: Path, group: str) -> list[int]:
    """Numbers of points of the lines of an SVG whose group's id begins like that."""
    found = re.findall(rf'<g id="{group}[^"]*">\s*<path d="([^"]*)"', svg.read_text())
    return [len(re.findall("[ML]", d)) for d in found]


def test_convergence_of_both_systems(runs: Path, tmp_path: Path) -> None:
    for name, panels, unit in (("admm", 3, "iteration"), ("graph", 2, "epoch")):
        out = tmp_path / f"{name}.svg"
        plot("convergence", runs / name, "--out", out)
        text = out.read_text()
        assert f">{unit}<" in text and f">seconds of {unit}s<" in text and ">validation accuracy, %<" in text
        evaluations = len((runs / name / "metrics.jsonl").read_text().splitlines())
        assert paths(out, "line2d_").count(evaluations) >= 2 * panels
        before = out.read_bytes()
        succeed(python("-m", "pdadmm.plot", "convergence", runs / name, "--out", out))  # it may be replaced
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "step", "panels"),
    [
        ("admm", "iteration", ["objective", "primal_residual", "val_accuracy"]),
        ("graph", "epoch", ["loss", "val_accuracy"]),
    ],
)
def test_curves_are_the_numbers_of_the_run(
    runs: Path, tmp_path: Path, name: str, step: str, panels: list[str]
) -> None:
    """Where the points lie, but for the scale and the origin of the axes."""
    out = tmp_path / "c.svg"
    plot("convergence", runs / name, "--out", out)
    records = records_of(runs / name)
    drawn = []
    for path in re.findall(r'<g id="line2d_[^"]*">\s*<path d="([^"]*)"', out.read_text()):
        points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)
        if len(points) == len(records) > 2:
            drawn.append(np.array(points, float).T)

    def same(pixels: np.ndarray, values: np.ndarray) -> bool:
        line = np.polyfit(values, pixels, 1)
        return bool(np.abs(np.polyval(line, values) - pixels).max() < 0.01)

    for along in (step, "seconds"):
        for panel in panels:
            x, y = (np.array([r[key] for r in records]) for key in (along, panel))
            y = y if panel == "val_accuracy" else np.log10(y)
            assert any(same(px, x) and same(py, y) for px, py in drawn), (along, panel)


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_formats_and_who_made_them(runs: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "new" / f"x.{form}"
    plot("convergence", runs / "admm", "--out", out)
    content = out.read_bytes()
    assert content[:5] in (b"<?xml", b"\x89PNG\r", b"%PDF-") and b"pdadmm.plot" in content
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    plot("convergence", runs / "admm", "--out", out)
    assert out.read_bytes() == content


def test_without_a_name_the_picture_gives_it(runs: Path, tmp_path: Path) -> None:
    done = succeed(python("-m", "pdadmm.plot", "widths", runs / "graph", cwd=tmp_path))
    assert (done.out, done.err) == ("widths.svg\n", "")
    text = (tmp_path / "widths.svg").read_text()
    assignments = json.loads((runs / "graph" / "profile.json").read_text())["run"]["assignments"]
    assert len(assignments) == 2
    for slot in assignments[0]["widths"]:
        assert f">{slot}<" in text
    assert all(f">{assignment['epoch']}<" in text for assignment in assignments)


def test_pareto_has_a_point_a_run_and_a_panel_a_data_set(runs: Path, tmp_path: Path) -> None:
    sent = {"bytes_per_iteration": 1000, "test_accuracy_at_best_val": 0.5}
    a = changed(runs / "admm", "a", **sent)
    b = changed(runs / "admm", "b", **{**sent, "bytes_per_iteration": 9000})
    c = changed(runs / "admm", "c", **{**sent, "dataset": "$other"})
    out = tmp_path / "p.svg"
    plot("pareto", a, b, c, "--out", out)
    text = out.read_text()
    assert len(re.findall(r">bytes an iteration<", text)) == 2
    assert ">$other<" in text and all(f">{name}<" in text for name in "abc")


def test_speedup_is_that_of_the_same_run(runs: Path, tmp_path: Path) -> None:
    one = changed(runs / "admm", "one", ranks=1, seconds_iterations=8.0)
    two = changed(runs / "admm", "two", ranks=2, seconds_iterations=4.0)
    out = tmp_path / "s.svg"
    plot("speedup", two, one, "--out", out)
    lines = re.findall(r'<path d="(M[^"]*)" clip-path', out.read_text())
    drawn = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", line) for line in lines]
    # twice as fast on twice the ranks: the curve lies on the ideal line
    assert sum(line == drawn[0] for line in drawn) == 2 and len(drawn[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("convergence nowhere", "nowhere holds no metrics.jsonl; give the --out folder of a run"),
        ("convergence admm graph", "runs of pdadmm.run and of pdadmm.gnn.run; draw a picture of each kind"),
        ("widths admm", "no widths were assigned; give runs of pdadmm.gnn.run with lean or adaqp"),
        ("speedup admm", "needs the same run on different numbers of ranks; no two"),
        ("convergence admm --out x.gif", "x.gif: the format .gif is unknown; end it in .svg, .png or .pdf"),
        ("convergence admm --out mine.svg", "mine.svg exists and is no picture of pdadmm.plot"),
        ("convergence admm --out folder.svg", "folder.svg is a folder; name a file with --out"),
        ("convergence admm --out mine.svg/x.svg", "mine.svg/x.svg cannot be replaced (Not a directory)"),
        ("convergence damaged", "metrics.jsonl is damaged; run again"),
        ("convergence infinite", "objective is no finite number; run again"),
        ("pareto admm", "nothing was sent, so it has no place here; give runs that send"),
        ("spiral admm", "invalid choice: 'spiral'"),
    ],
)
def test_bad_input(
    runs: Path,
    tmp_path: Path,
    arguments: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("admm", "graph"):
        (tmp_path / name).symlink_to(runs / name)
    changed(runs / "admm", "silent", bytes_per_iteration=0)
    if arguments == "pareto admm":
        arguments = f"pareto {runs / 'silent'}"
    (tmp_path / "mine.svg").write_text("<svg/>")
    (tmp_path / "folder.svg").mkdir()
    for name, line in (("damaged", '{"iteration": '), ("infinite", '{"iteration": 1, "objective": NaN}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(line)
    before = sorted(tmp_path.iterdir())
    code, (out, err) = main(arguments.split()), capsys.readouterr()
    assert (code, out) == (2, "") and err.count("\n") == 1 and said in err
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "mine.svg").read_text() == "<svg/>"


def test_without_matplotlib_the_extra_is_named(runs: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['matplotlib'] = None; from pdadmm.plot import main; sys.exit(main())"
    done = python("-c", program, "convergence", runs / "admm", "--out", tmp_path / "x.svg")
    assert (
        done.code == 2 and done.err == "pdadmm.plot: pictures need Matplotlib; pip install 'pdadmm[plot]'\n"
    )
