"""The documentation site: it builds without a warning, what is broken fails, and nothing is left out."""

from __future__ import annotations

import html
import importlib.util
import inspect
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import Finished, python, succeed

pytest.importorskip("material", reason="pip install 'pdadmm[docs]'")
pytest.importorskip("mkdocstrings", reason="pip install 'pdadmm[docs]'")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def build(root: Path, site: Path) -> Finished:
    """Build the site of a checkout strictly."""
    command = ["-m", "mkdocs", "build", "--strict", "--config-file", root / "mkdocs.yml", "--site-dir", site]
    return python(*command, timeout=120, cwd=root, env={"NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    succeed(build(ROOT, folder))
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the site is built from."""
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.md"), *(ROOT / name for name in ("mkdocs.yml", "CITATION.cff", "LICENSE"))):
        shutil.copy(path, tmp_path)
    (tmp_path / "pdadmm").symlink_to(ROOT / "pdadmm")
    return tmp_path


def listed(nav: object) -> list[str]:
    """The pages of the navigation."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in listed(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation_and_in_the_site(site: Path) -> None:
    from mkdocs.config import load_config

    pages = listed(load_config(str(ROOT / "mkdocs.yml"))["nav"])
    assert set(PAGES) <= set(pages)
    assert set(pages) - set(PAGES) == {"manual.md", "contributing.md", "changelog.md"}
    assert [page for page in pages if not (site / page).with_suffix(".html").is_file()] == []


def with_links(checkout: Path, links: list[tuple[str, str]]) -> Finished:
    """Build with one more link, or several, on pages."""
    for page, link in links:
        with open(checkout / page, "a") as file:
            file.write(f"\n[broken]({link})\n")
    return build(checkout, checkout / "site")


def warnings_of(built: Finished) -> list[str]:
    """The warnings of a build, less the line that says how many there were."""
    return [line for line in built.err.splitlines() if line.startswith("WARNING")]


@pytest.mark.parametrize("link", ["nothing.md", "#nothing"])
def test_one_broken_link_fails_the_build(checkout: Path, link: str) -> None:
    built = with_links(checkout, [("docs/data.md", link)])
    (warning,) = warnings_of(built)
    assert built.code == 1 and f"'{link}'" in warning and "data.md" in warning


def test_every_kind_of_broken_link_is_found(checkout: Path) -> None:
    kinds = {
        ("docs/data.md", "gnn.md#nothing-1"): "'gnn.md#nothing-1'",
        ("docs/data.md", "../nothing-2.md"): "'../nothing-2.md'",
        ("docs/data.md", "../README.md#nothing-3"): "'manual.md#nothing-3'",
        ("docs/tutorials/layers.md", "../../README.md#nothing-4"): "'../manual.md#nothing-4'",
        ("docs/tutorials/layers.md", "../nothing-5.md"): "'../nothing-5.md'",
        ("README.md", "docs/nothing-6.md"): "'nothing-6.md'",
        ("README.md", "docs/gnn.md#nothing-7"): "'gnn.md#nothing-7'",
        ("CONTRIBUTING.md", "nothing-8.txt"): "'nothing-8.txt'",
        ("CHANGELOG.md", "/nothing-9.md"): "'/nothing-9.md'",
    }
    built = with_links(checkout, list(kinds))
    warnings = warnings_of(built)
    assert built.code == 1
    for complaint in kinds.values():
        assert len([line for line in warnings if complaint in line]) == 1, built.err
    assert len(warnings) == len(kinds)


def test_a_page_that_is_not_in_the_navigation_fails_the_build(checkout: Path) -> None:
    (checkout / "docs" / "more.md").write_text("# More\n")
    built = build(checkout, checkout / "site")
    assert built.code == 1 and "more.md" in built.err


def test_files_outside_of_docs_that_pages_link_to_are_copied(checkout: Path) -> None:
    (checkout / "jobs").mkdir()
    (checkout / "jobs" / "train.sh").write_text("#!/bin/sh\n")
    with open(checkout / "docs" / "tutorials" / "layers.md", "a") as file:
        file.write("\n[a script](../../jobs/train.sh) and [what may be done](../../LICENSE)\n")
    succeed(build(checkout, checkout / "site"))
    page = (checkout / "site" / "tutorials" / "layers.html").read_text()
    for path in ("jobs/train.sh", "LICENSE"):
        assert f'href="../files/{path}"' in page
        assert (checkout / "site" / "files" / path).read_bytes() == (checkout / path).read_bytes()


def test_the_search_index_has_the_interfaces(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    places = {entry["location"] for entry in index}
    for name in (
        "estimator.ADMMClassifier.fit",
        "model.Model.load",
        "gnn.model.GraphModel.predict",
        "datasets.from_pyg",
        "datasets.from_networkx",
        "datasets.write_npz",
        "codec.Codec.encode",
        "codec.make_codec",
        "errors.InputError",
    ):
        assert f"reference.html#pdadmm.{name}" in places
    assert "gnn.html#options-of-pdadmmgnnrun" in places


def test_the_reference_describes_every_parameter_of_the_estimator(site: Path) -> None:
    pytest.importorskip("sklearn")
    from pdadmm import ADMMClassifier

    text = (site / "reference.html").read_text()
    section = text[text.index('id="pdadmm.estimator.ADMMClassifier"') :].split("<h4")[0]
    described = re.findall(r"<li[^>]*>\s*<b><code>(\w+)</code></b>", section)
    parameters = list(inspect.signature(ADMMClassifier).parameters)
    assert described[: len(parameters)] == parameters


def test_the_reference_has_no_markup_of_other_tools(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference.html").read_text()))
    assert re.findall(r":(?:func|meth|class|mod|data):|====|::: |doctest:", text) == []


def test_bars_in_the_code_of_tables_stand_without_backslashes(site: Path) -> None:
    assert "<code>--model gcn|sage</code>" in (site / "gnn.html").read_text()
    for page in site.rglob("*.html"):
        assert "\\|" not in "".join(re.findall(r"<td.*?</td>", page.read_text(), re.S)), page


def test_search_works_without_a_server(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text()
    assert json.loads(index.removeprefix("var __index = "))["docs"]
    assert (site / "iframe-worker.js").is_file()
    for page, script in (
        ("index.html", "iframe-worker.js"),
        ("tutorials/layers.html", "../iframe-worker.js"),
    ):
        assert f'<script src="{script}"></script>' in (site / page).read_text()


def test_every_command_has_its_page() -> None:
    rows = re.findall(r"^\| `(pdadmm[.\w]*)` \|.*\|(.*)\|$", (DOCS / "commands.md").read_text(), re.M)
    texts = [(ROOT / "README.md").read_text(), *((DOCS / page).read_text() for page in PAGES)]
    mentioned = {name for text in texts for name in re.findall(r"python -m (pdadmm(?:\.\w+)+)", text)}
    assert {module for module, _ in rows} == mentioned
    for module, links in rows:
        assert importlib.util.find_spec(module) is not None
        target = re.search(r"\]\(([^)#]+)", links)
        assert target is not None
        assert f"python -m {module}" in (DOCS / target[1]).read_text()


def test_the_start_page_has_the_figures_of_the_results() -> None:
    def table(page: str, after: str) -> dict[str, list[str]]:
        found = re.search(rf"{after}\n.*?\n\n?(\|.*?)\n\n", (DOCS / page).read_text(), re.S)
        assert found is not None
        lines = found[1].splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:2] == "| "]
        return {row[0]: row[1:] for row in cells}

    results = table("results.md", "Hidden 100:")
    start = table("index.md", "## What it reaches")
    names = {
        "pdADMM-G, the paper": "pdADMM-G, the paper",
        "float32": "float32",
        "4 bits": "delta4",
        "2 bits": "delta2",
        "1 bit": "delta1",
        "Adam, trained at 10 layers": "adam",
        "Adam, grown as pdadmm grows": "adam+growth",
    }
    for shown, measured in names.items():
        assert start[shown][1:] == [cell.split(" ")[0] for cell in results[measured]]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)|<link[^>]*\shref=\"([^\"]+)")
    for page in site.rglob("*.html"):
        found = [a or b for a, b in loaded.findall(page.read_text())]
        assert found
        assert [link for link in found if urlsplit(link).netloc] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text()), sheet
