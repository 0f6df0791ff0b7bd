# What the job scripts share; sourced, not run. Variables that a site sets, in the environment of sbatch or
# in jobs/site.sh beside this file (not in git):
#
#   PYTHON        the Python to run; default: .venv of the checkout, else python3
#   MODULES       modules to load first, for instance "gcc/13 openmpi/5"
#   LAUNCH        srun-pmi2 | srun-pmix | mpirun | auto; auto: srun in a job of SLURM, with the --mpi that the
#                 MPI library speaks (MPICH pmi2, Open MPI pmix), mpirun elsewhere
#   SRUN_OPTIONS  more options of srun, for instance "--cpu-bind=cores"
#   MPIRUN        mpirun and its options; default: mpirun
#   CONTAINER     an Apptainer image with pdadmm in it; default: none
#   CONTAINER_OPTIONS   options of apptainer exec; default: --nv where there are GPUs
#
# shellcheck shell=bash
set -euo pipefail

JOBS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$JOBS")
# shellcheck source=/dev/null
if [ -f "$JOBS/site.sh" ]; then . "$JOBS/site.sh" || exit; fi

if [ -n "${MODULES:-}" ]; then
  # shellcheck disable=SC2086
  module load $MODULES || exit
fi
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$ROOT/.venv/bin/python" ] && [ -z "${CONTAINER:-}" ]; then PYTHON=$ROOT/.venv/bin/python; fi
fi
# the mpirun of a virtual environment lies beside its Python
case $PYTHON in */*) PATH=$(dirname "$PYTHON"):$PATH ;; esac
export PATH

# a rank's BLAS threads: the CPUs it was given
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export OPENBLAS_NUM_THREADS=$OMP_NUM_THREADS MKL_NUM_THREADS=$OMP_NUM_THREADS
# every rank reads the features for itself: locks, which many parallel file systems lack, guard nothing
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE}
export PYTHONUNBUFFERED=1
# Open MPI 5 counts CPUs itself; SLURM or the user has already decided
export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
# steps take the CPUs a task from the job: srun of SLURM 22.05 and later no longer does by itself
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

RANKS=${RANKS:-${SLURM_NTASKS:-1}}
case $RANKS in
*[!0-9]* | 0)
  echo "jobs: RANKS is '$RANKS'; it must be a number from 1" >&2
  exit 2
  ;;
esac

# The command that runs Python in a rank: as it is, or in the container.
python_command() {
  if [ -n "${CONTAINER:-}" ]; then
    local options=${CONTAINER_OPTIONS-}
    if [ -z "${CONTAINER_OPTIONS+set}" ] && [ -e /dev/nvidiactl ]; then options=--nv; fi
    # shellcheck disable=SC2086
    printf '%s\n' apptainer exec $options "$CONTAINER" "$PYTHON"
  else
    printf '%s\n' "$PYTHON"
  fi
}
mapfile -t COMMAND < <(python_command)

mpi_library() {
  "${COMMAND[@]}" -c 'import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version().splitlines()[0].strip("\0"))'
}

choose_launcher() {
  LAUNCH=${LAUNCH:-auto}
  if [ "$LAUNCH" = auto ]; then
    if [ -z "${SLURM_JOB_ID:-}" ]; then
      LAUNCH=mpirun
    else
      case $(mpi_library) in
      *"Open MPI"*) LAUNCH=srun-pmix ;;
      *) LAUNCH=srun-pmi2 ;;
      esac
    fi
  fi
  # shellcheck disable=SC2206
  case $LAUNCH in
  # one rank that fails must end the others, also where it could not call MPI_Abort
  srun-pmi2) LAUNCHER=(srun --mpi=pmi2 --kill-on-bad-exit=1 --ntasks="$RANKS" ${SRUN_OPTIONS:-}) ;;
  srun-pmix) LAUNCHER=(srun --mpi=pmix --kill-on-bad-exit=1 --ntasks="$RANKS" ${SRUN_OPTIONS:-}) ;;
  mpirun) LAUNCHER=(${MPIRUN:-mpirun} -n "$RANKS") ;;
  *)
    echo "jobs: LAUNCH is '$LAUNCH'; it must be srun-pmi2, srun-pmix, mpirun or auto" >&2
    exit 2
    ;;
  esac
}

# A requeued job has the id it had before, and MPICH names its shared memory after job and step: what killed
# ranks left in /dev/shm makes MPI_Init fail. Remove on every node what no process has mapped.
# shellcheck disable=SC2016
SWEEP='find /dev/shm -maxdepth 1 -name "mpich_shm_*" -user "$(id -u)" ! -newermt "-2 seconds" 2>/dev/null |
  while read -r file; do grep -qs "$file" /proc/[0-9]*/maps || rm -f "$file"; done'
