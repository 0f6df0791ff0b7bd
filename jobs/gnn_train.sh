#!/usr/bin/env bash
# Train a graph network on CPUs, one part of the graph or more a rank.
#
#     sbatch --ntasks=4 jobs/gnn_train.sh [FILE.h5] [OPTIONS OF pdadmm.gnn.run]
#
# OUT: folder of the results; default: runs/JOBID where sbatch was called. It goes on from its checkpoints,
# if it has any, so that a job that SLURM requeues after the failure of a node loses little.
#SBATCH --job-name=pdadmm-gnn
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

OUT=${OUT:-runs/${SLURM_JOB_ID:-gnn-train}}
CHECKPOINT_SECONDS=${CHECKPOINT_SECONDS:-600}

here=$(dirname "$0")
# SLURM runs a copy of this script: ask it for the original
[ -f "$here/common.sh" ] || here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=\(.*\/[a-z_]*\.sh\).*/\1/p;q}')")
# shellcheck source=jobs/common.sh
. "$here/common.sh" || exit

choose_start "$OUT"

describe
launch -m pdadmm.gnn.run "$@" --out "$OUT" --checkpoint-seconds "$CHECKPOINT_SECONDS" "${START[@]}"
