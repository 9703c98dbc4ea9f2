# SPDX-License-Identifier: MIT
"""The features of the running kernel: built in, loaded, loaded on demand, or missing.

A module that is not loaded yet is not missing: the kernel loads the modules that the guard needs on
demand. The modules that can be loaded are listed in the modules' directory of the running kernel.
The list is more exact than the configuration, because distributions may ship modules in other
packages.
"""

import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self, final

from nfq_guard.doctor import collect
from nfq_guard.doctor.check import Check, note, ok, problem


class Feature(NamedTuple):
    """A kernel feature that the guard needs.

    Attributes:
        option: Option of the kernel's configuration.
        module: Name of the module if it is not built in.
        use: What it provides.
    """

    option: str
    module: str
    use: str


_CONNTRACK: Final = Feature("CONFIG_NF_CONNTRACK", "nf_conntrack", "connection tracking")
_QUEUE: Final = Feature(
    "CONFIG_NETFILTER_NETLINK_QUEUE", "nfnetlink_queue", "packet queueing to user space"
)
NEEDED: Final = (
    _CONNTRACK,
    Feature("CONFIG_NF_CT_NETLINK", "nf_conntrack_netlink", "flow lookup"),
    _QUEUE,
    Feature("CONFIG_NETFILTER_XT_TARGET_NFQUEUE", "xt_NFQUEUE", "iptables target NFQUEUE"),
    Feature("CONFIG_NETFILTER_XT_MATCH_CONNTRACK", "xt_conntrack", "iptables match on ctstate"),
)
KERNEL_LOG: Final = Feature(
    "CONFIG_NETFILTER_NETLINK_LOG", "nfnetlink_log", "log of INVALID packets to user space"
)
_NFT_QUEUE: Final = Feature("CONFIG_NFT_QUEUE", "nft_queue", "native nft rules that queue")

# The package with the modules that a minimal installation lacks, by ID or ID_LIKE of
# /etc/os-release. `{}` is the kernel's release.
_PACKAGES: Final = (
    ("ubuntu", "linux-modules-extra-{}"),
    ("debian", "linux-image-{}"),
    ("fedora", "kernel-modules-extra-{}"),
    ("rhel", "kernel-modules-extra-{}"),
    ("suse", "kernel-default, in place of kernel-default-base"),
)
_DISABLED: Final = re.compile(r"\s*(?:blacklist\s+(\S+)|install\s+(\S+)\s+\S*/(?:true|false)\b)")
_CONFIG_LINE: Final = re.compile(r"(CONFIG_\w+)=(.*)")
_SUFFIX: Final = re.compile(r"\.ko(?:\.\w+)?$")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFiles:
    """The facts about a running kernel, from the files of the machine.

    Attributes:
        release: Its release.
        options: Its configuration, without options that are not set; None if it cannot be read.
        available: Modules in its directory of modules; None if there is no such directory.
        builtin: Modules of other kernels that are built into this one.
        loaded: Modules that are loaded now.
        disabled: Modules that are excluded from automatic loading, each with the file that does so.
        may_load: Whether the kernel accepts modules at all.
        package: The package with further modules; empty if the distribution is unknown.
    """

    release: str
    options: Mapping[str, str] | None
    available: frozenset[str] | None
    builtin: frozenset[str]
    loaded: frozenset[str]
    disabled: Mapping[str, str]
    may_load: bool
    package: str

    @classmethod
    def read(cls, root: Path, release: str) -> Self:
        """Read them below the directory `root`, for a kernel of that release."""
        modules = next(
            (
                folder
                for folder in (root / "lib/modules" / release, root / "usr/lib/modules" / release)
                if folder.is_dir()
            ),
            None,
        )
        found = None if modules is None else collect.text(modules / "modules.dep")
        built_in = "" if modules is None else collect.text(modules / "modules.builtin")
        return cls(
            release=release,
            options=_options(root, release),
            available=None if not found else _names(found),
            builtin=_names(built_in),
            loaded=frozenset(
                line.split()[0] for line in collect.text(root / "proc/modules").splitlines() if line
            ),
            disabled=dict(_disabled(root)),
            may_load=collect.text(root / "proc/sys/kernel/modules_disabled").strip() != "1",
            package=_package(collect.text(root / "etc/os-release"), release),
        )

    def is_built_in(self, feature: Feature) -> bool:
        """Whether the feature is built into the kernel."""
        if self.options is not None and self.options.get(feature.option) == "y":
            return True
        return feature.module in self.builtin

    def unavailable(self, feature: Feature) -> tuple[str, str] | None:
        """Why the feature is missing and cannot be loaded, and the remedy; None if it is available.

        A feature counts as available if neither the configuration nor the modules can be read.
        """
        if self.is_built_in(feature) or feature.module in self.loaded:
            return None
        name = feature.module
        if self.available is None:
            return self._without_modules(feature)
        if name not in self.available:
            if self.options is not None and feature.option not in self.options:
                return f"{feature.option} is not set", "run a kernel that has it"
            where = self.package or "the package of this kernel that has further modules"
            return (
                f"the module {name} ({feature.option}) is not installed",
                f"install {where}",
            )
        if not self.may_load:
            return (
                f"the module {name} is not loaded, and kernel.modules_disabled is 1",
                f"load {name} before modules are disabled, for example in /etc/modules-load.d",
            )
        if name in self.disabled:
            return (
                f"the module {name} is not loaded, and {self.disabled[name]} excludes it from "
                "automatic loading",
                f"load it: modprobe {name}",
            )
        return None

    def _without_modules(self, feature: Feature) -> tuple[str, str] | None:
        if self.options is None:
            return None
        if feature.option not in self.options:
            return f"{feature.option} is not set", "run a kernel that has it"
        return (
            f"the module {feature.module} ({feature.option}) is not loaded, and /lib/modules has "
            f"none of the running kernel {self.release}",
            "start the kernel that is installed, or install the modules of this one"
            + (f" ({self.package})" if self.package else ""),
        )

    def is_pending(self, feature: Feature) -> bool:
        """Whether the feature is a module that will be loaded on demand."""
        return (
            self.available is not None
            and feature.module in self.available
            and feature.module not in self.loaded
            and not self.is_built_in(feature)
        )


