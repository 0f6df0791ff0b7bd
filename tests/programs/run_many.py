"""Runs a command several times in one start: its module, and a JSON file with a list of argument lists."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    main = importlib.import_module(sys.argv[1]).main
    for arguments in json.loads(Path(sys.argv[2]).read_text()):
        code = main(arguments)
        if code:
            sys.exit(f"{arguments} ended with {code}")
