#!/bin/sh
# SPDX-License-Identifier: MIT
# bootstrap.sh run|test|bench: installs what is missing for that purpose, and says what it does.
# bootstrap.sh packages: Debian packages alone, for `make install`.
#
# Debian packages are asked for only where the thing they bring (a program, a header, a library)
# is not there yet, so that a machine which has them by other means is left alone. Python packages
# go into .venv beside this file.
set -eu
cd "$(dirname "$0")"
purpose=${1:-run}
python=${PYTHON:-python3}
say() { printf 'bootstrap: %s\n' "$*"; }
fail() { printf 'bootstrap: %s\n' "$*" >&2; exit 69; }

PATH=$PATH:/usr/sbin:/sbin
missing=
need() { # need PACKAGE TEST...: PACKAGE is missing when TEST fails
    package=$1; shift
    "$@" >/dev/null 2>&1 || case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
}
program() { command -v "$1"; }
header() { echo "#include <$1>" | gcc -E -xc -; }
library() { ldconfig -p | grep -q "$1"; }
module() { "$python" -c "import $1"; }
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
test | bench)
    need clang program clang
    need llvm program llvm-strip
    need libbpf-dev header bpf/bpf_helpers.h
    need nftables program nft
    need conntrack program conntrack
    need ethtool program ethtool
    need tshark program tshark
    need procps program ps
    need systemd program systemd-analyze
    need util-linux program setpriv
    need valgrind program valgrind
    need git program git
    ;;
*) fail "usage: bootstrap.sh run|test|bench|packages" ;;
esac

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || fail "please install what these Debian packages bring:$missing"
    [ "$(id -u)" = 0 ] || fail "please run once: sudo apt-get install$missing"
    say "installing Debian packages:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1), and Python 3.11 or later is needed: PYTHON=... names one"

[ "$purpose" != packages ] || exit 0

# .venv is made again when what it was made from changes.
sum=$({ "$python" -V; cat pyproject.toml constraints.txt; } | cksum)
there() { [ "$(cat ".venv/made-for-$1" 2>/dev/null)" = "$sum" ]; }
there "$purpose" && exit 0
if [ "$purpose" = run ] && there test; then exit 0; fi

say "installing Python packages into .venv ($purpose)"
"$python" -m venv .venv
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet --constraint constraints.txt"
$pip --upgrade pip
# netfilterqueue's own C file is of an old Cython that no supported Python compiles; with a current
# one beside it the file is made anew.
$pip 'cython>=3.1,<4' 'setuptools>=77'
$pip --no-build-isolation netfilterqueue
# From the tree and uncompiled, so that a change is in force at once; `make install` compiles.
case $purpose in
run) groups= ;;
test) groups="--group dev" ;;
bench) groups="--group dev --group bench" ;;
esac
# shellcheck disable=SC2086 # a list of words
HATCH_BUILD_NO_HOOKS=true $pip --editable . $groups
printf '%s\n' "$sum" >".venv/made-for-$purpose"
