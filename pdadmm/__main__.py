"""``python -m pdadmm``: which commands there are."""

from __future__ import annotations

import sys

from pdadmm.errors import one_line
from pdadmm.process import begin
from pdadmm.runtime.parser import answered

__all__ = ["main"]

_USAGE = """usage: python -m pdadmm.COMMAND [options], under mpirun -n R for R ranks

commands:
  prepare      inputs of a data set, or of a graph of yours
  tune         tries inputs on validation nodes
  run          trains a network of layers by ADMM
  predict      classes of the nodes of a feature file
  gnn.prepare  cuts a graph into parts
  gnn.tune     tries options of a graph network on validation nodes
  gnn.run      trains a graph network
  gnn.predict  classes of the nodes of a graph
  gnn.export   weights of a graph network for PyTorch Geometric
  profile      reports, comparisons and predictions of runs
  plot         pictures of runs
  bench        what messages, kernels and an iteration cost

python -m pdadmm.COMMAND --help tells the options.
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    if answered(_USAGE, command):
        return 0
    if not command:
        print(_USAGE, end="", file=sys.stderr)
        return 2
    said = "commands are modules: python -m pdadmm.run; python -m pdadmm --help lists them"
    print(f"pdadmm: {one_line(repr(command))} is no option; {said}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    begin()
    sys.exit(main())
