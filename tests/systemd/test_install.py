# SPDX-License-Identifier: MIT
"""The files that `make install` writes, refuses and removes, under a real systemd."""

import re
from functools import partial
from pathlib import Path

import pytest

from nfq_guard.lab.pace import limit
from tests.systemd.conftest import CONFIG, Guest

INSTALLER = Path(__file__).parents[2] / "systemd" / "install.sh"
DROP_INS = "/etc/systemd/system/nfq-guard.service.d"

pytestmark = [
    pytest.mark.kernel,
    # Apart from the group of test_service.py, which takes longer than any other.
    pytest.mark.xdist_group("installed"),
    pytest.mark.timeout(limit(180)),
]


def test_links_of_the_installed_readme(guest: Guest) -> None:
    folder = "/usr/local/share/doc/nfq-guard"
    links = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", guest.sh(f"cat {folder}/README.md")))
    assert len(links) > 5
    for link in sorted(links):
        guest.sh(f"test -e {folder}/{link}")


def test_the_environment_has_no_pip(guest: Guest) -> None:
    """The service needs none, and what installed it is gone."""
    home = "/usr/local/lib/nfq-guard"
    assert guest.sh(f"find {home} -name 'pip*'") == ""
    guest.sh(f"ls -d {home}/lib/*/*/nfq_guard")


def test_man_pages_and_completion_are_found(guest: Guest) -> None:
    for page in ("8/nfq-guard.8", "5/nfq-guard.toml.5", "5/nfq-guard-policy.5"):
        guest.sh(f"test -s /usr/local/share/man/man{page}")
    guest.sh("bash -n /usr/local/share/bash-completion/completions/nfq-guard")


def test_an_install_that_cannot_succeed_changes_nothing(guest: Guest) -> None:
    refused = partial(guest.install, check=False)
    process = guest.show("MainPID")
    old = "printf '#!/bin/sh\\necho False\\n' >/tmp/old; chmod +x /tmp/old"
    hidden = "mount --bind /dev/null $(command -v iptables); mount --bind /dev/null /usr/sbin/nft"
    assert "PYTHON: /tmp/old is older than Python 3.11" in refused(old, "PYTHON=/tmp/old")
    assert "PYTHON: /bin/ls is no Python that runs here" in refused("", "PYTHON=/bin/ls")
    assert "neither iptables nor nft is there" in refused(hidden)
    said = refused("mkdir /tmp/empty", "WHEELS=/tmp/empty")
    assert re.search(
        r"^nfq-guard: /tmp/empty does not have all wheels for Python 3\.\S+ on \w+; nothing is",
        said,
        re.MULTILINE,
    )
    guest.configure("queue = 70000")
    said = refused()
    assert "daemon.queue: expected a whole number from 0 to 65535, found 70000 (line 2)" in said
    assert "nfq-guard.toml has mistakes; nothing is changed" in said.splitlines()[-1]
    gone = f"mv {CONFIG} /run/kept; ln -s /srv/gone.toml {CONFIG}; "
    gone += f"trap 'mv /run/kept {CONFIG}' EXIT"
    said = refused(gone)
    leads = f"{CONFIG} leads to /srv/gone.toml, which does not exist"
    assert said == f"nfq-guard: {leads}; nothing is changed\n"
    unit = "/lib/systemd/system/nfq-guard.service"
    for action in ("install", "uninstall"):
        said = guest.sh(f"trap 'rm {unit}' EXIT; touch {unit}; {INSTALLER} {action}", check=False)
        assert (
            said == "nfq-guard: the Debian package nfq-guard is installed: apt remove nfq-guard\n"
        )
    assert guest.show("MainPID") == process
    assert not guest.sh("ls -d /usr/local/lib/nfq-guard.new", check=False).startswith("/")
    guest.sh("nfq-guard check preset:default")


