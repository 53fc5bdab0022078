#!/usr/bin/env bash
# The whole method as a chain of jobs: warm-up, then for each round pseudo labels and self-training, then evaluation.
#
#   slurm/pipeline.sh [--wait] [options of sbatch] -- CONFIG [key=value ...]
#   slurm/pipeline.sh --nodes 4 --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 8 -- configs/gta5_to_cityscapes.yaml
#
# Run it on a login node: it submits and returns. Each job starts when the one before it has succeeded; when one
# fails, Slurm cancels those after it. --wait stays until the last job has ended and says how each ended; its exit
# code is then 1 if one failed. All output is in RUN_DIR/logs.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }

wait=no options=()
while (($#)) && [[ $1 != -- ]]; do
  if [[ $1 == --wait ]]; then wait=yes; else options+=("$1"); fi
  shift
done
(($# > 1)) || usage
shift # the --

# In a shell of its own: what env.sh finds out about this node is not true of the jobs', which read it themselves.
show() (
  set +eu
  source "$repository/slurm/env.sh" >&2
  exec diga-hpc show --key "$@"
)
run_dir=$(show run_dir "$@")
rounds=$(show self_training.rounds "$@" 2>/dev/null) || rounds=0
mkdir -p "$run_dir/logs"

jobs=() names=()
submit() { # name, script, arguments
  local name=$1 script=$2 after=() job
  shift 2
  ((${#jobs[@]} == 0)) || after=(--dependency="afterok:${jobs[-1]}" --kill-on-invalid-dep=yes)
  if ! job=$(sbatch --parsable "${options[@]}" "${after[@]}" --job-name="$name" \
    --output="$run_dir/logs/$name-%j.log" "$repository/slurm/$script" "$@"); then
    ((${#jobs[@]} == 0)) || scancel "${jobs[@]}"
    echo "error: sbatch refused the job $name, see above; those before it are cancelled: ${jobs[*]:-there are none}" >&2
    exit 2
  fi
  jobs+=("${job%%;*}") # behind the semicolon: the cluster, where there are several
  names+=("$name")
  # For `diga-hpc status`, which finds a job by its log once it has started.
  printf '{"job": "%s", "stage": "%s", "executor": "slurm", "ranks": 0, "host": "", "submitted": %s, "logs": "%s"}\n' \
    "${jobs[-1]}" "$name" "$(date +%s)" "$name-${jobs[-1]}.log" >>"$run_dir/logs/jobs.jsonl"
  echo "${jobs[-1]} $name"
}

submit warmup warmup.sh "$@"
for round in $(seq "$rounds"); do
  submit "pseudo_labels_$round" pseudo_labels.sh --round "$round" "$@"
  submit "self_training_$round" self_training.sh --round "$round" "$@"
done
submit evaluate evaluate.sh "$@"
echo "output: $run_dir/logs"
[[ $wait == yes ]] || exit 0

# Slurm forgets ended jobs after some minutes: the last state seen is kept. One that was not an end is believed for
# five minutes, as when the controller is busy or restarted.
declare -A state seen
for job in "${jobs[@]}"; do state[$job]=PENDING seen[$job]=$SECONDS; done
ended=0
while ((ended < 3)); do # times in a row: a job on its way to be requeued is in other states for a moment
  sleep 1
  ended=$((ended + 1))
  for job in "${jobs[@]}"; do
    now=$(squeue --noheader --states=all --job "$job" --format=%T 2>/dev/null || true)
    [[ -z $now ]] || state[$job]=$now seen[$job]=$SECONDS
    case ${state[$job]} in
      PENDING | RUNNING | COMPLETING | CONFIGURING | REQUEUED | SUSPENDED | PREEMPTED)
        ((SECONDS - seen[$job] > 300)) || ended=0
        ;;
    esac
  done
done
failed=0
for i in "${!jobs[@]}"; do
  case ${state[${jobs[i]}]} in
    COMPLETED) echo "${jobs[i]} ${names[i]}: done" ;;
    CANCELLED) echo "${jobs[i]} ${names[i]}: cancelled"; failed=1 ;;
    *) echo "${jobs[i]} ${names[i]}: ${state[${jobs[i]}]}, see $run_dir/logs/${names[i]}-${jobs[i]}.log"; failed=1 ;;
  esac
done
exit "$failed"
