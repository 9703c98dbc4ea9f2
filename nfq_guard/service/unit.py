# SPDX-License-Identifier: MIT
"""Restrictions of the service unit's sandbox on a daemon, for `check`."""

import contextlib
import ipaddress
import os
import pwd
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, final

from nfq_guard import capabilities
from nfq_guard.errors import Mistake
from nfq_guard.firewall.xtables import Runner
from nfq_guard.policy.lint import Caution
from nfq_guard.policy.values import shown
from nfq_guard.policyfile import shadow_path
from nfq_guard.service.config import DEFAULT_PATH, DEFAULTS, Config
from nfq_guard.service.settings import JOURNAL, STDOUT, TABLE, Settings, parse_listen

UNDER_SYSTEMD: Final = "INVOCATION_ID"
"""A variable that systemd sets in every service."""

# RuntimeDirectory, StateDirectory and LogsDirectory of the unit.
_WRITABLE: Final = ("/run/nfq-guard", "/var/lib/nfq-guard", "/var/log/nfq-guard")
# What PrivateTmp= and ProtectHome= replace by directories of the unit's own, or hide.
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108 - names
_HOMES: Final = ("/home", "/root", "/run/user")
# As many as the kernel follows.
_LINKS_MAX: Final = 40
_LISTEN: Final = f"{TABLE}.metrics_listen"
_ROOT: Final = frozenset({"", "root", "0"})
_READS_ALL: Final = "cap_dac_read_search"


@final
class Sandbox(NamedTuple):
    """The restrictions of a unit on its service.

    Attributes:
        unit: The name of the unit; empty for the unit as shipped.
        sockets: Families of sockets that it may open; None for all.
        networks: Networks with which it may exchange packets; None for all.
        writable: Directories in which it may write; None for all.
        owned: Directories that systemd makes for it, and gives to its user.
        hidden: Directories of the host that the unit hides, or whose files it hides.
        reads_all: Whether it may read the files of root.
        user: The user of its service; empty for root.
        more_groups: Whether the service has groups besides those of that user.
    """

    unit: str = ""
    sockets: tuple[str, ...] | None = ("AF_UNIX", "AF_NETLINK")
    networks: tuple[str, ...] | None = ()
    writable: tuple[str, ...] | None = _WRITABLE
    owned: tuple[str, ...] = _WRITABLE
    hidden: tuple[str, ...] = (*_TEMPORARY, *_HOMES)
    reads_all: bool = False
    user: str = "nfq-guard"
    more_groups: bool = False


def sandbox_of(config: Path, runner: Runner) -> Sandbox | None:
    """The sandbox of the installed unit that runs a daemon with this file; None without one."""
    config = Path(os.path.normpath(config.absolute()))
    if not runner.find("systemctl"):
        return None
    unit, has = "nfq-guard", _properties("nfq-guard", runner)
    if config != _config_of(has):
        if config.parent != DEFAULT_PATH.parent or config == DEFAULT_PATH:
            return None
        unit = f"nfq-guard@{config.stem}"
        has = _properties(unit, runner)
    if has.get("LoadState") != "loaded":
        return None
    denied = has.get("IPAddressDeny", "")
    strict = has.get("ProtectSystem") == "strict"
    bounding = has.get("CapabilityBoundingSet", _READS_ALL).split()
    user = has.get("User", "")
    owned = [f"/{kind}/{name}" for kind, key in _DIRECTORIES for name in has.get(key, "").split()]
    return Sandbox(
        unit=f"{unit}.service",
        sockets=tuple(has.get("RestrictAddressFamilies", "").split()) or None,
        networks=tuple(has.get("IPAddressAllow", "").split()) if denied else None,
        writable=(*owned, *_paths(has.get("ReadWritePaths", ""))) if strict else None,
        owned=tuple(owned),
        hidden=tuple(_hidden(has)),
        reads_all=_READS_ALL in has.get("AmbientCapabilities", "").split()
        or (user in _ROOT and _READS_ALL in bounding),
        user="" if user in _ROOT else user,
        more_groups=has.get("Group", "") not in {"", user} or bool(has.get("SupplementaryGroups")),
    )


def _properties(unit: str, runner: Runner) -> dict[str, str]:
    done = runner.run(["systemctl", "show", f"{unit}.service"], "")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _config_of(has: Mapping[str, str]) -> Path:
    """The file of the service, which a drop-in may name in the variable CONFIG."""
    words: list[str] = []
    with contextlib.suppress(ValueError):  # of a value that a shell would quote otherwise
        words = shlex.split(has.get("Environment", ""))
    named = [word.removeprefix("CONFIG=") for word in words if word.startswith("CONFIG=")]
    return Path(named[-1]) if named else DEFAULT_PATH


_DIRECTORIES: Final = (
    ("run", "RuntimeDirectory"),
    ("var/lib", "StateDirectory"),
    ("var/log", "LogsDirectory"),
)


