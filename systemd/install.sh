#!/bin/sh
# SPDX-License-Identifier: MIT
# install.sh install|uninstall: install nfq_guard as a service of this host, in dry-run, or remove it.
#
# PREFIX   installation prefix (/usr/local)
# PYTHON   interpreter of the service (/usr/bin/python3)
# WHEELS   folder with all wheels, for a host without network; by default they are built here
# HASHES   no: take the packages of that folder whatever their hashes are
#
# Root's Python takes no module from the directory in which this is run (-P), nor from PYTHONPATH.
set -eu
unset PYTHONPATH PYTHONHOME
# The service is not root, and must be able to read what a root with another umask installs.
umask 022
here=$(cd "$(dirname "$0")" && pwd)
tree=$(dirname "$here")
# Without the slashes at its end, which pip leaves out of what it writes.
prefix=$(printf '%s\n' "${PREFIX:-/usr/local}" | sed 's|//*$||')
python=${PYTHON:-/usr/bin/python3}
home=$prefix/lib/nfq-guard
units=/etc/systemd/system
catalogue=/usr/local/lib/systemd/catalog/nfq-guard.catalog
say() { printf 'nfq-guard: %s\n' "$*"; }
fail() { printf 'nfq-guard: %s\n' "$*" >&2; exit "$status"; }

