# SPDX-License-Identifier: MIT
"""The Debian package: installed, upgraded and purged on a real systemd (`make deb-test`)."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.systemd.conftest import WHEELS, Guest, boot

_BUILD: Final = Path(__file__).parents[2] / "build" / "deb"
_CONFIG: Final = "/etc/nfq-guard/nfq-guard.toml"
# Where Debian's package python3-scapy has its modules.
_PACKAGES: Final = "/usr/lib/python3/dist-packages"
_DPKG: Final = "DEBIAN_FRONTEND=noninteractive dpkg --force-confold"

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def package() -> Path:
    (found,) = _BUILD.glob("nfq-guard_*.deb")
    return found


@pytest.fixture(scope="module")
def older(package: Path) -> Path:
    """The package at a lower version, with another configuration and a module since removed."""
    folder = _BUILD / "older"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    control = folder / "DEBIAN" / "control"
    control.write_text(re.sub("(?m)^Version: .*", "Version: 0.0.9-1", control.read_text()))
    config = folder / _CONFIG[1:]
    config.write_text(config.read_text() + "\n# of the older version\n")
    (folder / "usr/lib/nfq-guard/nfq_guard/gone.py").write_text("")
    built = _BUILD / "older.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", folder, built], check=True)
    return built


@pytest.fixture
def machine() -> Iterator[Guest]:
    with boot(install=False) as guest:
        # That of a container image keeps packages from starting services.
        guest.sh("rm -f /usr/sbin/policy-rc.d")
        yield guest


def instance(guest: Guest) -> str:
    """Start the daemon of a namespace, and return its process id."""
    guest.sh(
        "ip netns add blue; "
        "printf '[daemon]\ncontrol_socket = \"/run/nfq-guard/blue/control.sock\"\n' "
        ">/etc/nfq-guard/blue.toml; systemctl start nfq-guard@blue"
    )
    return guest.show("MainPID", "nfq-guard@blue")


def is_another(guest: Guest, process: str) -> None:
    """The daemon of the namespace runs the new files."""
    assert guest.show("MainPID", "nfq-guard@blue") not in {process, "0"}
    guest.sh("nfq-guard status --socket /run/nfq-guard/blue/control.sock")


def rules(guest: Guest) -> int:
    return int(guest.sh("iptables-save | grep -c NFQUEUE || true"))


def test_lintian_has_no_error(package: Path) -> None:
    lintian = shutil.which("lintian")
    if lintian is None:
        pytest.skip("lintian is not installed")
    done = subprocess.run(
        [lintian, "--allow-root", "--fail-on", "error,warning", package],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_install_upgrade_remove_and_purge(machine: Guest, package: Path, older: Path) -> None:
    said = machine.sh(f"{_DPKG} -i {older}", timeout_s=120)
    assert machine.show("ActiveState") == "active", said
    path = "/lib/systemd/system/nfq-guard.service"
    assert machine.show("FragmentPath").removeprefix("/usr") == path
    assert machine.show("ActiveState", "nfq-guard-metrics.socket") == "active"
    assert machine.sh("systemctl is-enabled nfq-guard nfq-guard-metrics.socket").split() == [
        "enabled",
        "enabled",
    ]
    assert '"mode":"dry-run"' in machine.sh("nfq-guard status --format json")
    machine.sh("nfq-guard rules verify")
    assert rules(machine) > 0
    machine.sh("nfq-guard check")
    machine.sh("logrotate --debug /etc/logrotate.d/nfq-guard")
    machine.sh("test -s /usr/share/man/man8/nfq-guard.8.gz")
    machine.sh("bash -n /usr/share/bash-completion/completions/nfq-guard")
    machine.sh("nfq-guard report --help")
    said = machine.sh("nfq-guard lab demo", check=False)
    assert said == (
        "nfq-guard: the lab needs scapy: pip install 'nfq-guard[lab]', or Debian's python3-scapy\n"
    )
    machine.sh(f"python3 -m zipfile -e {WHEELS}/scapy-*.whl {_PACKAGES}")
    try:
        assert "next request: answered" in machine.sh("nfq-guard lab demo")
    finally:
        machine.sh(f"rm -r {_PACKAGES}/scapy*")
    process = machine.show("MainPID")
    of_namespace = instance(machine)

    # An upgrade keeps the operator's configuration, and the new version uses it.
    machine.sh(f"sed -i 's/dry-run\"/enforce\"/' {_CONFIG}; systemctl reload nfq-guard")
    machine.sh(f"{_DPKG} -i {package}", timeout_s=120)
    assert machine.show("ActiveState") == "active"
    assert machine.show("MainPID") != process
    is_another(machine, of_namespace)
    assert '"mode":"enforce"' in machine.sh("nfq-guard status --format json")
    assert "of the older version" in machine.sh(f"cat {_CONFIG}")
    assert rules(machine) > 0
    machine.sh("! find /usr/lib/nfq-guard -name '*gone*' | grep .")

    # With a faulty file the service starts with the last good configuration.
    machine.sh(f"echo broken >>{_CONFIG}")
    machine.sh(f"{_DPKG} -i {package}", timeout_s=120)
    assert machine.show("ActiveState") == "active"
    assert "config_refused" in machine.sh("journalctl -u nfq-guard -o cat --no-pager")
    assert rules(machine) > 0

    machine.sh("dpkg -r nfq-guard", timeout_s=120)
    assert machine.show("LoadState") == "not-found"
    assert machine.show("ActiveState", "nfq-guard@blue") == "inactive"
    assert rules(machine) == 0
    assert not machine.sh("ls -d /usr/lib/nfq-guard 2>/dev/null || true")
    assert "broken" in machine.sh(f"cat {_CONFIG}")

    machine.sh("rm /etc/nfq-guard/blue.toml; dpkg -P nfq-guard", timeout_s=120)
    left = "ls -d /etc/nfq-guard /etc/logrotate.d/nfq-guard /var/l*/nfq-guard /run/nfq-guard"
    assert not machine.sh(f"{left} 2>/dev/null || true")
    assert "no packages found" in machine.sh("dpkg-query -W nfq-guard", check=False)


def test_it_is_not_installed_over_make_install(machine: Guest, package: Path) -> None:
    said = machine.install("mount --bind /dev/null $(command -v systemctl)")
    assert said.endswith("have your init system run /usr/local/sbin/nfq-guard run, as root\n")
    machine.sh("nfq-guard check")
    machine.install()
    of_namespace = instance(machine)
    machine.install()
    is_another(machine, of_namespace)
    process = machine.show("MainPID")
    said = machine.sh(f"{_DPKG} -i {package}", check=False, timeout_s=120)
    assert "please run 'make uninstall' first" in said
    assert machine.show("MainPID") == process
    assert not machine.sh("ls -d /usr/lib/nfq-guard 2>/dev/null || true")
    # Nor does `make install` replace the package.
    tree = Path(__file__).parents[2]
    machine.sh(f"{tree}/systemd/install.sh uninstall", timeout_s=120)
    machine.sh(f"{_DPKG} -i {package}", timeout_s=120)
    process = machine.show("MainPID")
    for action in ("install", "uninstall"):
        said = machine.sh(f"{tree}/systemd/install.sh {action}", check=False, timeout_s=120)
        assert said == (
            "nfq-guard: the Debian package nfq-guard is installed: apt remove nfq-guard\n"
        )
        assert machine.show("MainPID") == process
    assert machine.show("UnitFileState") == "enabled"
    machine.sh("test -e /etc/logrotate.d/nfq-guard")


def test_removal_takes_what_an_instance_left_that_systemd_gave_up(
    machine: Guest, package: Path
) -> None:
    machine.sh(f"{_DPKG} -i {package}", timeout_s=120)
    machine.sh("mkdir /run/systemd/system/nfq-guard@blue.service.d")
    machine.sh(
        "printf '[Service]\nRestart=no\n' >/run/systemd/system/nfq-guard@blue.service.d/once.conf"
    )
    machine.sh("systemctl daemon-reload")
    instance(machine)
    machine.sh("systemctl kill --signal=KILL nfq-guard@blue")
    failed = "the instance has failed"
    machine.until(lambda: machine.show("ActiveState", "nfq-guard@blue") == "failed", failed)
    saved = "ip netns exec blue iptables-save"
    assert "NFQUEUE" in machine.sh(saved)
    machine.sh("dpkg -r nfq-guard", timeout_s=120)
    assert "NFQ_GUARD" not in machine.sh(saved)
    assert not machine.sh("ls -A /sys/fs/bpf/nfq-guard 2>/dev/null || true")


def test_a_unit_of_edit_full_is_not_taken_for_make_install(machine: Guest, package: Path) -> None:
    """It stays when the package is removed, and the package can be installed again."""
    machine.sh(f"{_DPKG} -i {package}", timeout_s=120)
    machine.sh("cp /lib/systemd/system/nfq-guard.service /etc/systemd/system/; dpkg -r nfq-guard")
    machine.sh(f"{_DPKG} -i {package}", timeout_s=120)
    assert machine.show("ActiveState") == "active"
    assert machine.show("FragmentPath") == "/etc/systemd/system/nfq-guard.service"
