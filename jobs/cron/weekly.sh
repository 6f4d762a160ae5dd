#!/bin/sh
# Trains a model on the newest log, registers it, and makes it the champion if it holds against the gates. For cron, or by
# hand. nightly.sh scores with the champion: GENREC_BATCH_MODEL=registry:ranker@champion.
#
#   weekly.sh [OPTION OF `genrec-batch train`]...
#
# Settings are environment variables, or lines of $GENREC_JOB_CONFIG (default /etc/genrec-batch/weekly.env):
#   GENREC_JOB_ROOT          folder that holds events/, and gets models/ and logs/ (required)
#   GENREC_JOB_DATE          newest day of the log, YYYY-MM-DD; default: yesterday, UTC
#   GENREC_JOB_INPUT         default $GENREC_JOB_ROOT/events/ds=$GENREC_JOB_DATE
#   GENREC_JOB_MARKER        file in a folder INPUT that marks it as complete; default _SUCCESS; empty: none
#   GENREC_JOB_NAME          name of the model in the registry; default ranker
#   GENREC_JOB_TEST_DAYS     newest days of the log that the gates are measured on, which no model has seen; default 1
#   GENREC_JOB_GATE          conditions of `model promote --gate`, with spaces between; default ndcg@10>=0.98*champion
#   GENREC_JOB_MIN_COVERAGE  smallest share of the log's events whose video the new model knows; default 0.8
#   GENREC_JOB_PROGRAM       default genrec-batch
#   GENREC_JOB_TIMEOUT       seconds for everything, with retries; default 43200
#   GENREC_JOB_RETRIES       how often exit 75 and a missing log are tried again; default 3
#   GENREC_JOB_RETRY_DELAY   seconds between them; default 300
#   GENREC_JOB_KEEP_MODELS   newest folders in models/ that are kept; what is registered stays in any case; default 2
#   GENREC_JOB_KEEP_LOGS     newest logs kept; default 26
#   GENREC_JOB_ON_FAILURE    program called with CODE DATE LOG when the week failed; CODE is 6 where a gate did
# GENREC_BATCH_* and $GENREC_JOB_ROOT/genrec-batch.toml are options of genrec-batch itself; GENREC_BATCH_REGISTRY is
# $GENREC_JOB_ROOT/registry by default.
#
# Exit codes are those of genrec-batch: 6, a gate failed: the new model is registered, the champion stays, and another try
# ends the same way. 75: another week is still running, or the log is not there; 124: out of time. After 75, 124, 129, 130,
# 137 and 143 the same command continues where it stopped: training goes on from its checkpoint.
set -eu

# $* a message, into the log with the time (UTC) in front.
say() {
    printf '%s weekly: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2
}

# $1 exit code, $2 reason. Printed on the original stderr, which cron mails.
refuse() {
    printf 'weekly.sh: %s\n' "$2" >&2
    exit "$1"
}

whole_number() {
    case $2 in
    '' | *[!0-9]*) refuse 2 "$1=$2: give a whole number" ;;
    esac
}

# $1 days before $2, YYYY-MM-DD.
days_before() {
    date -u -d "@$(($(date -u -d "$2" +%s) - 86400 * $1))" +%Y-%m-%d
}

