"""``python -m pdadmm.bench links|kernels|iteration``: what messages, kernels and an iteration cost."""

from __future__ import annotations

import sys

from pdadmm.errors import one_line
from pdadmm.process import begin
from pdadmm.runtime.parser import answered

__all__ = ["main"]

_USAGE = """usage: python -m pdadmm.bench COMMAND [options]

commands:
  links      latency and bandwidth between neighbouring ranks (start with mpirun -n 2)
  kernels    bandwidth of the fused passes against a copy
  iteration  seconds of a layer's iteration against those of one of its products

python -m pdadmm.bench COMMAND --help tells the options.
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    if answered(_USAGE, command):
        return 0
    # imported here: only links needs MPI
    if command == "links":
        from pdadmm.bench.links import main as links

        return links(arguments[1:])
    if command == "kernels":
        from pdadmm.bench.kernels import main as kernels

        return kernels(arguments[1:])
    if command == "iteration":
        from pdadmm.bench.iteration import main as iteration

        return iteration(arguments[1:])
    print(f"pdadmm: bench knows links, kernels and iteration, not {one_line(repr(command))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    begin()
    sys.exit(main())
