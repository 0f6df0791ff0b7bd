#!/usr/bin/env bash
# Train on GPUs, one rank a GPU, over several nodes.
#
#     sbatch --nodes=4 jobs/train_gpu.sh [FILE.h5] [OPTIONS OF pdadmm.run]
#
# All GPUs of a node stay visible to its ranks, and rank i of a node takes GPU i: the copies between GPUs of
# a node need that. docs/cluster.md tells what to do where a site binds one GPU to a task.
#SBATCH --job-name=pdadmm-gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

OUT=${OUT:-runs/${SLURM_JOB_ID:-train-gpu}}
CHECKPOINT_SECONDS=${CHECKPOINT_SECONDS:-600}

here=$(dirname "$0")
# SLURM runs a copy of this script: ask it for the original
[ -f "$here/common.sh" ] || here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=\(.*\/[a-z_]*\.sh\).*/\1/p;q}')")
# shellcheck source=jobs/common.sh
. "$here/common.sh" || exit

choose_start "$OUT"

describe
launch -m pdadmm.run "$@" --backend cupy --out "$OUT" --checkpoint-seconds "$CHECKPOINT_SECONDS" "${START[@]}"
