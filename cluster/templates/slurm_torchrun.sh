# ---- one torchrun per node -------------------------------------------------------------------------------------------

# One worker. torchrun turns every failure into exit code 1, and stops the other workers at the first failure. So the
# exit code is written to a file, and a stop after a save counts as success.
worker() {
    local start code
    trap : USR2 TERM # torchrun signals the worker too; this shell waits for it
    start='echo "$$" > "$0/pid-$RANK"; [ ! -e "$0/notice" ] || kill -USR2 "$$"; exec "$@"'
    bash -c "$start" "$JOB_DIR" python -m launcher.train "$JOB_DIR/config.yaml" "$@" place=local < /dev/null
    code=$?
    [ "$code" -ne 140 ] || code=75 # USR2 arrived before the worker's handler was installed: nothing was trained
    echo "$code" > "$JOB_DIR/code-$RANK"
    [ "$code" -ne 75 ] || exit 0
    exit "$code"
}

# One exit code for all workers of a node. srun returns the highest of all nodes, so codes that must not be retried are
# raised above those that may be: 0, 75 and 76 stay, 100 is added to others.
node_exit_code() {
    local file code worst=0 num_found=0
    for file in "$JOB_DIR"/code-*; do
        [ -e "$file" ] || continue
        num_found=$((num_found + 1))
        code=$(< "$file")
        case $code in
            0 | 75 | 76) ;;
            137 | 134 | 139 | 143) code=76 ;; # killed, aborted or crashed
            *) code=$((code + 100)) ;;
        esac
        [ "$code" -le "$worst" ] || worst=$code
    done
    if [ "$num_found" -eq 0 ]; then
        worst=169 # torchrun could not start the workers
    elif [ "$num_found" -lt "$WORKERS_PER_NODE" ] && [ "$worst" -lt 76 ]; then
        worst=76
    fi
    return "$worst"
}

# The task of the step on each node. The job's shell sends it USR2. SLURM sends TERM when the job is preempted or
# cancelled, and again at the end of the grace time.
node() {
    local torchrun='' num_terms=0 dollar='$' code
    signal_workers() {
        local file
        touch "$JOB_DIR/notice"
        for file in "$JOB_DIR"/pid-*; do
            [ ! -e "$file" ] || kill -USR2 "$(< "$file")" 2> /dev/null
        done
    }
    on_task_term() {
        num_terms=$((num_terms + 1))
        signal_workers
        [ "$SLURM_NODEID" -ne 0 ] || kill -USR2 "$SHELL_PID" # on a preemption SLURM signals only tasks
        [ "$num_terms" -lt 2 ] || kill -KILL "$torchrun" 2> /dev/null
    }
    trap signal_workers USR2
    trap on_task_term TERM

    if [ "$SLURM_NODEID" -ne 0 ]; then
        make_folder # the first node's exists
        cat > "$JOB_DIR/config.yaml"
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS_PER_WORKER}
    set -- "$(declare -p JOB_DIR); $(declare -f worker); worker \"\$@\"" worker "$@"
    "${INSIDE[@]}" python -m torch.distributed.run --nnodes="$NUM_NODES" --nproc-per-node="$WORKERS_PER_NODE" \
        --node-rank="$SLURM_NODEID" --master-addr="$HEAD" --master-port="$PORT" --max-restarts=0 --no-python \
        bash -c "${@//$dollar/$dollar$dollar}" < /dev/null & # torchrun expands ${...} in arguments; $$ is its $
    torchrun=$!
    while kill -0 "$torchrun" 2> /dev/null; do wait "$torchrun"; done
    node_exit_code
    code=$?
    [ "$SLURM_NODEID" -eq 0 ] || remove_folder # the job's shell removes the first node's
    exit "$code"
}

stop_step() {
    kill -TERM "$step" 2> /dev/null # srun stops its tasks at once
    wait_at_most "$step" "$1"
}

readonly LAST_SIGNAL=TERM # for a step that is late

# --wait: workers that wait for a lost one are stopped after a minute.
printf '%s' "$CONFIG" | run_child "${STEP[@]}" --kill-on-bad-exit=0 --wait=60 "${CONTAINER[@]}" bash -c \
    "$(declare -p INSIDE SHELL_PID HEAD PORT JOB_DIR NUM_NODES WORKERS_PER_NODE CPUS_PER_WORKER)
     $(declare -f node worker node_exit_code log make_folder remove_folder); node \"\$@\"" node "${OVERRIDES[@]}" &
child_shell=$!
driver=$(child_pid)
step=$driver
! $notified || on_usr2 # a notice arrived before there was a step
wait_for_child
code=$?
case $code in
    0 | 75 | 76) ;;
    137 | 140 | 143) code=76 ;; # a task was killed
    *) code=$((code > 100 ? code - 100 : 76)) ;; # of node_exit_code, or of srun: a node is lost
esac
if $notified && [ "$code" -eq 76 ]; then code=75; fi # killed while it was saving
finish "$code"
