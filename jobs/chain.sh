#!/usr/bin/env bash
# Train for longer than a job may run: before the time limit it saves, requeues itself and goes on.
#
#     sbatch jobs/chain.sh [FILE.h5] [OPTIONS OF pdadmm.run]
#
# SLURM sends USR1 to this script 120 seconds before the limit (--signal=B:), the script sends TERM to the
# ranks, which save a checkpoint and exit with code 75. OUT: folder of the results; default: runs/chain-JOBID.
# MAX_RESTARTS: requeues after which it gives up. CHECKPOINT_SECONDS: what the failure of a node may cost.
#SBATCH --job-name=pdadmm-chain
#SBATCH --ntasks=16
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

OUT=${OUT:-runs/chain-${SLURM_JOB_ID:-local}}
CHECKPOINT_SECONDS=${CHECKPOINT_SECONDS:-600}
MAX_RESTARTS=${MAX_RESTARTS:-100}
STOPPED_EARLY=75

here=$(dirname "$0")
# SLURM runs a copy of this script: ask it for the original
[ -f "$here/common.sh" ] || here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=\(.*\/[a-z_]*\.sh\).*/\1/p;q}')")
# shellcheck source=jobs/common.sh
. "$here/common.sh" || exit

case $MAX_RESTARTS in
'' | *[!0-9]*)
  echo "jobs: MAX_RESTARTS is '$MAX_RESTARTS'; it must be a number" >&2
  exit 2
  ;;
esac

trap 'echo "the time limit is near: saving"; stop_ranks' USR1

choose_start "$OUT"

describe
code=0
launch -m pdadmm.run "$@" --out "$OUT" --checkpoint-seconds "$CHECKPOINT_SECONDS" "${START[@]}" || code=$?

if [ "$code" -ne "$STOPPED_EARLY" ]; then exit "$code"; fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
  echo "jobs: $MAX_RESTARTS restarts are used up; go on with OUT=$OUT sbatch jobs/chain.sh" >&2
  exit "$code"
fi
# the job keeps its id, so that OUT stays the same; SLURM_RESTART_COUNT counts
{ [ -n "${SLURM_JOB_ID:-}" ] && scontrol requeue "$SLURM_JOB_ID"; } || {
  echo "jobs: nothing here requeues; go on with the same OUT: OUT=$OUT sbatch jobs/chain.sh" >&2
  exit "$code"
}
