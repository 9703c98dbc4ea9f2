# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# steps.sh UNIT start|stop|stopped: what root does around the daemon of the service, for the unit.
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

case $2 in
start)
    # Root also loads and pins the BPF program that reads the kernel's TCP window, because that takes
    # CAP_SYS_ADMIN where nf_conntrack is a module. Where it cannot be loaded, conntrack is made to log
    # its reasons to the daemon, by sysctls that the sandbox forbids to change. The group may then
    # read the kernel's counters of the queues, which are root's.
    made=$(find "$prepared" "$killed" -prune -type d -mmin -1 2>/dev/null)
    rmdir "$prepared" "$killed" 2>/dev/null
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
    signal | core-dump | watchdog | oom-kill) mkdir "$killed" ;;
    esac
    case $(job) in
    restart) exit 0 ;;
    stop) result=success ;;
    *) [ ! -d "$killed" ] || exit 0 ;;
    esac
    rmdir "$prepared" "$killed" 2>/dev/null
    exec "$guard" prepare --remove --rules --quiet --config "$CONFIG" --last-good "$last_good" \
        --after "$result"
    ;;
esac
