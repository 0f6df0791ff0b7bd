"""The tutorials run as they are written, and print what they say that they print."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from support import PROGRAMS, find_mpirun, python, succeed

sys.path.insert(0, str(PROGRAMS))
from tutorial import blocks

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"

#: how far a decimal number may be off, of 1 or of itself if that is more: processors round differently
TOLERANCE = 0.03
_DECIMAL = r"\d+\.\d*(?:e[-+]?\d+)?"


def plain(text: str) -> str:
    """A text whose spaces and lines of tables, which are as long as what they frame, have one length."""
    return re.sub(r"\s+", " ", re.sub(r"([─━])\1+", r"\1", text)).strip()


def agrees(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed.

    ``...`` stands for anything, as in doctest. Decimal numbers may differ by `TOLERANCE`; whole ones, such as
    bytes, are to be the same.
    """
    pattern, numbers = "", []
    for part in re.split(rf"(\.\.\.|{_DECIMAL})", plain(shown)):
        if part == "...":
            pattern += ".*?"
        elif re.fullmatch(_DECIMAL, part):
            pattern += f"({_DECIMAL})"
            numbers.append(float(part))
        else:
            pattern += re.escape(part)
    found = re.fullmatch(pattern, plain(printed), re.S)
    if found is None:
        return False
    pairs = zip(numbers, map(float, found.groups()), strict=True)
    return all(abs(a - b) <= TOLERANCE * max(1, abs(a)) for a, b in pairs)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("val 0.872  test 0.880", "val 0.860 test 0.885\n", True),
        ("val 0.872  test 0.880", "val 0.872  test 0.840", False),
        ("37,800 bytes", "37,801 bytes", False),
        ("rows in ... s\nbytes 12", "rows in 0.25 s\nbytes 12", True),
        ("rows in ... s\nbytes 12", "rows in 0.25 s\nbytes 13", False),
        ("rows in ... s", "rows in 0.25 s\nbytes 13", False),
        ("│ a    │ 1 │\n└──────┴───┘", "│ a │ 1 │\n└───┴───┘", True),
        ("accuracy 0.9", "accuracy of 0.9", False),
        ("took 5.00 MB", "took 5.10 MB", True),
        ("took 5.00 MB", "took 5.20 MB", False),
        ("True", "False", False),
    ],
)
def test_what_a_page_shows_is_compared(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers", "graphs"])
def test_a_tutorial_prints_what_it_shows(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    if find_mpirun() is None:
        pytest.skip("there is no mpirun")
    page = TUTORIALS / f"{name}.md"
    ended = succeed(python(PROGRAMS / "tutorial.py", page, timeout=280, cwd=tmp_path))
    ran = {record["line"]: record for record in map(json.loads, ended.out.splitlines())}
    found = blocks(page)
    assert [b.line for b in found if b.language in ("sh", "python")] == list(ran)
    compared = 0
    for before, block in itertools.pairwise(found):
        if block.language == "text":
            record = ran[before.line]  # output stands right behind what prints it
            out, err = record["out"], record["err"]
            printed = [err + out, out + err, out, err]
            assert any(agrees(block.text, x) for x in printed), f"{page.name}:{block.line}\n{err}\n{out}"
            compared += 1
    assert compared >= 8


def test_a_tutorial_ends_at_the_first_block_that_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n\n```sh\necho $((1 + 1))\nfalse\n```\n\n```python\nprint(x)\n```\n"
    )
    ended = python(PROGRAMS / "tutorial.py", page, cwd=tmp_path)
    assert (ended.code, len(ended.out.splitlines())) == (1, 1)
    assert "page.md:5 failed" in ended.err and "exit code 1" in ended.err
