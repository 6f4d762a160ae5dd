#!/bin/sh
# Scores one day's log with genrec-batch, once, and publishes the result for its readers. For cron, or by hand.
#
#   nightly.sh [OPTION OF `genrec-batch score`]...
#
# Settings are environment variables, or lines of $GENREC_JOB_CONFIG (default /etc/genrec-batch/nightly.env):
#   GENREC_JOB_ROOT          folder that holds events/, recs/, logs/ and the link `current` (required)
#   GENREC_JOB_DATE          day to score, YYYY-MM-DD; default: yesterday, UTC
#   GENREC_JOB_INPUT         default $GENREC_JOB_ROOT/events/ds=$GENREC_JOB_DATE
#   GENREC_JOB_MARKER        file in a folder INPUT that marks it as complete; default _SUCCESS; empty: none
#   GENREC_JOB_PROGRAM       default genrec-batch
#   GENREC_JOB_TIMEOUT       seconds for everything, with retries; default 21600
#   GENREC_JOB_RETRIES       how often exit 75 and a missing log are tried again; default 3
#   GENREC_JOB_RETRY_DELAY   seconds between them; default 300
#   GENREC_JOB_KEEP_OUTPUTS  newest outputs kept; default 14
#   GENREC_JOB_KEEP_LOGS     newest logs kept, all but this night's compressed; default 60
#   GENREC_JOB_CARRY_FOR     age up to which users without new events keep their rows of the newest earlier output, which
#                            saves scoring them; default 7d; empty: all users are scored every night
#   GENREC_JOB_MIN_ROWS_PERCENT  of the rows that are published now; an output with fewer is exit 6; default 50, 0: any
#   GENREC_JOB_ON_FAILURE    program called with CODE DATE LOG when the night failed
#   GENREC_JOB_EXIT_DEVICE   exit code when this machine's device is at fault; default 5, as for all that an engine lacks
#   GENREC_JOB_EXIT_WHEN_EMPTY  exit code when there is nothing to score; default 99 (0 for Kubernetes)
# GENREC_BATCH_* and $GENREC_JOB_ROOT/genrec-batch.toml are options of genrec-batch itself, such as the model.
#
# Exit codes are those of genrec-batch (99, nothing to score, is no failure), and 75: another night is still running, or
# the log is not there; 124: out of time. After 75, 124, 129, 130, 137 and 143 the same command continues where it stopped.
set -eu

# $* a message, into the log with the time (UTC) in front.
say() {
    printf '%s nightly: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2
}

# $1 exit code, $2 reason. Printed on the original stderr, which cron mails.
refuse() {
    printf 'nightly.sh: %s\n' "$2" >&2
    exit "$1"
}

whole_number() {
    case $2 in
    '' | *[!0-9]*) refuse 2 "$1=$2: give a whole number" ;;
    esac
}

