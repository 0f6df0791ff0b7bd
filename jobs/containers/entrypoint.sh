#!/bin/sh
# What an image does with its arguments: it runs them as a command. Without any it says what there is to run.
set -eu
if [ $# -gt 0 ]; then exec "$@"; fi
python -c 'import pdadmm; print("pdadmm", pdadmm.__version__)'
cat <<'HELP'
Give a command, for instance
  python -m pdadmm.prepare synthetic --out synthetic.h5
  mpirun -n 4 python -m pdadmm.run synthetic.h5 --layers 8 --out runs/first
  mpirun -n 4 python -m pdadmm.gnn.run
  python -m pdadmm.run --help
Files are read and written in the working folder, /work unless the container was started elsewhere.
HELP
