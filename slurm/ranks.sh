# run_ranks: srun for ranks that train together. stage.sh and the jobs of `diga-hpc launch` source this, after env.sh.

# Signals are meant for the ranks: this shell outlives them, and a rank meets them when it is ready to. Where env
# cannot hold them back (before coreutils 8.31) a rank that is only starting misses USR2, instead of ending by it.
trap : TERM USR2
hold=(env --block-signal=TERM,USR2)
"${hold[@]}" true 2>/dev/null || hold=(bash -c 'trap "" USR2; exec "$@"' hold)

# run_ranks OPTIONS COMMAND: like srun, but if a node dies it ends, or requeues the job, soon after the ranks that are
# left have ended. srun itself waits until Slurm takes the node for dead (SlurmdTimeout: minutes).
run_ranks() {
  local srun seen=no gone_since=
  command srun "${srun_options[@]}" "$@" &
  srun=$!
  while kill -0 "$srun" 2>/dev/null; do
    sleep 2 || true
    case $(ranks_on_this_node) in
      some) seen=yes gone_since= ;;
      none) [[ $seen == no ]] || gone_since=${gone_since:-$SECONDS} ;;
    esac
    if [[ -n $gone_since ]] && ((SECONDS - gone_since >= 10)); then
      echo "srun still waits for a node though the ranks on this one have ended: the node is lost; ending without it"
      { kill -KILL "$srun" && wait "$srun"; } 2>/dev/null || true
      requeue_if_allowed || true
      return 1
    fi
  done
  wait "$srun"
}

ranks_on_this_node() { # some, none, or nothing where it cannot be known
  scontrol listpids "$SLURM_JOB_ID" "${SLURMD_NODENAME:-}" 2>/dev/null |
    awk '$3 == "batch" {batch = 1} $3 ~ /^[0-9]+$/ {ranks = 1} END {if (ranks) print "some"; else if (batch) print "none"}'
}

requeue_if_allowed() {
  # The number of an array's last task is also that of the whole array.
  local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-$SLURM_JOB_ID}
  [[ $(scontrol show job --oneliner "$job") == *" Requeue=1 "* ]] || return
  scontrol requeue "$job" && echo "job $job is requeued"
}
