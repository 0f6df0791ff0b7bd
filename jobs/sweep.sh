#!/usr/bin/env bash
# Train with several settings: a job array, at most two tasks at a time (the number after %).
#
#     sbatch --array=0-5%2 jobs/sweep.sh [FILE.h5] [OPTIONS OF pdadmm.run]
#
# SETTINGS: a line of options a task. OUT: folder of the results, a subfolder a line; default: runs/sweep-JOBID.
#SBATCH --job-name=pdadmm-sweep
#SBATCH --array=0-5%2
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=1
#SBATCH --time=02:00:00
#SBATCH --output=%x-%A-%a.out
#SBATCH --open-mode=append

SETTINGS=${SETTINGS:-"\
--codec float32
--codec delta --bits 8
--codec delta --bits 4
--codec delta --bits 2
--codec affine --bits 8
--codec grid --bits 8"}
OUT=${OUT:-runs/sweep-${SLURM_ARRAY_JOB_ID:-local}}
CHECKPOINT_SECONDS=${CHECKPOINT_SECONDS:-600}
TASK=${SLURM_ARRAY_TASK_ID:-0}

here=$(dirname "$0")
# SLURM runs a copy of this script: ask it for the original
[ -f "$here/common.sh" ] || here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=\(.*\/[a-z_]*\.sh\).*/\1/p;q}')")
# shellcheck source=jobs/common.sh
. "$here/common.sh" || exit

mapfile -t lines < <(grep -v '^[[:space:]]*$' <<<"$SETTINGS")
if [ "$TASK" -ge ${#lines[@]} ]; then
  echo "jobs: task $TASK, but SETTINGS has ${#lines[@]} lines; give --array=0-$((${#lines[@]} - 1))%2" >&2
  exit 2
fi
read -ra setting <<<"${lines[TASK]}"
out=$OUT/$TASK

choose_start "$out"

describe
echo "setting $TASK: ${setting[*]}"
launch -m pdadmm.run "$@" "${setting[@]}" --out "$out" --checkpoint-seconds "$CHECKPOINT_SECONDS" "${START[@]}"