read_settings() {
    # The environment takes precedence over the file.
    outside_date=${GENREC_JOB_DATE-}
    GENREC_JOB_DATE=${GENREC_JOB_DATE:-$(date -u -d "@$(($(date +%s) - 86400))" +%Y-%m-%d)}
    config=${GENREC_JOB_CONFIG-/etc/genrec-batch/weekly.env}
    if [ -r "$config" ]; then
        set -a
        # shellcheck source=/dev/null
        . "$config"
        set +a
    elif [ -n "${GENREC_JOB_CONFIG-}" ]; then
        refuse 2 "GENREC_JOB_CONFIG=$config: cannot be read"
    fi
    day=${outside_date:-$GENREC_JOB_DATE}
    case $day in
    [0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]) ;;
    *) refuse 2 "GENREC_JOB_DATE=$day: give a day as YYYY-MM-DD" ;;
    esac
    root=${GENREC_JOB_ROOT:-}
    [ -d "$root" ] || refuse 2 "GENREC_JOB_ROOT='$root': no such folder; name the one that holds events/"
    root=$(cd "$root" && pwd)
    input=${GENREC_JOB_INPUT:-$root/events/ds=$day}
    marker=${GENREC_JOB_MARKER-_SUCCESS}
    name=${GENREC_JOB_NAME:-ranker}
    test_days=${GENREC_JOB_TEST_DAYS:-1}
    conditions=${GENREC_JOB_GATE:-ndcg@10>=0.98*champion}
    min_coverage=${GENREC_JOB_MIN_COVERAGE:-0.8}
    program=${GENREC_JOB_PROGRAM:-genrec-batch}
    timeout_s=${GENREC_JOB_TIMEOUT:-43200}
    retries=${GENREC_JOB_RETRIES:-3}
    delay_s=${GENREC_JOB_RETRY_DELAY:-300}
    keep_models=${GENREC_JOB_KEEP_MODELS:-2}
    keep_logs=${GENREC_JOB_KEEP_LOGS:-26}
    on_failure=${GENREC_JOB_ON_FAILURE:-}
    whole_number GENREC_JOB_TEST_DAYS "$test_days"
    whole_number GENREC_JOB_TIMEOUT "$timeout_s"
    whole_number GENREC_JOB_RETRIES "$retries"
    whole_number GENREC_JOB_RETRY_DELAY "$delay_s"
    whole_number GENREC_JOB_KEEP_MODELS "$keep_models"
    whole_number GENREC_JOB_KEEP_LOGS "$keep_logs"
    [ "$test_days" -gt 0 ] || refuse 2 "GENREC_JOB_TEST_DAYS=0: the gates need days that no model was trained on"
    [ "$keep_models" -gt 0 ] || refuse 2 "GENREC_JOB_KEEP_MODELS=0 would remove what was just trained"
    for tool in flock timeout "$program"; do
        command -v "$tool" >/dev/null 2>&1 || refuse 2 "$tool: no such program in PATH=$PATH"
    done
    GENREC_BATCH_REGISTRY=${GENREC_BATCH_REGISTRY:-$root/registry}
    export GENREC_BATCH_REGISTRY
}

# $@ a command, run in the background so that a TERM sent to this script reaches it at once; returns its exit code.
# `timeout` passes the TERM on and waits; the command inherits the lock (9), which lasts as long as the work.
attend() {
    "$@" &
    child=$!
    while :; do
        code=0
        wait "$child" || code=$?
        kill -0 "$child" 2>/dev/null || break # otherwise a signal ended the wait
    done
    child=
    return "$code"
}

# shellcheck disable=SC2329 # called by the trap
stop() {
    stopped=yes
    [ -z "${child:-}" ] || kill -TERM "$child" 2>/dev/null || :
}

log_is_there() {
    if [ -d "$input" ]; then
        [ -z "$marker" ] || [ -e "$input/$marker" ]
    else
        case $input in
        *://* | *[*?]*) ;; # an object store or a glob: genrec-batch reports what it finds
        *) [ -e "$input" ] ;;
        esac
    fi
}

# $@ arguments of genrec-batch: runs it once; its stdout goes to $answer.
once() {
    if ! log_is_there; then
        say "the log is not there yet: $input${marker:+ with $marker}"
        return 75
    fi
    left_s=$((deadline - $(date +%s)))
    [ "$left_s" -gt 0 ] || return 124 # `timeout 0` would have no limit
    attend timeout -s TERM -k 60 "$left_s" "$program" "$@" >"$answer"
}

# $@ arguments of genrec-batch: runs it, and again after exit 75; what it prints last is added to the week's summary.
run() {
    attempt=0
    while :; do
        code=0
        once "$@" || code=$?
        [ -z "$stopped" ] || return 143
        if [ "$code" -ne 75 ] || [ "$attempt" -ge "$retries" ]; then break; fi
        [ "$(($(date +%s) + delay_s))" -lt "$deadline" ] || break
        attempt=$((attempt + 1))
        say "exit 75: the same command again in $delay_s s ($attempt of $retries)"
        attend sleep "$delay_s" 9>&- || :
        [ -z "$stopped" ] || return 143
    done
    [ ! -s "$answer" ] || tail -n 1 "$answer" >>"$summary.new"
    return "$code"
}