sweep_shared_memory() {
  case $LAUNCH in
  srun-*) srun --ntasks-per-node=1 --ntasks="${SLURM_JOB_NUM_NODES:-1}" bash -c "$SWEEP" </dev/null || true ;;
  *) bash -c "$SWEEP" ;;
  esac
}

# launch -m pdadmm.run ...: Python on all ranks. The ranks get TERM when this script does, or when it
# calls stop_ranks; the exit code is theirs.
launch() {
  # srun in the background would read this script's input
  "${LAUNCHER[@]}" "${COMMAND[@]}" "$@" </dev/null &
  CHILD=$!
  local code=0
  while true; do
    code=0
    wait "$CHILD" || code=$?
    # a trapped signal ends wait, not the child; one that has ended meanwhile is asked for its own code
    kill -0 "$CHILD" 2>/dev/null || { code=0; wait "$CHILD" || code=$?; break; }
  done
  CHILD=
  return "$code"
}

# SIGTERM to all ranks: they save a checkpoint and exit with code 75.
stop_ranks() {
  if [ -z "${CHILD:-}" ]; then return 0; fi
  case $LAUNCH in
  srun-*) scancel --signal=TERM "$SLURM_JOB_ID" ;; # srun itself would kill its tasks when told to end
  *) kill -TERM "$CHILD" ;;
  esac
}
trap stop_ranks TERM

# Whether the run in the folder $1 has finished writing a checkpoint.
has_checkpoint() {
  local index folder
  for index in "$1"/checkpoints/iteration-*/index.json; do
    folder=$(basename "$(dirname "$index")")
    # others than of digits alone are left over from a crash
    case ${folder#iteration-} in *[!0-9]*) ;; *) [ ! -e "$index" ] || return 0 ;; esac
  done
  return 1
}

# How a run in the folder $1 starts, as START: it goes on where there is a checkpoint, and what SLURM requeued
# before the first one starts afresh. A finished run is gone on with only by the job that was requeued, which
# may not have written all; that run, and anything else in the folder, is otherwise refused by the run itself.
# shellcheck disable=SC2034
choose_start() {
  START=()
  local restarts=${SLURM_RESTART_COUNT:-0} finished=
  if [ -e "$1/summary.json" ]; then finished=yes; fi
  if [ -n "$finished" ] && [ "$restarts" -eq 0 ]; then return 0; fi
  if has_checkpoint "$1"; then
    START=(--resume)
  elif [ "$restarts" -gt 0 ] && [ -z "$finished" ]; then
    START=(--overwrite)
  fi
}

# Versions, hosts, and what every rank is bound to.
describe() {
  echo "job ${SLURM_JOB_ID:-none}, restart ${SLURM_RESTART_COUNT:-0}, $(date '+%F %T'), in $PWD"
  echo "hosts: ${SLURM_JOB_NODELIST:-$(hostname)}; $RANKS ranks, $OMP_NUM_THREADS threads a rank"
  echo "launcher: ${LAUNCHER[*]}; command: ${COMMAND[*]}"
  "${COMMAND[@]}" - <<'PYTHON'
import platform
from importlib.metadata import PackageNotFoundError, version

import pdadmm

names = ("numpy", "h5py", "mpi4py", "cupy-cuda12x", "cupy-cuda13x")
found = [f"pdadmm {pdadmm.__version__}"]
for name in names:
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:
        pass
print(f"Python {platform.python_version()}, " + ", ".join(found))
PYTHON
  echo "MPI: $(mpi_library)"
  if command -v nvidia-smi >/dev/null; then nvidia-smi -L || true; fi
  launch "$JOBS/binding.py"
}

choose_launcher
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then sweep_shared_memory; fi
