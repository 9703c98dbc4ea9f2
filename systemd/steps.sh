# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# steps.sh UNIT start|stop|stopped|gap: what root does around the daemon of the service, for the unit.
#
# systemd runs it outside the sandbox, because iptables needs more privileges than the daemon. It gives
# RUNTIME_DIRECTORY, STATE_DIRECTORY, MAINPID and SERVICE_RESULT; CONFIG is from the unit. `exec`,
# because systemd takes sockets only from the process that it started.
#
# Two directories spare a start its steps: `prepared`, which a restart leaves, and `killed`, which a
# daemon leaves that a signal ended. They are not believed for longer than a minute.
set -u
unit=$1
guard=/usr/local/sbin/nfq-guard
prepared=$RUNTIME_DIRECTORY/prepared
killed=$RUNTIME_DIRECTORY/killed
last_good=$STATE_DIRECTORY/last-good.json

# Whether the file is as the daemon took it.
unchanged() { [ "$CONFIG" -ot "$last_good" ]; }

# What systemd is to do with the unit: `restart`, `stop`, `start` or nothing. A name may have
# backslashes.
job() {
    systemctl list-jobs --plain --no-legend 2>/dev/null | while read -r _ name kind _; do
        [ "$name" != "$unit" ] || echo "$kind"
    done
}

# Removes what `start` made; after the failure `result` not the rules of the fail modes closed and
# kernel-drop.
remove() {
    rmdir "$prepared" "$killed" 2>/dev/null
    exec "$guard" prepare --remove --rules --quiet --config "$CONFIG" --last-good "$last_good" \
        --after "$result"
}

case $2 in
start)
    # Root also loads and pins the BPF program that reads the kernel's TCP window, because that takes
    # CAP_SYS_ADMIN where nf_conntrack is a module. Where it cannot be loaded, conntrack is made to log
    # its reasons to the daemon, by sysctls that the sandbox forbids to change. The group may then
    # read the kernel's counters of the queues, which are root's.
    exec 9<"$RUNTIME_DIRECTORY"
    flock -w 3 9 # see `gap`
    made=$(find "$prepared" "$killed" -prune -type d -mmin -1 2>/dev/null)
    rmdir "$prepared" "$killed" 2>/dev/null
    exec 9<&-
    case $made in
    "") ;;
    "$prepared"*) unchanged && exit 0 ;;
    # For automatic restarts alone: systemd has closed the sockets once it gave up.
    *) [ "$(systemctl show --value -p NRestarts "$unit")" -gt 0 ] && unchanged && exit 0 ;;
    esac
    exec "$guard" prepare --rules --quiet --config "$CONFIG" --last-good "$last_good"
    ;;
stop)
    # In fail mode closed, packets wait from the end of the old daemon until the new one serves. So what
    # a start needs is done before the SIGTERM, where the rules stay as they are: the old daemon
    # watches them.
    [ -n "${MAINPID:-}" ] && [ "$(job)" = restart ] && unchanged || exit 0
    exec "$guard" prepare --keep-rules --quiet --config "$CONFIG" --done "$prepared"
    ;;
stopped)
    # After a stop, a crash and a SIGKILL. A daemon that a signal ended is restarted at once: what was
    # prepared for it stays. So does it while `systemctl restart` stops the service only to start it
    # again: without rules in between, packets that the policy drops would pass. With a job `stop`
    # nothing stays, however the daemon ended: someone may have killed it because it did not. Otherwise
    # this removes the rules, but after a failure keeps those of the fail modes closed and
    # kernel-drop. It also unpins the program and restores the sysctls.
    result=$SERVICE_RESULT
    rmdir "$killed" 2>/dev/null
    case $result in
    signal | core-dump | watchdog | oom-kill)
        mkdir "$killed"
        # In a scope, where systemd does not end it with the steps of the unit.
        systemd-run --scope --quiet --collect --description="Restart of $unit" \
            /bin/sh "$0" "$unit" gap &
        ;;
    esac
    case $(job) in
    restart) wait; exit 0 ;;
    stop) result=success ;;
    *) [ ! -d "$killed" ] || { wait; exit 0; } ;;
    esac
    remove
    ;;
gap)
    # From the end of a daemon that a signal ended until its restart: systemd runs no step of the unit
    # for a stop meanwhile. After it the unit is `dead`, or `failed` without the restart that is due.
    # Once systemd gave up, the unit is `failed` too, and what is left stays.
    restarts=$(systemctl show -p NRestarts "$unit")
    while [ -d "$killed" ]; do
        state=" $(systemctl show -p Job -p NRestarts -p Restart -p SubState "$unit" | tr '\n' ' ')"
        case $state in
        *" Job="[0-9]* | *" SubState=auto-restart"* | *" SubState=stop"* | *" SubState=final"*)
            sleep 0.1
            continue
            ;;
        *" SubState=dead "*) ;;
        *" SubState=failed "*)
            case $state in *" $restarts "*) ;; *) exit 0 ;; esac
            case $state in *" Restart=on-failure "* | *" Restart=always "*) ;; *) exit 0 ;; esac
            ;;
        *) exit 0 ;;
        esac
        # A start meanwhile takes `killed` away first, or waits for the removal to end.
        exec 9<"$RUNTIME_DIRECTORY"
        flock 9
        [ -d "$killed" ] || exit 0
        result=success
        remove
    done &
    ;;
esac
