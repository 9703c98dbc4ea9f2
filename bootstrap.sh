#!/bin/sh
# SPDX-License-Identifier: MIT
# bootstrap.sh run|test|bench: install what that purpose needs and is missing, and say what is done.
# bootstrap.sh packages|deb: the Debian packages alone, for `make install` and beside it `make deb`.
# bootstrap.sh give-back: hand what root has made in another user's tree to that user.
#
# A Debian package is asked for only where what it brings (a program, a header, a library) is
# missing, so that a machine which has it by other means is left alone. Python packages go into
# .venv beside this file.
set -eu
cd "$(dirname "$0")"
purpose=${1:-run}
python=${PYTHON:-python3}
say() { printf 'bootstrap: %s\n' "$*"; }
fail() { printf 'bootstrap: %s\n' "$*" >&2; exit 69; }

# After `sudo make`, the owner of the tree must be able to use and to remove what root has made.
give_back() {
    owner=$(stat -c %u:%g .)
    if [ "$(id -u)" = 0 ] && [ "${owner%:*}" != 0 ]; then
        find . -xdev -name .git -prune -o -user 0 -exec chown -h "$owner" {} +
    fi
}
making=
finish() {
    status=$?
    give_back || say "cannot give what root has made to the owner of this folder"
    [ -z "$making" ] || say ".venv is not finished; the next run makes it anew" >&2
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

[ "$purpose" != give-back ] || exit 0

PATH=$PATH:/usr/sbin:/sbin
require_python() {
    case $("$python" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null) in
    True) ;;
    False)
        fail "$python is $("$python" -V 2>&1), and Python 3.11 or later is needed: PYTHON=... names one"
        ;;
    *) fail "PYTHON: $python is no Python that runs here" ;;
    esac
}
# Before anything is installed for it.
if command -v "$python" >/dev/null; then
    require_python
elif [ -n "${PYTHON:-}" ] && [ "$PYTHON" != python3 ]; then
    fail "PYTHON: $PYTHON does not exist"
fi
missing=
need() { # need PACKAGE TEST...: PACKAGE is missing when TEST fails
    package=$1; shift
    "$@" >/dev/null 2>&1 || case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
}
program() { command -v "$1"; }
header() { echo "#include <$1>" | gcc -E -xc -; }
library() { ldconfig -p | grep -q "$1"; }
module() { "$python" -c "import $1"; }
browser() { program chromium-headless-shell || program chromium || program google-chrome; }
python_header() {
    "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

need python3 program "$python"
need gcc program gcc
need libc6-dev header stdio.h
need python3-dev python_header
need python3-venv module ensurepip
need iproute2 program ip
need iptables program iptables
need libnetfilter-queue-dev header libnetfilter_queue/libnetfilter_queue.h
need libbpf1 library libbpf.so.1
case $purpose in
run | packages) ;;
deb)
    need chrpath program chrpath
    need debhelper program dh
    need dpkg-dev program dpkg-buildpackage
    need lintian program lintian
    ;;
test | bench)
    need clang program clang
    need chromium-headless-shell browser
    need fonts-dejavu-core test -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
    need llvm program llvm-strip
    need libbpf-dev header bpf/bpf_helpers.h
    need nftables program nft
    need conntrack program conntrack
    need ethtool program ethtool
    need logrotate program logrotate
    need tshark program tshark
    need procps program ps
    need systemd program systemd-analyze
    need util-linux program setpriv
    need valgrind program valgrind
    need mandoc program mandoc
    need zsh program zsh
    need fish program fish
    need git program git
    need prometheus program promtool
    ;;
*) fail "usage: bootstrap.sh run|test|bench|packages|deb|give-back" ;;
esac

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || fail "please install what these Debian packages provide:$missing"
    [ "$(id -u)" = 0 ] || fail "please run once: sudo apt-get install$missing"
    say "installing Debian packages:$missing"
    # Its programs are wanted, not a server on this host.
    case $missing in *prometheus*) systemctl mask prometheus.service >/dev/null 2>&1 || true ;; esac
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
require_python

