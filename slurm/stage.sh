# What warmup.sh and run_stage.sh share: they source it in their job, then call run_stage.
set -euo pipefail

slurm_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$slurm_folder")
source "$slurm_folder/ranks.sh"
# Not strict: modules and environments use unset variables and commands that fail.
set +eu
source "$slurm_folder/env.sh"
set -eu

# run_stage STAGE [--round N] CONFIG [key=value ...]: one rank per task, all output in RUN_DIR/logs.
run_stage() {
  local stage=$1 round=() run_dir name log status=0
  shift
  if [[ ${1:-} == --round ]]; then
    round=(--round "${2:-}")
    shift 2
  fi
  run_dir=$(diga-hpc show --key run_dir "$@") || give_up $? "$stage"
  mkdir -p "$run_dir/logs"
  name=${SLURM_JOB_NAME//\//_}
  # Submitted without --job-name, the log gets its name from the stage.
  [[ $name != run_stage ]] || name=${stage//-/_}${round[1]:+_${round[1]}}
  log=$run_dir/logs/$name-$SLURM_JOB_ID.log
  echo "output: $log"
  exec >>"$log" 2>&1
  echo "$(date +%FT%T) job $SLURM_JOB_ID: $stage on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}"
  one_task_per_gpu || give_up 2 "$stage"
  run_ranks --label "${hold[@]}" diga-hpc stage "$stage" "${round[@]}" "$@" || status=$?
  ((status == 0)) || give_up "$status" "$stage"
  echo "$(date +%FT%T) job $SLURM_JOB_ID: $stage is done"
}

give_up() { # exit code, stage
  if (($1 == 75)); then
    echo "$(date +%FT%T) job $SLURM_JOB_ID: $2 stopped before its end; its progress is kept." \
      "Unless it is requeued, jobs that depend on it are cancelled"
  else
    echo "$(date +%FT%T) job $SLURM_JOB_ID: $2 FAILED with exit code $1; jobs that depend on it are cancelled"
  fi
  exit "$1"
}

one_task_per_gpu() {
  local gpus=${SLURM_GPUS_ON_NODE:-0} tasks=${SLURM_TASKS_PER_NODE%%[!0-9]*}
  ((gpus == 0 || gpus == tasks)) && return
  echo "error: $tasks tasks but $gpus GPUs on a node: one task drives one GPU; submit with" \
    "--gpus-per-node=$gpus --ntasks-per-node=$gpus"
  return 1
}
