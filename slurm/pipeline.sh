#!/usr/bin/env bash
# The pipeline as a chain of jobs: those that `diga-hpc plan CONFIG` lists.
#
#   slurm/pipeline.sh [--wait] [options of sbatch] -- CONFIG [key=value ...]
#   slurm/pipeline.sh --nodes 4 --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 8 -- configs/gta5_to_cityscapes.yaml
#
# Run it on a login node: it submits and returns. Each job starts when the one before it has
# succeeded; when one fails, Slurm cancels those after it. --wait stays until the last job has ended
# and prints how each ended; the exit code is then 1 if one failed. All output is in RUN_DIR/logs.
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

# In a subshell: what env.sh sets here must not reach the jobs, which read it on their own nodes.
program() (
  set +eu
  source "$repository/slurm/env.sh" >&2
  exec diga-hpc "$@"
)
run_dir=$(program show --key run_dir "$@")
plan=$(program plan "$@")
# sbatch puts no job id into a pattern with a backslash.
if [[ $run_dir == *\\* ]]; then
  echo "error: run_dir $run_dir: contains a backslash, which sbatch takes for something else; set run_dir to another folder" >&2
  exit 2
fi
mkdir -p "$run_dir/logs"

jobs=() names=()
submit() { # name, script, arguments
  local name=$1 script=$2 after=() job
  shift 2
  ((${#jobs[@]} == 0)) || after=(--dependency="afterok:${jobs[-1]}" --kill-on-invalid-dep=yes)
  if ! job=$(sbatch --parsable "${options[@]}" "${after[@]}" --job-name="$name" \
    --output="${run_dir//%/%%}/logs/$name-%j.log" "$repository/slurm/$script" "$@"); then
    ((${#jobs[@]} == 0)) || scancel "${jobs[@]}"
    echo "error: sbatch refused the job $name, see above; those before it are cancelled: ${jobs[*]:-there are none}" >&2
    exit 2
  fi
  jobs+=("${job%%;*}") # after the semicolon: the cluster, where there are several
  names+=("$name")
  # For `diga-hpc status`: without this line a job is found by its log, once it has started.
  printf '{"job": "%s", "stage": "%s", "executor": "slurm", "ranks": 0, "host": "", "submitted": %s, "logs": "%s"}\n' \
    "${jobs[-1]}" "$name" "$(date +%s)" "$name-${jobs[-1]}.log" >>"$run_dir/logs/jobs.jsonl"
  echo "${jobs[-1]} $name"
}

mapfile -t links <<<"$plan"
for link in "${links[@]}"; do
  read -r name command round <<<"$link"
  arguments=("$@")
  ((round == 0)) || arguments=(--round "$round" "$@")
  if [[ $command == warm-up ]]; then
    submit "$name" warmup.sh "${arguments[@]}"
  else
    submit "$name" run_stage.sh "$command" "${arguments[@]}"
  fi
done
echo "output: $run_dir/logs"
[[ $wait == yes ]] || exit 0

# Slurm forgets ended jobs after some minutes: the last known state is kept. One that is not final
# is trusted for five minutes, as a controller that is busy or restarting does not answer.
declare -A state seen
for job in "${jobs[@]}"; do state[$job]=PENDING seen[$job]=$SECONDS; done
ended=0
# Three times in a row: a job that is being requeued is in a final state for a moment.
while ((ended < 3)); do
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