case $purpose in packages | deb) exit 0 ;; esac

# Another run may be making .venv. Its lock lasts as long as any program that it has started.
if command -v flock >/dev/null; then
    exec 9<.
    flock -n 9 || { say "waiting for another run in this folder"; flock 9 || true; }
fi
# Not the interpreter of an active .venv, which may be removed below.
python=$("$python" -c 'import os, sys; print(os.path.realpath(sys._base_executable))')
interpreter="$("$python" -V) ($python)"
place=$(pwd -P)
sum=$(cat bootstrap.sh pyproject.toml constraints.txt | cksum)

# `made` is written last: a .venv without it is one that an earlier run did not finish. Its lines:
# the folder, the interpreter, the checksum of what the packages follow from, the purposes served.
made() { sed -n "$1p" .venv/made; }
outdated() { # why .venv cannot be built upon; nothing where it can
    if [ ! -e .venv/made ]; then
        echo "an earlier run did not finish it"
    elif [ "$(made 1)" != "$place" ]; then
        echo "it was made in $(made 1)"
    elif [ "$(made 2)" != "$interpreter" ]; then
        echo "it was made by $(made 2), and this is $interpreter"
    elif ! .venv/bin/python -c '' 2>/dev/null; then
        echo "its interpreter does not run"
    fi
}
serves() { # serves PURPOSE: whether .venv has all of it, as the files of this tree ask for it
    case " $(made 4) " in *" $1 "*) [ "$(made 3)" = "$sum" ] ;; *) false ;; esac
}
owned() { # owned DIRECTORY: whether this user may change and remove it
    [ "$(id -u)" = 0 ] || [ -z "$(find "$1" ! -user "$(id -u)" -print -quit 2>&1)" ] ||
        fail "$1 holds files of another user: please run once: sudo rm -rf $place/$1"
}

# Tests and benchmarks build there.
if [ "$purpose" != run ] && [ -e build ]; then owned build; fi
why=
served=
if [ -e .venv ] || [ -L .venv ]; then
    why=$(outdated)
    if [ -z "$why" ]; then
        ! serves "$purpose" || exit 0
    fi
    [ ! -e .venv/made ] || served=$(made 4)
    owned .venv
fi
# What served tests or benchmarks does so again: `make demo` must not take their packages away.
case " $purpose $served " in
*" bench "*) purpose=bench ;;
*" test "*) purpose=test ;;
esac

making=yes
if [ -n "$why" ]; then
    say "making .venv anew: $why"
    rm -rf .venv
fi
say "installing Python packages into .venv ($purpose)"
# Python compiles what is used, a fifth of it, when it is used.
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt"
if [ -e .venv ]; then
    rm .venv/made
    $pip --upgrade pip
else
    # pip out of the interpreter's wheel takes a third of the time of `ensurepip`, which compiles it.
    wheel=$("$python" systemd/pip_wheel.py)
    "$python" -m venv --without-pip .venv
    PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$wheel $pip pip
fi
# The C file in netfilterqueue's sdist comes from an old Cython and compiles under no supported
# Python; with a current Cython installed, the build generates it again.
$pip 'cython>=3.1,<4' 'setuptools>=77'
$pip --no-build-isolation netfilterqueue
# From the tree and not compiled, so that a change takes effect at once; `make install` compiles.
case $purpose in
run) groups= purposes="run" ;;
test) groups="--group dev" purposes="run test" ;;
bench) groups="--group dev --group bench" purposes="run test bench" ;;
esac
# shellcheck disable=SC2086 # a list of words
HATCH_BUILD_NO_HOOKS=true $pip --editable ".[lab]" $groups
printf '%s\n' "$place" "$interpreter" "$sum" "$purposes" >.venv/made.new
mv .venv/made.new .venv/made
making=
