# SPDX-License-Identifier: MIT
"""Downloads kernels and builds their root file system, once, into a cache folder.

The kernels are Debian's, and Ubuntu's for generations of conntrack that Debian lacks.

apt uses its own lists and package cache, so those of the machine do not change.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.request import urlopen

_ROOT_SUITE: Final = "bookworm"
_ROOT_PACKAGES: Final = (
    "bpftool", "conntrack", "ethtool", "iproute2", "ipset", "iptables", "kmod", "libbpf1",
    "libnetfilter-queue1", "logrotate", "nftables", "procps", "python3", "python3-venv", "systemd",
    "util-linux",
)  # fmt: skip
# Additional packages for a machine that also runs other firewall programs.
_OWNERS: Final = (
    "apparmor", "busybox-static", "dbus", "docker.io", "firewalld", "libpam-systemd", "ufw",
)  # fmt: skip
# Required programs, each with its Debian package.
_PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "debootstrap": "debootstrap",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "xz": "xz-utils",
    "zstd": "zstd",
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of kernels.

    Attributes:
        name: Its name.
        suites: The suites that contain the kernels.
    """

    name: str
    suites: tuple[str, ...]


DEBIAN: Final = Distribution(
    "Debian", ("bullseye-security", "bookworm-security", "trixie", "trixie-backports")
)
UBUNTU: Final = Distribution("Ubuntu", ("focal-updates", "jammy-updates", "noble-updates"))
_DEBIAN_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UBUNTU_MIRROR: Final = "http://archive.ubuntu.com/ubuntu"
# Debian 12 has no package with Ubuntu's keys. This one has the archive's key of 2018, F6EC B376
# 2474 EDA9 D21B  7022 8719 20D1 991B C93C.
_UBUNTU_KEYS: Final = "ubuntu-keyring_2021.03.26_all.deb"
_UBUNTU_KEYS_SHA256: Final = "0d0e7ed6b112f5d03eabf3c7eb01ebdacf9c57714b279e90495cfc58c8c4520f"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a distribution.

    Attributes:
        name: Its name for `--kernel`.
        package: Pattern of the package's name; the newest match is used.
        distribution: Its distribution.
    """

    name: str
    package: re.Pattern[str]
    distribution: Distribution


# By age.
KERNELS: Final = {
    name: Kernel(name, re.compile(pattern), distribution)
    for name, pattern, distribution in (
        ("5.10", r"linux-image-5\.10\.0-\d+-cloud-amd64", DEBIAN),
        ("5.14", r"linux-image-5\.14\.0-\d+-oem", UBUNTU),
        ("5.15", r"linux-image-5\.15\.0-\d+-generic", UBUNTU),
        ("5.19", r"linux-image-5\.19\.0-\d+-generic", UBUNTU),
        ("6.1", r"linux-image-6\.1\.0-\d+-cloud-amd64", DEBIAN),
        ("6.8", r"linux-image-6\.8\.0-\d+-generic", UBUNTU),
        ("6.12", r"linux-image-6\.12\.\d+\+deb13-cloud-amd64", DEBIAN),
        ("7", r"linux-image-7\.[\d.]+\+deb13-cloud-amd64", DEBIAN),
    )
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A kernel in the cache.

    Attributes:
        release: Its `uname -r`.
        version: The version of its Debian package.
        image: The file to boot.
        modules: The folder of its modules.
        disk: A disk whose root holds that folder.
    """

    release: str
    version: str
    image: Path
    modules: Path
    disk: Path


def say(text: str) -> None:
    """Report progress."""
    sys.stdout.write(f"kernels: {text}\n")
    sys.stdout.flush()


def cache_folder() -> Path:
    """`KERNELS_DIR`, or a folder by the XDG base directories."""
    chosen = os.environ.get("KERNELS_DIR")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nfq-guard" / "kernels"


