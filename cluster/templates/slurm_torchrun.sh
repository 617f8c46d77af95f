# ---- one torchrun on every node --------------------------------------------------------------------------------------

# One worker. torchrun makes 1 of every exit code and ends the other workers at the first that is not 0. So the code is
# written down, and a stop after a save counts as success.
worker() {
    local start code
    trap : USR2 TERM # torchrun signals the worker too: this shell waits for it
    start='echo "$$" > "$0/pid-$RANK"; [ ! -e "$0/notice" ] || kill -USR2 "$$"; exec "$@"'
    bash -c "$start" "$JOB_DIR" python -m launcher.train "$JOB_DIR/config.yaml" "$@" place=local < /dev/null
    code=$?
    [ "$code" -ne 140 ] || code=75 # USR2 came before the worker could listen: nothing was trained in this life
    echo "$code" > "$JOB_DIR/code-$RANK"
    [ "$code" -ne 75 ] || exit 0
    exit "$code"
}

# One exit code for all workers of a node. srun returns the highest of all nodes, so what must not be tried again is
# lifted above what may: 0, 75, 76, and 100 more than any other code.
verdict() {
    local file code worst=0 num_found=0
    for file in "$JOB_DIR"/code-*; do
        [ -e "$file" ] || continue
        num_found=$((num_found + 1))
        code=$(< "$file")
        case $code in
            0 | 75 | 76) ;;
            137 | 134 | 139 | 143) code=76 ;; # killed, aborted, crashed: nothing of its own to say
            *) code=$((code + 100)) ;;
        esac
        [ "$code" -le "$worst" ] || worst=$code
    done
    if [ "$num_found" -eq 0 ]; then
        worst=169 # torchrun could not start them
    elif [ "$num_found" -lt "$WORKERS_PER_NODE" ] && [ "$worst" -lt 76 ]; then
        worst=76
    fi
    return "$worst"
}

# On every node, as the one task of a step. USR2 comes from the job's shell. TERM comes from SLURM when the job is to be
# preempted or cancelled, and again when its time is over.
node() {
    local torchrun='' num_terms=0 dollar='$' code
    tell_workers() {
        local file
        touch "$JOB_DIR/notice"
        for file in "$JOB_DIR"/pid-*; do
            [ ! -e "$file" ] || kill -USR2 "$(< "$file")" 2> /dev/null
        done
    }
    on_task_term() {
        num_terms=$((num_terms + 1))
        tell_workers
        [ "$SLURM_NODEID" -ne 0 ] || kill -USR2 "$SHELL_PID" # at preemption, only tasks are signalled
        [ "$num_terms" -lt 2 ] || kill -KILL "$torchrun" 2> /dev/null
    }
    trap tell_workers USR2
    trap on_task_term TERM

    if [ "$SLURM_NODEID" -ne 0 ]; then
        make_folder # the first node's is there
        cat > "$JOB_DIR/config.yaml"
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS_PER_WORKER}
    set -- "$(declare -p JOB_DIR); $(declare -f worker); worker \"\$@\"" worker "$@"
    "${INSIDE[@]}" python -m torch.distributed.run --nnodes="$NUM_NODES" --nproc-per-node="$WORKERS_PER_NODE" \
        --node-rank="$SLURM_NODEID" --master-addr="$HEAD" --master-port="$PORT" --max-restarts=0 --no-python \
        bash -c "${@//$dollar/$dollar$dollar}" < /dev/null & # torchrun fills in ${...} in arguments, and $$ is its $
    torchrun=$!
    while kill -0 "$torchrun" 2> /dev/null; do wait "$torchrun"; done
    verdict
    code=$?
    [ "$SLURM_NODEID" -eq 0 ] || remove_folder # the first node's is the job's shell's
    exit "$code"
}

stop_step() {
    kill -TERM "$step" 2> /dev/null # srun ends its tasks at once
    await_briefly "$step" "$1"
}

readonly LAST_SIGNAL=TERM # what ends a step that is late

# Workers that wait for one that is gone are given a minute.
printf '%s' "$CONFIG" | keep "${STEP[@]}" --kill-on-bad-exit=0 --wait=60 "${CONTAINER[@]}" bash -c \
    "$(declare -p INSIDE SHELL_PID HEAD PORT JOB_DIR NUM_NODES WORKERS_PER_NODE CPUS_PER_WORKER)
     $(declare -f node worker verdict say make_folder remove_folder); node \"\$@\"" node "${OVERRIDES[@]}" &
keeper=$!
driver=$(kept)
step=$driver
! $notified || on_usr2 # the notice came before
exit_code
code=$?
case $code in
    0 | 75 | 76) ;;
    137 | 140 | 143) code=76 ;; # a task was killed
    *) code=$((code > 100 ? code - 100 : 76)) ;; # a verdict, or srun's own: a node is gone
esac
if $notified && [ "$code" -eq 76 ]; then code=75; fi # killed while it was ending
finish "$code"
