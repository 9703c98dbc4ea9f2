# SPDX-License-Identifier: MIT
"""Modules that the kernel has or can load, by the files of freshly booted hosts."""

import gzip
from pathlib import Path
from typing import Final

import pytest

from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.modules import NEEDED, KernelFiles, features, queues

DEBIAN: Final = "6.1.0-18-amd64"
RHEL: Final = "5.14.0-427.13.1.el9_4.x86_64"
UBUNTU: Final = "5.15.0-91-generic"

CONFIG: Final = "# CONFIG_NFT_QUEUE is not set\n" + "".join(
    f"{feature.option}=m\n" for feature in NEEDED
)
NETFILTER: Final = "kernel/net/netfilter"
DEPENDENCIES: Final = (
    f"{NETFILTER}/nfnetlink.ko{{0}}:\n"
    f"{NETFILTER}/nfnetlink_queue.ko{{0}}: {NETFILTER}/nfnetlink.ko{{0}}\n"
    f"{NETFILTER}/nf_conntrack.ko{{0}}: kernel/lib/libcrc32c.ko{{0}}\n"
    f"{NETFILTER}/nf_conntrack_netlink.ko{{0}}: {NETFILTER}/nf_conntrack.ko{{0}}\n"
    f"{NETFILTER}/xt_NFQUEUE.ko{{0}}: {NETFILTER}/x_tables.ko{{0}}\n"
    f"{NETFILTER}/xt_conntrack.ko{{0}}: {NETFILTER}/x_tables.ko{{0}}\n"
)


class Machine:
    """A root directory with the files that matter here."""

    def __init__(self, root: Path, release: str) -> None:
        self.root = root
        self.release = release

    def write(self, name: str, text: str | bytes) -> None:
        path = self.root / name.format(self.release)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    def modules(self, without: str = "", suffix: str = "") -> None:
        lines = DEPENDENCIES.format(suffix).splitlines(keepends=True)
        kept = [line for line in lines if not without or f"/{without}.ko" not in line.split(":")[0]]
        self.write("lib/modules/{}/modules.dep", "".join(kept))
        self.write("lib/modules/{}/modules.builtin", "kernel/lib/crc32.ko\n")

    @property
    def files(self) -> KernelFiles:
        return KernelFiles.read(self.root, self.release)

    def checks(self) -> dict[str, Check]:
        found = {one.id: one for one in features(self.files)}
        return found | {"kernel.nfqueue": queues(self.files, present=False)}


@pytest.fixture
def debian(tmp_path: Path) -> Machine:
    """Freshly booted: nothing is loaded."""
    machine = Machine(tmp_path, DEBIAN)
    machine.write("boot/config-{}", CONFIG)
    machine.write("etc/os-release", 'PRETTY_NAME="Debian"\nID=debian\n')
    machine.write("proc/modules", "ext4 987654 1 - Live 0x0\n")
    machine.modules()
    return machine


def problems(machine: Machine) -> list[Check]:
    every = [*features(machine.files), queues(machine.files, present=False)]
    return [one for one in every if one.status is Status.PROBLEM]


def test_what_loading_will_mend_is_no_problem(debian: Machine) -> None:
    checks = debian.checks()
    assert checks["kernel.options"].status is Status.OK
    assert "loaded on demand: nf_conntrack, nf_conntrack_netlink, nfnetlink_queue, " in (
        checks["kernel.options"].what
    )
    assert checks["kernel.nfqueue"].status is Status.OK
    assert "the kernel loads it when the guard starts" in checks["kernel.nfqueue"].what
    assert "CONFIG_NFT_QUEUE is not set" in checks["kernel.nft_queue"].what


def test_what_is_loaded_is_not_pending(debian: Machine) -> None:
    lines = "".join(f"{feature.module} 4096 0 - Live 0x0\n" for feature in NEEDED)
    debian.write("proc/modules", lines)
    assert debian.checks()["kernel.options"].what == "the kernel has all that is needed"
    assert queues(debian.files, present=True).what == "NFQUEUE is available"


def test_native_rules_are_asked_for_and_impossible(debian: Machine) -> None:
    (check,) = [one for one in features(debian.files, native=True) if one.status is Status.PROBLEM]
    assert check.id == "kernel.nft_queue"
    assert 'backend = "nftables"' in check.what
    assert problems(debian) == []


@pytest.mark.parametrize("suffix", ["", ".xz", ".zst", ".gz"])
def test_modules_may_be_compressed(debian: Machine, suffix: str) -> None:
    debian.modules(suffix=suffix)
    assert problems(debian) == []


def test_the_configuration_is_not_needed(debian: Machine) -> None:
    """As in an image whose kernel has no file in /boot."""
    (debian.root / f"boot/config-{DEBIAN}").unlink()
    assert debian.files.options is None
    assert problems(debian) == []
    debian.modules(without="xt_NFQUEUE")
    (check,) = problems(debian)
    assert "the module xt_NFQUEUE (CONFIG_NETFILTER_XT_TARGET_NFQUEUE)" in check.what


def test_the_configuration_may_be_the_running_kernels_own(debian: Machine) -> None:
    (debian.root / f"boot/config-{DEBIAN}").unlink()
    debian.write("proc/config.gz", gzip.compress(CONFIG.replace("=m", "=y").encode()))
    assert debian.files.is_built_in(NEEDED[0])
    debian.write("proc/config.gz", b"\x1f\x8bnot much of it")
    assert debian.files.options is None