def test_uninstall_takes_all_but_the_configuration(guest: Guest) -> None:
    """A second installation uses that configuration, and no modules of where it is run."""
    guest.configure('mode = "dry-run"\nqueue = 5')
    guest.sh(f"systemctl enable nfq-guard@blue && {INSTALLER} uninstall")
    old = "/etc/systemd/system/nfq-guard.service.d"
    guest.sh(f"mkdir {old}; printf '[Service]\nExecReload=\n' >{old}/reload.conf")
    assert "NFQUEUE" not in guest.sh("cat <(iptables-save) <(ip6tables-save)")
    left = guest.sh(
        "ls -d /etc/nfq-guard/nfq-guard.toml /usr/local/lib/nfq-guard /usr/local/sbin/nfq-guard "
        "/etc/systemd/system/nfq-guard* /etc/systemd/system/*/nfq-guard* "
        "/etc/logrotate.d/nfq-guard /usr/local/share/man/man*/nfq-guard* "
        "/usr/local/share/*/*/*nfq-guard* 2>/dev/null",
        check=False,
    )
    assert left.split() == ["/etc/nfq-guard/nfq-guard.toml", old]
    said = guest.install(
        "mkdir /tmp/planted; cd /tmp/planted\n"
        "for name in pip venv zipfile; do echo 'raise SystemExit(1)' >$name.py; done"
    )
    assert not guest.sh(f"ls {old} 2>/dev/null", check=False)
    assert "reload --wait" in guest.show("ExecReload")
    assert "keeping /etc/nfq-guard/nfq-guard.toml" in said
    assert "running in dry-run mode" in said
    assert "nfq-guard mode enforce" in said
    assert guest.show("ActiveState") == "active"
    assert guest.sh("cat /proc/net/netfilter/nfnetlink_queue").split()[0] == "5"
    guest.sh("systemctl disable --quiet --now nfq-guard")
    assert "nfq-guard.service is disabled on this host, and is not started" in guest.install()
    assert guest.show("ActiveState") == "inactive"
    said = guest.install("mount -t tmpfs none /run/systemd")
    assert "nfq-guard.service is disabled in this image, and stays so" in said
    assert guest.sh("systemctl is-enabled nfq-guard", check=False) == "disabled\n"
    guest.sh("systemctl enable --quiet --now nfq-guard")


def test_what_uninstall_says_that_it_leaves_is_there(guest: Guest) -> None:
    said = guest.sh(f"{INSTALLER} uninstall")
    places = "/etc/nfq-guard, /var/log/nfq-guard, /var/lib/nfq-guard, user nfq-guard"
    assert said == f"nfq-guard: removed; left in place: {places}\n"
    guest.sh("rm -r /etc/nfq-guard /var/log/nfq-guard /var/lib/nfq-guard; userdel nfq-guard")
    assert guest.sh(f"{INSTALLER} uninstall") == "nfq-guard: removed; left in place: nothing\n"
    guest.install()


def test_uninstall_takes_what_a_service_left_that_systemd_gave_up(guest: Guest) -> None:
    """After too many crashes rules, pins and sysctls stay, and stopping removes none of them."""
    guest.configure('mode = "dry-run"\nevidence = "kernel-log"')
    log = "/proc/sys/net/netfilter/nf_conntrack_log_invalid"
    guest.sh("systemctl stop nfq-guard; nfq-guard prepare --rules --quiet")
    assert guest.sh(f"cat {log}") == "255\n"
    guest.sh(f"{INSTALLER} uninstall")
    assert guest.sh(f"cat {log}; ls -d /run/nfq-guard-kernel-log 2>/dev/null", check=False) == "0\n"
    assert "NFQUEUE" not in guest.sh("cat <(iptables-save) <(ip6tables-save)")
    guest.configure("")
    guest.install()


def test_modules_of_the_environment_are_not_taken(guest: Guest) -> None:
    """Many hosts export PYTHONPATH to all programs, such as those with ROS."""
    guest.sh("mkdir -p /tmp/others/nfq_guard; touch /tmp/others/nfq_guard/__init__.py")
    guest.sh("echo 'raise SystemExit(\"of others\")' >/tmp/others/json.py")
    others = "PYTHONPATH=/tmp/others PYTHONHOME=/nonexistent"
    assert "running in dry-run mode" in guest.install("", *others.split())
    assert guest.sh(f"{others} nfq-guard status").startswith("mode        dry-run")


# Makes environments that have itself for Python, and whose pip fails.
_STUB = r"""#!/bin/sh
for last; do :; done
case $* in
*"-m venv"*) mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
*"-m pip"*) echo the pip of "$0"; exit 1 ;;
*) echo True ;;
esac
"""


def test_a_tree_whose_path_has_a_space(guest: Guest) -> None:
    source = INSTALLER.parents[1]
    guest.sh("mkdir '/run/a tree'; cat >/run/stub <<'END'\n" + _STUB + "END\nchmod +x /run/stub")
    guest.sh(f"cp -r {source}/systemd {source}/bootstrap.sh '/run/a tree'")
    said = guest.sh("PYTHON=/run/stub '/run/a tree/systemd/install.sh' install", check=False)
    assert "the pip of /run/a tree/build/install/bin/python\n" in said


