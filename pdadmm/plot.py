"""Pictures of runs: ``python -m pdadmm.plot PICTURE DIR [DIR ...] --out FILE``.

    convergence    what metrics.jsonl records, by iteration or epoch and by seconds
    pareto         test accuracy over bytes of messages
    speedup        iterations or epochs a second over ranks, against the run with the fewest
    widths         bits of the messages of a graph network, by slot and assignment

DIR is the ``--out`` folder of a run, of either system. FILE's ending chooses the format: svg, png or pdf.
Drawn by Matplotlib (``pip install 'pdadmm[plot]'``); the same runs give the same file.

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pdadmm.errors import InputError, one_line
from pdadmm.files import Record, naming, replacing
from pdadmm.files.given import read_file
from pdadmm.process import begin
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["main"]

_FORMATS = ("svg", "png", "pdf")
#: in the files' metadata, by which a picture of ours is known
_CREATOR = "pdadmm.plot"
_FILE_BYTES = 1 << 30  # that a file of a run may have
_PICTURE_BYTES = 1 << 26  # that a picture of ours may have
#: of metrics.jsonl: what each panel shows, and whether its axis is logarithmic
_PANELS = {
    "objective": ("objective", True),
    "primal_residual": ("primal residual", True),
    "loss": ("training loss", True),
    "val_accuracy": ("validation accuracy, %", False),
}


# ---- what runs leave --------------------------------------------------------------------------------


def _lines(folder: Path, name: str) -> list[Record]:
    """Records of a file of a run, one a line or one in all.

    Raises
    ------
    InputError
        When it is missing or holds no such records.
    """
    path = folder / name
    try:
        text = read_file(path, _FILE_BYTES).decode()
        found = [json.loads(x) for x in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {name}; give the --out folder of a run that has ended") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the --out folder of a run") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged; run again") from None
    if not found or not all(isinstance(record, dict) for record in found):
        raise InputError(f"{path} holds no records; run again")
    return found


def _number(record: Record, key: str, path: Path) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{path}: {key} is no finite number; run again")
    return float(value)


def _unit(record: Record) -> str:
    """What a run counts."""
    return "epoch" if "epoch" in record or "epochs" in record else "iteration"


def _one_unit(records: Sequence[Record]) -> str:
    units = {_unit(record) for record in records}
    if len(units) > 1:
        raise InputError("these are runs of pdadmm.run and of pdadmm.gnn.run; draw a picture of each kind")
    return units.pop()


def _labels(folders: Sequence[Path]) -> list[str]:
    """Names of the folders, with those above where names are the same."""
    parts = [folder.resolve().parts for folder in folders]
    deep = next((n for n in range(1, max(map(len, parts))) if len({p[-n:] for p in parts}) == len(parts)), 0)
    # a $ would begin a formula
    return [one_line("/".join(p[-deep:])).replace("$", r"\$") for p in parts]


# ---- pictures ---------------------------------------------------------------------------------------


def _convergence(folders: Sequence[Path]) -> Figure:
    from matplotlib.figure import Figure

    runs = [_lines(folder, "metrics.jsonl") for folder in folders]
    unit = _one_unit([records[0] for records in runs])
    shown = [name for name in _PANELS if any(name in record for records in runs for record in records)]
    if not shown:
        raise InputError(f"{folders[0] / 'metrics.jsonl'} holds no {', '.join(_PANELS)}; run again")
    figure = Figure(figsize=(8, 2.3 * len(shown) + 0.6))
    grid = figure.subplots(len(shown), 2, sharey="row", sharex="col", squeeze=False)
    for folder, label, records in zip(folders, _labels(folders), runs, strict=True):
        path = folder / "metrics.jsonl"
        for name, axes in zip(shown, grid, strict=True):
            # a record may lack it, or have null
            points = [record for record in records if record.get(name) is not None]
            y = [_number(record, name, path) * (100 if "accuracy" in name else 1) for record in points]
            for axis, by in zip(axes, (unit, "seconds"), strict=True):
                axis.plot([_number(record, by, path) for record in points], y, label=label, lw=1.2)
    for name, axes in zip(shown, grid, strict=True):
        text, logarithmic = _PANELS[name]
        axes[0].set_ylabel(text)
        for axis in axes:
            # of values of 0 and below there is no logarithm
            if logarithmic and all(v > 0 for line in axis.get_lines() for v in line.get_ydata()):
                axis.set_yscale("log")
    grid[-1][0].set_xlabel(unit)
    grid[-1][1].set_xlabel(f"seconds of {unit}s")
    grid[0][0].legend()
    return figure


def _panels(figure: Figure, summaries: Sequence[Record]) -> dict[str, Axes]:
    names = sorted({str(summary.get("dataset")) for summary in summaries})
    axes = figure.subplots(1, len(names), squeeze=False, sharex=True)[0]
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(one_line(name).replace("$", r"\$"), fontsize=9)
    return dict(zip(names, axes, strict=True))


def _summaries(folders: Sequence[Path]) -> list[Record]:
    return [_lines(folder, "summary.json")[0] for folder in folders]


def _pareto(folders: Sequence[Path]) -> Figure:
    """A point a run, of the test accuracy where validation was best; the staircase of what is not beaten."""
    from matplotlib.figure import Figure

    summaries = _summaries(folders)
    unit = _one_unit(summaries)
    datasets = {str(summary.get("dataset")) for summary in summaries}
    figure = Figure(figsize=(max(4.5, 3.4 * len(datasets)), 3.4))
    panels = _panels(figure, summaries)
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for folder, label, summary in zip(folders, _labels(folders), summaries, strict=True):
        path = folder / "summary.json"
        size = _number(summary, f"bytes_per_{unit}", path)
        score = 100 * _number(summary, "test_accuracy_at_best_val", path)
        if not size:
            raise InputError(f"{path}: nothing was sent, so it has no place here; give runs that send")
        dataset = str(summary.get("dataset"))
        points[dataset].append((size, score))
        panels[dataset].plot([size], [score], "o", ms=5, label=label)
    for dataset, axis in panels.items():
        best: list[tuple[float, float]] = []
        for size, score in sorted(points[dataset], key=lambda p: (p[0], -p[1])):
            if not best or score > best[-1][1]:
                best.append((size, score))
        axis.step(*zip(*best, strict=True), where="post", color="0.6", lw=0.9, zorder=0)
        axis.set_xscale("log")
        axis.set_xlabel(f"bytes an {unit}")
        axis.legend(fontsize=7)
    figure.axes[0].set_ylabel("test accuracy, %")
    return figure


def _kind(summary: Record) -> str:
    """What runs on different numbers of ranks have in common."""
    network = " ".join(str(summary[key]) for key in ("dataset", "model") if key in summary)
    messages = ("codec", "bits") if "codec" in summary else ("messages",)
    sent = " ".join(str(summary.get(key)) for key in messages)
    text = f"{network}, {summary.get('layers')} layers of {summary.get('hidden')}, {sent}"
    return one_line(text).replace("$", r"\$")


def _speedup(folders: Sequence[Path]) -> Figure:
    from matplotlib.figure import Figure

    summaries = _summaries(folders)
    unit = _one_unit(summaries)
    figure = Figure(figsize=(4.8, 3.6))
    axis = figure.subplots()
    curves: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder, summary in zip(folders, summaries, strict=True):
        path = folder / "summary.json"
        seconds, count = _number(summary, f"seconds_{unit}s", path), _number(summary, f"{unit}s", path)
        ranks = _number(summary, "ranks", path)
        if seconds <= 0 or count <= 0:
            raise InputError(f"{path}: no {unit} was timed; run more of them")
        curves[_kind(summary)][ranks].append(seconds / count)
    if all(len(curve) == 1 for curve in curves.values()):
        raise InputError(
            "speedup needs the same run on different numbers of ranks; no two of these differ in that alone"
        )
    for label, curve in sorted(curves.items()):
        least = {ranks: min(seconds) for ranks, seconds in sorted(curve.items())}
        first = next(iter(least))
        axis.plot(list(least), [first * least[first] / s for s in least.values()], "o-", lw=1.2, label=label)
    all_ranks = sorted({r for curve in curves.values() for r in curve})
    axis.plot(all_ranks, all_ranks, color="0.6", lw=0.8, ls="--", label="ideal")
    axis.set_xticks(all_ranks, [f"{r:g}" for r in all_ranks])
    axis.set_xlabel("ranks")
    axis.set_ylabel(f"speed of an {unit}")
    axis.legend(fontsize=7)
    return figure


def _widths(folders: Sequence[Path]) -> Figure:
    """Rows of a slot by their bits, stacked, a bar an assignment; a row of panels a run."""
    from matplotlib.figure import Figure

    found: list[list[Record]] = []
    for folder in folders:
        run = _lines(folder, "profile.json")[0].get("run")
        assignments = run.get("assignments") if isinstance(run, dict) else None
        if not assignments:
            raise InputError(
                f"{folder}: no widths were assigned; give runs of pdadmm.gnn.run with lean or adaqp messages"
            )
        found.append(assignments)
    bits = (1, 2, 4, 8)
    shades = {1: "#08306b", 2: "#2171b5", 4: "#6baed6", 8: "#c6dbef"}
    try:
        slots = list(dict.fromkeys(s for run in found for a in run for s in a["widths"]))
        figure = Figure(figsize=(1.9 * len(slots) + 0.8, 2.2 * len(found) + 0.6))
        grid = figure.subplots(len(found), len(slots), squeeze=False, sharey=True)
        for label, run, axes in zip(_labels(folders), found, grid, strict=True):
            axes[0].set_ylabel(f"{label}\nrows, %")
            for slot, axis in zip(slots, axes, strict=True):
                axis.set_title(slot, fontsize=9)
                counts = [[int(a["widths"].get(slot, {}).get(str(b), 0)) for b in bits] for a in run]
                bottom = [0.0] * len(run)
                for i, b in enumerate(bits):
                    part = [100 * row[i] / max(sum(row), 1) for row in counts]
                    axis.bar(range(len(run)), part, 0.8, bottom, color=shades[b], label=f"{b} bits")
                    bottom = [low + more for low, more in zip(bottom, part, strict=True)]
                places = range(0, len(run), max(1, len(run) // 4))
                axis.set_xticks(list(places), [str(int(run[i]["epoch"])) for i in places])
                axis.set_xlabel("assigned in epoch")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{folders[0] / 'profile.json'} or another one is damaged; run again") from None
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(bits), fontsize=8)
    return figure


_PICTURES: dict[str, Callable[[Sequence[Path]], Figure]] = {
    "convergence": _convergence,
    "pareto": _pareto,
    "speedup": _speedup,
    "widths": _widths,
}


# ---- the command ------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m pdadmm.plot", description="Draw a picture of runs.")
    parser.add_argument("picture", choices=list(_PICTURES), help="what to draw")
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="the --out of a run")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="FILE.svg, FILE.png or FILE.pdf (PICTURE.svg)"
    )
    return parser


def _target(out: Path) -> Path:
    """The file to write, which is new or a picture of ours."""
    if out.suffix[1:] not in _FORMATS:
        raise InputError(
            f"{out}: the format {out.suffix or 'without an ending'} is unknown; end it in .svg, .png or .pdf"
        )
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file with --out")
    try:
        ours = _CREATOR.encode() in read_file(out, _PICTURE_BYTES)
    except FileNotFoundError:
        return out
    except OSError as error:
        raise InputError(f"{out} cannot be replaced ({error.strerror}); choose another --out") from None
    if not ours:
        raise InputError(f"{out} exists and is no picture of pdadmm.plot; choose another --out")
    return out


def _plot(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    out = _target(options.out or Path(f"{options.picture}.svg"))
    try:
        import matplotlib
    except ImportError:
        raise InputError("pictures need Matplotlib; pip install 'pdadmm[plot]'") from None
    except OSError as error:
        raise InputError(
            f"Matplotlib finds no folder for its cache ({one_line(error)}); set MPLCONFIGDIR to one that can "
            "be written to"
        ) from None
    form = out.suffix[1:]
    metadata = {
        "svg": {"Creator": _CREATOR, "Date": None},
        "png": {"Software": _CREATOR},
        "pdf": {"Creator": _CREATOR, "CreationDate": None},
    }[form]
    # identifiers inside an SVG are hashes with this salt, and else random
    with matplotlib.rc_context({"svg.hashsalt": "pdadmm", "svg.fonttype": "none", "font.size": 9}):
        figure = _PICTURES[options.picture](options.runs)
        figure.set_layout_engine("constrained")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with naming(out), replacing(out) as temporary, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of letters that a font lacks, and of long names
                figure.savefig(temporary, format=form, metadata=metadata, dpi=160)
        except OSError as error:
            raise InputError(f"{out} cannot be written ({error.strerror}); choose another --out") from None
    print(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return answer("pdadmm.plot", lambda report: _plot(arguments))


if __name__ == "__main__":
    begin()
    sys.exit(main())
