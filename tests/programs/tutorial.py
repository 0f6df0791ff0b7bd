"""Run a tutorial as it is written, in the working folder, and say what it printed.

    python tests/programs/tutorial.py docs/tutorials/layers.md

Blocks fenced as ``sh`` run in order by ``bash -euo pipefail``, a shell each, and ``python`` ones in between
in this process, one namespace for all. Every block that has run is a line of JSON: where it begins, its
language, what it wrote to stdout and stderr. The first one that fails ends it, with code 1 and its words on
stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int  #: of the page, of its first fence
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = page.read_text()
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.M | re.S)
    return [Block(text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


def in_shell(text: str) -> tuple[str, str]:
    """What a block of a shell writes to stdout and stderr."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env={**os.environ, "PATH": beside},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout, done.stderr


def in_python(text: str, name: str, names: dict[str, Any]) -> tuple[str, str]:
    """What a block of Python writes to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        exec(compile(text, name, "exec"), names)
    return out.getvalue(), err.getvalue()


def main() -> int:
    page = Path(sys.argv[1])
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        try:
            if block.language == "sh":
                out, err = in_shell(block.text)
            elif block.language == "python":
                out, err = in_python(block.text, where, names)
            else:
                continue
        except Exception:
            print(f"{where} failed", file=sys.stderr)
            traceback.print_exc()
            return 1
        record = {"line": block.line, "language": block.language, "out": out, "err": err}
        print(json.dumps(record), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