def _hidden(has: Mapping[str, str]) -> Iterator[str]:
    """The directories that the properties of a unit hide."""
    if has.get("PrivateTmp", "no") != "no":
        yield from _TEMPORARY
    if has.get("ProtectHome", "no") in {"yes", "tmpfs"}:
        yield from _HOMES
    yield from _paths(has.get("InaccessiblePaths", ""))
    yield from (path.partition(":")[0] for path in _paths(has.get("TemporaryFileSystem", "")))


def _paths(text: str) -> list[str]:
    """The paths of a property, without the prefixes `-` and `+`."""
    return [re.sub(r"^[-+]+", "", word) for word in text.split()]


def mistakes(settings: Settings, source: str, sandbox: Sandbox) -> Iterator[Mistake]:
    """The settings of the file `source` that do not work in a sandbox."""
    unit = sandbox.unit
    if settings.user and sandbox.user not in {"", settings.user}:
        yield Mistake(
            f"{TABLE}.user", f"nothing, because {unit} runs as {sandbox.user}", shown(settings.user)
        )
    address = parse_listen(settings.metrics_listen)
    if address is not None:
        host = _host(address[0])
        family = "AF_INET6" if host.version == 6 else "AF_INET"
        if sandbox.sockets is not None and family not in sandbox.sockets:
            yield Mistake(_LISTEN, f"the drop-in metrics.conf for {unit}", "none")
        elif not host.is_loopback and not _reaches_others(sandbox):
            yield Mistake(
                _LISTEN,
                "an address of this host alone, such as '127.0.0.1:9477', or a drop-in for "
                f"{unit} with IPAddressAllow= and the networks that may connect",
                shown(settings.metrics_listen),
            )
    for key, what, path in _written(settings):
        if not _may_write(path, sandbox):
            yield Mistake(
                f"{TABLE}.{key}",
                f"a {what} in {', '.join(sandbox.writable or ('a directory that it sees',))}, or a "
                f"drop-in for {unit} with ReadWritePaths=",
                shown(path) + _leads(path),
            )
    for key, what, path in _read(settings, source):
        if _is_hidden(path, sandbox):
            yield Mistake(
                f"{TABLE}.{key}",
                f"a {what} that {unit} sees: its sandbox hides {', '.join(sandbox.hidden)}",
                shown(path) + _leads(path),
            )


def refused(config: Config, sandbox: Sandbox) -> list[Mistake]:
    """Why the service cannot use a configuration that has no mistake by itself.

    Call it while the process has only one thread.
    """
    if config.source == DEFAULTS:
        # Only `nfq-guard run` without --config starts without a file.
        return [Mistake("", f"the file that {sandbox.unit} starts with", f"no {DEFAULT_PATH}")]
    found = list(mistakes(config.settings, config.source, sandbox))
    if found:
        return found
    unread = _unread(config.files, sandbox)
    return [*_unwritten(config.settings, sandbox)] if unread is None else [unread]


def _unread(files: Iterable[str], sandbox: Sandbox) -> Mistake | None:
    """A file of a configuration that the service cannot read, although root can."""
    paths = [Path(name).absolute() for name in files]
    for path in paths:
        if _is_hidden(str(path), sandbox):
            hidden = ", ".join(sandbox.hidden)
            expected = f"files that {sandbox.unit} sees: its sandbox hides {hidden}"
            return Mistake("", expected, f"{path}{_leads(str(path))}")
    barred = _barred(paths, sandbox)
    if barred is None:
        return None
    return Mistake(
        "",
        f"files that {sandbox.unit} may read as {sandbox.user}",
        f"{barred}{_leads(str(barred))}",
    )


def _unwritten(settings: Settings, sandbox: Sandbox) -> Iterator[Mistake]:
    """Settings that name what the service cannot write, although root can."""
    owned = {_places(name)[-1] for name in sandbox.owned}
    for key, what, name in _written(settings):
        path = Path("/", name)
        # A log continues; the other files are made anew, beside an earlier one.
        continued = key in {"log", "events_file"} and path.exists()
        place = path if continued or what == "directory" else path.parent
        if _places(str(place))[-1] in owned or path.is_relative_to("/dev"):
            continue
        if _barred([place], sandbox, os.W_OK if continued else os.W_OK | os.X_OK):
            expected = f"a {what} that {sandbox.unit} may write as {sandbox.user}"
            yield Mistake(f"{TABLE}.{key}", expected, shown(name))
        elif os.geteuid() == 0 and not place.exists():
            expected = "a directory that exists"
            if what != "directory":
                expected = f"a {what} in {expected}"
            yield Mistake(f"{TABLE}.{key}", expected, shown(name))


def _barred(paths: list[Path], sandbox: Sandbox, mode: int = os.R_OK) -> Path | None:
    """The first file that the user of the service may not access; None where that is unknown."""
    if not sandbox.user or sandbox.more_groups or os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(sandbox.user)
    except KeyError:
        return None
    kept = 1 << capabilities.DAC_READ_SEARCH if sandbox.reads_all else 0
    return capabilities.first_barred(kept, user, ((path, mode) for path in paths))


