"""A hook of MkDocs: what lies outside of docs/ is part of the site.

README.md, CONTRIBUTING.md and CHANGELOG.md are pages, and other files that pages link to are copied. Links
between them and the pages in docs/ are written for the repository, where they lead to the files; for the site
they are rewritten. A link to nothing stays as it is, for MkDocs to complain about.

In the code of tables GitHub wants a backslash before a bar; Python-Markdown would show it, so it goes.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: pages of the site by their place in the repository
PAGES = {"README.md": "manual.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
#: the README is one page of many here, and what most of it is about
_TITLE = "# Train by ADMM"
_ROW = re.compile(r"^\|.*\|$", re.M)
_CODE = re.compile(r"`[^`]+`")
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def _target(link: str, folder: str, root: Path) -> str | None:
    """Where in the site a link of a page in `folder` of the repository leads; None for one to leave alone."""
    if ":" in link or link.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(folder, link))
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PAGES:
        return PAGES[path]
    return f"files/{path}" if not path.startswith("..") and (root / path).is_file() else None


def _links(text: str, source: str) -> list[str]:
    return [posixpath.normpath(posixpath.join(posixpath.dirname(source), m[2])) for m in _LINK.finditer(text)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the files that lie outside."""
    root = Path(config.config_file_path).parent
    texts = {f"docs/{page.src_uri}": page.content_string for page in files.documentation_pages()}
    for source, page in PAGES.items():
        texts[source] = (root / source).read_text(encoding="utf-8")
        content = re.sub(r"\A# .*", _TITLE, texts[source]) if source == "README.md" else texts[source]
        files.append(File.generated(config, page, content=content))
    for path in sorted({path for source, text in texts.items() for path in _links(text, source)}):
        if path not in PAGES and not path.startswith(("docs/", "..")) and (root / path).is_file():
            files.append(File.generated(config, f"files/{path}", abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that lead outside of docs/, or come from there."""
    root = Path(config.config_file_path).parent
    place = page.file.src_uri
    source = next((source for source, name in PAGES.items() if name == place), f"docs/{place}")
    here = posixpath.dirname(place)

    def rewritten(found: re.Match[str]) -> str:
        target = _target(found[2], posixpath.dirname(source), root)
        return found[0] if target is None else found[1] + posixpath.relpath(target, here or ".") + found[3]

    def without_backslashes(row: re.Match[str]) -> str:
        return _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])

    return _ROW.sub(without_backslashes, _LINK.sub(rewritten, markdown))