status=77
[ "$(id -u)" = 0 ] || fail "installing needs root: sudo make ${1:-install}"
status=2
case ${1:-} in install | uninstall) ;; *) fail "usage: install.sh install|uninstall" ;; esac
# Units, shebangs and the lists of words below take it as it is.
case $prefix in
/*[!A-Za-z0-9._/+-]* | [!/]* | '')
    fail "PREFIX: expected an absolute path of letters, digits and ._+-, found '${PREFIX:-}'"
    ;;
esac
status=69
[ ! -e /lib/systemd/system/nfq-guard.service ] ||
    fail "the Debian package nfq-guard is installed: apt remove nfq-guard"
# That of the installed unit, also of earlier versions.
installed=$(sed -n 's|^ExecStart=\(/.*\)/sbin/nfq-guard run .*|\1|p' "$units/nfq-guard.service" \
    2>/dev/null || true)
[ "${installed:-$prefix}" = "$prefix" ] ||
    fail "nfq_guard is installed in $installed; nothing is changed: make $1 PREFIX=$installed"
# Of two at a time, each would take away what the other has made.
lock=/run/nfq-guard-install
if command -v flock >/dev/null; then
    (umask 077 && : >>"$lock")
    exec 8>>"$lock"
    status=75
    flock -n 8 || fail "another installation is running"
    status=69
    trap 'rm -f "$lock"' EXIT
fi
running() { [ -d /run/systemd/system ]; }
# Drop-ins of earlier versions, which would replace ExecReload of the unit.
remove_old() {
    for unit in nfq-guard nfq-guard@; do
        rm -f "$units/$unit.service.d/reload.conf"
        rmdir "$units/$unit.service.d" 2>/dev/null || true
    done
}

if [ "$1" = uninstall ]; then
    if running; then
        systemctl disable --quiet --now nfq-guard-metrics.socket nfq-guard.service 2>/dev/null || true
        systemctl stop 'nfq-guard@*.service' 2>/dev/null || true
    fi
    # What a service left that systemd gave up after many crashes, such as sysctls, also in the
    # network namespaces of instances.
    left=
    for place in /etc/nfq-guard /var/log/nfq-guard /var/lib/nfq-guard; do
        [ ! -e "$place" ] || left="$left, $place"
    done
    ! id nfq-guard >/dev/null 2>&1 || left="$left, user nfq-guard"
    if [ -x "$prefix/sbin/nfq-guard" ]; then
        remove="$prefix/sbin/nfq-guard prepare --remove --rules --quiet"
        $remove || left="$left, rules, as said above"
        for file in /etc/nfq-guard/*.toml; do
            space=/run/netns/$(basename "$file" .toml)
            [ ! -e "$space" ] || nsenter --net="$space" $remove --config "$file" ||
                left="$left, rules in $space, as said above"
        done
    fi
    # What the operator has changed is configuration.
    rotation=/etc/logrotate.d/nfq-guard
    for as_installed in "$prefix/share/doc/nfq-guard" "$here"; do
        ! cmp -s "$rotation" "$as_installed/nfq-guard.logrotate" || rm "$rotation"
    done
    # `.new` and `.old` are of an installation that was killed.
    rm -rf "$home" "$home.new" "$home.old" "$prefix/sbin/nfq-guard" \
        "$prefix/share/doc/nfq-guard" "$prefix/share/nfq-guard" "$units/nfq-guard.service" \
        "$units/nfq-guard@.service" "$units/nfq-guard@.service.d/namespace.conf" \
        "$units/nfq-guard-metrics.socket" "$units"/*/nfq-guard-metrics.socket "$units"/*/nfq-guard.service \
        "$units"/*/nfq-guard@*.service \
        /etc/sysusers.d/nfq-guard.conf /run/nfq-guard "$catalogue"
    (cd "$tree/share" && find . -type f) | sed "s|^\.|$prefix/share|" | xargs -d '\n' rm -f
    rmdir "$units/nfq-guard.service.wants" 2>/dev/null || true
    journalctl --update-catalog >/dev/null 2>&1 || true
    remove_old
    for changed in "$rotation" "$units"/nfq-guard*.d "$units"/nfq-guard*.changed; do
        [ ! -e "$changed" ] || left="$left, $changed"
    done
    ! running || systemctl daemon-reload
    left=${left#, }
    say "removed; left in place: ${left:-nothing}"
    exit 0
fi

for place in "$prefix" "$prefix/lib" "$prefix/sbin" "$prefix/share" /etc "$units" /etc/nfq-guard \
    /etc/logrotate.d /etc/sysusers.d; do
    [ ! -e "$place" ] || [ -w "$place" ] || fail "$place cannot be written; nothing is changed"
done
# A place that is not mounted yet, or a link that has outlived its file.
config=/etc/nfq-guard/nfq-guard.toml
[ ! -L $config ] || [ -e $config ] ||
    fail "$config leads to $(readlink $config), which does not exist; nothing is changed"
[ "$(readlink "$units/nfq-guard.service")" != /dev/null ] ||
    fail "nfq-guard.service is masked; nothing is changed: systemctl unmask nfq-guard.service"

# The sandbox hides home directories from the service, so its interpreter must not be in one.
real=$(readlink -f "$(command -v "$python")") || fail "PYTHON: $python does not exist"
case $real in
/home/* | /root/*) fail "PYTHON: $real is in a home directory, which the service cannot read" ;;
esac
case $("$python" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null) in
True) ;;
False) fail "PYTHON: $python is older than Python 3.11" ;;
*) fail "PYTHON: $python is no Python that runs here" ;;
esac

# Nothing on this host changes until all that can fail before it has succeeded: a daemon of an earlier
# version goes on with its own files meanwhile.
new=$home.new
made_by_root=
trap '[ -z "$made_by_root" ] || "$tree/bootstrap.sh" give-back; rm -rf "$new" "$lock"' EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
wheels=${WHEELS:-}
if [ -z "$wheels" ]; then
    PYTHON=$python "$tree/bootstrap.sh" packages
    # What is built belongs to the owner of the tree afterwards, who may not be root.
    made_by_root=yes
    wheels=$tree/build/wheels
    say "building wheels in $wheels, with the packet path compiled"
    rm -rf "$wheels" "$tree/build/install"
    "$python" -P -m venv "$tree/build/install"
    pip() { "$tree/build/install/bin/python" -P -m pip --disable-pip-version-check --quiet "$@"; }
    pip install --constraint "$tree/constraints.txt" --upgrade pip cython setuptools build ||
        fail "building the wheels needs the package registry; or name a folder with them: WHEELS=FOLDER"
    # Built from an sdist, because the build leaves compiled modules beside its sources.
    { (
        export SOURCE_DATE_EPOCH=1704067200 CFLAGS="${CFLAGS:-} -g0"
        pip wheel --no-build-isolation --no-deps --require-hashes --wheel-dir "$wheels" \
            --requirement "$tree/requirements-source.txt"
    ) &&
        "$tree/build/install/bin/python" -P -m build --outdir "$wheels" "$tree" >/dev/null &&
        pip wheel --constraint "$tree/constraints.txt" --find-links "$wheels" \
            --wheel-dir "$wheels" "$(echo "$wheels"/nfq_guard-*.whl)[report]"; } ||
        fail "the wheels cannot be built here; nothing is changed"
fi
PATH=$PATH:/usr/sbin:/sbin
command -v iptables >/dev/null || command -v nft >/dev/null ||
    fail "neither iptables nor nft is there: apt-get install iptables"
pip_wheel=$("$python" "$here/pip_wheel.py" 2>/dev/null) ||
    fail "PYTHON: $python makes no virtual environments: apt-get install python3-venv"

say "installing into $home"
rm -rf "$new"
# The service needs no pip: that of the interpreter's wheel installs the rest, and goes again. `venv`
# would take longer to install it than all else takes.
"$python" -P -m venv --without-pip "$new"
"$python" -P -m zipfile -e "$pip_wheel" "$new/pip"
# By the hashes of what the registry has; netfilterqueue and nfq_guard were built on some host.
install="env PYTHONPATH=$new/pip $new/bin/python -P -m pip --disable-pip-version-check --quiet install"
install="$install --no-index --compile"
said=$({ [ "${HASHES:-}" = no ] || $install --find-links "$wheels" --no-deps --require-hashes \
    --requirement "$tree/requirements.txt"; } 2>&1 &&
    $install --find-links "$wheels" 'nfq-guard[report]' 2>&1) || {
    printf '%s\n' "$said" >&2
    case $said in
    *"DO NOT MATCH THE HASHES"*)
        fail "$wheels has other files than requirements.txt says; nothing is changed. HASHES=no takes them"
        ;;
    esac
    case $said in
    *"No matching distribution"*)
        fail "$wheels does not have all wheels for $("$python" -V) on $(uname -m); nothing is changed"
        ;;
    esac
    fail "the packages cannot be installed into $home, as said above; nothing is changed"
}
rm -rf "$new/pip"
if [ -e /etc/nfq-guard/nfq-guard.toml ]; then
    "$new/bin/nfq-guard" check --quiet >/dev/null || {
        status=$?
        [ "$status" != 2 ] || fail "/etc/nfq-guard/nfq-guard.toml has mistakes; nothing is changed"
        status=69
        fail "$home/bin/nfq-guard would not run, as said above; nothing is changed"
    }
fi
# Nothing but the command names its place.
# And root's environment does not choose its modules.
sed -i "1s|^#!.*|#!$home/bin/python -I|" "$new/bin/nfq-guard"
rm -rf "$home.old"
[ ! -e "$home" ] || mv "$home" "$home.old"
mv "$new" "$home"
rm -rf "$home.old"
mkdir -p "$prefix/sbin" /etc/nfq-guard
# An upgrade does not start what its host has disabled, nor open the endpoint of the metrics.
enabled=$(systemctl is-enabled nfq-guard.service 2>/dev/null || true)
socket=nfq-guard-metrics.socket
case $(systemctl is-enabled $socket 2>/dev/null || true) in disabled | masked) socket= ;; esac
ln -sf "$home/bin/nfq-guard" "$prefix/sbin/nfq-guard"
"$here/files.sh" "" "$prefix" local
remove_old

if [ -e /etc/nfq-guard/nfq-guard.toml ]; then
    say "keeping /etc/nfq-guard/nfq-guard.toml"
else
    cp "$here/nfq-guard.toml" /etc/nfq-guard/nfq-guard.toml
fi
! command -v journalctl >/dev/null || journalctl --update-catalog >/dev/null 2>&1 ||
    say "journalctl cannot read the catalogue of messages"
systemd-sysusers nfq-guard.conf 2>/dev/null || id nfq-guard >/dev/null 2>&1 ||
    useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin nfq-guard

if ! command -v systemctl >/dev/null; then
    say "this host has no systemd: have your init system run $prefix/sbin/nfq-guard run, as root"
    exit 0
elif running; then
    systemctl daemon-reload
    how=try-restart
    if [ "$enabled" != disabled ]; then
        systemctl enable --quiet nfq-guard.service $socket
        how=restart
    fi
    systemctl $how nfq-guard.service || fail "it does not start: systemctl status nfq-guard"
    # Instances, whose modules are gone since.
    systemctl try-restart 'nfq-guard@*.service' ||
        fail "an instance does not start: systemctl status 'nfq-guard@*'"
    if systemctl is-active --quiet nfq-guard.service; then
        # As it is, not as the file may spell it. Without a control socket the file alone knows.
        mode=$("$prefix/sbin/nfq-guard" status --format json 2>/dev/null |
            sed -n 's/.*"mode":"\([a-z-]*\)".*/ in \1 mode/p')
        say "running$mode"
    else
        say "nfq-guard.service is $enabled on this host, and is not started"
    fi
elif [ "$enabled" = disabled ]; then
    say "nfq-guard.service is disabled in this image, and stays so"
elif systemctl enable --quiet nfq-guard.service $socket 2>/dev/null; then
    say "no systemd is running here, as in an image: enabled, it starts at the next boot"
else
    say "no systemd is running here, and it cannot be enabled: systemctl enable nfq-guard"
fi
# The setting is for a host that has no such socket.
address=$(sed -n 's/^metrics_listen *= *"\(..*\)"$/\1/p' /etc/nfq-guard/nfq-guard.toml)
why="nfq-guard-metrics.socket is disabled on this host"
if [ -n "$socket" ] && ! running; then
    address=127.0.0.1:9477
elif [ -n "$socket" ] && systemctl is-failed --quiet $socket; then
    why="its socket cannot be opened: systemctl status $socket"
elif [ -n "$socket" ]; then
    address=$(systemctl show --value -p Listen $socket | sed -n '1s/ .*//p')
fi
metrics="none, because $why"
[ -z "$address" ] || metrics="http://$address/metrics, and /healthz"
events=$(sed -n 's/^events_file *= *"\(.*\)"$/\1/p' /etc/nfq-guard/nfq-guard.toml)
cat <<EOF
  packets:     ${events:+tail -F }${events:-journalctl -u nfq-guard -f}
  other notes: journalctl -u nfq-guard -f
  state:       nfq-guard status
  metrics:     $metrics
  to enforce:  nfq-guard mode enforce, until the next start; permanently: set
               mode = "enforce" in /etc/nfq-guard/nfq-guard.toml, then
               systemctl reload nfq-guard
EOF