def test_what_the_operator_has_changed_stays(guest: Guest) -> None:
    """An upgrade and an uninstallation keep it, and say so; a reinstallation takes it."""
    rotation = "/etc/logrotate.d/nfq-guard"
    override = "/etc/systemd/system/nfq-guard@.service.d"
    said = guest.install()
    assert rotation not in said
    guest.sh(f"sed -i 's/rotate 7/rotate 30/' {rotation}")
    guest.sh(f"printf '[Service]\nMemoryMax=600M\n' >{override}/override.conf")
    for action in ("install", "uninstall", "install"):
        said = guest.install() if action == "install" else guest.sh(f"{INSTALLER} uninstall")
        assert rotation in said
        guest.sh(f"grep 'rotate 30' {rotation} && ls {override}/override.conf")
    guest.sh(f"rm {override}/override.conf; cp {INSTALLER.parent}/nfq-guard.logrotate {rotation}")
    assert rotation not in guest.install()
    said = guest.sh(f"{INSTALLER} uninstall")
    assert rotation not in said
    assert override not in said
    assert not guest.sh(f"ls -d {rotation} {override} 2>/dev/null", check=False)
    guest.install()


def test_a_changed_unit_is_kept_beside_the_new_one(guest: Guest) -> None:
    """`systemctl edit --full` changes the file itself, where it is in /etc."""
    unit = "/etc/systemd/system/nfq-guard.service"
    guest.install()
    guest.sh(f"echo '# of this host' >>{unit}")
    assert f"{unit} was not as installed" in guest.install()
    assert guest.sh(f"tail -1 {unit}.changed; grep -c 'of this host' {unit}", check=False) == (
        "# of this host\n0\n"
    )
    assert "was not as installed" not in guest.install()
    assert f"{unit}.changed" in guest.sh(f"{INSTALLER} uninstall")
    guest.sh(f"rm {unit}.changed")
    guest.install()


def test_a_root_whose_files_are_its_own_alone(guest: Guest) -> None:
    """With umask 077 too, the service and other users can read what is installed."""
    guest.sh(f"{INSTALLER} uninstall; mv /etc/nfq-guard /etc/nfq-guard.old")
    assert "running in dry-run mode" in guest.install("umask 077")
    places = "/usr/local/lib/nfq-guard /usr/local/share/doc/nfq-guard /etc/nfq-guard"
    assert not guest.sh(f"find {places} ! -type l ! -perm -o=r")
    guest.sh("rm -r /etc/nfq-guard; mv /etc/nfq-guard.old /etc/nfq-guard")


def test_uninstalled_without_a_systemd_that_runs(guest: Guest) -> None:
    """As in an image: no link to a unit that is gone is left."""
    guest.sh(f"unshare --mount sh -c 'mount -t tmpfs none /run/systemd; {INSTALLER} uninstall'")
    assert not guest.sh("find /etc/systemd -name 'nfq-guard*'")
    # That systemd knows nothing of it.
    guest.sh("systemctl daemon-reload")
    guest.install()
    assert guest.show("ActiveState") == "active"


def test_a_place_that_takes_no_installation_is_named(guest: Guest) -> None:
    """And not taken for a lack of wheels or for mistakes in the configuration."""
    process = guest.show("MainPID")
    small = guest.install("mount -t tmpfs -o size=8m none /usr/local/lib", check=False)
    assert "No space left on device" in small
    assert "installed into /usr/local/lib/nfq-guard, as said above; nothing is changed" in small
    assert "does not have all wheels" not in small
    noexec = guest.install("mount -t tmpfs -o noexec none /usr/local/lib", check=False)
    assert "/usr/local/lib/nfq-guard/bin/nfq-guard would not run, as said above" in noexec
    assert "mistakes" not in noexec
    for place in ("/usr/local/lib", "/usr/local/sbin", "/etc"):
        read_only = f"mount --bind {place} {place}; mount -o remount,bind,ro {place}"
        said = guest.install(read_only, check=False)
        assert said == f"nfq-guard: {place} cannot be written; nothing is changed\n"
    for prefix in ("opt/guard", "'/opt/a guard'", "'/opt/a|guard'", "/"):
        said = guest.install("", f"PREFIX={prefix}", check=False)
        assert "PREFIX: expected an absolute path of letters, digits and ._+-, found" in said
    assert guest.show("MainPID") == process
    guest.sh("nfq-guard check preset:default")


