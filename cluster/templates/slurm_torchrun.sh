# ---- one torchrun per node -------------------------------------------------------------------------------------------

# One worker. torchrun turns every failure into exit code 1, and stops the other workers at the first failure. So the
# exit code is written to a file on the shared storage, and a stop after a save counts as success.
worker() {
    local start code
    trap : USR2 TERM # torchrun signals the worker too; this shell waits for it
    start='echo "$$" > "$0/pid-$RANK"; [ ! -e "$0/notice" ] || kill -USR2 "$$"; exec "$@"'
    bash -c "$start" "$JOB_DIR" python -m launcher.train "$JOB_DIR/config.yaml" "$@" place=local < /dev/null
    code=$?
    [ "$code" -ne 140 ] || code=75 # USR2 arrived before the worker's handler was installed: nothing was trained
    echo "$code" > "$CODES/$RANK"
    [ "$code" -ne 75 ] || exit 0
    exit "$code"
}

# The exit code of the job from those of its workers. srun's does not tell: it may have killed a worker that waited for
# the one at fault.
job_code() {
    local file code worst=0 other='' num_found=0
    for file in "$CODES"/*; do
        [ -s "$file" ] || continue
        num_found=$((num_found + 1))
        code=$(< "$file")
        case $code in
            64 | 65 | 78 | 79) return "$code" ;; # a restart would only repeat it
            0 | 75 | 76) [ "$code" -le "$worst" ] || worst=$code ;;
            129 | 13[1-9] | 1[45][0-9]) worst=76 ;; # ended by a signal: killed, or crashed
            *) other=$code ;;
        esac
    done
    if [ -n "$other" ]; then
        worst=$other
    elif [ "$num_found" -eq 0 ]; then
        worst=69 # torchrun could not start the workers
    elif [ "$num_found" -lt $((NUM_NODES * WORKERS_PER_NODE)) ]; then
        worst=76 # workers were killed
    fi
    if $notified && { [ "$worst" -eq 76 ] || [ "$num_found" -eq 0 ]; }; then worst=75; fi # killed while it was saving
    return "$worst"
}

# The task of the step on each node. The job's shell sends it USR2. SLURM sends TERM when the job is preempted or
# cancelled, and again at the end of the grace time.
node() {
    local torchrun='' num_terms=0 dollar='$'
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
    set -- "$(declare -p JOB_DIR CODES); $(declare -f worker); worker \"\$@\"" worker "$@"
    "${INSIDE[@]}" python -m torch.distributed.run --nnodes="$NUM_NODES" --nproc-per-node="$WORKERS_PER_NODE" \
        --node-rank="$SLURM_NODEID" --master-addr="$HEAD" --master-port="$PORT" --max-restarts=0 --no-python \
        bash -c "${@//$dollar/$dollar$dollar}" < /dev/null & # torchrun expands ${...} in arguments; $$ is its $
    torchrun=$!
    while kill -0 "$torchrun" 2> /dev/null; do wait "$torchrun"; done
    [ "$SLURM_NODEID" -eq 0 ] || remove_folder # the job's shell removes the first node's
}

stop_step() {
    kill -TERM "$step" 2> /dev/null # srun stops its tasks at once
    wait_at_most "$step" "$1"
}

readonly LAST_SIGNAL=TERM # for a step that is late
readonly CODES=${RUN%/*}/.rl-$SLURM_JOB_ID-$RESTARTS
rm -rf "$CODES"
mkdir -p "$CODES" || finish 69

# --wait: workers that wait for a lost one are stopped after a minute.
printf '%s' "$CONFIG" | run_child "${STEP[@]}" --kill-on-bad-exit=0 --wait=60 "${CONTAINER[@]}" bash -c \
    "$(declare -p INSIDE SHELL_PID HEAD PORT JOB_DIR CODES NUM_NODES WORKERS_PER_NODE)
     $(declare -f node worker log make_folder remove_folder); node \"\$@\"" node "${OVERRIDES[@]}" &
child_shell=$!
driver=$(child_pid)
step=$driver
! $notified || on_usr2 # a notice arrived before there was a step
wait_for_child || remove_all_folders
job_code
code=$?
rm -rf "$CODES"
finish "$code"
