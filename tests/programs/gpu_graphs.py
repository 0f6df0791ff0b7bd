"""Runs pdadmm.run on the stand-in for CuPy and says how its iterations were launched: gpu_graphs.py OPTIONS…

Prints CUDA graphs and single kernels launched.
"""

from __future__ import annotations

import sys

import cupy

from pdadmm.run import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.write(f"{cupy.counts['graphs']} {cupy.counts['launches']}\n")
    sys.exit(code)
