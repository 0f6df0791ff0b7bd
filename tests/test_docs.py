"""The README and docs/gnn.md say what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pdadmm.admm.options import OPTIONS
from pdadmm.gnn.options import OPTIONS as GRAPH_OPTIONS
from pdadmm.runtime.options import Options

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("page", "command", "options"),
    [("README.md", "pdadmm.run", OPTIONS), ("docs/gnn.md", "pdadmm.gnn.run", GRAPH_OPTIONS)],
)
def test_the_page_of_a_command_lists_every_option_and_no_other(
    page: str, command: str, options: Options
) -> None:
    text = (ROOT / page).read_text()
    section = re.split(r"\n##+ ", text.split(f"## Options of `{command}`")[1])[0]
    listed = set(re.findall(r"^\| `(--[a-z-]+)", section, re.M))
    known, of_every_command = set(), ("--help", "--version")
    for action in options.parser()._actions:
        names = [
            name for name in action.option_strings if name.startswith("--") and name not in of_every_command
        ]
        # of a switch that is on by default the page lists the form that changes something
        known |= {names[-1]} if names else set()
    assert listed == known


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
