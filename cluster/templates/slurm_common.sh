# ---- signals ---------------------------------------------------------------------------------------------------------
# USR2  preemption notice: save, exit with 75, requeue. SLURM sends it before the time limit; on a preemption, the first
#       node's task sends it.
# TERM  the job ends (scancel, time limit, lost node): save and exit. The script does not requeue the job; SLURM may.

notified=false terminated=false
driver='' child_shell='' step='' timer='' # process ids

on_usr2() {
    $notified || log "notice: the run saves and exits"
    notified=true
    [ -n "$driver" ] || return 0
    kill -USR2 "$driver" 2> /dev/null
    if [ -z "$timer" ]; then
        kill_late "$driver" &
        timer=$!
    fi
}

on_term() {
    terminated=true
    on_usr2
}

# Kill a driver that is late, because SLURM does not requeue a job that it has to kill itself.
kill_late() {
    pause "$SAVE_S"
    log "killed: still running $SAVE_S s after the notice; the newest checkpoint remains"
    kill "-$LAST_SIGNAL" "$1" 2> /dev/null
}

trap on_usr2 USR2
trap on_term TERM

# Sleep without a child process, which could outlive this one: read from a pipe that nothing writes to.
exec 8<> <(:)
pause() { read -rt "$1" -u 8; }

# ---- waiting ---------------------------------------------------------------------------------------------------------

# Run a command in the foreground of a background shell; write its process id and exit code to files. `wait` can lose
# the exit code of a child that ends when a signal arrives; a foreground command does not.
run_child() {
    trap : USR2 TERM # not '': the command would inherit an ignored signal
    bash -c 'echo "$$" > "$0/child-pid"; exec "$@"' "$JOB_DIR" "$@"
    echo "$?" > "$JOB_DIR/exit-code"
}

# Print the process id of the command, as soon as there is one.
child_pid() {
    until [ -s "$JOB_DIR/child-pid" ]; do
        kill -0 "$child_shell" 2> /dev/null || return 1
        pause 0.05
    done
    cat "$JOB_DIR/child-pid"
}

# Wait for the command, handling signals, and return its exit code.
wait_for_child() {
    while kill -0 "$child_shell" 2> /dev/null; do wait "$child_shell"; done
    [ -s "$JOB_DIR/exit-code" ] || return 76 # the background shell was killed
    return "$(< "$JOB_DIR/exit-code")"
}

# wait_at_most PID SECONDS: false if the process is still running then.
wait_at_most() {
    local tenths=$(($2 * 10))
    while kill -0 "$1" 2> /dev/null; do
        ((tenths-- > 0)) || return 1
        sleep 0.1
    done
}

# ---- addresses and ports ---------------------------------------------------------------------------------------------

# This host's address as seen from another host: the local end of a UDP socket. Nothing is sent.
address_towards() {
    local python=(python3)
    command -v python3 > /dev/null || python=("${INSIDE[@]}" python)
    "${python[@]}" - "$1" << 'END'
import socket, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect((sys.argv[1], 9))
print(probe.getsockname()[0])
END
}

listens() { (: > "/dev/tcp/$1/$2") 2> /dev/null; }

# The first of ten consecutive free ports. The search starts at a port that depends on the job, so that jobs on one node
# use different ports.
free_ports() {
    local base=$((10000 + SLURM_JOB_ID % 200 * 100)) offset
    for _ in {1..200}; do
        for offset in {0..9}; do
            if listens 127.0.0.1 $((base + offset)) || listens "$1" $((base + offset)); then
                base=$((10000 + (base - 9900) % 20000))
                continue 2
            fi
        done
        echo "$base"
        return
    done
    return 1
}

# ---- the job's folder on a node's local disk -------------------------------------------------------------------------

# mkdir fails if the folder exists, so no other user can have prepared it.
make_folder() { mkdir -m 700 "$JOB_DIR" || { log "$SLURMD_NODENAME: cannot create $JOB_DIR"; exit 69; }; }

# Killed processes may still write for a moment.
remove_folder() {
    for _ in {1..50}; do
        rm -rf "$JOB_DIR" 2> /dev/null
        [ -e "$JOB_DIR" ] || return 0
        sleep 0.1
    done
}

# The folders of all nodes, after srun had to kill tasks.
remove_all_folders() {
    $terminated || timeout 20 "${STEP[@]}" --kill-on-bad-exit=0 rm -rf "$JOB_DIR" < /dev/null > /dev/null 2>&1
}

# ---- the end ---------------------------------------------------------------------------------------------------------

# Exit with a code of launcher.train. 75 (stopped, saved) and 76 (hardware fault) requeue the job, unless its record has
# another code.
finish() {
    local code=$1 wait_s=10
    driver=''
    [ -z "$timer" ] || kill "$timer" 2> /dev/null
    ! $terminated || wait_s=2 # SLURM kills the remaining processes soon
    [ -z "$step" ] || stop_step "$wait_s"
    remove_folder
    if [ "$code" -ne 75 ] && [ "$code" -ne 76 ]; then
        log "exit code $code"
    elif $terminated; then
        log "exit code $code; SLURM is ending the job: not requeued"
    else
        requeue
    fi
    exit "$code"
}

