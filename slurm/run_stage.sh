#!/usr/bin/env bash
# Any stage: STAGE is pipeline, warm-up, pseudo-labels, self-train, evaluate, or an extension's.
#
#   sbatch [options of sbatch] slurm/run_stage.sh STAGE [--round N] CONFIG [key=value ...]
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 8 --time 8:00:00 slurm/run_stage.sh self-train --round 1 configs/gta5_to_cityscapes.yaml
#
# One task drives one GPU; without GPUs, it is one rank on CPUs. Output: RUN_DIR/logs/NAME-JOB.log,
# where NAME is the job's name (--job-name), else the stage and its round: self_train_1.
#SBATCH --job-name=run_stage
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@120
# Two minutes before the time limit all ranks are signalled: they write a checkpoint, and the job
# is requeued.

# Slurm runs a copy of this file; the original's folder has the rest. A busy controller is asked
# again.
this_job=
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  for pause in 1 3 10 30; do this_job=$(scontrol show job "$SLURM_JOB_ID") && break || sleep $pause; done
fi
# Only the first answer counts: the id of an array's last task is also that of the array.
folder=$(sed -n '\|^ *Command=\(.*/\)run_stage\.sh.*|{s||\1|p;q}' <<<"$this_job")
if [[ ! -f ${folder:-/}stage.sh ]]; then
  echo "error: Slurm does not say which folder run_stage.sh is in; submit it by its name: sbatch slurm/run_stage.sh STAGE CONFIG" >&2
  exit 2
fi
if (($# < 2)); then
  echo "error: expected a stage and a configuration: sbatch slurm/run_stage.sh STAGE CONFIG" >&2
  exit 2
fi
source "${folder}stage.sh"
run_stage "$@"
