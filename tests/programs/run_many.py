"""Runs pdadmm.run several times in one start: a JSON file holds a list of argument lists."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pdadmm.run import main

if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        code = main(arguments)
        if code:
            sys.exit(code)
