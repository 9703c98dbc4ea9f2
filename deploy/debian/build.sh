#!/bin/sh
# SPDX-License-Identifier: MIT
# build.sh WHEELS [REVISION]: build the Debian package in build/deb from the wheels in the folder
# WHEELS, with debhelper and nothing from a network. The modules are compiled for the Python of
# Debian's package python3, so the wheels must be of its version.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
wheels=$(cd "$1" && pwd)
revision=${2:-1}
fail() { printf 'build.sh: %s\n' "$*" >&2; exit 69; }

for program in chrpath dh dpkg-buildpackage /usr/bin/python3; do
    command -v "$program" >/dev/null || fail "$program is missing: apt-get install chrpath debhelper dpkg-dev python3"
done
of() { "$1" -c 'import sys; print("cp%d%d" % sys.version_info[:2])'; }
tag=$(of /usr/bin/python3)
[ -n "$(find "$wheels" -name "nfq_guard-*-$tag-*.whl")" ] ||
    fail "$wheels has no wheel of nfq_guard for Debian's python3 ($tag)"
python=$tree/.venv/bin/python
[ "$(of "$python")" = "$tag" ] || fail "$python is not of the version of Debian's python3 ($tag)"
version=$(sed -n 's/^__version__.*"\(.*\)"$/\1/p' "$tree/nfq_guard/__init__.py")

work=$tree/build/deb
rm -rf "$work"
mkdir -p "$work/nfq-guard/debian"
cd "$work/nfq-guard"
cp "$here"/* debian/
rm debian/build.sh
cp "$tree/systemd/nfq-guard.sysusers" debian/
maintainer="${DEBFULLNAME:-nfq_guard authors} <${DEBEMAIL:-nfq-guard@localhost}>"
sed -i "s/@MAINTAINER@/$maintainer/" debian/control
cat >debian/changelog <<END
nfq-guard ($version-$revision) unstable; urgency=medium

  * See CHANGELOG.md.

 -- $maintainer  $(LC_ALL=C date -R -u -r "$tree/CHANGELOG.md")
END
{
    cat <<'END'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: nfq_guard
Comment: The Python packages that are bundled in /usr/lib/nfq-guard are under the licences that their
 folders *.dist-info have: MIT, BSD, Apache 2.0 and MPL 2.0. The BPF object may be used under the GPL
 as well.

Files: *
END
    sed -n 's/^Copyright (c) /Copyright: /p' "$tree/LICENSE"
    printf 'License: Expat\n\nLicense: Expat\n'
    sed '1,/^Copyright/d; /^$/{1d; s/^$/./}; s/^/ /' "$tree/LICENSE" | sed '1{/^ \.$/d}'
} >debian/copyright
WHEELS=$wheels TREE=$tree PIP="$python -m pip --disable-pip-version-check" \
    dpkg-buildpackage --build=binary --no-sign --no-check-builddeps >"$work/log" 2>&1 ||
    { tail -n 30 "$work/log" >&2; exit 1; }
ls "$work"/*.deb
