#!/bin/bash
# SPDX-License-Identifier: MIT
# nested.sh DIR up|sh CMD...|down: a real systemd in namespaces of its own, on an overlay of this
# machine's root, or of the directory NFQ_GUARD_TEST_ROOT, with DIR for its state. It shares nothing with the host but the kernel: no device
# nodes (a guest's systemd changes their owner), no network, its own cgroup.
set -eu
dir=$1; shift
cgroup=/sys/fs/cgroup/unified; [ -e $cgroup/cgroup.procs ] || cgroup=/sys/fs/cgroup
cgroup=$cgroup/$(basename "$dir")
# What would touch the host, or only takes time.
mask="systemd-sysctl.service systemd-modules-load.service systemd-remount-fs.service
 systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket
 systemd-udevd-control.socket systemd-hwdb-update.service console-getty.service getty.target
 systemd-logind.service systemd-networkd.service systemd-resolved.service
 systemd-timesyncd.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount
 apt-daily.timer apt-daily-upgrade.timer man-db.timer dpkg-db-backup.timer e2scrub_all.timer
 e2scrub_reap.service fstrim.timer ldconfig.service"
case $1 in
up)
    mkdir -p "$dir/state" "$cgroup"
    (
        # Before unshare --cgroup, so that the guest's root is this cgroup.
        echo "$BASHPID" >"$cgroup/cgroup.procs"
        exec unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --net \
            --cgroup bash "$0" "$dir" boot
    ) >"$dir/console" 2>&1 </dev/null &
    outer=$!; init=
    for _ in $(seq 200); do
        init=$(pgrep -P $outer | head -n 1 || true)
        [ -z "$init" ] || break
        sleep 0.02
    done
    echo "$init" >"$dir/init.pid"
    state=
    for _ in $(seq 400); do
        state=$(nsenter -t "$init" -a systemctl is-system-running 2>/dev/null || true)
        case $state in running | degraded) break ;; esac
        sleep 0.05
    done
    echo "$state"
    case $state in running | degraded) ;; *) exit 1 ;; esac
    ;;
boot)
    state=$dir/state; root=$state/root
    mount -t tmpfs -o size=2g,mode=755 tmpfs "$state"
    mkdir "$state/upper" "$state/work" "$root"
    mount -t overlay overlay \
        -o "lowerdir=${NFQ_GUARD_TEST_ROOT:-/},upperdir=$state/upper,workdir=$state/work" "$root"
    mount -t proc proc "$root/proc"
    # Sysctls: read-only where they are the host's, writable where they are the namespace's.
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount --bind /proc/sys/net "$root/proc/sys/net"
    mount -t sysfs -o ro sysfs "$root/sys"
    # As systemd does on a host, but not in a container.
    mount -t bpf -o mode=700 bpf "$root/sys/fs/bpf"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    # The tree under test, which may lie on any of the mounts that were just covered.
    tree=$(cd "$(dirname "$0")/../.." && pwd)
    mkdir -p "$root$tree"
    mount --bind "$tree" "$root$tree"
    for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 console:1:3; do
        IFS=: read -r name major minor <<<"$node"
        mknod -m 666 "$root/dev/$name" c "$major" "$minor"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    tr -dc 0-9a-f </dev/urandom | head -c 32 >"$root/etc/machine-id" || true
    : >"$root/etc/fstab"
    mkdir -p "$root/etc/systemd/system" "$root/etc/systemd/journald.conf.d"
    for unit in $mask; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
    # Services of this machine are not the test's.
    for wanted in "$root"/etc/systemd/system/multi-user.target.wants/*.service; do
        [ ! -L "$wanted" ] || ln -sf /dev/null "$root/etc/systemd/system/$(basename "$wanted")"
    done
    printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' \
        >"$root/etc/systemd/journald.conf.d/test.conf"
    cd "$root"; pivot_root . .; umount -l .; cd /
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=nfq-guard-test \
        /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=0
    ;;
sh)
    shift
    # The environment of root there, whatever the tests have.
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        LANG=C.UTF-8 nsenter -t "$(cat "$dir/init.pid")" -a "$@"
    ;;
down)
    init=$(cat "$dir/init.pid")
    kill -RTMIN+3 "$init" || true # halt; SIGTERM would make it execute itself anew
    for _ in $(seq 100); do
        kill -0 "$init" 2>/dev/null || break
        sleep 0.1
    done
    if kill -0 "$init" 2>/dev/null; then kill -9 "$init"; fi
    sleep 0.2
    find "$cgroup" -depth -type d -exec rmdir {} \;
    ;;
esac