# Requeue the job and exit. Returns, with the final `code`, if the job is not to be requeued.
requeue() {
    local decision reason answer
    decide_requeue
    if [ "$decision" != requeue ]; then
        log "exit code $code: not requeued; $reason"
        return
    fi
    while :; do
        # A job that was cancelled would start again. No answer is not an answer: ask again.
        until answer=$(squeue --noheader --jobs="$JOB" --format=%T 2>&1) || [[ $answer == *"Invalid job id"* ]]; do
            ! $terminated || break
            no_answer squeue "$answer"
        done
        if $terminated || [ "${answer##*$'\n'}" != RUNNING ]; then
            log "exit code $code; SLURM is ending the job (${answer:-not listed}): not requeued"
            return
        fi
        trap 'terminated=true' TERM # SLURM ends this shell once it has requeued the job
        if answer=$(scontrol requeue "$JOB" 2>&1); then
            log "exit code $code: requeued; $reason"
            for _ in {1..60}; do $terminated || pause 1; done
            exit "$code"
        elif ! is_silence "$answer"; then
            log "exit code $code: not requeued; $answer. Submit the script again to resume"
            return
        fi
        no_answer "scontrol requeue" "$answer"
    done
}

no_answer() {
    log "$1: no answer from SLURM, asking again: $2"
    pause 10
}

# Whether the message of a failed command means that the controller did not answer, rather than that it refused.
is_silence() {
    case ${1,,} in
        '' | *"unable to contact"* | *"timed out"* | *"connection refused"* | *"could not establish"* | \
            *"zero bytes"* | *"communication"* | *"temporarily unavailable"* | *"authentication"*) return 0 ;;
    esac
    return 1
}

# Ask the run's record whether to requeue after exit code `code`. Sets `code`, `decision` and `reason`.
decide_requeue() {
    local record
    record=$(timeout --kill-after=2 20 "${IN_IMAGE[@]}" "${INSIDE[@]}" \
        python -m launcher.recovery.requeue "$RUN" "$code" "$MAX_REQUEUES" < /dev/null)
    if [[ $record == [0-9]*\ @(requeue|end)\ * ]]; then
        read -r code decision reason <<< "$record"
    elif [ "$RESTARTS" -lt "$MAX_REQUEUES" ]; then
        decision=requeue reason="restart $((RESTARTS + 1)) of at most $MAX_REQUEUES; the run's record cannot be read"
    else
        decision=end reason="cluster.max_requeues allows $MAX_REQUEUES restarts; the run's record cannot be read"
    fi
}

# SLURM_RESTART_COUNT may be that of the job in which sbatch was called.
RESTARTS=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null | sed -n 's/.* Restarts=\([0-9]*\) .*/\1/p')
readonly RESTARTS=${RESTARTS:-${SLURM_RESTART_COUNT:-0}}
export LAUNCHER_SUBMISSION=slurm-$JOB # the same in all restarts, which wait until the previous one has ended
readonly JOB_DIR=$SCRATCH/rl-$SLURM_JOB_ID-$RESTARTS
readonly SHELL_PID=$$

mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=127.0.0.1
[ "${#HOSTS[@]}" -eq 1 ] || HEAD=$(address_towards "${HOSTS[1]}") || finish 69
PORT=$(free_ports "$HEAD") || finish 69
readonly HEAD PORT

export SRUN_CPUS_PER_TASK=$CPUS_PER_NODE # newer versions of srun do not inherit it from sbatch
readonly SRUN=(srun --export=ALL --cpu-bind=none) # --export: the job may have been submitted with --export=NONE
readonly STEP=("${SRUN[@]}" --nodes="${#HOSTS[@]}" --ntasks="${#HOSTS[@]}" --ntasks-per-node=1)

# The prefix of programs that run in the image: INSIDE, in a step of pyxis, which IN_IMAGE starts on this node. `env`
# because the image or the site may replace variables.
SETTINGS=()
for name in LAUNCHER_SUBMISSION "${VARIABLES[@]}"; do SETTINGS+=("$name=${!name}"); done
INSIDE+=(env "${SETTINGS[@]}")
IN_IMAGE=()
if [ "${#CONTAINER[@]}" -gt 0 ]; then
    IN_IMAGE=("${SRUN[@]}" --overlap --nodes=1 --ntasks=1 --nodelist="${HOSTS[0]}" "${CONTAINER[@]}")
fi

log "job $JOB, restart $RESTARTS: $RUN_NAME on ${HOSTS[*]}"
make_folder
printf '%s' "$CONFIG" > "$JOB_DIR/config.yaml"
