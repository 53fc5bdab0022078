#!/usr/bin/env bash
# Every network trained so far on the validation images: results.json and report.html.
#
#   sbatch [options of sbatch] slurm/evaluate.sh CONFIG [key=value ...]
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 8 --time 8:00:00 slurm/evaluate.sh configs/gta5_to_cityscapes.yaml
#
# One task drives one GPU (or, without GPUs, is one rank on CPUs). Output: RUN_DIR/logs/evaluate-JOB.log.
#SBATCH --job-name=evaluate
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@120
# Two minutes before the time limit every rank is told; the job writes a checkpoint and is requeued.

# Slurm runs a copy of this file; the folder it came from is where the rest is.
source "$(scontrol show job "${SLURM_JOB_ID:?submit this file with sbatch}" | sed -n 's|^ *Command=\(.*/\)evaluate\.sh.*|\1|p')stage.sh"
run_stage evaluate "$@"