def cautions(settings: Settings, source: str) -> Iterator[Caution]:
    """Settings of the file `source` that work in the unit, as shipped, only with a drop-in.

    For a file that the unit does not use (see `sandbox_of`): another program may run the daemon.
    """
    address = parse_listen(settings.metrics_listen)
    if address is not None and not _host(address[0]).is_loopback:
        yield Caution(
            _LISTEN,
            source,
            "",
            f"{settings.metrics_listen} is reachable only from this host if the service unit runs "
            "the daemon; a drop-in with IPAddressAllow= names the networks that may connect",
        )
    for key, what, path in _written(settings):
        # A daemon without the unit has its control socket anywhere.
        if key != "control_socket" and not _may_write(path, Sandbox()):
            of_file = "of " if what == "file" else ""
            yield Caution(
                f"{TABLE}.{key}",
                source,
                "",
                f"the service unit may write only in {', '.join(_WRITABLE)}; a drop-in with "
                # The unit's directory is the root.
                f"ReadWritePaths= adds the directory {of_file}{PurePosixPath('/', path)}",
            )


def unread_pods(settings: Settings, source: str, sandbox: Sandbox) -> Iterator[Caution]:
    """Whether the daemon in a sandbox may not read `pods_dir`: events name no pods then."""
    if not settings.pods_dir or sandbox.reads_all:
        return
    yield Caution(
        f"{TABLE}.pods_dir",
        source,
        "",
        f"{sandbox.unit} may not read files of root, as those in {settings.pods_dir} are, so "
        "events name no pod; the drop-in pods.conf lets it "
        f"(AmbientCapabilities={_READS_ALL.upper()})",
    )


def _written(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Settings that name files or directories that the daemon writes: key, kind and path."""
    for name in settings.logs:
        if name not in {STDOUT, JOURNAL}:
            yield "log", "file", name
    for key, what, path in (
        ("events_file", "file", settings.events_file),
        ("metrics_file", "file", settings.metrics_file),
        ("capture_dir", "directory", settings.capture_dir),
        ("control_socket", "socket", settings.control_socket),
    ):
        if path:
            yield key, what, path


def _read(settings: Settings, source: str) -> Iterator[tuple[str, str, str]]:
    """Settings of the file `source` that name what the daemon reads: key, kind and path."""
    shadow = shadow_path(settings.shadow, source)
    if shadow is not None:
        yield "shadow", "file", str(shadow.absolute())
    if settings.pods_dir:
        yield "pods_dir", "directory", settings.pods_dir


def only_from_here(settings: Settings) -> bool:
    """Whether `metrics_listen` is an address at which only this host can connect, or is not set."""
    address = parse_listen(settings.metrics_listen)
    return address is None or _host(address[0]).is_loopback


def _may_write(file: str, sandbox: Sandbox) -> bool:
    if _is_hidden(file, sandbox):
        return False
    path = _places(file)[-1]
    if path.is_relative_to("/dev"):
        return True  # ProtectSystem=strict leaves it out
    return sandbox.writable is None or _is_in(path, sandbox.writable)


def _is_hidden(file: str, sandbox: Sandbox) -> bool:
    return any(_is_in(place, sandbox.hidden) for place in _places(file))


def _is_in(place: PurePosixPath, folders: Iterable[str]) -> bool:
    """Whether a place is in one of the folders, or in what a link of that name leads to."""
    return any(
        place.is_relative_to(folder) or place.is_relative_to(_places(folder)[-1])
        for folder in folders
    )


def _places(file: str) -> list[PurePosixPath]:
    """The path of a file, and what each symbolic link on the way makes of it; the last has none."""
    path = Path("/", file)
    places = [path]
    # A link that this user may not see is not followed.
    with contextlib.suppress(OSError):
        for _ in range(_LINKS_MAX):
            way = (*reversed(path.parents), path)
            link = next((one for one in way if one.is_symlink()), None)
            if link is None or link.is_relative_to("/dev") or link.is_relative_to("/proc"):
                break  # these lead each process elsewhere
            path = link.parent / link.readlink() / path.relative_to(link)
            places.append(path)
    return [PurePosixPath(os.path.normpath(one)) for one in places]


def _leads(file: str) -> str:
    """Where the links on the way to a file lead; empty without one."""
    places = _places(file)
    return "" if places[0] == places[-1] else f", which leads to {places[-1]}"


def _reaches_others(sandbox: Sandbox) -> bool:
    if sandbox.networks is None:
        return True
    allowed = (ipaddress.ip_network(text, strict=False) for text in sandbox.networks)
    return any(not network.is_loopback for network in allowed)


def _host(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address; for a name other than `localhost`, an address that other hosts can reach."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return ipaddress.ip_address("127.0.0.1" if text == "localhost" else "0.0.0.0")  # noqa: S104 - it is compared, not bound
