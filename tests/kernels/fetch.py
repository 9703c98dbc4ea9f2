# SPDX-License-Identifier: MIT
"""Downloads Debian's kernels and builds the root file system they boot, once, into a cache folder.

apt works with lists and a package cache of its own, so that the machine's are left as they are.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT_SUITE: Final = "bookworm"
_ROOT_PACKAGES: Final = (
    "bpftool", "conntrack", "ethtool", "iproute2", "ipset", "iptables", "kmod", "libbpf1",
    "libnetfilter-queue1", "logrotate", "nftables", "procps", "python3", "python3-venv", "systemd",
    "util-linux",
)  # fmt: skip
# For a machine that also runs programs with rules of their own.
_OWNERS: Final = (
    "apparmor", "busybox-static", "dbus", "docker.io", "firewalld", "libpam-systemd", "ufw",
)  # fmt: skip
# Program: the Debian package that has it.
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
_SUITES: Final = ("bullseye-security", "bookworm-security", "trixie", "trixie-backports")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of Debian.

    Attributes:
        name: As `--kernel` of this fixture takes it.
        package: Pattern of the package's name; the newest that matches is taken.
    """

    name: str
    package: re.Pattern[str]


KERNELS: Final = {
    name: Kernel(name, re.compile(pattern))
    for name, pattern in (
        ("5.10", r"linux-image-5\.10\.0-\d+-cloud-amd64"),
        ("6.1", r"linux-image-6\.1\.0-\d+-cloud-amd64"),
        ("6.12", r"linux-image-6\.12\.\d+\+deb13-cloud-amd64"),
        ("7", r"linux-image-7\.[\d.]+\+deb13-cloud-amd64"),
    )
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A kernel in the cache.

    Attributes:
        release: Its `uname -r`.
        version: The version of its Debian package.
        image: The file that boots.
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
    """`KERNELS_DIR`, or the place that the XDG base directories give."""
    chosen = os.environ.get("KERNELS_DIR")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nfq-guard" / "kernels"


def install_programs() -> None:
    """Install the Debian packages of what is missing."""
    path = os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for name, package in _PROGRAMS.items() if not shutil.which(name, path=path)]
    if not Path(_KEYRING).exists():
        missing.append("debian-archive-keyring")
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"kernels: please install what these Debian packages provide: {missing}")
    say(f"installing Debian packages: {' '.join(missing)}")
    run("apt-get", "-qq", "update")
    run("apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing)


def fetch_root(cache: Path, *, with_owners: bool) -> Path:
    """The folder of the root file system, built unless the cache has it with these packages.

    Args:
        cache: The cache.
        with_owners: Whether to include programs that have packet filter rules of their own.
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
    """The kernels, downloaded where the cache lacks them."""
    lists_read = False
    fetched = {}
    for name in names:
        folder = cache / "kernels" / name
        if not (folder / "package").exists():
            if not lists_read:
                _apt(cache, "apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")
                lists_read = True
            _fetch_kernel(cache, KERNELS[name], folder)
        (modules,) = (folder / "lib" / "modules").iterdir()
        version = (folder / "package").read_text(encoding="ascii").split()[1]
        fetched[name] = Fetched(
            modules.name, version, folder / "vmlinuz", modules, folder / "modules.disk"
        )
    return fetched


def _fetch_kernel(cache: Path, kernel: Kernel, folder: Path) -> None:
    found = _apt(cache, "apt-cache", "search", "--names-only", "^linux-image-").splitlines()
    packages = [line.split()[0] for line in found if kernel.package.fullmatch(line.split()[0])]
    if not packages:
        sys.exit(f"kernels: no package of Debian matches {kernel.package.pattern}")
    package = max(packages, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    say(f"downloading {package}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # From 7.x on the image and the modules are packages of their own.
    depends = _apt(cache, "apt-cache", "depends", package)
    parts = [package, *re.findall(r"Depends: (linux-(?:binary|modules)-\S+)", depends)]
    shown = _apt(cache, "apt-cache", "show", "--no-all-versions", package)
    (version,) = re.findall(r"^Version: (\S+)", shown, re.MULTILINE)
    unpacked = folder / "unpacked"
    for part in parts:
        _apt(cache, "apt-get", "-qq", "download", part, cwd=folder)
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
    make_disk(folder / "lib" / "modules", folder / "modules.disk", "600M")
    (folder / "package").write_text(f"{package} {version}\n", encoding="ascii")


def make_disk(folder: Path, disk: Path, size: str) -> None:
    """Write an ext4 file system that holds what is in `folder`."""
    disk.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-d", str(folder), str(disk), size)


def mirror(suite: str) -> str:
    """Where this machine gets Debian from."""
    kind = "debian-security" if suite.endswith("-security") else "debian"
    if shutil.which("apt-get"):
        sites = run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
        for site in sorted(set(sites.split())):
            if site.rstrip("/").endswith(f"/{kind}"):
                return site
    return f"http://deb.debian.org/{kind}"


def _apt(cache: Path, *words: str, cwd: Path | None = None) -> str:
    folder = cache / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lines = [f"deb [signed-by={_KEYRING}] {mirror(suite)} {suite} main\n" for suite in _SUITES]
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


def run(*words: str, cwd: Path | None = None) -> str:
    """What a command prints; the one line that names its failure ends this program."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        # apt and debootstrap mark what went wrong, and give advice after it.
        errors = [line for line in said if line.startswith("E: ")] or said[-1:]
        why = errors[0].removeprefix("E: ") if errors else f"status {done.returncode}"
        sys.exit(f"kernels: {words[0]} failed: {why}")
    return done.stdout
