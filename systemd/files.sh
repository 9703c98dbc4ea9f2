#!/bin/sh
# SPDX-License-Identifier: MIT
# files.sh ROOT PREFIX local|package: copy what belongs to the service beside the program and its
# configuration: units, documentation, man pages, completion. Used by install.sh, and by the Debian
# package, whose files lie where a distribution has its own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(dirname "$here")
root=$1 prefix=$2 kind=$3
case $kind in
local)
    units=$root/etc/systemd/system sysusers=$root/etc/sysusers.d
    catalogue=$root/usr/local/lib/systemd/catalog zsh=$root$prefix/share/zsh/site-functions
    ;;
package)
    units=$root/lib/systemd/system sysusers=$root/usr/lib/sysusers.d
    catalogue=$root/usr/lib/systemd/catalog zsh=$root/usr/share/zsh/vendor-completions
    ;;
esac
share=$root$prefix/share
# copy SOURCE DESTINATION: a file that names the place of this installation. In one step, because a
# shell may be reading the old one, and not through a link, such as that to /dev/null by which
# `systemctl mask` keeps a unit from starting: the mask stays.
copy() {
    [ "$(readlink "$2")" != /dev/null ] || return 0
    sed "s|/usr/local|$prefix|g" "$1" >"$2.new"
    chmod 644 "$2.new"
    mv -f "$2.new" "$2"
}
# unit SOURCE NAME: a unit. One that an operator has changed, as with `systemctl edit --full`, may not fit
# this version: it is replaced, and kept beside it. The copy tells the next upgrade apart.
unit() {
    if [ "$kind" = local ]; then
        shipped=$share/nfq-guard/units/$2
        if [ -f "$shipped" ] && [ -f "$units/$2" ] && ! cmp -s "$units/$2" "$shipped"; then
            cp "$units/$2" "$units/$2.changed"
            printf 'nfq-guard: %s was not as installed: kept as %s.changed; changes belong in %s\n' \
                "$units/$2" "$2" "systemctl edit $2"
        fi
        mkdir -p "${shipped%/*}"
        copy "$1" "$shipped"
    fi
    copy "$1" "$units/$2"
}

mkdir -p "$share/doc/nfq-guard" "$share/nfq-guard" "$units/nfq-guard@.service.d" "$sysusers" \
    "$zsh" "$root/etc/logrotate.d"
# With what README links to, so that its links work there too.
(cd "$tree" && tar -c --exclude=deploy/debian README.md LICENSE CHANGELOG.md CONTRIBUTING.md \
    SECURITY.md docs deploy rules/policy/README.md systemd/README.md benchmarks/README.md \
    benchmarks/results benchmarks/other_machines) | tar -x --no-same-owner -C "$share/doc/nfq-guard"
cp "$here/metrics.conf" "$here/pods.conf" "$share/doc/nfq-guard/"
(cd "$tree/share" && tar -c man bash-completion fish) | tar -x --no-same-owner -C "$share"
cp "$tree/share/zsh/site-functions/_nfq-guard" "$zsh/"
copy "$here/steps.sh" "$share/nfq-guard/steps.sh"
unit "$here/nfq-guard.service" nfq-guard.service
unit "$here/nfq-guard.service" nfq-guard@.service
unit "$here/nfq-guard-metrics.socket" nfq-guard-metrics.socket
cp "$here/nfq-guard@.service.d/namespace.conf" "$units/nfq-guard@.service.d/"
cp "$here/nfq-guard.sysusers" "$sysusers/nfq-guard.conf"
# An upgrade keeps that of an operator; dpkg does so by itself. The copy tells the next upgrade apart.
rotation=$root/etc/logrotate.d/nfq-guard
if [ "$kind" = local ]; then
    shipped=$share/doc/nfq-guard/nfq-guard.logrotate
    if [ -e "$rotation" ] && ! cmp -s "$rotation" "$shipped" &&
        ! cmp -s "$rotation" "$here/nfq-guard.logrotate"; then
        printf 'nfq-guard: keeping %s, which is not as installed; %s is that of this version\n' \
            "$rotation" "$shipped"
    else
        cp "$here/nfq-guard.logrotate" "$rotation"
    fi
    cp "$here/nfq-guard.logrotate" "$shipped"
else
    cp "$here/nfq-guard.logrotate" "$rotation"
fi
# What `journalctl -x` says of each event. systemd looks there alone, whatever the prefix is.
if mkdir -p "$catalogue" 2>/dev/null && [ -w "$catalogue" ]; then
    copy "$here/nfq-guard.catalog" "$catalogue/nfq-guard.catalog"
else
    printf 'nfq-guard: %s cannot be written, so journalctl -x has no texts about events\n' "$catalogue"
fi
