#!/usr/bin/env bash
# Train a few iterations with a timeline, and print the report of where the time went.
#
#     sbatch jobs/profile.sh [FILE.h5] [OPTIONS OF pdadmm.run]
#
# OUT: folder of the results; default: runs/profile-JOBID. trace.json in it opens in Perfetto.
#SBATCH --job-name=pdadmm-profile
#SBATCH --ntasks=16
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --output=%x-%j.out

OUT=${OUT:-runs/profile-${SLURM_JOB_ID:-local}}

here=$(dirname "$0")
# SLURM runs a copy of this script: ask it for the original
[ -f "$here/common.sh" ] || here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=\(.*\/[a-z_]*\.sh\).*/\1/p;q}')")
# shellcheck source=jobs/common.sh
. "$here/common.sh" || exit

choose_start "$OUT"

describe
launch -m pdadmm.run --iterations 30 "$@" --out "$OUT" --trace --measure-links "${START[@]}"
"${COMMAND[@]}" -m pdadmm.profile "$OUT"
