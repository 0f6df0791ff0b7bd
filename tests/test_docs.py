"""The README says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pdadmm.admm.options import OPTIONS

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_lists_every_option_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    section = text.split("## Options of `pdadmm.run`")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `(--[a-z-]+)", section, re.M))
    known = set()
    for action in OPTIONS.parser()._actions:
        names = [name for name in action.option_strings if name.startswith("--") and name != "--help"]
        # of a switch that is on by default the README lists the form that changes something
        known |= {names[-1]} if names else set()
    assert listed == known


@pytest.mark.parametrize("page", sorted(p.name for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]))
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
