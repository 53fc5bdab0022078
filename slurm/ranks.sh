# run_ranks: srun for ranks that train together. stage.sh and the jobs of `diga-hpc launch` source
# this file, before env.sh.

# Signals are for the ranks: this shell survives them, and a rank starts with them blocked until it
# can handle them. An env without --block-signal (before coreutils 8.31) is replaced by a shell that
# ignores USR2: a rank that is still starting misses the signal, but does not die of it.
trap : TERM USR2
hold=(env --block-signal=TERM,USR2)
"${hold[@]}" true 2>/dev/null || hold=(bash -c 'trap "" USR2; exec "$@"' hold)

# sbatch passes on the variables of the submitting shell, which may be a rank of something else.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT "${!TORCHELASTIC@}" SRUN_CPUS_PER_TASK
# Ranks get this shell's environment, whatever `sbatch --export` was given.
export SLURM_EXPORT_ENV=ALL
# Submitted from within another job, this one inherits that job's variables.
if this_job=$(scontrol show job --oneliner "$SLURM_JOB_ID"); then
  if [[ $this_job != *" ArrayTaskId="* ]]; then
    unset "${!SLURM_ARRAY@}"
    [[ $this_job != *" Restarts=0 "* ]] || unset SLURM_RESTART_COUNT
  fi
  # srun reads these as its own options, and refuses two kinds of memory at once.
  for option in MinMemoryNode:SLURM_MEM_PER_NODE MinMemoryCPU:SLURM_MEM_PER_CPU MemPerTres:SLURM_MEM_PER_GPU \
    CpusPerTres:SLURM_CPUS_PER_GPU TresPerNode:SLURM_GPUS_PER_NODE TresPerTask:SLURM_GPUS_PER_TASK TresPerJob:SLURM_GPUS; do
    [[ $this_job == *" ${option%:*}="* ]] || unset "${option#*:}"
  done
fi

# run_ranks OPTIONS COMMAND: srun that does not hang. When a rank fails, the others end by
# themselves (diga_hpc/distributed/watchdog.py). When the ranks of this node have ended, those left
# on other nodes are killed. If a node is dead, srun would still wait until Slurm notices
# (SlurmdTimeout, minutes): it is abandoned, and the job is requeued if that is allowed (status 75),
# else it fails (status 1).
run_ranks() {
  local srun step= running gone_since= was_killed=no
  # This is the host of rank 0. Jobs that share a node need different ports: each start draws one.
  export MASTER_PORT=${MASTER_PORT:-$(free_port)}
  # Not --kill-on-bad-exit=1: ranks that hang would then stay for KillWait seconds.
  command srun "${srun_options[@]}" --kill-on-bad-exit=0 --wait=30 "$@" &
  srun=$!
  while kill -0 "$srun" 2>/dev/null; do
    sleep 2 || true
    running=$(step_of_this_node)
    [[ $running != [0-9]* ]] || step=$running
    if [[ -z $step || $running != none ]] || ! kill -0 "$srun" 2>/dev/null; then
      gone_since=
      continue
    fi
    gone_since=${gone_since:-$SECONDS}
    if [[ $was_killed == no ]] && ((SECONDS - gone_since >= 10)); then
      was_killed=yes
      echo "ranks on other nodes are still there 10 s after the last one here: they are killed"
      timeout 10 scancel --signal=KILL "$SLURM_JOB_ID.$step" 2>/dev/null || true
    elif ((SECONDS - gone_since >= 18)); then
      echo "srun still waits for a node though all ranks have ended or been killed: the node is lost; ending without it"
      { kill -KILL "$srun" && wait "$srun"; } 2>/dev/null || true
      requeue_if_allowed && return 75
      return 1
    fi
  done
  wait "$srun"
}

# Below 32768, where Linux's ephemeral ports begin: srun, for example, could be given one of those
# before rank 0 listens on it.
free_port() {
  local port
  while port=$((15000 + RANDOM % 15000)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# The id of the step with ranks on this node; `none` without one, nothing if Slurm does not answer.
step_of_this_node() {
  timeout 10 scontrol listpids "$SLURM_JOB_ID" "${SLURMD_NODENAME:-}" 2>/dev/null |
    awk '$3 == "batch" {found = "none"} $3 ~ /^[0-9]+$/ {found = $3; exit} END {print found}'
}

requeue_if_allowed() {
  # The id of an array's last task is also that of the array.
  local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} state
  job=${job:-$SLURM_JOB_ID}
  state=$(scontrol show job --oneliner "$job") || return
  # A job that is being cancelled, or is out of time, must not return.
  [[ $state == *" JobState=RUNNING "* && $state == *" Requeue=1 "* ]] || return
  scontrol requeue "$job" && echo "job $job is requeued"
}