read_settings() {
    # The environment takes precedence over the file.
    outside_date=${GENREC_JOB_DATE-}
    GENREC_JOB_DATE=${GENREC_JOB_DATE:-$(date -u -d "@$(($(date +%s) - 86400))" +%Y-%m-%d)}
    config=${GENREC_JOB_CONFIG-/etc/genrec-batch/nightly.env}
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
    program=${GENREC_JOB_PROGRAM:-genrec-batch}
    timeout_s=${GENREC_JOB_TIMEOUT:-21600}
    retries=${GENREC_JOB_RETRIES:-3}
    delay_s=${GENREC_JOB_RETRY_DELAY:-300}
    keep_outputs=${GENREC_JOB_KEEP_OUTPUTS:-14}
    keep_logs=${GENREC_JOB_KEEP_LOGS:-60}
    carry_for=${GENREC_JOB_CARRY_FOR-7d}
    min_rows_percent=${GENREC_JOB_MIN_ROWS_PERCENT:-50}
    on_failure=${GENREC_JOB_ON_FAILURE:-}
    exit_device=${GENREC_JOB_EXIT_DEVICE:-5}
    exit_when_empty=${GENREC_JOB_EXIT_WHEN_EMPTY:-99}
    whole_number GENREC_JOB_TIMEOUT "$timeout_s"
    whole_number GENREC_JOB_RETRIES "$retries"
    whole_number GENREC_JOB_RETRY_DELAY "$delay_s"
    whole_number GENREC_JOB_KEEP_OUTPUTS "$keep_outputs"
    whole_number GENREC_JOB_KEEP_LOGS "$keep_logs"
    whole_number GENREC_JOB_MIN_ROWS_PERCENT "$min_rows_percent"
    whole_number GENREC_JOB_EXIT_DEVICE "$exit_device"
    whole_number GENREC_JOB_EXIT_WHEN_EMPTY "$exit_when_empty"
    [ "$keep_outputs" -gt 0 ] || refuse 2 "GENREC_JOB_KEEP_OUTPUTS=0 would remove what was just published"
    for tool in flock timeout gzip "$program"; do
        command -v "$tool" >/dev/null 2>&1 || refuse 2 "$tool: no such program in PATH=$PATH"
    done
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

# Sets $previous to the newest output of an earlier day. A file keeps the choice, so that each attempt at this day makes the
# same run, also where an earlier day is finished in the meantime.
choose_previous() {
    previous=
    [ -n "$carry_for" ] || return 0
    pin=logs/score-$day.previous
    if [ ! -e "$pin" ]; then
        for each in recs/ds=[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]; do
            if [ -e "$each/_SUCCESS" ] && expr "${each##*ds=}" '<' "$day" >/dev/null; then
                previous=$each
            fi
        done
        printf '%s\n' "$previous" >"$pin.$$" && mv -f "$pin.$$" "$pin"
    fi
    previous=$(cat "$pin")
    [ -d "$previous" ] || previous=
}

# $1 engine, device or precision: prints what this day's output was begun or made with, nothing where there is none.
begun_with() {
    sed -n "s/^ \"$1\": \"\([^\"]*\)\".*/\1/p" "recs/.ds=$day.unfinished/_run.json" 2>/dev/null && return 0
    sed -n "s/^ *\"genrec\.$1\": \"\([^\"]*\)\".*/\1/p" "recs/ds=$day/_manifest.json" 2>/dev/null || :
}

# Each attempt at a day computes with what the first one took: another machine, or a GPU that went away, would make
# another run, which could not be continued.
pin_engine() {
    [ "${GENREC_BATCH_ENGINE:-auto}" != auto ] || GENREC_BATCH_ENGINE=$(begun_with engine)
    [ "${GENREC_BATCH_DEVICE:-auto}" != auto ] || GENREC_BATCH_DEVICE=$(begun_with device)
    [ "${GENREC_BATCH_PRECISION:-auto}" != auto ] || GENREC_BATCH_PRECISION=$(begun_with precision)
    for name in GENREC_BATCH_ENGINE GENREC_BATCH_DEVICE GENREC_BATCH_PRECISION; do
        eval "value=\$$name"
        if [ -n "$value" ]; then export "${name?}"; else unset "$name"; fi
    done
}

score_once() {
    pin_engine
    if ! log_is_there; then
        say "the log is not there yet: $input${marker:+ with $marker}"
        return 75
    fi
    if [ -n "$previous" ]; then
        set -- --previous "$previous" --carry-for "$carry_for" "$@"
    fi
    left_s=$((deadline - $(date +%s)))
    [ "$left_s" -gt 0 ] || return 124 # `timeout 0` would have no limit
    attend timeout -s TERM -k 60 "$left_s" \
        "$program" score "$input" "recs/ds=$day" --if-exists resume "$@" >"$summary.new"
}

score() {
    deadline=$(($(date +%s) + timeout_s))
    attempt=0
    while :; do
        code=0
        score_once "$@" || code=$?
        [ -z "$stopped" ] || return "$code"
        [ "$code" -eq 75 ] && [ "$attempt" -lt "$retries" ] || return "$code"
        [ "$(($(date +%s) + delay_s))" -lt "$deadline" ] || return "$code"
        attempt=$((attempt + 1))
        say "exit 75: the same command again in $delay_s s ($attempt of $retries)"
        attend sleep "$delay_s" 9>&- || :
        [ -z "$stopped" ] || return 143
    done
}

# $1 an output: prints its rows, nothing where it has no manifest.
rows_of() {
    sed -n 's/^ *"genrec\.rows": "\([0-9]*\)".*/\1/p' "$1/_manifest.json" 2>/dev/null || :
}

# Whether the new output may be published: whole, every score a number, not far fewer rows than are published now.
check() {
    rows=$(rows_of "recs/ds=$day")
    [ -n "$rows" ] || return 0
    if ! attend "$program" inspect "recs/ds=$day" >/dev/null; then
        say "recs/ds=$day failed its checks: not published"
        return 6
    fi
    before=$(rows_of "$(readlink current || :)")
    if [ -n "$before" ] && [ "$((rows * 100))" -lt "$((before * min_rows_percent))" ]; then
        say "$rows rows, under $min_rows_percent % of the $before that are published: is the log complete? Not published"
        return 6
    fi
}

# Points the link `current` at the new output by one rename, never back to an older day.
publish() {
    [ -e "recs/ds=$day/_SUCCESS" ] || {
        say "recs/ds=$day has no _SUCCESS: not published"
        return 1
    }
    published=$(readlink current || :)
    published=${published##*ds=}
    if [ -n "$published" ] && expr "$published" '>' "$day" >/dev/null; then
        say "scored; current stays at the newer $published"
        return 0
    fi
    ln -s "recs/ds=$day" ".current.$$" && mv -T ".current.$$" current && say "current -> recs/ds=$day"
}

# Folders of spill files whose run was killed: the lock in them is free.
remove_abandoned_spill() {
    for lock in recs/.genrec-spill-*/.lock; do
        if [ -f "$lock" ] && flock -n "$lock" rm -rf -- "${lock%/.lock}"; then
            say "removed ${lock%/.lock}: spill files of a killed run"
        fi
    done
}

# Oldest first; never the output that `current` points to.
remove_old_outputs() {
    set -- recs/ds=[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]
    while [ $# -gt "$keep_outputs" ]; do
        if [ "$(readlink current || :)" != "$1" ]; then
            say "removing $1"
            rm -rf -- "$1"
        fi
        shift
    done
    oldest=${1##*ds=}
    for unfinished in recs/.ds=[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].unfinished; do
        left=${unfinished##*ds=}
        if [ -d "$unfinished" ] && expr "${left%.unfinished}" '<' "$oldest" >/dev/null; then
            say "removing $unfinished, which no run has continued"
            rm -rf -- "$unfinished"
        fi
    done
}

rotate_logs() {
    for old in logs/score-[0-9]*.log; do
        if [ "$old" != "$log" ] && [ -f "$old" ]; then
            gzip -c "$old" >>"$old.gz" && rm -f -- "$old" # a day that is scored again appends to its archive
        fi
    done
    for kind in log.gz json previous; do
        set -- logs/score-[0-9]*."$kind"
        while [ $# -gt "$keep_logs" ]; do
            rm -f -- "$1"
            shift
        done
    done
}

# Everything that is done under the lock; its stderr is the log.
night() {
    say "scoring $day: $input"
    code=0
    remove_abandoned_spill
    choose_previous
    score "$@" || code=$?
    case $code in
    0)
        if [ -e "$summary" ] && grep -q '"already_complete": true' "$summary.new"; then
            say "scored before; its summary stays"
        else
            mv -f "$summary.new" "$summary"
        fi
        check || code=$? # also of an output that was finished before: it may be one that was not published
        [ "$code" -ne 0 ] || publish || code=1
        ;;
    5)
        case $(grep -o '(exit 5: [a-z]*)' "$log" | tail -n 1) in
        *device*)
            say "the device of this machine ($(uname -n)) is at fault; another machine may do"
            code=$exit_device
            ;;
        *scores*) say "the engine computed no finite scores; look at the users and inputs that it names" ;;
        *) say "something is not installed here; the message says what" ;;
        esac
        ;;
    99) say "nothing to score; current stays as it is" ;;
    124 | 137) say "stopped by the time limit of $timeout_s s or by the system; run again to continue" ;;
    *) say "ended with exit code $code" ;;
    esac
    rm -f -- "$summary.new"
    remove_old_outputs || say "old outputs: not all could be removed"
    rotate_logs || say "old logs: not all could be rotated"
    return "$code"
}

read_settings
stopped='' child=''
cd "$root"
mkdir -p recs logs || refuse 75 "$root: cannot be written"
exec 9>.nightly.lock
log=logs/score-$day.log summary=logs/score-$day.json code=0
if flock -n 9; then
    trap stop TERM INT HUP
    # In this shell, not in a subshell: a TERM must reach the child.
    exec 8>&2 2>>"$log"
    night "$@" || code=$?
    exec 2>&8 8>&-
else
    # Nothing failed, so nobody is paged: the night that runs reports for itself.
    printf 'nightly.sh: another night is still running (%s is locked); nothing was started\n' "$root/.nightly.lock" >&2
    exit 75
fi
case $code in
0) ;;
99) exit "$exit_when_empty" ;;
*)
    printf 'nightly.sh: %s failed with exit code %s; the end of %s:\n' "$day" "$code" "$root/$log" >&2
    tail -n 20 "$log" >&2 2>/dev/null || :
    if [ -n "$on_failure" ]; then
        "$on_failure" "$code" "$day" "$root/$log" 9>&- || printf 'nightly.sh: %s failed too\n' "$on_failure" >&2
    fi
    ;;
esac
exit "$code"