def features(files: KernelFiles, *, native: bool = False) -> Iterator[Check]:
    """Whether the kernel has what the guard needs, or will load it.

    Args:
        files: The facts about this machine.
        native: Whether the configuration asks for native nft rules.
    """
    unknown = files.options is None and files.available is None
    missing = [
        (feature, why) for feature in NEEDED if (why := files.unavailable(feature)) is not None
    ]
    for feature, (what, todo) in missing:
        yield problem("kernel.options", f"{what}: no {feature.use}", todo)
    pending = [feature.module for feature in NEEDED if files.is_pending(feature)]
    if unknown and any(feature.module not in files.loaded for feature in NEEDED):
        yield note(
            "kernel.options",
            "the features of the kernel are unknown: neither /proc/config.gz nor /boot nor "
            "/lib/modules describes them",
        )
    elif not missing and pending:
        yield ok(
            "kernel.options",
            "the kernel has all that is needed; loaded on demand: " + ", ".join(pending),
        )
    elif not missing:
        yield ok("kernel.options", "the kernel has all that is needed")
    refused = files.unavailable(_NFT_QUEUE)
    if refused is not None and native:
        yield problem(
            "kernel.nft_queue",
            f'{refused[0]}: native nft rules cannot queue packets, and backend = "nftables"',
            'set backend = "auto"',
        )
    elif refused is not None:
        yield note(
            "kernel.nft_queue",
            f"{refused[0]}: native nft rules cannot queue packets",
            "let nfq-guard install its rules through iptables (either backend)",
        )


def queues(files: KernelFiles, *, present: bool) -> Check:
    """Whether packets can be queued to user space.

    Args:
        files: The facts about this machine.
        present: Whether /proc/net/netfilter/nfnetlink_queue exists.
    """
    if present:
        return ok("kernel.nfqueue", "NFQUEUE is available")
    refused = files.unavailable(_QUEUE)
    if refused is not None:
        return problem("kernel.nfqueue", f"NFQUEUE is missing: {refused[0]}", refused[1])
    if files.is_pending(_QUEUE) or (files.options or {}).get(_QUEUE.option) == "m":
        return ok(
            "kernel.nfqueue",
            "the module nfnetlink_queue is not loaded yet; the kernel loads it when the "
            "guard starts",
        )
    return note(
        "kernel.nfqueue",
        "/proc/net/netfilter/nfnetlink_queue does not exist; whether nfnetlink_queue can be loaded "
        "is not known",
        "start the guard: it names what is missing",
    )


def _options(root: Path, release: str) -> dict[str, str] | None:
    """The configuration from /proc/config.gz, /boot or the modules; None without one."""
    text = ""
    try:
        packed = (root / "proc/config.gz").read_bytes()
        text = gzip.decompress(packed).decode("utf-8", "replace")
    except (OSError, EOFError):
        pass
    for name in (f"boot/config-{release}", f"lib/modules/{release}/config"):
        text = text or collect.text(root / name)
    found = dict(_CONFIG_LINE.findall(text))
    return found or None


def _names(text: str) -> frozenset[str]:
    """Names of modules in modules.dep or modules.builtin; file names may have `-` for `_`."""
    return frozenset(
        _SUFFIX.sub("", line.partition(":")[0].rpartition("/")[2]).replace("-", "_")
        for line in text.splitlines()
        if line
    )


def _disabled(root: Path) -> Iterator[tuple[str, str]]:
    for folder in ("usr/lib/modprobe.d", "lib/modprobe.d", "run/modprobe.d", "etc/modprobe.d"):
        for path in sorted((root / folder).glob("*.conf")):
            for line in collect.text(path).splitlines():
                found = _DISABLED.match(line)
                if found is not None:
                    name = (found[1] or found[2]).replace("-", "_")
                    yield name, f"/{path.relative_to(root)}"


def _package(release_file: str, release: str) -> str:
    words: set[str] = set()
    for line in release_file.splitlines():
        name, _, value = line.partition("=")
        if name in {"ID", "ID_LIKE"}:
            words |= set(value.strip().strip("\"'").split())
    return next((form.format(release) for word, form in _PACKAGES if word in words), "")