def test_a_prefix_with_a_slash_at_its_end(guest: Guest) -> None:
    guest.sh(f"{INSTALLER} uninstall")
    assert "running in dry-run mode" in guest.install("", "PREFIX=/opt/guard/")
    assert guest.show("ActiveState") == "active"
    guest.sh(f"/opt/guard/sbin/nfq-guard status; PREFIX=/opt/guard/ {INSTALLER} uninstall")
    assert not guest.sh("find /opt/guard -name '*nfq*guard*'")
    guest.sh("rm -r /opt/guard")
    guest.install()


def test_an_upgrade_leaves_the_endpoint_of_the_metrics_closed(guest: Guest) -> None:
    guest.sh("systemctl disable --quiet --now nfq-guard-metrics.socket")
    assert "nfq-guard-metrics.socket is disabled on this host" in guest.install()
    assert guest.show("UnitFileState", "nfq-guard-metrics.socket") == "disabled"
    assert guest.show("ActiveState", "nfq-guard-metrics.socket") == "inactive"
    guest.sh("systemctl enable nfq-guard-metrics.socket; systemctl restart nfq-guard")


def test_the_endpoint_of_the_metrics_that_is_said_is_there(guest: Guest) -> None:
    socket, drop_in = "nfq-guard-metrics.socket", "/run/systemd/system/nfq-guard-metrics.socket.d"
    assert "metrics:     http://127.0.0.1:9477/metrics," in guest.install()
    guest.sh(f"mkdir {drop_in}; printf '[Socket]\nListenStream=\n' >{drop_in}/a.conf")
    guest.sh(f"echo ListenStream=127.0.0.1:9478 >>{drop_in}/a.conf")
    assert "metrics:     http://127.0.0.1:9478/metrics," in guest.install()
    guest.sh(f"rm -r {drop_in}; systemctl daemon-reload; systemctl stop nfq-guard {socket}")
    guest.sh("systemd-run --unit=other python3 -m http.server --bind 127.0.0.1 9477")
    said = guest.install("until ss -lt | grep -q 9477; do sleep 0.1; done")
    assert (
        f"metrics:     none, because its socket cannot be opened: systemctl status {socket}" in said
    )
    guest.sh(f"systemctl stop other; systemctl disable --quiet --now {socket}; mkdir -p {DROP_INS}")
    guest.sh(f"cp /usr/local/share/doc/nfq-guard/metrics.conf {DROP_INS}/; systemctl daemon-reload")
    guest.configure('metrics_listen = "127.0.0.1:9479"')
    assert "metrics:     http://127.0.0.1:9479/metrics," in guest.install()
    guest.configure("")
    guest.sh(f"rm -r {DROP_INS}; systemctl daemon-reload; systemctl enable --quiet {socket}")
    guest.sh("systemctl restart nfq-guard")


def test_a_mask_stays_and_is_not_written_through(guest: Guest) -> None:
    """`systemctl mask` links a unit to /dev/null, which users must still be able to write into."""
    units = "/etc/systemd/system"
    guest.sh(f"{INSTALLER} uninstall; systemctl mask nfq-guard")
    said = guest.install(check=False)
    masked = "nfq-guard.service is masked; nothing is changed: systemctl unmask nfq-guard.service"
    assert said == f"nfq-guard: {masked}\n"
    assert not guest.sh("ls -d /usr/local/lib/nfq-guard 2>/dev/null", check=False)
    guest.sh("systemctl unmask nfq-guard; systemctl mask nfq-guard-metrics.socket nfq-guard@")
    said = guest.install()
    assert "metrics:     none, because nfq-guard-metrics.socket is disabled on this host" in said
    assert guest.show("ActiveState") == "active"
    for unit in ("nfq-guard-metrics.socket", "nfq-guard@.service"):
        assert guest.sh(f"readlink {units}/{unit}") == "/dev/null\n"
    assert guest.sh("stat -c %a /dev/null") == "666\n"
    guest.sh("systemctl unmask nfq-guard-metrics.socket nfq-guard@")
    guest.install()
    assert guest.show("ActiveState", "nfq-guard-metrics.socket") == "active"