def test_everything_may_be_built_in(tmp_path: Path) -> None:
    """Also where modules.builtin alone says so."""
    machine = Machine(tmp_path, "6.6.0")
    machine.write(
        "usr/lib/modules/{}/modules.builtin",
        "".join(f"{NETFILTER}/{feature.module}.ko\n" for feature in NEEDED),
    )
    machine.write("usr/lib/modules/{}/modules.dep", "kernel/fs/fuse/fuse.ko:\n")
    checks = machine.checks()
    assert checks["kernel.options"].what == "the kernel has all that is needed"


@pytest.mark.parametrize(
    ("release", "identity", "package"),
    [
        (DEBIAN, "ID=debian\n", f"linux-image-{DEBIAN}"),
        (UBUNTU, "ID=ubuntu\nID_LIKE=debian\n", f"linux-modules-extra-{UBUNTU}"),
        (RHEL, 'ID="rhel"\nID_LIKE="fedora"\n', f"kernel-modules-extra-{RHEL}"),
        (RHEL, 'ID="rocky"\nID_LIKE="rhel centos fedora"\n', f"kernel-modules-extra-{RHEL}"),
        ("6.4.0-1-default", 'ID="sles"\nID_LIKE="suse"\n', "kernel-default"),
        ("6.18.1", "ID=other\n", "the package of this kernel that has further modules"),
    ],
)
def test_a_module_of_another_package(
    tmp_path: Path, release: str, identity: str, package: str
) -> None:
    machine = Machine(tmp_path, release)
    machine.write("boot/config-{}", CONFIG)
    machine.write("etc/os-release", identity)
    machine.modules(without="nfnetlink_queue", suffix=".xz")
    for check in problems(machine):
        assert "the module nfnetlink_queue" in check.what
        assert "is not installed" in check.what
        assert check.todo.startswith(f"install {package}")
    assert len(problems(machine)) == 2


def test_an_option_that_is_not_set(debian: Machine) -> None:
    lines = [line for line in CONFIG.splitlines() if "XT_TARGET_NFQUEUE" not in line]
    debian.write("boot/config-{}", "\n".join(lines))
    debian.modules(without="xt_NFQUEUE")
    (check,) = problems(debian)
    assert check.what.startswith("CONFIG_NETFILTER_XT_TARGET_NFQUEUE is not set: no iptables")


def test_the_modules_of_the_running_kernel_are_gone(debian: Machine) -> None:
    """An upgrade replaced them, and the machine was not restarted since."""
    (debian.root / f"lib/modules/{DEBIAN}").rename(debian.root / "lib/modules/6.1.0-99-amd64")
    found = problems(debian)
    assert len(found) == 1 + len(NEEDED)
    assert f"/lib/modules has none of the running kernel {DEBIAN}" in found[0].what
    assert f"linux-image-{DEBIAN}" in found[0].todo
    (debian.root / "etc/os-release").unlink()
    assert problems(debian)[0].todo.endswith("the modules of this one")


def test_an_option_that_is_not_set_without_any_modules(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "6.6.0")
    machine.write(
        "boot/config-{}", CONFIG.replace("CONFIG_NF_CT_NETLINK=m\n", "").replace("=m", "=y")
    )
    (check,) = problems(machine)
    assert check.what == "CONFIG_NF_CT_NETLINK is not set: no flow lookup"


def test_a_container_shows_nothing_of_its_kernel(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "6.6.0")
    checks = machine.checks()
    assert {one.status for one in checks.values()} == {Status.NOTE}
    assert "the features of the kernel are unknown" in checks["kernel.options"].what
    assert "not known" in checks["kernel.nfqueue"].what


@pytest.mark.parametrize(
    ("line", "keeps"),
    [
        ("install nfnetlink_queue /bin/false", True),
        ("  install nfnetlink-queue /usr/bin/true  # hardening", True),
        ("blacklist nfnetlink_queue", True),
        ("# blacklist nfnetlink_queue", False),
        ("install nfnetlink_queue /sbin/modprobe --ignore-install nfnetlink_queue", False),
        ("options nfnetlink_queue x=1", False),
    ],
)
def test_modprobe_may_refuse(debian: Machine, line: str, *, keeps: bool) -> None:
    debian.write("etc/modprobe.d/site.conf", f"{line}\n")
    found = problems(debian)
    assert bool(found) == keeps
    for check in found:
        assert "/etc/modprobe.d/site.conf excludes it from automatic loading" in check.what
        assert check.todo == "load it: modprobe nfnetlink_queue"


def test_a_kernel_that_loads_no_more_modules(debian: Machine) -> None:
    debian.write("proc/sys/kernel/modules_disabled", "1\n")
    found = problems(debian)
    assert len(found) == 1 + len(NEEDED)
    assert "kernel.modules_disabled is 1" in found[0].what
    assert "/etc/modules-load.d" in found[0].todo


def test_modules_that_no_file_tells_of(tmp_path: Path) -> None:
    """The options say module, and the files cannot be read: the start of the guard will show it."""
    machine = Machine(tmp_path, "6.6.0")
    machine.write("boot/config-{}", CONFIG)
    machine.write("lib/modules/{}/modules.dep", "")
    assert machine.files.available is None
    machine.write("proc/modules", "nfnetlink_queue 1 0 - Live 0x0\n")
    assert queues(machine.files, present=False).status is Status.OK