def install_programs() -> None:
    """Install the Debian packages of missing programs."""
    path = os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for name, package in _PROGRAMS.items() if not shutil.which(name, path=path)]
    if not _DEBIAN_KEYS.exists():
        missing.append("debian-archive-keyring")
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"kernels: please install what these Debian packages provide: {missing}")
    say(f"installing Debian packages: {' '.join(missing)}")
    run("apt-get", "-qq", "update")
    run("apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing)


def fetch_root(cache: Path, *, with_owners: bool) -> Path:
    """The folder of the root file system, which is built unless it is in the cache.

    Args:
        cache: The cache.
        with_owners: Whether to include other programs that install packet filter rules.
    """
    name = "root-owners" if with_owners else "root"
    folder, made = cache / name, cache / f"{name}.packages"
    packages = _ROOT_PACKAGES + (_OWNERS if with_owners else ())
    wanted = " ".join((_ROOT_SUITE, *packages))
    if folder.exists() and made.exists() and made.read_text(encoding="ascii") == wanted:
        return folder
    say(f"building the root file system, Debian {_ROOT_SUITE}")
    made.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    run(
        "debootstrap", "--variant=minbase", f"--include={','.join(packages)}",
        _ROOT_SUITE, str(folder), mirror(_ROOT_SUITE),
    )  # fmt: skip
    shutil.rmtree(folder / "var/cache/apt/archives")
    made.write_text(wanted, encoding="ascii")
    return folder


def fetch_kernels(cache: Path, names: list[str]) -> dict[str, Fetched]:
    """The kernels, downloaded unless they are in the cache."""
    lists_read = set()
    fetched = {}
    for name in names:
        folder = cache / "kernels" / name
        if not (folder / "package").exists():
            distribution = KERNELS[name].distribution
            apt = partial(_apt, cache, distribution)
            if distribution not in lists_read:
                apt("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")
                lists_read.add(distribution)
            _fetch_kernel(apt, KERNELS[name], folder)
        (modules,) = (folder / "lib" / "modules").iterdir()
        version = (folder / "package").read_text(encoding="ascii").split()[1]
        fetched[name] = Fetched(
            modules.name, version, folder / "vmlinuz", modules, folder / "modules.disk"
        )
    return fetched


def _fetch_kernel(apt: Callable[..., str], kernel: Kernel, folder: Path) -> None:
    found = apt("apt-cache", "search", "--names-only", "^linux-image-").splitlines()
    packages = [line.split()[0] for line in found if kernel.package.fullmatch(line.split()[0])]
    if not packages:
        sys.exit(
            f"kernels: no package of {kernel.distribution.name} matches {kernel.package.pattern}"
        )
    package = max(packages, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    say(f"downloading {package}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # From 7.x on, Debian's image and modules are separate packages, like Ubuntu's, which has rarer
    # modules in a third one.
    depends = apt("apt-cache", "depends", package)
    parts = [package, *re.findall(r"Depends: (linux-(?:binary|modules)-\S+)", depends)]
    more = package.replace("linux-image", "linux-modules-extra")
    parts += apt("apt-cache", "search", "--names-only", f"^{re.escape(more)}$").split()[:1]
    shown = apt("apt-cache", "show", "--no-all-versions", package)
    (version,) = re.findall(r"^Version: (\S+)", shown, re.MULTILINE)
    unpacked = folder / "unpacked"
    for part in parts:
        apt("apt-get", "-qq", "download", part, cwd=folder)
    for file in folder.glob("*.deb"):
        run("dpkg-deb", "-x", str(file), str(unpacked))
        file.unlink()
    (image,) = (path for path in unpacked.rglob("vmlinuz*") if path.is_file())
    (modules,) = [path for lib in ("lib", "usr/lib") for path in unpacked.glob(f"{lib}/modules/*")]
    image.rename(folder / "vmlinuz")
    (folder / "lib").mkdir()
    modules.parent.rename(folder / "lib" / "modules")
    shutil.rmtree(unpacked)
    run("depmod", "-b", str(folder), modules.name)
    make_disk(folder / "lib" / "modules", folder / "modules.disk", "1200M")
    (folder / "package").write_text(f"{package} {version}\n", encoding="ascii")


def make_disk(folder: Path, disk: Path, size: str) -> None:
    """Write an ext4 file system with the contents of `folder`."""
    disk.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-d", str(folder), str(disk), size)


def mirror(suite: str, distribution: Distribution = DEBIAN) -> str:
    """The mirror of Debian that this machine uses, or the general one of Ubuntu."""
    if distribution is UBUNTU:
        return _UBUNTU_MIRROR
    kind = "debian-security" if suite.endswith("-security") else "debian"
    if shutil.which("apt-get"):
        sites = run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
        for site in sorted(set(sites.split())):
            if site.rstrip("/").endswith(f"/{kind}"):
                return site
    return f"http://deb.debian.org/{kind}"


def _apt(cache: Path, distribution: Distribution, *words: str, cwd: Path | None = None) -> str:
    folder = cache / f"apt-{distribution.name.lower()}"
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    keyring = _DEBIAN_KEYS if distribution is DEBIAN else _ubuntu_keys(cache)
    lines = [
        f"deb [signed-by={keyring}] {mirror(suite, distribution)} {suite} main\n"
        for suite in distribution.suites
    ]
    (folder / "sources.list").write_text("".join(lines), encoding="ascii")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    return run(words[0], *options, *words[1:], cwd=cwd)


def _ubuntu_keys(cache: Path) -> Path:
    """The keys of Ubuntu's archive, from a package with a known digest."""
    folder = cache / "ubuntu-keyring"
    if not folder.exists():
        address = f"{_UBUNTU_MIRROR}/pool/main/u/ubuntu-keyring/{_UBUNTU_KEYS}"
        package = cache / _UBUNTU_KEYS
        try:
            with urlopen(address, timeout=60) as response:  # noqa: S310 - the address is ours
                package.write_bytes(response.read())
        except OSError as error:
            sys.exit(f"kernels: {address} cannot be downloaded: {error}")
        if hashlib.sha256(package.read_bytes()).hexdigest() != _UBUNTU_KEYS_SHA256:
            sys.exit(f"kernels: {address} is not the package with Ubuntu's keys")
        run("dpkg-deb", "-x", str(package), str(folder))
    return folder / "usr/share/keyrings/ubuntu-archive-keyring.gpg"


def run(*words: str, cwd: Path | None = None) -> str:
    """The output of a command; a failure ends this program with one line."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        # apt and debootstrap mark errors, and print advice after them.
        errors = [line for line in said if line.startswith("E: ")] or said[-1:]
        why = errors[0].removeprefix("E: ") if errors else f"status {done.returncode}"
        sys.exit(f"kernels: {words[0]} failed: {why}")
    return done.stdout
