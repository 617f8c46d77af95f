# ---- one Ray cluster per job -----------------------------------------------------------------------------------------

# The task of the step on each node: runs Ray until the job's shell sends USR2. The token comes by standard input,
# so it is not in a process list, script, log or shared folder.
node() {
    local ray='' num_terms=0 token address base
    leave() {
        [ -z "$ray" ] || kill -KILL "$ray" 2> /dev/null # its raylet and gcs_server end with it
        [ "$SLURM_NODEID" -eq 0 ] || remove_folder      # the job's shell removes the first node's
        exit 0
    }
    # SLURM sends TERM when the job is preempted or cancelled, and again at the end of the grace time. Ray must not get
    # it, because it would drain this node. On a preemption SLURM signals only tasks: the first task notifies the shell.
    on_task_term() {
        num_terms=$((num_terms + 1))
        [ "$num_terms" -lt 2 ] || leave
        [ "$SLURM_NODEID" -ne 0 ] || kill -USR2 "$SHELL_PID"
    }
    trap leave USR2
    trap on_task_term TERM

    read -r token
    if [ "$SLURM_NODEID" -ne 0 ]; then
        make_folder # the first node's exists
        (umask 077 && printf '%s' "$token" > "$JOB_DIR/token")
    fi
    unset token
    mkdir "$JOB_DIR/ray" # Ray makes its folder readable by everyone; the parent folder is private

    if [ "$SLURM_NODEID" -eq 0 ]; then
        address=$HEAD base=$PORT
        set -- --head --port="$PORT" --ray-client-server-port=$((PORT + 1)) --include-dashboard=false
    else
        for _ in $(seq "$START_S"); do
            listens "$HEAD" "$PORT" && break
            sleep 1
        done
        address=$(address_towards "$HEAD")
        base=$(free_ports "$address")
        set -- --address="$HEAD:$PORT"
    fi
    # Ray keeps idle processes, which replace failed workers, although no CPU is free; it starts none of its own.
    "${INSIDE[@]}" "${RAY_AUTH[@]}" RAY_num_workers_soft_limit=64 RAY_prestart_worker_first_driver=0 \
        ray start "$@" --block --disable-usage-stats \
        --temp-dir="$JOB_DIR/ray" --node-ip-address="$address" \
        --num-cpus="$CPUS_PER_NODE" --num-gpus="$GPUS_PER_NODE" --object-store-memory="$OBJECT_STORE_BYTES" \
        --labels="host=$SLURMD_NODENAME" --min-worker-port=0 --max-worker-port=0 \
        --node-manager-port=$((base + 2)) --object-manager-port=$((base + 3)) --metrics-export-port=$((base + 4)) \
        --dashboard-agent-listen-port=$((base + 5)) --dashboard-agent-grpc-port=$((base + 6)) \
        --runtime-env-agent-port=$((base + 7)) < /dev/null > "$JOB_DIR/ray-start.log" 2>&1 &
    ray=$!
    while kill -0 "$ray" 2> /dev/null; do wait "$ray"; done
    ray=''
    log "$SLURMD_NODENAME: Ray has ended. Its last lines:"
    tail -n 5 "$JOB_DIR/ray-start.log"
    leave
}

stop_step() {
    kill -USR2 "$step" 2> /dev/null # srun forwards it to the tasks, which stop Ray and remove their folders
    wait_at_most "$step" "$1" && return
    kill -TERM "$step" 2> /dev/null # srun stops them at once
    wait_at_most "$step" "$1" && remove_all_folders
}

readonly LAST_SIGNAL=KILL # for a driver that is late
readonly RAY_AUTH=(RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$JOB_DIR/token")
token=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
(umask 077 && printf '%s' "$token" > "$JOB_DIR/token")
# --no-kill: the step and the job survive a lost node.
printf '%s\n' "$token" | "${STEP[@]}" --no-kill --kill-on-bad-exit=0 "${CONTAINER[@]}" bash -c \
    "$(declare -p INSIDE RAY_AUTH SHELL_PID HEAD PORT JOB_DIR START_S CPUS_PER_NODE GPUS_PER_NODE OBJECT_STORE_BYTES)
     $(declare -f node log make_folder remove_folder listens free_ports address_towards); node" &
step=$!
unset token

deadline=$((SECONDS + START_S))
until listens "$HEAD" "$PORT"; do
    if $notified; then
        finish 75 # training has not started yet
    elif [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$step" 2> /dev/null; then
        log "Ray's head did not start within $START_S s"
        finish 69
    fi
    sleep 0.5
done

# The driver waits for the nodes that it needs. Its exit code becomes the job's.
run_child "${IN_IMAGE[@]}" "${INSIDE[@]}" "${RAY_AUTH[@]}" RAY_ADDRESS="$HEAD:$PORT" \
    python -m launcher.train "$JOB_DIR/config.yaml" "${OVERRIDES[@]}" place=ray < /dev/null &
child_shell=$!
driver=$(child_pid)
! $notified || on_usr2 # a notice arrived before there was a driver
wait_for_child
code=$?
# Killed by the notice before its handler was installed, or killed after it: existing checkpoints remain.
if $notified && { [ "$code" -eq 140 ] || [ "$code" -eq 137 ]; }; then code=75; fi
finish "$code"