@pytest.mark.parametrize("line", ['mode = "enforce" # since "March"', "mode = 'enforce'"])
def test_the_mode_that_is_said_is_that_of_the_daemon(guest: Guest, line: str) -> None:
    guest.configure(line)
    assert "nfq-guard: running in enforce mode\n" in guest.install()


def test_another_prefix_than_the_installed_one(guest: Guest) -> None:
    """Nothing of the other place would be removed, or replaced."""
    process = guest.show("MainPID")
    refused = "nfq-guard: nfq_guard is installed in /usr/local; nothing is changed: make"
    said = guest.install("", "PREFIX=/opt/guard", check=False)
    assert said == f"{refused} install PREFIX=/usr/local\n"
    said = guest.sh(f"PREFIX=/opt/guard {INSTALLER} uninstall", check=False)
    assert said == f"{refused} uninstall PREFIX=/usr/local\n"
    assert guest.show("MainPID") == process
    guest.sh("ls /usr/local/sbin/nfq-guard; ! ls -d /opt/guard")


def test_a_prefix_beside_a_usr_local_that_is_read_only(guest: Guest) -> None:
    """The texts for `journalctl -x` lie there, whatever the prefix is."""
    guest.sh(f"{INSTALLER} uninstall")
    read_only = "mount --bind /usr/local /usr/local; mount -o remount,bind,ro /usr/local"
    said = guest.install(read_only, "PREFIX=/opt/guard")
    assert "/usr/local/lib/systemd/catalog cannot be written, so journalctl -x has no text" in said
    assert "running in dry-run mode" in said
    guest.sh(f"PREFIX=/opt/guard {INSTALLER} uninstall; rm -r /opt/guard")
    guest.install()


def test_an_interrupted_installation_leaves_nothing(guest: Guest) -> None:
    new = "/usr/local/lib/nfq-guard.new"
    process = guest.show("MainPID")
    for name in ("INT", "TERM"):
        guest.install(
            f"(until [ -e {new}/pip ]; do sleep 0.05; done; kill -{name} $$) &\nexec env \\",
            check=False,
        )
        assert not guest.sh(f"ls -d {new} 2>/dev/null", check=False)
    # After a SIGKILL the next installation or removal takes it.
    guest.sh(f"mkdir {new}; {INSTALLER} uninstall; ! ls -d {new}")
    guest.install()
    assert guest.show("MainPID") != process


def test_one_installation_at_a_time(guest: Guest) -> None:
    process = guest.show("MainPID")
    held = "exec 7>>/run/nfq-guard-install; flock 7"
    assert "another installation is running" in guest.install(held, check=False)
    assert guest.show("MainPID") == process
    # It names where the configuration that it keeps has the packets.
    guest.configure('mode = "dry-run"')
    assert "packets:     journalctl -u nfq-guard -f" in guest.install()
    guest.configure('events_file = "/var/log/nfq-guard/packets.jsonl"')
    assert "packets:     tail -F /var/log/nfq-guard/packets.jsonl" in guest.install()
    assert guest.sh("ls -A /run/nfq-guard-install 2>/dev/null", check=False) == ""


def test_uninstall_takes_what_an_instance_left_that_systemd_gave_up(guest: Guest) -> None:
    name = "orange"
    own = f"/etc/systemd/system/nfq-guard@{name}.service.d"
    guest.sh(
        f"ip netns add {name}; mkdir {own}; printf '[Service]\nRestart=no\n' >{own}/once.conf\n"
        f"cat >/etc/nfq-guard/{name}.toml <<'END'\n[daemon]\nmode = 'enforce'\n"
        f"fail_mode = 'kernel-drop'\ncontrol_socket = '/run/nfq-guard/{name}/control.sock'\nEND\n"
        f"systemctl daemon-reload; systemctl start nfq-guard@{name}\n"
        f"systemctl kill --signal=KILL nfq-guard@{name}"
    )
    unit = f"nfq-guard@{name}"
    guest.until(lambda: guest.show("ActiveState", unit) == "failed", "the instance has failed")
    saved = f"ip netns exec {name} iptables-save 2>/dev/null"
    assert "NFQ_GUARD_DROP" in guest.sh(saved)
    guest.sh(f"{INSTALLER} uninstall")
    assert "NFQ_GUARD" not in guest.sh(saved)
    assert not guest.sh("ls -A /sys/fs/bpf/nfq-guard 2>/dev/null", check=False)
    guest.sh(f"rm -r {own} /etc/nfq-guard/{name}.toml; ip netns del {name}")
    guest.install()