# A model that is there was trained by an earlier try: its config.json is written last.
train() {
    if [ -e "models/ds=$day/config.json" ]; then
        say "models/ds=$day was trained before"
    else
        run train "$input" --out "models/ds=$day" --as-of "${trained_until}T23:59:59.999999Z" "$@"
    fi
}

# The same files keep their number, so that another try of the week promotes the version of the first one.
register() {
    run model register "models/ds=$day" "$name" || return
    version=$(sed -n 's/.*"version": \([0-9][0-9]*\).*/\1/p' "$answer" | tail -n 1)
    [ -n "$version" ] || {
        say "model register did not say the version"
        return 1
    }
}

# A version that was live before, or is older than one that was, stays as it is: a rollback is not undone.
promote() {
    set -f # conditions hold no patterns
    for condition in $conditions; do set -- "$@" --gate "$condition"; done
    set +f
    run model promote "$name@$version" --only-new --log "$input" --min-coverage "$min_coverage" \
        --evaluate "$input" --test-from "$tested_from" "$@"
}

# Oldest first; what is registered is a copy.
remove_old() {
    set -- models/ds=[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]
    while [ $# -gt "$keep_models" ]; do
        say "removing $1"
        rm -rf -- "$1"
        shift
    done
    for kind in log json; do
        set -- logs/weekly-[0-9]*."$kind"
        while [ $# -gt "$keep_logs" ]; do
            rm -f -- "$1"
            shift
        done
    done
}

# Everything that is done under the lock; its stderr is the log.
week() {
    tested_from=$(days_before "$((test_days - 1))" "$day")
    trained_until=$(days_before "$test_days" "$day")
    deadline=$(($(date +%s) + timeout_s))
    say "training on $input until $trained_until, testing from $tested_from"
    : >"$summary.new"
    code=0
    { train "$@" && register && promote; } || code=$?
    case $code in
    0) say "done: $(tail -n 1 "$summary.new")" ;;
    6)
        if [ -n "$version" ]; then
            say "a gate failed: $name@$version stays registered, the champion stays live"
        else
            say "a gate failed before anything was registered, such as --max-rejects; the champion stays live"
        fi
        ;;
    124 | 137) say "stopped by the time limit of $timeout_s s or by the system; run again to continue" ;;
    *) say "ended with exit code $code" ;;
    esac
    mv -f "$summary.new" "$summary"
    rm -f -- "$answer"
    remove_old || say "old models and logs: not all could be removed"
    return "$code"
}

read_settings
stopped='' child='' version=''
cd "$root"
mkdir -p models logs || refuse 75 "$root: cannot be written"
exec 9>.weekly.lock
log=logs/weekly-$day.log summary=logs/weekly-$day.json answer=logs/.weekly.answer code=0
if flock -n 9; then
    trap stop TERM INT HUP
    # In this shell, not in a subshell: a TERM must reach the child.
    exec 8>&2 2>>"$log"
    week "$@" || code=$?
    exec 2>&8 8>&-
else
    # Nothing failed, so nobody is paged: the week that runs reports for itself.
    printf 'weekly.sh: another week is still running (%s is locked); nothing was started\n' "$root/.weekly.lock" >&2
    exit 75
fi
if [ "$code" -ne 0 ]; then
    printf 'weekly.sh: %s failed with exit code %s; the end of %s:\n' "$day" "$code" "$root/$log" >&2
    tail -n 20 "$log" >&2 2>/dev/null || :
    if [ -n "$on_failure" ]; then
        "$on_failure" "$code" "$day" "$root/$log" 9>&- || printf 'weekly.sh: %s failed too\n' "$on_failure" >&2
    fi
fi
exit "$code"
