#!/usr/bin/env bash
# A round of self-training (the first, or --round N) on the pseudo labels made for it.
#
#   sbatch [options of sbatch] slurm/self_training.sh [--round N] CONFIG [key=value ...]
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 8 --time 8:00:00 slurm/self_training.sh --round 1 configs/gta5_to_cityscapes.yaml
#
# One task drives one GPU (or, without GPUs, is one rank on CPUs). Output: RUN_DIR/logs/self_training-JOB.log.
#SBATCH --job-name=self_training
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@120
# Two minutes before the time limit every rank is told; the job writes a checkpoint and is requeued.

# Slurm runs a copy of this file; the folder it came from is where the rest is.
source "$(scontrol show job "${SLURM_JOB_ID:?submit this file with sbatch}" | sed -n 's|^ *Command=\(.*/\)self_training\.sh.*|\1|p')stage.sh"
run_stage self-train "$@"
